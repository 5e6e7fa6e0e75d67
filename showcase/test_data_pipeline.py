"""Fetch → process → validate → store, where processing fails 0 to 5 times and has 4 retries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import pytest

from routilux import FakeClock, JobStatus, Runtime
from routilux.clocks.durations import seconds_text
from showcase.flows import data_pipeline

if TYPE_CHECKING:
    from pytest_routilux import FlowMonitor, FlowReport
    from routilux import ExecutionStrategy, JobState
    from showcase.routines.pipeline import Order

STRATEGIES: Final[tuple[ExecutionStrategy, ...]] = ("sequential", "concurrent")

REQUEST: Final = "req-2026-0001"

# Seconds, exact. An attempt takes 0.5; the wait before retry k is 0.3 × 1.5^(k-1).
WAITS: Final = ("0.3", "0.45", "0.675", "1.0125")
ATTEMPTS: Final = ("0.8–1.3", "1.6–2.1", "2.55–3.05", "3.725–4.225", "5.2375–5.7375")


@dataclass(frozen=True)
class Expected:
    """The expected result, by the number of failures before success."""

    status: str
    attempts: int
    ended: str
    history: str = "start output output output output"
    deliveries: int = 3
    downstream: int = 1


EXPECTED: Final = {
    0: Expected("completed", 1, "1.3"),
    1: Expected("completed", 2, "2.1"),
    2: Expected("completed", 3, "3.05"),
    3: Expected("completed", 4, "4.225"),
    4: Expected("completed", 5, "5.7375"),
    5: Expected("failed", 5, "5.7375", "start output error", deliveries=1, downstream=0),
}


def seconds(length: int) -> str:
    """Return a length in nanoseconds as seconds, with every digit that it has."""
    return seconds_text(length, 9).rstrip("0").rstrip(".")


def attempts(job: JobState) -> str:
    """Return when each attempt to process began and ended, in seconds since the job's start."""
    return " ".join(
        f"{seconds(cast(int, commit.started_ns) - job.started_ns)}"
        f"–{seconds(commit.at_ns - job.started_ns)}"
        for commit in job.commits
        if commit.routine_id == "data_process"
    )


def is_taxed(job: JobState) -> bool:
    rows = cast("list[dict[str, float]]", job.shared_data["rows"])
    return all(row["gross"] == round(row["price"] * 1.2, 2) for row in rows)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("failures", EXPECTED, ids=lambda failures: f"fails-{failures}x")
def test_every_wait_is_exact(
    failures: int,
    strategy: ExecutionStrategy,
    flow_runtime: Runtime,
    flow_clock_bare: FakeClock,
    flow_monitor: FlowMonitor,
    flow_report: FlowReport,
) -> None:
    expected = EXPECTED[failures]

    job = data_pipeline(failures, strategy).execute("data_fetch", {"request_id": REQUEST})

    in_full = strategy == "sequential" and failures in (2, 5)
    if in_full:
        flow_report.timeline(
            flow_monitor, title=f"🏭 Data pipeline: processing fails {failures}×, {strategy}"
        )
        flow_report.status(job, max_retries=4)
        flow_report.retries(job, title="Retry timeline")
        flow_report.summary(job, title="Summary")
    process = job.routine_states["data_process"]
    validator = job.routine_states["data_validator"]
    storage = job.routine_states["data_storage"]
    delivered = [cast("dict[str, Order]", flow.payload)["data"] for flow in flow_monitor.data_flows]
    ended = seconds(job.updated_ns - job.started_ns)
    title = f"Fails {failures}×, {strategy}: {job.status.value} after exactly {ended} s"
    with flow_report.verification(title, brief=not in_full) as verify:
        verify("status of the job", expected.status, job.status.value)
        verify("ended, s", expected.ended, ended)
        verify("attempts to process", expected.attempts, process.attempts)
        verify("retries spent", expected.attempts - 1, job.retry_count("data_process"))
        verify(
            "waits between attempts, s",
            " ".join(WAITS[: expected.attempts - 1]),
            " ".join(seconds(retry.actual_ns or 0) for retry in flow_monitor.retries),
        )
        verify("attempts, s", " ".join(ATTEMPTS[: expected.attempts]), attempts(job))
        verify("history", expected.history, " ".join(r.event for r in job.execution_history))
        verify("items on the way", [3] * expected.deliveries, [len(d["items"]) for d in delivered])
        verify(
            "their count on the way",
            [3] * expected.deliveries,
            [d["total_items"] for d in delivered],
        )
        verify("request ids on the way", {REQUEST}, {d["request_id"] for d in delivered})
        verify("runs of the validator", expected.downstream, validator.attempts)
        verify("runs of the storage", expected.downstream, storage.attempts)
        if job.status is JobStatus.COMPLETED:
            (transaction,) = (output.data["transaction"] for output in job.outputs)
            verify("rows stored", 3, len(cast("list[object]", job.shared_data["rows"])))
            verify("transactions", [transaction], job.shared_data["transactions"])
            verify.that("prices have tax", is_taxed(job), "20 % in every row")


@pytest.mark.parametrize("failures", EXPECTED, ids=lambda failures: f"fails-{failures}x")
def test_both_strategies_have_the_same_history(failures: int) -> None:
    sequential, concurrent = (
        data_pipeline(failures, strategy).execute(
            "data_fetch",
            {"request_id": REQUEST},
            job_id="the-same",
            runtime=Runtime(clock=FakeClock()),
        )
        for strategy in STRATEGIES
    )

    assert sequential == concurrent
    assert sequential.commits == concurrent.commits
    assert sequential.execution_history == concurrent.execution_history
