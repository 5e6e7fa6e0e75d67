"""What flows run with: `Runtime`, and `Run`, the handle of a job in the background.

Laws:
- `execute` drives a job in the caller's thread; all background jobs share one loop in one thread,
  which is there only while there are jobs. It is the same loop.
- Jobs never see each other: what breaks one is kept by it and told to whoever waits for it.
- An observer can't break a job: what it raises is logged once and counted.
- A forked child is another host: it has a name of its own, and none of the threads and jobs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakSet

from routilux.clock import Clock, SystemClock
from routilux.core.machine import Machine
from routilux.core.state import JobState
from routilux.drive import Drive
from routilux.drivers.inline import InlineDriver
from routilux.drivers.pool import PoolDriver
from routilux.errors import (
    FlowDefinitionError,
    FlowMismatchError,
    LeaseLostError,
    NotResumableError,
    RoutiluxError,
    nearest,
)
from routilux.exchange import copied_payload
from routilux.instants import to_ns
from routilux.loop import Loop
from routilux.persist.document import SavedState
from routilux.persist.journal import Journal
from routilux.shape import homeless, mismatch
from routilux.step import run_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from datetime import timedelta
    from pathlib import Path

    from routilux.clock import Worker
    from routilux.core.records import Commit
    from routilux.drivers import Driver
    from routilux.exchange import StepInput
    from routilux.flow import ExecutionStrategy, Flow, Plan
    from routilux.monitor import Observer
    from routilux.persist.leases import Acquired
    from routilux.persist.store import JobStore
    from routilux.step import RunStep

__all__ = ["ObserverFailure", "Run", "Runtime", "default_runtime", "use_runtime"]

_log = logging.getLogger("routilux")
_BACKGROUND_WORKERS: Final = 32


@dataclass(slots=True)
class ObserverFailure:
    """What an observer raised first, and how often it raised."""

    observer: object
    error: Exception
    count: int = 1


class Run:
    """A job in the background, made by `start`.

    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["said"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> run = flow.start("hello")
    >>> run.wait(timeout=5).status.value
    'completed'
    """

    def __init__(self, flow: Flow, drive: Drive) -> None:
        self._flow = flow
        self._drive = drive

    @property
    def job(self) -> JobState:
        """A copy of the job as of its last commit."""
        return self._drive.snapshot()

    def wait(self, timeout: float | timedelta | None = None) -> JobState:
        """Wait until the job rests, and return it; `timeout` is in seconds of the runtime's clock.

        Raises `TimeoutError`, and whatever ended the job from outside (a broken store, an
        interrupt of its handler).
        """
        drive = self._drive
        drive.runtime.refuse_observer("wait for a job")
        clock = drive.runtime.clock
        until = None if timeout is None else clock.monotonic_ns() + to_ns(timeout)
        job = drive.machine.job
        if not clock.wait(drive.rested, until, who=f"whoever waits for job {job.job_id}"):
            raise TimeoutError(f"job {job.job_id} is {job.status.value} after {timeout} s")
        if drive.error is not None:
            raise drive.error
        return drive.snapshot()

    def pause(self) -> None:
        """Start no more steps; those in flight still commit. Raises `NotResumableError`."""
        self._drive.request("pause")

    def cancel(self, reason: str | None = None) -> None:
        """End the job for good; steps in flight still commit. Raises `NotResumableError`."""
        self._drive.request("cancel", reason)

    def checkpoint(self, path: str | Path, *, key: bytes | None = None) -> None:
        """Write the job, as of its last commit, to a file; see `SavedState.write`."""
        try:
            saved = SavedState.capture(self._flow, self._drive.snapshot())
            saved.write(path, key=key)
        finally:
            del key


class Runtime:
    """What flows run with; any number of flows, jobs and threads may share one.

    `clock` is the system's by default. With a `store` every commit is written to it before it
    counts. `executor` runs the steps instead of our own threads. `observers` hear of every commit.
    `max_steps` fails a job that makes more attempts. `max_recoveries` fails a job that was resumed
    so often without progress; None never does. `history_limit` bounds the commits that a job
    keeps in memory: at least that many, at most twice.

    >>> Runtime(max_steps=1000).max_steps
    1000
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        store: JobStore | None = None,
        executor: Executor | None = None,
        observers: Sequence[Observer] = (),
        max_steps: int | None = None,
        max_recoveries: int | None = 3,
        history_limit: int | None = None,
    ) -> None:
        for name, limit, least in (
            ("max_steps", max_steps, 1),
            ("max_recoveries", max_recoveries, 0),
            ("history_limit", history_limit, 1),
        ):
            if limit is not None and (type(limit) is not int or limit < least):
                raise FlowDefinitionError(
                    f"{name} is {limit!r}; it is a whole number from {least}, or None for no limit"
                )
        self.clock = clock if clock is not None else SystemClock()
        if executor is not None and not isinstance(self.clock, SystemClock):
            raise RoutiluxError(
                f"{type(executor).__name__} runs steps in real time, but the runtime's clock is a"
                f" {type(self.clock).__name__}; leave executor=None, so that the clock knows the"
                " threads"
            )
        self.store = store
        self.journal = None if store is None else Journal(store)
        self.observers = tuple(observers)
        self.step_observers = tuple(o for o in self.observers if hasattr(o, "on_step"))
        self.max_steps = max_steps
        self.max_recoveries = max_recoveries
        self.history_limit = history_limit
        self.observer_failures: list[ObserverFailure] = []
        self.executor = executor
        self.run_step: RunStep = run_step  # of jobs that begin from now on
        self._notices: deque[tuple[JobState, Commit]] = deque()
        self._closed = False  # then no thread is kept for later
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Have what belongs to one process alone."""
        self.lock = threading.RLock()
        self._teller: int | None = None  # the thread that tells the observers
        self._spare: list[PoolDriver] = []
        self._background: Loop | None = None
        self.taking = threading.Lock()  # held while the leases of this owner change
        # What workers have under a lease, as this owner, each with how they are told of its loss.
        self.taken: dict[str, Callable[[str], None]] = {}
        vars(self).pop("owner", None)

    @cached_property
    def owner(self) -> str:
        """What tells this runtime from all others, to a store; and people, where it is."""
        import platform  # slow at import, for those only who have a store anyway

        return f"{platform.node()}:{os.getpid()}:{token_hex(8)}"

    # --- running --------------------------------------------------------------------------------

    def execute(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> JobState:
        """Run a new job in this thread and return it when it rests; see `Flow.execute`."""
        self.refuse_observer("execute a job")
        return self._drive_here(self._new(flow, entry, params, slot, job_id))

    async def aexecute(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> JobState:
        """Run a new job without holding up the event loop; see `Flow.aexecute`.

        If the awaiting task is cancelled, so is the job.
        """
        import asyncio  # slow at import, for those only who have an event loop anyway

        run = self.start(flow, entry, params, slot=slot, job_id=job_id)
        done: Future[JobState] = Future()
        done.set_running_or_notify_cancel()  # so that only the job can end it
        # Not a thread of the event loop's own few: those would hold up each other's jobs.
        threading.Thread(target=_hand_over, args=(run, done), daemon=True).start()
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            if run._drive.error is None:  # else it is the handler's own, and nobody gave up
                with suppress(NotResumableError):  # it may be over already
                    run.cancel("the task that awaited it was cancelled")
            raise

    def start(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> Run:
        """Run a new job in the background and return its handle; see `Flow.start`."""
        drive = self._new(flow, entry, params, slot, job_id)
        self._drive_in_background(drive)
        return Run(flow, drive)

    def submit(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
    ) -> str:
        """Put a new job into the store, to be resumed by anybody, and return its id.

        Raises `DuplicateJobError` where the store holds that id already.
        """
        if self.store is None:
            raise FlowDefinitionError(
                "submit() puts a job into the runtime's store, and this runtime has none;"
                " use Runtime(store=...), or start()"
            )
        return self._new(flow, entry, params, slot, job_id, queued=True).machine.job.job_id

    def resume(
        self,
        flow: Flow,
        job: JobState,
        *,
        retry_failed: bool = False,
        allow_changed_flow: bool = False,
        execution_strategy: ExecutionStrategy | None = None,
    ) -> JobState:
        """Go on with a job in this thread and return it when it rests; see `Flow.resume`."""
        drive = self.resumed(
            flow,
            job,
            retry_failed=retry_failed,
            allow_changed_flow=allow_changed_flow,
            execution_strategy=execution_strategy,
        )
        return self._drive_here(drive)

    def resumed(
        self,
        flow: Flow,
        job: JobState,
        *,
        retry_failed: bool = False,
        allow_changed_flow: bool = False,
        execution_strategy: ExecutionStrategy | None = None,
        acquired: Acquired | None = None,
    ) -> Drive:
        """Commit that a job goes on, here and nowhere else; whoever asked has to drive it.

        One that was `acquired` goes on under its lease alone: claimed, it would be held without
        one where the lease was lost meanwhile, and nobody could take it from a host that died.
        """
        if acquired is None:
            clean = self._was_given_back(job.job_id)
        else:
            clean = acquired.clean
        plan = flow.plan(execution_strategy)
        _check_same_flow(plan, job, allow_changed=allow_changed_flow)
        own = job.copy()
        own.history_limit = self.history_limit
        drive = self._drive_of(plan, own)
        with self.lock:
            drive.commit(
                drive.machine.resume(
                    drive.now_ns(),
                    retry_failed=retry_failed,
                    max_recoveries=self.max_recoveries,
                    clean=clean,
                ),
                claims=acquired is None,
                acquired=acquired is not None,
            )
        return drive

    def load(self, job_id: str, *, history: bool = False) -> JobState:
        """Return a job of the store as of its last commit, with its commits since a snapshot.

        With `history` it has every commit, whatever the runtime's `history_limit`. Raises
        `KeyError` where the store does not hold it, `SavedStateError` for damaged rows.
        """
        job = None
        if self.journal is not None:
            limit = None if history else self.history_limit
            job = self.journal.read(job_id, history=history, history_limit=limit)
        if job is None:
            raise KeyError(f"the runtime's store holds no job {job_id!r}")
        return job

    def close(self) -> None:
        """Let the runtime's own threads end; steps in flight run to their end."""
        with self.lock:
            self._closed = True
            while self._spare:
                self._spare.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- how ------------------------------------------------------------------------------------

    def _new(
        self,
        flow: Flow,
        entry: str,
        params: Mapping[str, object] | None,
        slot: str,
        job_id: str | None,
        *,
        queued: bool = False,
    ) -> Drive:
        plan = flow.plan()
        payload = _checked_params(plan, entry, slot, params)
        if job_id is None:
            job_id = token_hex(16)
        elif not isinstance(job_id, str) or not job_id:
            raise FlowDefinitionError(f"a job's id is a text, not {job_id!r}")
        job = JobState(job_id)
        job.history_limit = self.history_limit
        drive = self._drive_of(plan, job)
        with self.lock:
            drive.commit(drive.machine.start(entry, slot, payload, drive.now_ns(), queued=queued))
        return drive

    def _was_given_back(self, job_id: str) -> bool:
        hold = None if self.store is None else self.store.holders(job_id).get(job_id)
        if hold is None:
            return False
        if hold.is_leased and (hold.owner != self.owner or job_id in self.taken):
            raise LeaseLostError(
                f"job {job_id!r} is {hold}; until then nobody else can go on with it"
            )
        return hold.clean

    def refuse_observer(self, what: str) -> None:
        """Raise where an observer waits for a job: all jobs wait for the observer."""
        if self._teller == threading.get_ident():
            raise RoutiluxError(
                f"an observer can't {what}, since no job goes on before the observer returns;"
                " use start() and look at the job later"
            )

    def _drive_of(self, plan: Plan, job: JobState) -> Drive:
        return Drive(self, Machine(plan, job))

    def _drive_here(self, drive: Drive) -> JobState:
        driver = self._take_driver(drive.plan)
        who = f"job {drive.machine.job.job_id}"
        worker = self.clock.worker(who, (drive.ordinal,), result=True)
        worker.start()
        try:
            loop = Loop(self, driver)
            with self.lock:
                loop.add(drive)
            loop.run()
        finally:
            worker.stop()
            if isinstance(driver, PoolDriver):
                self._give_pool(driver)
        if drive.error is not None:
            raise drive.error
        return drive.machine.job

    def _drive_in_background(self, drive: Drive) -> None:
        with self.lock:
            loop = self._background
            if loop is None:
                pool = self._take_pool(_BACKGROUND_WORKERS)
                loop = Loop(self, pool)
                loop.add(drive)
                worker = self.clock.worker("the loop of background jobs")
                thread = threading.Thread(
                    target=self._run_background,
                    args=(loop, pool, worker),
                    name="routilux-loop",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError as error:  # the system has no thread left
                    loop.fail(drive, error)
                    raise
                self._background = loop
            else:
                loop.add(drive)
                loop.look(drive)

    def _run_background(self, loop: Loop, pool: PoolDriver, worker: Worker) -> None:
        worker.start()
        try:
            while True:
                loop.run()
                with self.lock:
                    # A job that was added since keeps the loop; else a later one gets a new loop.
                    if not loop.drives:
                        self._background = None
                        break
        finally:
            worker.stop()
            self._give_pool(pool)

    def _take_driver(self, plan: Plan) -> Driver:
        if plan.width > 1 or self.executor is not None:
            return self._take_pool(plan.width)
        return InlineDriver(self.clock)

    def _take_pool(self, size: int) -> PoolDriver:
        with self.lock:
            for pool in self._spare:
                if self.executor is not None or pool.size == size:
                    self._spare.remove(pool)
                    return pool
        return PoolDriver(self.clock, size, self.executor)

    def _give_pool(self, pool: PoolDriver) -> None:
        with self.lock:
            if pool.idle and not self._closed:
                self._spare.append(pool)
            else:
                pool.close()

    # --- observers (under the lock) -------------------------------------------------------------

    def tell(self, job: JobState, commit: Commit) -> None:
        """Tell the observers of a commit, after those that came before it."""
        self._notices.append((job, commit))
        if self._teller is not None:
            return  # an observer has caused this commit; it is told when the others were
        self._teller = threading.get_ident()
        try:
            while self._notices:
                noticed, news = self._notices.popleft()
                for observer in self.observers:
                    try:
                        observer.on_commit(noticed, news)
                    except Exception as error:
                        self._failed(observer, error)
        finally:
            self._teller = None

    def tell_step(self, job: JobState, step: StepInput) -> None:
        """Tell the observers that want it of a step that starts."""
        for observer in self.step_observers:
            try:
                observer.on_step(job, step)
            except Exception as error:
                self._failed(observer, error)

    def _failed(self, observer: object, error: Exception) -> None:
        for failure in self.observer_failures:
            if failure.observer is observer:
                failure.count += 1
                return
        self.observer_failures.append(ObserverFailure(observer, error))
        _log.error(
            "observer %r raised %s; the job goes on, later errors of it are only counted",
            observer,
            type(error).__name__,
            exc_info=error,
        )


def _hand_over(run: Run, done: Future[JobState]) -> None:
    try:
        done.set_result(run.wait())
    except BaseException as error:
        done.set_exception(error)


def _checked_params(
    plan: Plan, entry: str, slot: str, params: Mapping[str, object] | None
) -> dict[str, object]:
    if not isinstance(entry, str) or entry not in plan.routines:
        raise FlowDefinitionError(
            f"flow {plan.flow_id!r} has no routine {entry!r} to start with; it has"
            f" {', '.join(map(repr, plan.routines)) or 'none'}{nearest(entry, plan.routines)}"
        )
    slots = plan.routines[entry].slots
    if not isinstance(slot, str) or slot not in slots:
        raise FlowDefinitionError(
            f"routine {entry!r} has no slot {slot!r} to start with; it has"
            f" {', '.join(map(repr, slots)) or 'none'}{nearest(slot, slots)}"
        )
    if params is not None and (
        not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params)
    ):
        raise FlowDefinitionError(
            f"params for {entry}.{slot} is a mapping of the handler's parameters by name,"
            f" not {params!r}"
        )
    given = dict(params or {})
    binding = slots[slot].binding
    missing = sorted(binding.required - given.keys())
    unknown = [] if binding.takes_rest else sorted(given.keys() - binding.names)
    if missing or unknown:
        takes = ", ".join(map(repr, sorted(binding.names))) or "nothing"
        trouble = [f"misses {', '.join(map(repr, missing))}"] if missing else []
        trouble += [f"has {', '.join(map(repr, unknown))}, which it does not take"] * bool(unknown)
        meant = nearest(unknown[0], binding.names - given.keys()) if unknown else ""
        raise FlowDefinitionError(
            f"params for {entry}.{slot}: the handler takes {takes}; what was given"
            f" {' and '.join(trouble)}{meant}"
        )
    return copied_payload(given, f"params for {entry}.{slot}")


