"""The timeline of a job: commits in words, and payloads in short."""

from __future__ import annotations

from routilux import ExecutionMonitor, FakeClock, JobState, Runtime
from routilux.timeline import JobTimeline, describe
from tests.routines import chain, counts, rest


def texts(job: JobState) -> list[str]:
    timeline = JobTimeline(ExecutionMonitor.of(job), job.job_id, job.commits, job.started_ns)
    return [
        "".join(part if type(part) is str else part[0] for part in line.parts)
        for line in timeline.lines()
    ]


def test_the_failure_of_a_task_at_max_steps_is_described_with_its_reason():
    with Runtime(clock=FakeClock(), max_steps=2) as runtime:
        job = counts(9).execute("a", runtime=runtime)
    text = describe(job.commits[-1])
    assert text.startswith("attempt 1 fails for good: StepLimitError: job "), text


def test_a_member_with_one_item_keeps_its_name():
    def lines(n: dict[str, list[int]]) -> str:
        with Runtime(clock=FakeClock()) as runtime:
            return "\n".join(texts(chain(a=rest).execute("a", {"n": n}, runtime=runtime)))

    assert "status: 1 item: 7" in lines({"status": [7]})
    assert "2 orders: 7, 8" in lines({"orders": [7, 8]})


def test_a_value_is_cut_only_after_120_characters():
    def line(value: str) -> str:
        with Runtime(clock=FakeClock()) as runtime:
            return texts(chain(a=rest).execute("a", {"n": value}, runtime=runtime))[1].split()[-1]

    assert "x" * 120 == line("x" * 120)
    assert "x" * 119 + "…" == line("x" * 121)
