"""Host A fails for good; host B, a fresh interpreter, resumes the job that A saved at retry 2 of 4.

The two share only the saved file and the outside world: a tax service (a file) that refuses. B
reads all its facts from the file: the rows "B found" come from B's own process. All times are
virtual and exact to the nanosecond.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

import pytest

from routilux import ExecutionMonitor, FakeClock, Runtime, SavedState
from routilux.clocks.durations import SECOND, from_ns, instant_ns, seconds_text
from showcase.recovery import TaxService, served_pipeline, what_was_loaded

if TYPE_CHECKING:
    from pytest_routilux import FlowHosts, FlowReport
    from pytest_routilux.hosts.flow_hosts import HostResult
    from pytest_routilux.report.flow_report import Verification
    from routilux import Commit, Flow, JobState, StepInput

Moment = Literal["at the commit", "during the wait", "between commits", "paused"]

START: Final = "2026-01-03T12:59:04"
REQUEST: Final = "req-2026-0001"
ALWAYS: Final = 99
HOUR: Final = 3600 * SECOND

# Nanoseconds since the job's start: attempt 2 fails at 2.1 s, attempt 3 is due 0.45 s later.
RETRY_2: Final = 2_100_000_000
DUE: Final = 2_550_000_000
ATTEMPT: Final = 500_000_000
DELAYS: Final = (675_000_000, 1_012_500_000)
END_OF_A: Final = 5_737_500_000

MOMENTS: Final[dict[Moment, int]] = {
    "at the commit": RETRY_2,
    "during the wait": 2_300_000_000,
    "between commits": 2_700_000_000,  # during attempt 3
    "paused": 2_300_000_000,
}
MEMBERS: Final = [
    "format",
    "flow",
    "job_state",
    "saved_at",
    "saved_at_iso",
    "retry_count",
    "execution_history_count",
    "monitor_summary",
    "digest",
]


@dataclass(frozen=True, slots=True)
class Variant:
    """How A saves, the service that B calls, and B's attempt 3 (ns since the job's start)."""

    attempt_3: int
    moment: Moment = "at the commit"
    refusals_on_b: int = ALWAYS
    clock_of_b: int = 0  # ahead of the moment at which A saved, in ns
    strategy: Literal["sequential", "concurrent"] = "sequential"


VARIANTS: Final = {
    "B fails as A did": Variant(DUE),
    "the fault has cleared on B": Variant(DUE, refusals_on_b=0),
    "the fault clears at B's second try": Variant(DUE, refusals_on_b=1),
    "saved during the wait": Variant(DUE, "during the wait"),
    "saved while attempt 3 ran": Variant(MOMENTS["between commits"], "between commits"),
    "saved while paused": Variant(DUE, "paused"),
    "B starts an hour late": Variant(RETRY_2 + HOUR, clock_of_b=HOUR),
    "B's clock is an hour behind": Variant(DUE, clock_of_b=-HOUR),
    "B runs concurrently": Variant(DUE, refusals_on_b=0, strategy="concurrent"),
}
IN_FULL: Final = ("B fails as A did", "the fault has cleared on B")


class AtRetry2:
    """An observer that saves at the commit of retry 2, while the job runs."""

    def __init__(self, flow: Flow, path: Path, monitor: ExecutionMonitor) -> None:
        self.flow = flow
        self.path = path
        self.monitor = monitor

    def on_commit(self, job: JobState, commit: Commit) -> None:
        if commit.kind == "retry" and commit.attempt == 2:
            SavedState.capture(self.flow, job, self.monitor).write(self.path)


class Steps:
    """An observer that keeps the steps that have started."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Ignore commits."""

    def on_step(self, job: JobState, step: StepInput) -> None:
        self.started.append((step.task.routine_id, step.attempt))


