"""Background jobs: pause, cancel, checkpoint, resume, interrupts, async handlers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from routilux import (
    CorruptStateError,
    DuplicateJobError,
    ErrorHandler,
    FakeClock,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
    RoutiluxError,
    Routine,
    Run,
    Runtime,
    SavedState,
    Worker,
    cancel_job,
    retry_job,
    use_runtime,
)
from tests.engine.concurrency import Gate, at_once, no_thread_remains
from tests.persist.stores import STORES
from tests.routines import (
    MODES,
    PATIENCE,
    SECOND,
    Watcher,
    Works,
    arun,
    chain,
    ended_at,
    fails,
    fan,
    kinds,
    outputs,
    rest,
    retrying,
    run_by,
    send,
    sleeps,
)

START = datetime(2026, 1, 1, tzinfo=UTC)

# --- pause and cancel -----------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize(
    ("request_", "detail", "status"),
    [
        (lambda run: run.pause(), None, JobStatus.PAUSED),
        (lambda run: run.cancel("sold out"), {"reason": "sold out"}, JobStatus.CANCELLED),
    ],
    ids=["pause", "cancel"],
)
def test_a_request_takes_effect_and_steps_in_flight_commit(workers, request_, detail, status):
    clock = FakeClock(autojump=False)
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        flow = chain(workers=workers, a=sleeps(10), b=sleeps(10))
        run = flow.start("a", runtime=runtime)
        clock.advance(4)
        before = run.job
        request_(run)
        job = run.job
        assert ["start", status.value] == kinds(job)
        assert detail == job.commits[1].detail
        assert status is job.status
        assert (1, before) == (before.seq, job.at(1)), "what was read is a copy"
        assert 4 == ended_at(job)
        clock.advance(6)
        job = run.wait()
    assert "done" == kinds(job)[-1]
    assert status is job.status
    assert ["b"] == [task.routine_id for task in job.pending_tasks]
    assert 0 == job.routine_states["b"].attempts


def test_a_job_that_waits_for_a_retry_is_paused_at_once_and_can_then_be_cancelled():
    clock = FakeClock(autojump=False)
    with Runtime(clock=clock) as runtime:
        run = chain(a=Works(fails(1), retrying(retry_delay=100))).start("a", runtime=runtime)
        clock.advance(1)
        run.pause()
        assert JobStatus.PAUSED is run.wait().status
        with pytest.raises(NotResumableError, match="paused"):
            run.pause()
        run.cancel()
        job = run.wait()
    assert START + timedelta(seconds=1) == clock.now()
    assert ["start", "retry", "paused", "cancelled"] == kinds(job)


def test_an_interrupted_request_ends_the_run_because_the_store_may_have_it():
    class Interrupted(MemoryStore):
        def append(self, job_id, seq, row, owner, *, status):
            super().append(job_id, seq, row, owner, status=status)
            if status == "paused":
                raise KeyboardInterrupt

    clock = FakeClock(autojump=False)
    with Runtime(clock=clock, store=Interrupted()) as runtime:
        run = chain(a=sleeps(10)).start("a", runtime=runtime)
        clock.advance(4)
        with pytest.raises(KeyboardInterrupt):
            run.pause()
        with pytest.raises(KeyboardInterrupt):
            run.wait()
        assert JobStatus.PAUSED is runtime.load(run.job.job_id).status


def until_cancelled(self: Routine, n: object = 0) -> None:
    """Work until the job is cancelled."""
    while not self.ctx.cancelled:
        self.ctx.sleep(1)
    self.ctx.state["asked"] = True


@MODES
def test_a_handler_can_ask_whether_its_job_was_cancelled_and_what_it_did_is_recorded(workers):
    clock = FakeClock(autojump=False)
    with Runtime(clock=clock) as runtime:
        run = chain(workers=workers, a=until_cancelled).start("a", runtime=runtime)
        clock.advance(2.5)
        assert JobStatus.RUNNING is run.job.status
        run.cancel()
        assert JobStatus.CANCELLED is run.job.status
        clock.advance(0.5)
        job = run.wait()
    assert ["start", "cancelled", "done"] == kinds(job)
    assert ({"asked": True}, 3) == (job.routine_states["a"].state, ended_at(job))


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async handler", "handler"])
@MODES
def test_a_handler_of_an_awaited_job_can_ask_whether_it_was_cancelled(workers, asynchronous):
    ended: list[datetime] = []

    def asks(self, n=0):
        while not self.ctx.cancelled:
            self.ctx.sleep(2)
        ended.append(self.ctx.now())

    async def awaits(self, n=0):
        try:
            await self.ctx.asleep(3600)
        finally:
            assert self.ctx.cancelled
            ended.append(self.ctx.now())

    async def cancels():
        flow = chain(workers=workers, a=awaits if asynchronous else asks)
        task = asyncio.create_task(flow.aexecute("a", runtime=runtime))
        await asyncio.sleep(1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(60)

    with Runtime(clock=FakeClock("2026-01-01")) as runtime:
        arun(runtime, cancels())
    assert [1 if asynchronous else 2] == [at.second for at in ended]


@pytest.mark.parametrize("how", ["execute", "start", "aexecute", "resume"])
@pytest.mark.parametrize("taken", [True, False], ids=["taken over", "cancelled"])
@pytest.mark.parametrize("kind", STORES)
def test_a_handler_of_a_job_without_a_lease_learns_that_its_host_has_lost_it(
    kind, taken, how, tmp_path, monkeypatch
):
    looks, asked = 0, 0

    def body(self, n=0):
        nonlocal looks
        while looks < 100 and not self.ctx.cancelled:
            looks += 1
            if looks == 40:
                if taken:
                    retry_job(store, "j", take_over=True, clock=clock)
                else:
                    cancel_job(store, "j", clock=clock)
            self.ctx.sleep(0.01)

    def counted(*args):
        nonlocal asked
        asked += 1
        return holders(*args)

    clock, flow = FakeClock(), chain(a=body)
    with STORES[kind](tmp_path, clock) as store, Runtime(clock=clock, store=store) as runtime:
        if how == "resume":
            runtime.submit(flow, "a", job_id="j")
            flow_runs = partial(flow.resume, runtime.load("j"), runtime=runtime)
        else:
            flow_runs = partial(run_by, how, flow, "a", runtime)
        holders = store.holders
        monkeypatch.setattr(type(store), "holders", lambda _, *args: counted(*args))
        with pytest.raises(LeaseLostError):
            flow_runs()
    assert 40 <= looks <= 51, "the handler did not learn of it within 0.1 s"
    assert asked <= 8, "the store is asked more often than every 0.1 s"


def test_no_other_end_of_a_job_looks_like_a_cancellation():
    seen: list[bool] = []

    def looks(self, n=0):
        self.ctx.sleep(2)
        seen.append(self.ctx.cancelled)

    clock = FakeClock(autojump=False)
    with Runtime(clock=clock) as runtime:
        paused = chain(a=looks).start("a", runtime=runtime)
        failed = fan(send, workers=2, a=looks, b=fails(1)).start("source", runtime=runtime)
        clock.advance(1)
        paused.pause()
        clock.advance(1)
        assert [JobStatus.PAUSED, JobStatus.FAILED] == [r.wait().status for r in (paused, failed)]
    assert [False, False] == seen


def test_a_handler_learns_that_its_host_runs_the_job_no_longer(tmp_path):
    clock = FakeClock(autojump=False)
    store = MemoryStore(clock)
    with Runtime(clock=clock, store=store) as runtime:
        flow = chain(a=until_cancelled)
        runtime.submit(flow, "a", job_id="j")
        host = Worker(store, [flow], runtime=runtime, lease=30)
        assert host._take(False)
        [drive] = host._drives.values()
        clock.advance(5)
        cancel_job(store, "j", clock=clock)
        clock.advance(4.5)
        assert not drive.cancelled, "no renewal was due"
        clock.advance(0.5)
        host._maintain()
        assert drive.cancelled
        clock.advance(1)
        assert 0 == drive.machine.job.routine_states["a"].attempts
        assert ["start", "resumed", "cancelled"] == kinds(runtime.load("j"))


def test_a_job_that_waits_for_a_free_thread_can_be_cancelled(monkeypatch):
    monkeypatch.setattr("routilux.engine.threads._BACKGROUND_WORKERS", 1)
    gate = Gate()
    with no_thread_remains(), Runtime() as runtime:
        first = chain(a=gate.holds).start("a", runtime=runtime)
        gate.until_reached()
        second = chain(a=rest).start("a", runtime=runtime)
        second.cancel()
        job = second.wait(timeout=PATIENCE / 2)
        gate.open()
        assert JobStatus.COMPLETED is first.wait().status
    assert ["start", "cancelled"] == kinds(job)


@pytest.mark.parametrize("durable", [False, True])
def test_a_paused_job_is_not_resumed_before_its_steps_in_flight_have_ended(durable):
    gate, watcher = Gate(), Watcher()
    flow = chain(a=gate.holds, b=rest)
    store = MemoryStore() if durable else None
    with Runtime(store=store, observers=[watcher]) as runtime:
        run = flow.start("a", job_id="j", runtime=runtime)
        gate.until_reached()
        run.pause()
        paused = run.job
        message = r"job j \(paused\) still has steps in flight \(a \(0\)\) in this runtime; call"
        with pytest.raises(NotResumableError, match=message):
            flow.resume(paused, runtime=runtime)
        gate.open()
        job = flow.resume(run.wait(PATIENCE), runtime=runtime)
        assert {} == runtime.environment.driven
    assert paused == job.at(paused.seq)
    assert JobStatus.COMPLETED is job.status
    assert ["start", "paused", "done", "resumed", "done"] == kinds(job)
    assert [1, 2, 3, 4, 5] == [commit.seq for commit in watcher.commits]


# --- saved while it runs --------------------------------------------------------------------------


class Shaky(Routine):
    """Fails in its first two attempts; has a saved form."""

    def __init__(self, pace: float = 1.0) -> None:
        super().__init__()
        self.pace = pace
        self.define_slot("trigger", handler=self.go)
        self.define_event("out", ["n"])
        self.set_error_handler(retrying(max_retries=4, retry_delay=10, retry_backoff=1.0))

    def go(self, n: int) -> None:
        self.ctx.sleep(self.pace)
        if self.ctx.attempt <= 2:
            raise ValueError
        self.emit("out", n=n + 1)


@MODES
@pytest.mark.parametrize("after", [0.0, 0.5, 1.0, 4.0, 11.5, 15.0, 23.0, 23.5, 30.0, 40.0])
def test_a_checkpoint_of_a_running_job_can_be_resumed(tmp_path, workers, after):
    clock = FakeClock(autojump=False)
    path = tmp_path / "job.json"
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        run = chain(workers=workers, a=Shaky(), b=Shaky()).start("a", {"n": 1}, runtime=runtime)
        clock.advance(after)
        run.checkpoint(path)
        at_checkpoint = run.job
        clock.advance(1000)
        whole = run.wait()
    saved = SavedState.read(path)
    assert at_checkpoint == saved.job == whole.at(saved.job.seq)
    assert START.timestamp() + after == saved.saved_at
    with Runtime(clock=FakeClock(START + timedelta(seconds=after))) as runtime:
        done = saved.flow.resume(saved.job, runtime=runtime)
    assert JobStatus.COMPLETED is done.status
    assert [3] == outputs(done)
    assert whole.routine_states == done.routine_states
    # A wait continues; an attempt that was cut off runs again.
    waiting = saved.job.pending_tasks[0]
    if waiting.delay_ns is not None and waiting.due_ns > run._drive.offset + after * SECOND:
        assert whole.updated_ns == done.updated_ns


def test_a_checkpoint_is_signed_by_the_key_that_it_is_given(tmp_path):
    clock, key = FakeClock(autojump=False), b"sixteen bytes or more"
    path = tmp_path / "job.json"
    with no_thread_remains(), Runtime(clock=clock) as runtime:
        run = chain(a=Shaky(), b=Shaky()).start("a", {"n": 1}, runtime=runtime)
        clock.advance(1)
        run.checkpoint(path, key=key)
        assert run.job == SavedState.read(path, key=key).job
        with pytest.raises(CorruptStateError, match="does not match this key"):
            SavedState.read(path, key=key[::-1])
        before = path.read_bytes()
        with pytest.raises(ValueError, match="at least 16") as caught:
            run.checkpoint(path, key=b"hush-hush")
        assert before == path.read_bytes()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [frame for frame in shown.stack if "routilux" in frame.filename]
        assert "checkpoint" in {frame.name for frame in ours}
        assert not any("hush" in local for f in ours for local in (f.locals or {}).values())
        clock.advance(1000)
        run.wait()


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("how", ["inline", "pool", "background"])
def test_an_interrupt_in_a_handler_reaches_the_caller_and_leaves_the_task_pending(interrupt, how):
    def interrupted(self, n):
        self.ctx.shared["n"] = 1
        self.ctx.sleep(1)
        raise interrupt

    watcher, workers = Watcher(), 2 if how == "pool" else None
    flow = fan(send, workers=workers, a=Works(interrupted, retrying()), other=sleeps(50))
    flow.set_error_handler(ErrorHandler("continue"))
    host = Runtime(clock=FakeClock(), observers=[watcher])
    with no_thread_remains(), host as runtime, pytest.raises(interrupt):
        run_by(how, flow, "source", runtime)
    job = watcher.jobs[-1]
    assert JobStatus.RUNNING is job.status
    assert ["start", "done", "interrupted"] == kinds(job)
    assert {("a", 1), ("other", 1)} == {(t.routine_id, t.attempt) for t in job.pending_tasks}
    assert {} == job.shared_data


def test_ctrl_c_in_a_concurrent_job_ends_it_and_all_its_threads():
    # In a process of its own: the signal goes to the main thread.
    script = """
