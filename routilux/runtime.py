"""`Runtime`: runs flows with a clock, a store, an executor and observers.

Invariants:
- `execute` drives a job in the caller's thread, `start` in the background; it is the same loop.
- Jobs never see each other. An error from outside a flow ends one job, and its `wait` raises it.
- A forked child is another host: it has another owner name, and no threads and jobs yet.
- Code that names no runtime uses the one of `use_runtime`, or one on the system's clock.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager, nullcontext, suppress
from contextvars import Context, copy_context
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Self, Unpack

from routilux.clocks.clock import Clock, SystemClock
from routilux.clocks.forks import begin_in_children
from routilux.core.machine import Machine
from routilux.core.state import JobState
from routilux.engine.drive import Drive
from routilux.engine.entry_checks import (
    check_job_id,
    check_same_flow,
    checked_delay,
    checked_flag,
    checked_params,
    fitting_plan,
)
from routilux.engine.environment import Environment
from routilux.engine.threads import Threads
from routilux.engine.waiting import running_drive, waiting_step
from routilux.errors import (
    DuplicateJobError,
    FlowDefinitionError,
    LeaseLostError,
    NotResumableError,
    RoutiluxError,
)
from routilux.flow import set_default_runner
from routilux.graph.context import active
from routilux.persist.store import damaged, keeps_same_jobs
from routilux.run import Run
from routilux.saved_state import SavedState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from datetime import timedelta
    from pathlib import Path

    from routilux.core.commits import Commit
    from routilux.engine.async_steps import EventLoopQueue
    from routilux.engine.observers import ObserverFailure
    from routilux.flow import Flow, JobOptions, Params, ResumeOptions
    from routilux.graph.plan import ExecutionStrategy, Plan
    from routilux.monitor import Observer
    from routilux.persist.store import Acquired, Append, JobStore


_log = logging.getLogger("routilux")


class Runtime:
    """Runs any number of flows and jobs for any number of threads.

    `executor` runs the handlers: threads of a `ThreadPoolExecutor`, or with any other executor
    other processes, such as those of a `ProcessPoolExecutor` or of Dask. Only a routine that can be
    saved can go there; another one raises `FlowDefinitionError` when its job starts.
    `observers` are notified of every commit. `max_steps`, `max_recoveries` and `history_limit`
    bound the attempts of a job, its resumptions without progress, and the commits that it keeps in
    memory; None means no limit. An invalid limit raises `FlowDefinitionError`, an `executor`
    together with another clock than the system's `RoutiluxError`. The `with` statement closes a
    runtime at its end.

    >>> from routilux import Flow, MemoryStore, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["greeting"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> with Runtime(store=MemoryStore(), max_steps=1000) as runtime:
    ...     job = runtime.execute(flow, "hello", job_id="A7")
    ...     runtime.load("A7") == job
    True
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
                    f"{name} must be an int of {least} or more, or None for no limit, not {limit!r}"
                )
        self.clock: Clock = clock if clock is not None else SystemClock()
        """The clock of its jobs, by default the system's."""
        if executor is not None and not isinstance(self.clock, SystemClock):
            raise RoutiluxError(
                f"{type(executor).__name__} runs steps in real time, but the runtime's clock is a"
                f" {type(self.clock).__name__}; leave out executor, so that the"
                " runtime uses its own threads, which follow the clock"
            )
        self.store: JobStore | None = store
        """The store of its jobs; with one, a commit counts once it is stored."""
        self.max_steps: int | None = max_steps
        """The attempts after which a job fails; None for no limit."""
        self.max_recoveries: int | None = max_recoveries
        """The resumptions in a row without progress after which a job fails; None for no limit."""
        self.history_limit: int | None = history_limit
        """The commits that a job keeps in memory: at least so many, at most twice as many.

        None keeps all. A job that is loaded from a store has its commits since a snapshot.
        """
        self.executor: Executor | None = executor
        """What runs the steps; None means threads of the runtime."""
        self.environment = Environment(self.clock, store, observers, max_steps)
        """What its jobs share; for the engine."""
        self.threads = Threads(self.environment, executor)
        """The threads that run its jobs; for the engine."""
        begin_in_children(self.environment.begin_process)
        begin_in_children(self.threads.begin_process)

    @property
    def owner(self) -> str:
        """The name under which this runtime owns jobs in a store."""
        return self.environment.owner

    # --- running --------------------------------------------------------------------------------

    def execute(
        self, flow: Flow, entry: str, params: Params = None, **options: Unpack[JobOptions]
    ) -> JobState:
        """Run a new job in this thread; see `Flow.execute`."""
        self.environment.observers.refuse("execute a job")
        return self.threads.drive(self._new(flow, entry, params, **options))

    async def aexecute(
        self, flow: Flow, entry: str, params: Params = None, **options: Unpack[JobOptions]
    ) -> JobState:
        """Run a new job without blocking the event loop; see `Flow.aexecute`.

        If the awaiting task is cancelled, so is the job.
        """
        import asyncio  # slow to import, and the caller has imported it already

        event_loop = asyncio.get_running_loop()
        if not self.clock.serves(event_loop):
            raise RoutiluxError(
                f"the runtime's clock is a {type(self.clock).__name__}, which the running event"
                " loop does not follow, so a wait of the job would never end; run the event loop by"
                " asyncio.Runner(loop_factory=clock.new_event_loop), or let the fixture"
                " flow_runtime make both"
            )
        queue = self.environment.async_steps.queue(event_loop)
        stopped = event_loop.create_future()

        beginning: asyncio.Future[Drive] | None = None
        if self.store is None:
            drive = self._begin_awaited(queue, stopped, flow, entry, params, options)
        else:
            begin = partial(self._begin_awaited, queue, stopped, flow, entry, params, options)
            beginning = self.environment.async_steps.call(copy_context().run, begin)
            del begin
        del flow, entry, params, options  # while it waits, the job should need little memory
        try:
            if beginning is not None:
                drive = await asyncio.shield(beginning)
            with nullcontext() if running_drive() is None else waiting_step():
                await stopped
        except asyncio.CancelledError:
            if beginning is not None:
                drive = await beginning  # the store may have its first commit
            if await self._cancel_awaited(drive):
                # Its async handlers end first; a second cancellation does not wait for them.
                stopped = event_loop.create_future()
                with self.environment.lock:
                    drive.on_stop = partial(_wake, stopped)
                    if drive.loop is None:
                        _wake(stopped, drive)
                await stopped
            raise
        if drive.error is not None:
            raise drive.error
        return drive.machine.job

    def _begin_awaited(
        self,
        queue: EventLoopQueue,
        stopped: asyncio.Future[None],
        flow: Flow,
        entry: str,
        params: Params,
        options: JobOptions,
    ) -> Drive:
        drive = self._new(flow, entry, params, **options)
        drive.queue = queue
        drive.on_stop = partial(_wake, stopped)
        if self.store is None:
            self.threads.drive_on_event_loop(drive, queue)
        else:  # its commits wait for the store, in another thread
            self.threads.drive_in_background(drive)
        return drive

    async def _cancel_awaited(self, drive: Drive) -> bool:
        """Cancel a job whose awaiting task was cancelled; return whether only async steps run."""
        try:
            cancel = partial(drive.request, "cancel", "the task that awaited it was cancelled")
            if self.store is None:
                cancel()
            else:
                await self.environment.async_steps.call(cancel)
        except NotResumableError:
            return False  # the job has stopped
        except Exception as error:
            _log.warning("job %s could not be cancelled: %s", drive.machine.job.job_id, error)
            return False
        with self.environment.lock:
            return drive.loop is not None and drive.machine.in_flight == len(drive.tasks)

    def start(
        self, flow: Flow, entry: str, params: Params = None, **options: Unpack[JobOptions]
    ) -> Run:
        """Start a new job in the background; see `Flow.start`."""
        drive = self._new(flow, entry, params, **options)
        self.threads.drive_in_background(drive)

        def save(job: JobState, path: str | Path, key: bytes | None) -> None:
            try:
                SavedState.capture(flow, job).write(path, key=key)
            finally:
                del key  # so that no traceback shows it

        return Run(drive, save)

    def submit(
        self,
        flow: Flow,
        entry: str,
        params: Params = None,
        *,
        delay: float | timedelta = 0,
        **options: Unpack[JobOptions],
    ) -> str:
        """Store a new job for any host, and return the job's id.

        No worker takes the job before `delay` seconds have passed by the store's time. That of a
        `PostgresStore` is its server's: if that clock is set forward, the job is free earlier by as
        much. Raises `DuplicateJobError` if the store already holds that id.

        >>> from datetime import timedelta
        >>> from routilux import Flow, MemoryStore, Routine
        >>> class Remind(Routine):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.define_slot("trigger", handler=print)
        >>> flow, store = Flow("reminders"), MemoryStore()
        >>> _ = flow.add_routine(Remind(), "remind")
        >>> job_id = Runtime(store=store).submit(flow, "remind", delay=timedelta(days=1))
        >>> print(store.holders()[job_id])
        held by nobody, and free to be taken in 24 h
        """
        if self.store is None:
            raise FlowDefinitionError(
                "submit() needs a store, but this runtime has none;"
                " use Runtime(store=...), or call start()"
            )
        after_ns = checked_delay(delay)
        return self._new(flow, entry, params, after_ns=after_ns, **options).machine.job.job_id

    def resume(self, flow: Flow, job: JobState, **options: Unpack[ResumeOptions]) -> JobState:
        """Resume a job in this thread; see `Flow.resume`."""
        self.environment.observers.refuse("resume a job")
        return self.threads.drive(self.resumed(flow, job, **options))

    def resumed(
        self,
        flow: Flow,
        job: JobState,
        *,
        retry_failed: bool = False,
        allow_changed_flow: bool = False,
        execution_strategy: ExecutionStrategy | None = None,
    ) -> Drive:
        """Commit the resumption of `job`, and return the `Drive` to run.

        If the runtime has a store, this host then owns the job without a lease.
        """
        checked_flag("allow_changed_flow", allow_changed_flow)
        checked_flag("retry_failed", retry_failed)
        if job.store is not None and not keeps_same_jobs(job.store, self.store):
            raise NotResumableError(
                f"job {job.job_id} is kept in a store, and this runtime has"
                f" {'no store' if self.store is None else 'another one'}; resume the job by a"
                f" runtime with its store: runtime.resume(flow, runtime.load({job.job_id!r}))"
            )
        clean = self._was_given_back(job.job_id)
        plan = flow.plan(execution_strategy)
        check_same_flow(plan, job, allow_changed=allow_changed_flow)
        own = job.copy()
        own.history_limit = self.history_limit
        drive = self.drive_of(plan, own)
        with self.environment.lock:
            commit = self._resumption(drive, retry_failed=retry_failed, clean=clean)
            self._commit_first(drive, commit, claims=True)
            if self.store is None:
                self.environment.job_ids.add(job.job_id)
        return drive

    def resume_acquired(
        self,
        flows: Mapping[str, Sequence[Flow]],
        acquired: Sequence[Acquired],
        until_ns: int,
        *,
        allow_changed: bool = False,
    ) -> list[Drive | Exception]:
        """Load jobs that this host has acquired, and commit their resumptions with one write.

        Returns for each job its `Drive`, which the caller must run, or the reason why the job can't
        be resumed. Jobs that are not loaded before the instant `until_ns` are left out, except the
        first job. No job is claimed: it is resumed under its lease. If that lease was lost
        meanwhile, a claim would hold the job without one, and no host could take it over.
        """
        journal = self.environment.journal
        assert journal is not None, "jobs are acquired from a store"
        results: list[Drive | Exception] = []
        for job_id, _ in acquired:
            if results and self.clock.monotonic_ns() >= until_ns:
                break
            try:
                results.append(self._drive_acquired(flows, job_id, allow_changed=allow_changed))
            except RoutiluxError as error:
                results.append(error)
        with self.environment.lock:
            rows: dict[int, tuple[Drive, Commit, Append]] = {}
            for place, drive in enumerate(results):
                if isinstance(drive, Drive):
                    job_id, clean = acquired[place]
                    try:
                        commit = self._resumption(drive, clean=clean)
                        row = journal.row(job_id, commit, self.owner, first=True)
                    except RoutiluxError as error:
                        results[place] = error
                    else:
                        rows[place] = drive, commit, row
            refusals = journal.append_all([row for _, _, row in rows.values()])
            resumed: list[tuple[Drive, Commit]] = []
            for (place, (drive, commit, _)), refusal in zip(rows.items(), refusals, strict=True):
                if refusal is None:
                    resumed.append((drive, commit))
                else:
                    results[place] = refusal
            self._apply_resumptions(resumed)
        return results

    def _apply_resumptions(self, resumed: list[tuple[Drive, Commit]]) -> None:
        try:
            for drive, commit in resumed:
                drive.apply(commit)
                self.environment.driven[drive.machine.job.job_id] = drive.machine
            self.environment.observers.notify([(d.machine.job, commit) for d, commit in resumed])
        except BaseException:
            for drive, _ in resumed:
                self.environment.forget(drive.machine)
            raise

    def _drive_acquired(
        self, flows: Mapping[str, Sequence[Flow]], job_id: str, *, allow_changed: bool
    ) -> Drive:
        try:
            job = self.load(job_id)
            plans = [flow.plan() for flow in flows[job.flow_id]]
        except KeyError:  # an index of the store is damaged
            raise damaged(job_id) from None
        if not job.status.is_live:  # it was free, so another host was faster
            raise LeaseLostError(
                f"job {job_id!r} is {job.status.value} now: another host has resumed the job"
                " while this host was suspended for longer than its lease"
            )
        plan = fitting_plan(plans, job, allow_changed=allow_changed)
        return self.drive_of(plan, job, Context())  # another program may have submitted it

    def _resumption(self, drive: Drive, *, retry_failed: bool = False, clean: bool) -> Commit:
        self._check_stopped(drive.machine.job.job_id)
        return drive.machine.resume(
            drive.now_ns(),
            retry_failed=retry_failed,
            max_recoveries=self.max_recoveries,
            clean=clean,
        )

    def load(self, job_id: str, *, history: bool = False) -> JobState:
        """Load the last stored state of a job.

        It has the commits since a snapshot; with `history` every commit, whatever `history_limit`
        is. Raises `KeyError` if the store does not hold it, `SavedStateError` for damaged rows.
        """
        job = None
        if self.environment.journal is not None:
            limit = None if history else self.history_limit
            job = self.environment.journal.read(job_id, history=history, history_limit=limit)
        if job is None:
            raise KeyError(f"the runtime's store holds no job {job_id!r}")
        job.store = self.store
        return job

    def close(self) -> None:
        """End the threads of this runtime as soon as they are idle."""
        self.threads.close()

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The observers that the runtime notifies of every commit."""
        return self.environment.observers.registered

    @property
    def observer_failures(self) -> list[ObserverFailure]:
        """One `ObserverFailure` for each observer that has raised an error."""
        return self.environment.observers.failures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs to drive --------------------------------------------------------------------------

    def _new(
        self,
        flow: Flow,
        entry: str,
        params: Params,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        after_ns: int | None = None,  # of a queued job
    ) -> Drive:
        plan = flow.plan()
        payload = checked_params(plan, entry, slot, params)
        chosen = job_id is not None
        if job_id is None:
            job_id = token_hex(16)
        else:
            check_job_id(job_id)
        job = JobState(job_id)
        job.history_limit = self.history_limit
        drive = self.drive_of(plan, job)
        with self.environment.lock:
            if chosen:
                self._check_unused(job_id)
            now, queued = drive.now_ns(), after_ns is not None
            commit = drive.machine.start(entry, slot, payload, now, queued=queued)
            if after_ns is not None:
                drive.commit(commit, after_ns=after_ns)
            else:
                self._commit_first(drive, commit)
            if chosen and self.store is None:
                self.environment.job_ids.add(job_id)
        return drive

    def _check_unused(self, job_id: str) -> None:
        if job_id in self.environment.driven:
            raise DuplicateJobError(
                f"job {job_id!r} is running in this runtime; choose another job_id"
            )
        if job_id in self.environment.job_ids:
            raise DuplicateJobError(
                f"job {job_id!r} was already started in this runtime; `Flow.resume` continues"
                " that job; for other work choose another job_id"
            )

    def _commit_first(self, drive: Drive, commit: Commit, *, claims: bool = False) -> None:
        """Commit the start or the resumption of a job, which from then on is running here."""
        machine = drive.machine
        self.environment.driven[machine.job.job_id] = machine
        try:
            drive.commit(commit, claims=claims)
        except BaseException:
            self.environment.forget(machine)
            raise

    def _was_given_back(self, job_id: str) -> bool:
        hold = None if self.store is None else self.store.holders(job_id).get(job_id)
        if hold is None:
            return False
        if hold.is_leased and (
            hold.owner != self.environment.owner or job_id in self.environment.leases
        ):
            raise LeaseLostError(
                f"job {job_id!r} is {hold}; resume the job when that lease has ended"
            )
        return hold.clean

    def _check_stopped(self, job_id: str) -> None:
        machine = self.environment.driven.get(job_id)
        if machine is None:
            return
        flying = ", ".join(
            f"{step.task.routine_id} ({step.task.task_id})" for step in machine.flights
        )
        what = f"still has steps in flight ({flying})" if flying else "is already running"
        raise NotResumableError(
            f"job {job_id} ({machine.job.status.value}) {what} in this runtime;"
            " call wait() on the job's Run, then resume the job that wait() returns"
        )

    def drive_of(self, plan: Plan, job: JobState, context: Context | None = None) -> Drive:
        """Return a `Drive` that runs `job` with `plan` in this runtime.

        Its handlers see the context variables of `context`, by default of the caller. Raises
        `FlowDefinitionError` if a routine can't run on the runtime's executor.
        """
        self.threads.check(plan)
        if context is None:
            context = copy_context()
            context.run(active.set, None)  # or a job would keep the one whose handler started it
        return Drive(self.environment, Machine(plan, job), context)


def _wake(stopped: asyncio.Future[None], drive: Drive) -> None:
    """Wake the coroutine that awaits a job; in any thread."""
    event_loop = stopped.get_loop()
    if sys.modules["asyncio"]._get_running_loop() is event_loop:
        _set(stopped)
    else:
        with suppress(RuntimeError):  # the event loop is closed
            event_loop.call_soon_threadsafe(_set, stopped)


def _set(stopped: asyncio.Future[None]) -> None:
    if not stopped.done():  # cancelled
        stopped.set_result(None)


_in_use: dict[object, Runtime] = {}  # by block, in order; without a lock, which a fork could keep
_default: list[Runtime] = []


def default_runtime() -> Runtime:
    """Return the runtime of `use_runtime`, or one with the system's clock."""
    for runtime in list(_in_use.values())[-1:]:
        return runtime
    if not _default:
        _default.append(Runtime())
    return _default[0]


set_default_runner(default_runtime)


@contextmanager
def use_runtime(runtime: Runtime) -> Iterator[Runtime]:
    """Make `runtime` the default runtime of all threads until the `with` statement ends.

    >>> with use_runtime(Runtime(max_steps=10)) as runtime:
    ...     default_runtime() is runtime
    True
    """
    block = object()
    try:
        _in_use[block] = runtime
        yield runtime
    finally:
        _in_use.pop(block, None)
