"""Texts of the parts of a report: timeline, status, summary, retries and saved state."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType

from pytest_routilux.report.tables import retries, saved_state, status, summary, timeline
from routilux import (
    ErrorHandler,
    ExecutionMonitor,
    FakeClock,
    Flow,
    JobState,
    Routine,
    Runtime,
    SavedState,
)
from tests.routines import Works, chain, fan, retrying, saveable, sends


def fetch(self: Routine, request_id: str) -> None:
    self.ctx.sleep(0.8)
    items = [{"id": k, "name": f"item {k}"} for k in (1, 2, 3)]
    self.emit(
        "out",
        data={"items": items, "request_id": request_id},
        metadata={"source": "shop", "schema": 1},
        timestamp=self.ctx.now().isoformat(),
    )


class Process(Works):
    """Fails `failures` times; has a saved form."""

    def __init__(self, failures: int, seconds: float, strategy: str) -> None:
        def process(self: Routine, data: object) -> None:
            self.ctx.sleep(seconds)
            if self.ctx.attempt <= failures:
                raise ValueError(f"busy, try {self.ctx.attempt}")

        options = (4, 0.3, 1.5) if strategy == "retry" else ()
        super().__init__(process, ErrorHandler(strategy, *options))


def pipeline(failures: int, strategy: str = "retry", *, seconds: float = 0.5) -> Flow:
    return chain(
        data_fetch=saveable(fetch, out=["data", "metadata", "timestamp"]),
        data_process=Process(failures, seconds, strategy),
    )


def run(failures: int, strategy: str = "retry") -> JobState:
    runtime = Runtime(clock=FakeClock())
    return pipeline(failures, strategy).execute(
        "data_fetch", {"request_id": "r7"}, job_id="order-7", runtime=runtime
    )


def shown(renderable: RenderableType, width: int = 100) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None, _environ={})
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_timeline_has_every_emission_delivery_failure_and_change():
    assert shown(timeline(run(5))) == [
        "🚀 [ 0.000s] data_fetch.trigger",
        "               request_id  r7",
        "📤 [ 0.800s] data_fetch.out",
        "               data       3 items: 1 item 1, 2 item 2, …",
        "                          request_id r7",
        "               metadata   keys: source, schema",
        "               timestamp  2026-01-01T00:00:00.800000+00:00",
        "🔀 [ 0.800s] data_fetch → data_process: 3 items",
        "🔄 [ 0.800s] data_fetch: pending → completed",
        "💥 [ 1.300s] data_process attempt 1 → retry 1 in 0.3000 s: ValueError: busy, try 1",
        "💥 [ 2.100s] data_process attempt 2 → retry 2 in 0.4500 s: ValueError: busy, try 2",
        "💥 [ 3.050s] data_process attempt 3 → retry 3 in 0.6750 s: ValueError: busy, try 3",
        "💥 [ 4.225s] data_process attempt 4 → retry 4 in 1.0125 s: ValueError: busy, try 4",
        "💥 [ 5.738s] data_process attempt 5: ValueError: busy, try 5",
        "🔄 [ 5.738s] data_process: pending → failed (retry_count: 4, attempt: 5)",
        "🏁 [ 5.738s] job failed",
    ]


def test_a_job_and_its_monitor_give_the_same_parts():
    job = run(2)
    for part in (timeline, summary, lambda source: retries(source, 98)):
        assert shown(part(job)) == shown(part(ExecutionMonitor.of(job)))


def test_the_timeline_shows_how_a_task_was_dropped():
    assert (
        "💥 [ 1.300s] data_process attempt 1 → dropped as skipped: ValueError: busy, try 1"
        in shown(timeline(run(1, "skip")))
    )


def test_each_delivery_is_below_its_emission_and_conflicts_and_effects_are_shown():
    def fork(self: Routine) -> None:
        self.ctx.once("ticket", int, 7)
        self.emit("out", n=1)
        self.emit("out", n=2)

    def add(self: Routine, n: int) -> None:
        total = self.ctx.shared.get("total", 0)
        self.ctx.sleep(0.1)
        self.ctx.shared["total"] = total + n  # type: ignore[operator]

    flow = fan(fork, workers=2, left=add, right=add)
    lines = shown(timeline(flow.execute("source", runtime=Runtime(clock=FakeClock()))))
    at = lines.index("📤 [ 0.000s] source.out")
    assert lines[at : at + 8] == [
        "📤 [ 0.000s] source.out",
        "               n  1",
        "🔀 [ 0.000s] source → left: n=1",
        "🔀 [ 0.000s] source → right: n=1",
        "📤 [ 0.000s] source.out",
        "               n  2",
        "🔀 [ 0.000s] source → left: n=2",
        "🔀 [ 0.000s] source → right: n=2",
    ]
    assert "📌 [ 0.000s] source attempt 1: once('ticket') recorded" in lines
    assert "💫 [ 0.100s] right attempt 1: conflict, runs again" in lines


def test_the_timeline_has_pauses_resumptions_and_cancellations():
    clock = FakeClock(autojump=False)
    runtime = Runtime(clock=clock)
    flow = pipeline(5)
    first = flow.start("data_fetch", {"request_id": "r7"}, runtime=runtime)
    clock.advance(1.5)
    first.pause()
    clock.autojump = True
    lines = shown(timeline(runtime.resume(flow, first.job)))
    assert "🛑 [ 1.500s] job paused" in lines
    assert "⏩ [ 1.500s] resumed, job running" in lines
    clock.autojump = False
    second = flow.start("data_fetch", {"request_id": "r8"}, runtime=runtime)
    clock.advance(1.0)
    second.cancel()
    clock.advance(1.0)
    assert "🛑 [ 1.000s] job cancelled" in shown(timeline(second.wait()))


def test_the_timeline_of_two_jobs_has_one_after_the_other():
    monitor = ExecutionMonitor()
    runtime = Runtime(clock=FakeClock(), observers=[monitor])
    for name in ("job-a", "job-b"):
        pipeline(0).execute("data_fetch", {"request_id": name}, job_id=name, runtime=runtime)
    lines = shown(timeline(monitor))
    heads = [line.split() for line in lines if line.startswith("🧵")]
    assert heads == [["🧵", "job-a"], ["🧵", "job-b"]]
    at = len(lines) // 2
    assert [line[:13] for line in lines[:at]][1:] == [line[:13] for line in lines[at:]][1:]


def test_the_status_line_counts_retries_and_history():
    at_retry_2 = run(5).at(4)
    assert shown(status(at_retry_2, 4)) == ["📊 Status: running | Retry: 2/4 | History: 2 records"]
    assert shown(status(at_retry_2, None)) == ["📊 Status: running | Retry: 2 | History: 2 records"]


def test_the_summary_counts_by_routine():
    lines = shown(summary(run(2)))
    assert lines[0] == "📈 2 events · 1 data flow · 2 state changes · 3.0500 s"
    assert [line.split() for line in lines[3:]] == [
        ["data_fetch", "completed", "1", "·", "·", "1", "·", "0.8000", "0.0000"],
        ["data_process", "completed", "3", "2", "2", "·", "1", "1.5000", "0.7500"],
    ]


def test_a_routine_that_never_ran_is_in_the_summary_of_the_job():
    early = run(0).at(1)
    assert [line.split()[:2] for line in shown(summary(early))[3:]] == [
        ["data_fetch", "pending"],
        ["data_process", "pending"],
    ]


def test_retries_are_drawn_and_listed_with_planned_and_real_waits():
    lines = shown(retries(run(2), 98))
    assert lines[0] == "⏳ 2 retries · 2 of 2 waits as planned, to the nanosecond"
    lane = lines[2].split("  ", 1)[1]
    assert re.fullmatch(r" +█+✗░+█+✗░+█+", lane), lane
    assert [line.split() for line in lines[-2:]] == [
        ["data_process", "1", "1.3000", "ValueError", "0.3000", "1.6000", "1.6000", "0.3000"],
        ["data_process", "2", "2.1000", "ValueError", "0.4500", "2.5500", "2.5500", "0.4500"],
    ]


def test_an_attempt_that_takes_no_time_is_drawn():
    flow = pipeline(2, seconds=0)
    job = flow.execute("data_fetch", {"request_id": "r7"}, runtime=Runtime(clock=FakeClock()))
    lane = shown(retries(job, 98))[2].split("  ", 1)[1]
    assert re.fullmatch(r" +✗░+✗░+█", lane), lane


def test_a_retry_that_still_waits_has_no_real_wait():
    lines = shown(retries(run(5).at(4), 98))
    assert lines[0] == "⏳ 2 retries · 1 of 1 waits as planned, to the nanosecond"
    assert lines[-1].split()[-2:] == ["…", "waits"]


def test_a_wait_that_a_late_host_made_longer_does_not_count_as_planned():
    late = Runtime(clock=FakeClock(start="2026-01-01T00:01:00"))
    lines = shown(retries(late.resume(pipeline(3), run(5).at(4)), 98))
    assert " ".join(lines[:2]) == (
        "⏳ 3 retries · 2 of 3 waits as planned, to the nanosecond"
        " · 1 longer, because the job was resumed later (until 60.0000 s)"
    )
    assert lines[-2].split()[-4:] == ["0.4500", "2.5500", "60.0000", "57.9000"]


@pytest.mark.parametrize(
    ("width", "cause"), [(1, "all workers were busy"), (2, "the routine was busy")]
)
def test_a_wait_that_ended_while_others_ran_says_why_it_was_longer(width, cause):
    def tries(self, n=0):
        self.ctx.sleep(1)
        if n == 0 and self.ctx.attempt == 1:
            raise ValueError("not yet")

    flow = fan(
        sends(0, 1, 2, 3),
        workers=width,
        a=Works(tries, retrying(retry_delay=0.5)),
        b=lambda self, n: self.ctx.sleep(0.25) if n == 0 else None,
    )
    job = flow.execute("source", runtime=Runtime(clock=FakeClock()))
    head = " ".join(shown(retries(job, 98))[:2])
    assert re.search(rf"0 of 1 waits as planned.* · 1 longer, because {cause} \(until \d", head)


def test_a_saved_state_shows_its_file_and_its_pending_tasks(tmp_path):
    runtime = Runtime(clock=FakeClock(autojump=False))
    path = tmp_path / "job.json"
    process = pipeline(5)
    job_run = process.start("data_fetch", {"request_id": "r7"}, job_id="order-7", runtime=runtime)
    assert isinstance(runtime.clock, FakeClock)
    runtime.clock.advance(2.2)
    job_run.checkpoint(path)
    job_run.cancel()
    lines = shown(saved_state(SavedState.read(path), path))
    size = f"{path.stat().st_size:,}"
    assert lines == [
        f"💾 job.json · {size} bytes · saved at 2026-01-01T00:00:02.200000+00:00",
        "   job      order-7 of flow tale, commit 4",
        "   status   running, 2 retries",
        "   history  2 records; monitor: 2 events, 1 data flow, 1 state change",
        "   pending  data_process.trigger, attempt 3 due in 0.3500 s of a wait of 0.4500 s",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(width):
    job = run(5)
    parts = Group(timeline(job), summary(job), retries(job, width))
    assert max(map(cell_len, shown(parts, width))) <= width
