"""The smallest program: a routine that fails, a wait that takes no time, a job that is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux import ErrorHandler, ErrorStrategy, Flow, Routine, SavedState

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_routilux import FlowMonitor, FlowReport
    from routilux import FakeClock, Runtime


class Greet(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.greet)
        self.define_event("output", ["text"])

    def greet(self, name: str) -> None:
        if self.ctx.attempt < 4:
            raise ConnectionError(f"no answer, try {self.ctx.attempt}")
        self.emit("output", text=f"hello {name}")


def test_four_attempts_take_no_real_second(
    flow_runtime: Runtime, flow_clock: FakeClock, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    flow = Flow("greeting")
    flow.add_routine(Greet(), "greet")
    flow.set_error_handler(ErrorHandler(ErrorStrategy.RETRY, max_retries=4, retry_delay=0.5))

    job = flow.execute("greet", {"name": "world"})

    assert job.outputs[0].data == {"text": "hello world"}
    flow_monitor.assert_retried("greet", times=3, delays=[0.5, 1.0, 2.0])
    flow_report.retries(job, title="👋 Basic retry: succeeds at attempt 4")


def test_a_job_that_is_saved_at_retry_2_is_resumed(
    flow_runtime: Runtime, flow_clock_bare: FakeClock, flow_report: FlowReport, tmp_path: Path
) -> None:
    flow = Flow("greeting")
    flow.add_routine(Greet(), "greet")
    flow.set_error_handler(ErrorHandler(ErrorStrategy.RETRY, max_retries=4, retry_delay=0.5))

    run = flow.start("greet", {"name": "world"})  # attempts at 0.0, 0.5, 1.5 and 3.5 s
    flow_clock_bare.advance(1.0)
    run.pause()
    run.checkpoint(tmp_path / "job.json")

    saved = SavedState.read(tmp_path / "job.json")  # here, or on any other host
    job = saved.flow.resume(saved.job)

    flow_report.saved_state(saved, tmp_path / "job.json", title="👋 Basic retry: saved at 1.0 s")
    flow_report.timeline(job, title="Resumed, to its end")
    flow_report.status(job, max_retries=4)
    with flow_report.verification("A saved job resumes where it was saved") as verify:
        verify("saved at retry", 2, saved.retry_count)
        verify("status in the file", "paused", saved.job.status.value)
        verify("status at the end", "completed", job.status.value)
        verify("attempts, none twice", [1, 2, 3, 4], [c.attempt for c in job.commits if c.attempt])
        verify("ended after, ns", 3_500_000_000, job.updated_ns - job.started_ns)
        verify("result", {"text": "hello world"}, dict(job.outputs[0].data))
