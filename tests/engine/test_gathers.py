"""Gathers run with every driver, store and strategy, and outlive pauses, crashes and failures."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from routilux import (
    CorruptStateError,
    ErrorHandler,
    FakeClock,
    Flow,
    FlowMismatchError,
    Gathered,
    JobState,
    JobStatus,
    Routine,
    Runtime,
    SqliteStore,
    Worker,
)
from tests.gathers import AsyncWork, Join, Split, Work, gathering
from tests.persist.conftest import clock, store  # noqa: F401  # fixtures
from tests.routines import MODES, PATIENCE, retrying, run, run_by
from tests.soak import sampled

SQUARES = [[0], [1], [4], [9], [16]]
SOURCES = [("work", "done")] * 5


def only(job: JobState) -> Any:
    """The one output of a completed job."""
    assert (JobStatus.COMPLETED, ()) == (job.status, job.pending_tasks), job.error
    [output] = job.outputs
    return output.data


@pytest.mark.parametrize(
    ("work", "how"),
    sampled(
        itertools.product([Work, AsyncWork], ["execute", "background", "aexecute"]),
        [(Work, "execute"), (Work, "background"), (AsyncWork, "aexecute")],
    ),
)
@pytest.mark.parametrize("per", [None, "split"])
@MODES
def test_a_gather_runs_once_with_all_deliveries(how, per, workers, work, store, clock):  # noqa: F811
    flow = gathering(work=work(slow=1.0 if work is Work else 0.0), per=per, workers=workers)
    with Runtime(clock=clock, store=store) as runtime:
        job = run_by(how, flow, "split", runtime, n=5)
        assert {"squares": SQUARES, "sources": SOURCES, "dropped": []} == only(job)
        assert job == runtime.load("j", history=True)


def test_a_worker_runs_a_gather(store, clock):  # noqa: F811
    flow = gathering(per="split", join=Join(fails=1), handler=retrying())
    with Runtime(clock=clock, store=store) as runtime:
        runtime.submit(flow, "split", {"n": 5}, job_id="j")
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert SQUARES == only(runtime.load("j"))["squares"]


def test_a_gather_runs_in_another_process(tmp_path):
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    handler = ErrorHandler("continue")
    flow = gathering(work=Work({1: 9}), per="split", handler=handler)
    with processes, SqliteStore(tmp_path / "jobs.db") as kept:
        runtime = Runtime(store=kept, executor=processes)
        job = flow.execute("split", {"n": 3}, runtime=runtime)
    assert {"squares": [[0], [4]], "sources": SOURCES[:2], "dropped": ["0.1"]} == only(job)


@MODES
def test_an_empty_fan_out_is_gathered_too(workers):
    assert {"squares": [], "sources": [], "dropped": []} == only(
        run(gathering(workers=workers, per="split"), "split", n=0)
    )


@pytest.mark.parametrize("strategy", ["continue", "skip"])
@pytest.mark.parametrize("per", [None, "split"])
def test_the_task_of_the_scope_may_be_dropped_itself(strategy, per):
    flow = gathering(per=per, handler=ErrorHandler(strategy))
    assert {"squares": [], "sources": [], "dropped": ["0"]} == only(run(flow, "split", n=-1))


@MODES
def test_an_attempt_gets_its_own_copies_and_dropped_tasks_are_listed(workers):
    flow = gathering(
        work=Work({1: 9, 3: 1}), join=Join(fails=2), workers=workers,
        handler=retrying(max_retries=2, on_exhausted="continue"),
    )  # fmt: skip
    job = run(flow, "split", n=5)
    wanted = [[0], [4], [9], [16]]
    assert {"squares": wanted, "sources": SOURCES[:4], "dropped": ["0.1"]} == only(job)
    assert 3 == job.routine_states["join"].attempts


@MODES
def test_a_failed_job_runs_no_gather_until_its_task_is_retried(workers):
    flow = gathering(work=Work({1: 1}), per="split", workers=workers)
    job = run(flow, "split", n=3)
    assert ("failed", 0) == (job.status, job.routine_states["join"].attempts)
    [gather] = [task for task in job.pending_tasks if task.gathers]
    assert 1 <= gather.gathering.waits_for
    job = JobState.deserialize(job.serialize())
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.resume(job, retry_failed=True, runtime=runtime)
    assert [[0], [1], [4]] == only(job)["squares"]


def test_a_gather_that_fails_is_recorded_with_its_payloads():
    flow = gathering(join=Join(fails=9), handler=ErrorHandler("continue"))
    job = run(flow, "split", n=2)
    [dropped] = job.dropped
    assert {"found": [{"n": 0, "square": [0]}, {"n": 1, "square": [1]}]} == dropped.payload
    flow = gathering(join=Join(fails=1))
    job = run(flow, "split", n=2)
    with Runtime(clock=FakeClock()) as runtime:
        job = flow.resume(JobState.deserialize(job.serialize()), retry_failed=True, runtime=runtime)
    assert [[0], [1]] == only(job)["squares"]


@pytest.mark.parametrize("per", [None, "split"])
def test_a_job_resumes_from_each_of_its_commits(per):
    flow = gathering(work=Work({1: 9, 2: 1}), per=per, handler=retrying(on_exhausted="skip"))
    whole = run(flow, "split", n=4)
    for seq in range(1, whole.seq):
        job = whole.at(seq)
        assert job == job.copy() == JobState.deserialize(job.serialize())
        with Runtime(clock=FakeClock()) as runtime:
            resumed = flow.resume(JobState.deserialize(job.serialize()), runtime=runtime)
        assert only(whole) == only(resumed)


def test_a_gather_outlives_a_pause_and_a_snapshot(tmp_path):
    started = threading.Event()

    class Gated(Work):
        def work(self, n: int) -> None:
            assert started.wait(PATIENCE)
            if n == 2 and runs:
                runs.pop().pause()
            super().work(n)

    runs: list[Any] = []
    flow = gathering(work=Gated(), per="split")
    with SqliteStore(tmp_path / "jobs.db") as kept, Runtime(store=kept, history_limit=2) as runtime:
        run = flow.start("split", {"n": 5}, job_id="j", runtime=runtime)
        runs.append(run)
        started.set()
        assert "paused" == run.wait().status
        job = runtime.load("j")
        [gather] = [task for task in job.pending_tasks if task.gathers]
        assert (2, 3) == (gather.gathering.waits_for, gather.gathering.deliveries)
        assert SQUARES == only(flow.resume(job, runtime=runtime))["squares"]


def test_a_cancelled_job_runs_no_gather():
    started = threading.Event()

    class Cancels(Work):
        def work(self, n: int) -> None:
            assert started.wait(PATIENCE)
            runs[0].cancel("enough")
            super().work(n)

    runs: list[Any] = []
    flow = gathering(work=Cancels(), per="split")
    with Runtime() as runtime:
        runs.append(flow.start("split", {"n": 1}, runtime=runtime))
        started.set()
        job = runs[0].wait()
    assert ("cancelled", []) == (job.status, job.outputs)


# --- scopes ---------------------------------------------------------------------------------------


class Pages(Routine):
    """Reads page after page, to a depth at which no recursion works, and emits a row of each."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.page)
        self.define_event("row", ["n"])
        self.define_event("next", ["n"])

    def page(self, n: int = 0, pages: int = 0) -> None:
        self.emit("row", n=n)
        if n:
            self.emit("next", n=n - 1)