def _check_same_flow(plan: Plan, job: JobState, *, allow_changed: bool) -> None:
    if not allow_changed and job.shape != plan.shape:
        raise FlowMismatchError(
            "$.job_state.shape",
            mismatch(
                f"job {job.job_id} was started on another flow than {plan.flow_id!r} is now",
                "resume it on the flow of its time, or with allow_changed_flow=True",
                job.shape,
                plan.shape,
            ),
        )
    lost: dict[str, list[str]] = {}
    for task in job.pending_tasks:
        routine = plan.routines.get(task.routine_id)
        if routine is None or task.slot not in routine.slots:
            lost.setdefault(f"{task.routine_id}.{task.slot}", []).append(task.task_id)
    if lost:
        raise FlowMismatchError(
            "$.job_state.pending_tasks",
            f"of job {job.job_id}, {homeless(lost)}; flow {plan.flow_id!r} does not have that:"
            " give it the slot, or resume the job on the flow of its time",
        )


def _begin_all() -> None:
    for runtime in _all:
        runtime._begin()


_all: Final[WeakSet[Runtime]] = WeakSet()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_all)
_lock = threading.Lock()
_in_use: list[Runtime] = []
_default: list[Runtime] = []


def default_runtime() -> Runtime:
    """Return the runtime of code that names none: that of `use_runtime`, or the system's."""
    with _lock:
        if _in_use:
            return _in_use[-1]
        if not _default:
            _default.append(Runtime())
        return _default[0]


@contextmanager
def use_runtime(runtime: Runtime) -> Iterator[Runtime]:
    """Make a runtime the default for code that names none, in all threads, until the block ends.

    >>> with use_runtime(Runtime(max_steps=10)) as runtime:
    ...     default_runtime() is runtime
    True
    """
    with _lock:
        _in_use.append(runtime)
    try:
        yield runtime
    finally:
        with _lock:
            _in_use.remove(runtime)