def run_host_a(flow: Flow, moment: Moment, path: Path) -> JobState:
    """Save the job at a moment, then run it to its end."""
    params = {"request_id": REQUEST}
    if moment == "at the commit":
        monitor = ExecutionMonitor()
        saver = AtRetry2(flow, path, monitor)
        with Runtime(clock=FakeClock(START), observers=[monitor, saver]) as runtime:
            job = runtime.execute(flow, "data_fetch", params, job_id="order-17")
            assert not runtime.observer_failures
            return job

    clock = FakeClock(START, autojump=False)
    steps = Steps()
    with Runtime(clock=clock, observers=[steps]) as runtime:
        run = runtime.start(flow, "data_fetch", params, job_id="order-17")
        clock.advance(timedelta(microseconds=MOMENTS[moment] // 1000))
        if moment == "paused":
            run.pause()
        run.checkpoint(path)
        in_flight = moment == "between commits"
        assert ("data_process", 3 if in_flight else 2) == steps.started[-1]
        clock.autojump = True
        job = run.wait()
        return runtime.resume(flow, job) if moment == "paused" else job


@pytest.mark.parametrize("name", VARIANTS)
def test_another_host_resumes_where_the_first_one_saved(
    name: str, flow_hosts: FlowHosts, flow_report: FlowReport, tmp_path: Path
) -> None:
    variant = VARIANTS[name]
    path = tmp_path / "order-17.json"
    service = TaxService(str(tmp_path / "tax-service.json"))
    service.refuse_next(ALWAYS)

    a = run_host_a(served_pipeline(service.address), variant.moment, path)
    document = path.read_bytes()
    service.refuse_next(variant.refusals_on_b)
    saved_at = instant_ns(START) + MOMENTS[variant.moment]
    b = flow_hosts.resume(
        path,
        imports=["showcase.recovery"],
        clock_start=from_ns(saved_at + variant.clock_of_b),
        execution_strategy=variant.strategy,
        look=what_was_loaded,
    )

    if name in IN_FULL:
        show(flow_report, a, path, b)
    title = f"{name}: retry 2 of 4 at {seconds_text(MOMENTS[variant.moment])} s, then B"
    with flow_report.verification(title, brief=name not in IN_FULL) as verify:
        check_document(verify, json.loads(document), saved_at)
        check_what_b_found(verify, a, b, variant)
        check_what_b_did(verify, b, variant, service)
        check_a(verify, a, service)
        verify.that("file: as A left it", document == path.read_bytes(), f"{len(document):,} bytes")


def show(report: FlowReport, a: JobState, path: Path, b: HostResult) -> None:
    report.timeline(a, title=f"🖥  Host A, pid {os.getpid()}")
    report.status(a, max_retries=4)
    state = SavedState.read(path)
    report.saved_state(state, path, title="💾 The file of A at retry 2 of 4")
    report.status(state.job, max_retries=4)
    report.timeline(b.monitor, title=f"🖥  Host B, pid {b.pid}: a fresh interpreter")
    report.status(b.job, max_retries=4)
    report.retries(b.monitor, title="Retry timeline across both hosts")


def exact(*lengths: int) -> str:
    """Return lengths in ns as seconds, all digits that are not zero."""
    return " ".join(seconds_text(length, 9).rstrip("0").rstrip(".") for length in lengths) or "none"


def check_document(verify: Verification, document: dict[str, object], saved_at: int) -> None:
    verify.that("file: its members", MEMBERS == list(document), ", ".join(document))
    verify("file: retry_count", 2, document["retry_count"])
    verify("file: history count", 2, document["execution_history_count"])
    verify(
        "file: monitor_summary",
        {"events": 2, "data_flows": 1, "state_changes": 1},
        document["monitor_summary"],
    )
    verify("file: saved_at", saved_at / SECOND, document["saved_at"])
    verify("file: saved_at_iso", from_ns(saved_at).isoformat(), document["saved_at_iso"])


def check_what_b_found(verify: Verification, a: JobState, b: HostResult, variant: Variant) -> None:
    seen = b.seen
    status = "paused" if variant.moment == "paused" else "running"
    verify.that("B is another process", os.getpid() != b.pid == seen["pid"], f"pid {b.pid}")
    verify("B found: status", status, seen["status"])
    verify("B found: retry count", 2, seen["retry_count"])
    verify("B found: next attempt", "data_process 3", seen["next"])
    verify("B found: history", ["start", "output"], seen["history"])
    verify("B found: request id", REQUEST, seen["request_id"])
    verify("B found: items", 3, seen["items"])
    verify("B found: total_items", 3, seen["total_items"])
    emitted = dict(a.execution_history[1].data)
    verify.that("B found: payload as sent", emitted == seen["payload"], ", ".join(seen["payload"]))


def check_what_b_did(
    verify: Verification, b: HostResult, variant: Variant, service: TaxService
) -> None:
    refused = min(variant.refusals_on_b, 3)
    clears = refused < 3
    attempts = list(range(3, 3 + refused + clears))
    delays = DELAYS[: len(attempts) - 1]
    starts = [variant.attempt_3]
    for delay in delays:
        starts.append(starts[-1] + ATTEMPT + delay)
    resumed = next(commit for commit in b.job.commits if commit.kind == "resumed")
    made = [
        (commit.attempt, cast(int, commit.started_ns))
        for commit in b.job.commits
        if commit.routine_id == "data_process" and commit.seq > resumed.seq
    ]

    verify("B made: attempts, by service", attempts, service.attempts_of(b.pid))
    thread = "pool" if variant.strategy == "concurrent" else "main"
    verify("B made them on threads of", {thread}, service.threads_of(b.pid))
    verify("B made: attempts, by job", attempts, [attempt for attempt, _ in made])
    verify(
        "B began them at, s",
        exact(*starts),
        exact(*(started_ns - b.job.started_ns for _, started_ns in made)),
    )
    rest = made[0][1] - resumed.at_ns
    verify.that("B waited the rest, ≤ 0.45 s", 0 <= rest <= DUE - RETRY_2, f"{exact(rest)} s")
    waited = [cast(int, retry.actual_ns) for retry in b.monitor.retries[2:]]
    verify("B waited afterwards, s", exact(*delays), exact(*waited))
    times = [commit.at_ns for commit in b.job.commits]
    verify.that(
        "time never ran back",
        all(earlier <= later for earlier, later in pairwise(times)),
        f"{len(times)} commits",
    )
    verify("B ended: status", "completed" if clears else "failed", b.job.status.value)
    verify("B ended: retry count", len(attempts) + 1, b.job.retry_count("data_process"))
    ran = [b.job.routine_states[name].attempts for name in ("data_validator", "data_storage")]
    verify("B: validator, storage ran", [int(clears)] * 2, ran)
    transactions = [output.data["transaction"] for output in b.job.outputs]
    stored = [(t["rows"], t["request_id"]) for t in cast("list[dict[str, object]]", transactions)]
    verify("B: stored rows, request", [(3, REQUEST)] * clears, stored)


def check_a(verify: Verification, a: JobState, service: TaxService) -> None:
    verify("A ended: status", "failed", a.status.value)
    verify("A made: attempts, by service", [1, 2, 3, 4, 5], service.attempts_of(os.getpid()))
    verify("A ended: retry count", 4, a.retry_count("data_process"))
    verify("A ended at, s", exact(END_OF_A), exact(a.updated_ns - a.started_ns))