class Rows(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("rows", handler=self.rows, gather=True)
        self.define_event("out", ["n"])

    def rows(self, found: Gathered) -> None:
        self.emit("out", n=[row["n"] for row in found])


def test_pages_that_follow_each_other_5000_deep_are_gathered_in_order():
    flow = Flow("pages")
    flow.add_routine(Pages(), "pages")
    flow.add_routine(Rows(), "rows")
    flow.connect("pages", "row", "rows", "rows")
    flow.connect("pages", "next", "pages", "trigger")
    job = run(flow, "pages", n=5_000)
    assert [[*range(5_000, -1, -1)]] == [output.data["n"] for output in job.outputs]
    assert job == job.copy()


def test_a_gather_per_split_feeds_a_gather_of_the_job():
    flow = gathering(per="split")
    flow.add_routine(Starts(), "starts")
    flow.add_routine(Total(), "total")
    flow.connect("starts", "n", "split", "trigger")
    flow.connect("join", "output", "total", "all")
    for workers in (1, 4):
        flow.execution_strategy, flow.max_workers = "concurrent", workers
        job = run(flow, "starts")
        assert [2, 0, 3, 1] == [len(squares) for squares in only(job)["lists"]]
        assert 4 == job.routine_states["join"].attempts


def test_a_gather_downstream_of_another_may_be_added_first():
    flow = Flow("reversed")
    flow.add_routine(Total(), "total")
    flow.add_routine(Join(), "join")
    flow.add_routine(Split(), "split")
    flow.connect("split", "item", "total", "all", {"n": "squares"})
    flow.connect("split", "item", "join", "done", {"n": "square"})
    flow.connect("join", "output", "total", "all")
    job = run(flow, "split", n=0)
    assert [[]] == only(job)["lists"]
    for seq in range(job.seq + 1):
        assert job.at(seq) == JobState.deserialize(job.at(seq).serialize())


class Starts(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.start)
        self.define_event("n", ["n"])

    def start(self) -> None:
        for n in (2, 0, 3, 1):
            self.emit("n", n=n)


class Total(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("all", handler=self.total, gather=True)
        self.define_event("output", ["lists"])

    def total(self, found: Gathered) -> None:
        self.emit("output", lists=[row["squares"] for row in found])


# --- changed flows --------------------------------------------------------------------------------


def _paused() -> JobState:
    flow = gathering(work=Work({1: 1}))
    return JobState.deserialize(run(flow, "split", n=3).serialize())


def resumed(flow: Flow, job: JobState) -> JobState:
    with Runtime(clock=FakeClock()) as runtime:
        return flow.resume(job, runtime=runtime, retry_failed=True, allow_changed_flow=True)


def test_a_gather_whose_handler_names_its_parameter_otherwise_goes_on():
    class Renamed(Join):
        def join(self, rows: Gathered) -> None:  # type: ignore[override]
            super().join(rows)

    job = resumed(gathering(join=Renamed()), _paused())
    assert [[0], [1], [4]] == only(job)["squares"]


def test_a_job_is_not_resumed_where_its_gathers_have_changed():
    with pytest.raises(FlowMismatchError, match=r"the scope of gather join.done .* 'split'"):
        resumed(gathering(per="split"), _paused())

    class Plain(Routine):
        def __init__(self) -> None:
            super().__init__()
            self.define_slot("done", handler=self.join)

        def join(self, n: int, square: list[int]) -> None: ...

    message = "slot join.done of task 0.g0 gathers in the job, but does not in the flow"
    with pytest.raises(FlowMismatchError, match=message):
        resumed(gathering(join=Plain()), _paused())

    flow = gathering()
    flow.add_routine(Rows(), "rows")
    flow.connect("work", "done", "rows", "rows")
    message = r"task 0.1 of work can now deliver to the gather rows.rows, whose scope began"
    with pytest.raises(FlowMismatchError, match=message):
        resumed(flow, _paused())

    class Other(Routine):
        def __init__(self) -> None:
            super().__init__()
            self.define_slot("trigger", handler=self.split)

        def split(self, n: int = 3) -> None: ...

    flow = gathering()
    flow.add_routine(Other(), "other")  # concerns no gather
    assert "completed" == resumed(flow, _paused()).status


# --- wrong data -----------------------------------------------------------------------------------


def _delivered(payloads: object) -> dict[str, object]:
    return {"routine_id": "work", "event": "done", "payloads": payloads}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[0]["gathering"].append("0.9"), "waits for 0.9"),
        (lambda p: p[0]["gathering"].pop(), "do not agree"),
        (lambda p: p[0]["gathering"].append({"dropped": "0.9"}), "is no dropped task"),
        (lambda p: p[0]["gathering"].append(7), "not a JSON object"),
        (lambda p: p[0]["gathering"].append({"routine_id": "work"}), "is missing"),
        (lambda p: p[0]["gathering"].append(_delivered([])), "is empty"),
        (lambda p: p[0]["gathering"].append(_delivered([7])), "must be a JSON object"),
        (lambda p: p[0]["gathering"].append(_delivered({})), "is of type dict, not list"),
        (lambda p: p[0].pop("gathering"), "must be in a gather"),
        (lambda p: p[1].update(gathering=[]), "must be in a gather"),
        (lambda p: p[1].update(keeps=["0.g9"]), "do not agree"),
        (lambda p: p[1].update(keeps=["0.g0", "0.g0"]), "names a gather twice"),
        (lambda p: p[0].update(attempt=2), "has run before it was ready"),
        (lambda p: p[0].update(keeps=["0.g0"]), "do not agree"),
    ],
)
@pytest.mark.parametrize("history", [True, False])
def test_a_saved_gather_that_does_not_fit_is_refused(change, message, history):
    data: Any = _paused().serialize()
    if not history:
        data["commits"] = []
    gather = next(task for task in data["pending_tasks"] if "gathering" in task)
    others = [task for task in data["pending_tasks"] if task is not gather]
    data["pending_tasks"] = [gather, *others]
    change(data["pending_tasks"])
    with pytest.raises(CorruptStateError, match=message) as caught:
        JobState.deserialize(data)
    assert caught.value.path.startswith("$.pending_tasks")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[0]["detail"].update(shape=[]), "its flow has none"),
        (lambda c: c[0]["tasks"][0].pop("keeps"), "no task keeps its gather 0.g0 open"),
        (lambda c: c[0]["tasks"][0].update(keeps=["0.g1"]), "keeps 0.g1, which is not an open"),
        (lambda c: c[0]["tasks"][1].update(keeps=["0.g0"]), "keeps 0.g0, which is not an open"),
        (lambda c: c[0]["tasks"][1].update(emission=0), "the commit has no emission 0"),
        (lambda c: c[0]["tasks"][1].update(payload={}), "must be a gather with 1 parameter"),
        (lambda c: c[0]["tasks"][0].update(keeps="0.g0"), "is of type str"),
        (lambda c: c[2]["tasks"][0].update(into="0.1"), "is not a gather that its task keeps open"),
        (lambda c: c[2]["tasks"][0].update(slot="other"), "as join.other"),
        (lambda c: c[2]["tasks"][0].update(routine_id="work"), "as work.done"),
        (lambda c: c[2]["tasks"][0].update(keeps=["0.g0"]), "is not a gather that its task keeps"),
        (lambda c: c[2]["tasks"][0].pop("into"), "does not match the job's commits"),
        (
            lambda c: c[1]["tasks"][0]["tasks"][0].pop("keeps"),
            "is not a gather that its task keeps open",
        ),
    ],
)
def test_a_commit_whose_gathers_do_not_fit_is_refused(change, message):
    data: Any = _paused().serialize()
    change(data["commits"])
    with pytest.raises(CorruptStateError, match=message) as caught:
        JobState.deserialize(data)
    assert caught.value.path.startswith("$.")


def test_a_commit_that_ends_a_gather_too_early_is_refused():
    data: Any = run(gathering(), "split", n=2).serialize()
    first, last = data["commits"][:2], data["commits"][-1]
    data["commits"] = [*first, {**last, "seq": 3}]
    with pytest.raises(CorruptStateError, match=r"attempt 1 of task 0.g0 of 'join' is not pending"):
        JobState.deserialize({**data, "seq": 3})