import signal, sys, threading
sys.path.insert(0, sys.argv[1])
from routilux import FakeClock, Runtime
from tests.engine.concurrency import no_thread_remains
from tests.routines import fan, send

def first(*_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, first)

def interrupts(self, n=0):
    while True:  # a signal that comes just before a lock is waited for is not seen
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        self.ctx.sleep(1)

def asleep(self, n=0):
    self.ctx.sleep(10**9)

with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
    try:
        fan(send, workers=2, a=interrupts, b=asleep).execute("source", runtime=runtime)
    except KeyboardInterrupt:
        print("interrupted")
    job = fan(send, workers=2, a=send, b=send).execute("source", runtime=runtime)
    print(job.status.value)
"""
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script, root],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ("", "interrupted\ncompleted\n") == (done.stderr, done.stdout)


# --- async ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["inline", "pool", "background", "aexecute"])
def test_async_handlers_run_on_every_driver(how):
    async def waits(self, n):
        await self.ctx.asleep(1)
        self.ctx.state["n"] = await asyncio.to_thread(lambda: n + 1)
        if self.ctx.attempt == 1:
            raise ValueError
        self.emit("out", n=self.ctx.state["n"])

    flow = chain(workers=2 if how == "pool" else None, a=Works(waits, retrying()), b=send)
    with no_thread_remains(), Runtime(clock=FakeClock()) as runtime:
        job = run_by(how, flow, "a", runtime, n=1)
    assert JobStatus.COMPLETED is job.status
    assert [2] == outputs(job)
    assert 3 == ended_at(job)


def test_a_job_with_async_handlers_may_be_executed_where_an_event_loop_runs():
    async def waits(self):
        await self.ctx.asleep(1)

    async def blocks():
        return chain(a=waits).execute("a", runtime=runtime)

    with Runtime(clock=FakeClock()) as runtime:
        assert 1 == ended_at(arun(runtime, blocks()))


def test_a_job_is_not_awaited_on_an_event_loop_that_its_clock_does_not_serve():
    with (
        Runtime(clock=FakeClock()) as runtime,
        pytest.raises(RoutiluxError, match=r"asyncio\.Runner\(loop_factory=clock.new_event_loop\)"),
    ):
        asyncio.run(chain(a=send).aexecute("a", runtime=runtime))
    assert 0 == len(runtime.environment.driven)


def test_cancelling_the_task_that_awaits_a_job_cancels_the_job():
    watcher = Watcher()

    async def cancels():
        flow = chain(a=sleeps(3), b=rest)
        task = asyncio.ensure_future(flow.aexecute("a", runtime=runtime))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(60)

    with Runtime(clock=FakeClock(), observers=[watcher]) as runtime:
        arun(runtime, cancels())
    job = watcher.jobs[-1]
    assert JobStatus.CANCELLED is job.status
    cancelled = next(commit for commit in job.commits if commit.kind == "cancelled")
    assert {"reason": "the task that awaited it was cancelled"} == cancelled.detail
    assert 0 == job.routine_states["b"].attempts


# --- handles and signals --------------------------------------------------------------------------


def test_start_gives_a_handle_and_the_default_runtime_serves_all_threads():
    clock = FakeClock()
    runs: list[Run] = []
    with Runtime(clock=clock) as runtime, use_runtime(runtime):
        at_once(lambda: runs.append(chain(a=sleeps(5)).start("a")))
        assert JobStatus.COMPLETED is runs[0].wait().status
    assert START + timedelta(seconds=5) == clock.now()


def test_the_signal_module_is_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with Runtime(clock=FakeClock()) as runtime:
        chain(workers=2, a=rest).execute("a", runtime=runtime)
    assert before == signal.getsignal(signal.SIGINT)


def test_an_id_of_a_job_that_runs_is_refused_with_and_without_a_store():
    for store in (None, MemoryStore()):
        with Runtime(clock=FakeClock(autojump=False), store=store) as runtime:
            run = chain(a=sleeps(1)).start("a", job_id="j", runtime=runtime)
            with pytest.raises(DuplicateJobError, match="job 'j'"):
                chain(a=rest).start("a", job_id="j", runtime=runtime)
            run.cancel()
            runtime.clock.advance(1)
            assert JobStatus.CANCELLED is run.wait().status


def test_an_error_outside_the_flow_of_a_background_job_is_logged(caplog):
    def leaves(self: Routine, n: object = 0) -> None:
        raise SystemExit(3)

    with Runtime(clock=FakeClock()) as runtime:
        run = chain(a=leaves).start("a", job_id="j", runtime=runtime)
        with pytest.raises(SystemExit):
            run.wait()
    assert ["an error outside the flow ended the run of job j: SystemExit(3)"] == caplog.messages
