"""Each failed task has the error that failed it, wherever the error is shown."""

from __future__ import annotations

import json
import logging

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobFailedError,
    JobState,
    Routine,
    Runtime,
    Worker,
    retry_job,
)
from routilux.cli import main
from tests.persist import postgres_server, stores
from tests.persist.stores import STORES
from tests.routines import Wide, Works, chain, run_by, sends

FIRST, SECOND = "ValueError: bad 1", "ValueError: bad 2"


def failing(*, fails: bool = True) -> Flow:
    """Two tasks of one routine that fail while both are in flight."""

    def body(self: Routine, n: int = 0) -> None:
        self.ctx.sleep(n)
        if fails:
            raise ValueError(f"bad {n}")

    return chain(workers=3, a=sends(1, 2), b=Wide(body))


def errors(job: JobState) -> list[str]:
    return [str(task.error) for task in job.pending_tasks if task.failed]


@pytest.mark.parametrize("how", ["execute", "start", "aexecute", "worker"])
@pytest.mark.parametrize("kind", STORES)
def test_each_failed_task_keeps_its_own_error(kind, how, tmp_path, caplog):
    clock, flow = FakeClock(), failing()
    with STORES[kind](tmp_path, clock) as store, Runtime(clock=clock, store=store) as runtime:
        if how == "worker":
            job_id = runtime.submit(flow, "a")
            with caplog.at_level(logging.WARNING):
                Worker(store, [flow], runtime=runtime).run(until_idle=True)
            assert caplog.text.count("bad 1") == caplog.text.count("bad 2") == 1
        else:
            job_id = run_by(how, flow, "a", runtime).job_id
        job = runtime.load(job_id, history=True)

        assert [FIRST, SECOND] == errors(job)
        assert [FIRST, SECOND] == errors(JobState.deserialize(job.serialize()))
        assert [FIRST] == errors(job.at(job.seq - 1))
        with pytest.raises(JobFailedError) as raised:
            job.raise_for_status()
        first, second = str(raised.value).splitlines()[0].split("; ")[1:]
        assert "task 0.0 of b failed at attempt 1" == first
        assert f"task 0.1 of b failed at attempt 1: {SECOND}" == second

        retry_job(store, job_id, clock=clock)
        assert [] == errors(runtime.load(job_id))
        Worker(store, [failing(fails=False)], runtime=runtime).run(until_idle=True)
        assert "completed" == runtime.load(job_id).status


def test_the_command_line_shows_each_error_and_payload(where, capsys):
    clock = FakeClock()
    with stores.at(where, clock) as store, Runtime(clock=clock, store=store) as runtime:
        failing().execute("a", job_id="j", runtime=runtime)
    shown = written(capsys, "show", where, "j", clock=clock)
    assert [
        "failed",
        f"  b.trigger at attempt 1: {FIRST} · task 0.0: n=1",
        f"  b.trigger at attempt 1: {SECOND} · task 0.1: n=2",
    ] == shown.splitlines()[-3:]
    row = json.loads(written(capsys, "jobs", where, "--json", clock=clock))["jobs"][0]
    assert ("0.0", FIRST, FIRST) == (row["task"]["task_id"], row["task"]["error"], row["error"])


def test_a_task_that_waits_shows_no_error_of_another_task(where, capsys):
    def body(self: Routine, n: int = 0) -> None:
        if n == 1 or self.ctx.attempt == 1:
            raise (ValueError if n == 1 else OSError)(f"bad {n}")

    handler = ErrorHandler(
        "retry", retryable_exceptions=OSError, on_exhausted="continue", retry_delay=60
    )
    flow = chain(a=sends(1, 2), b=Works(body, handler))
    clock = FakeClock(autojump=False)
    with stores.at(where, clock) as store, Runtime(clock=clock, store=store) as runtime:
        run = flow.start("a", job_id="j", runtime=runtime)
        clock.advance(1)
        run.pause()
    row = json.loads(written(capsys, "jobs", where, "--json", clock=clock))["jobs"][0]
    assert ("0.1", 2, None) == tuple(row["task"][name] for name in ("task_id", "attempt", "error"))


def written(
    capsys: pytest.CaptureFixture[str], command: str, where: str, *rest: str, clock: FakeClock
) -> str:
    name = postgres_server.url(where) if where.startswith("host=") else where
    assert 0 == main([command, name, *rest], clock=clock)
    return capsys.readouterr().out
