"""`Worker`: leases jobs from a store and runs these jobs.

Invariants:
- Only the host that has acquired a job drives it. It renews the lease while handlers run. A host
  that was suspended loses the lease, and with it the right to commit.
- A worker that ends gives its jobs back; the jobs of a killed worker are free when their leases
  end. If the store's answer to an acquire was lost, the job is given back too.
- A worker takes no more jobs than it can run; `Capacity` has the rules, `Leases` those of leases.
- A worker waits for events: a job that stops, the next free job, the next renewal. Changes by other
  processes raise no event, so it reads the store for them every `POLL` seconds.
- A job that can't be resumed is put aside for the length of a lease, for another worker to take,
  and delays no other job. The log gives the reason once, and again when it changes. A job that is
  damaged in the store is named when the worker starts, and later within a lease.
- A host that can't run a step, as with a broken executor, is never counted against a job. The
  worker gives its jobs back and raises the error, so that a supervisor restarts it.
- A job whose next unclean stop would fail it runs alone, so that no other job is blamed for it.
- A store that fails is retried for as long as a lease: no other host can take over meanwhile. A job
  whose commit it did not accept is given back, and resumes after the commit before.
- A signal interrupts no bookkeeping. If another exception does, every lease is given back anyway: a
  job is removed from one list only after it was added to the next, so each step can be repeated.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Final

from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND, seconds_text
from routilux.core.commits import JobStatus
from routilux.engine.drive import Drive
from routilux.engine.entry_checks import checked_concurrency, checked_flag, checked_lease
from routilux.engine.step import CLEANUP
from routilux.errors import FlowDefinitionError, LeaseLostError, RoutiluxError, short_repr
from routilux.flow import Flow
from routilux.graph.messages import ErrorInfo
from routilux.persist.store import POLL
from routilux.runtime import Runtime
from routilux.worker.capacity import Capacity
from routilux.worker.leases import Leases
from routilux.worker.stop_signals import StopSignals

if TYPE_CHECKING:
    from datetime import timedelta

    from routilux.core.state import JobState
    from routilux.persist.store import JobStore

_log = logging.getLogger("routilux")
_MOST_FAILED: Final = 5  # tasks that a line of the log names
_FIRST_WAIT: Final = SECOND // 20
_LONGEST_WAIT: Final = SECOND


class Worker:
    """Runs the stored jobs of `flows` until `stop` is called.

    It takes jobs that were submitted, given back, or left by a host whose lease has ended. `lease`
    is in seconds: how long other hosts wait before they take over from a host that has died. Jobs
    run with `runtime`, whose store is `store`. `concurrency` is the most jobs that it runs at once,
    by default as many as its runtime has threads: 32, or those of the runtime's executor; more than
    the executor has is refused. A job that can't be resumed is logged once, and tried again after
    each `lease`.

    `flows` may hold several flows of one id, such as an old and a new release: a job runs on the
    flow of its shape. With `allow_changed_flow` a job whose shape none of them has runs on the
    first one that has a slot for each of the job's pending tasks.

    It logs, to the logger `routilux`, each job that it takes, also after an unclean stop, each job
    that stops, and a signal (INFO), and a job that failed for good with its error (WARNING).

    >>> from routilux import MemoryStore, Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["greeting"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> store = MemoryStore()
    >>> job_id = Runtime(store=store).submit(flow, "hello")
    >>> Worker(store, [flow]).run(until_idle=True)
    >>> Runtime(store=store).load(job_id).status.value
    'completed'
    """

    def __init__(
        self,
        store: JobStore,
        flows: Iterable[Flow],
        *,
        runtime: Runtime | None = None,
        lease: float | timedelta = 30.0,
        concurrency: int | None = None,
        allow_changed_flow: bool = False,
    ) -> None:
        self._store = store
        self._flows = _by_id(flows)
        self._allow_changed_flow = checked_flag("allow_changed_flow", allow_changed_flow)
        lease_ns = checked_lease(lease)
        self._runtime = Runtime(store=store) if runtime is None else runtime
        if self._runtime.store is not store:
            raise FlowDefinitionError(
                "the worker and its runtime have different stores;"
                " pass the store of the worker to Runtime(store=...)"
            )
        self._environment = environment = self._runtime.environment
        for flow in (flow for flows in self._flows.values() for flow in flows):
            self._runtime.threads.check(flow.plan())
        self._capacity = Capacity(
            environment.lock, self._runtime.threads.reserve(checked_concurrency(concurrency))
        )
        self._leases = Leases(environment, store, lease_ns, self._lose)
        self._clock = self._runtime.clock
        self._signal = self._clock.signal()
        self._stopping = False
        self._drives: dict[str, Drive] = {}
        self._stopped_jobs: deque[Drive] = deque()
        self._cleaning: list[Drive] = []  # broken off, with async handlers in their cleanup
        self._report_at = 0
        self._put_aside: dict[str, str] = {}  # job id -> the reason, as it was logged
        self._outage: int | None = None  # the instant at which the store began to fail
        self._next_wait = _FIRST_WAIT
        self._signals = StopSignals(self._signal.set)
        self._broke_off = False  # by an exception, so the store may hold leases that are not known
        self._trouble: BaseException | None = None  # why this host can't run steps any more
        # A job whose next unclean stop fails it: it runs alone, so that no other job is blamed.
        self._alone: Drive | None = None

    def stop(self) -> None:
        """Make `run` return once the running steps have committed; thread-safe."""
        self._stopping = True
        self._signal.set()

    def run(self, *, until_idle: bool = False) -> None:
        """Run jobs until `stop` is called or a signal arrives.

        After `stop`, SIGTERM or SIGINT (Ctrl-C), steps in flight end and commit, and the jobs are
        given back. Async handlers are cancelled, and have a second for their cleanup; such an
        attempt does not count. Then `run` returns; after a SIGINT it raises `KeyboardInterrupt`. A
        second signal does not wait for the steps: their jobs are free at once, as after a crash,
        and the steps run again with the same idempotency keys. A third acts as if there were no
        worker. Only the main thread gets signals. A SIGINT that the program ignores or handles is
        its own.

        With `until_idle` it also ends when every job of its flows has stopped, here and on other
        hosts, and the error of a job that can't be resumed is raised. Raises the errors of the
        store; an `OSError` only if the store has failed for as long as a lease. Raises what kept
        this host from running a step, such as a broken executor: start the worker again with a new
        executor. Its jobs are given back, and only a job whose step was running then has an unclean
        stop.
        """
        signals = self._signals = StopSignals(self._signal.set)
        self._trouble = None
        party = self._clock.party("a worker", result=True)
        try:
            try:
                signals.install()
                party.start()
                self._run_and_leave(until_idle)
            finally:
                party.stop()
                signals.remove()
        except BaseException:  # it may have interrupted the two lines above
            party.stop()
            signals.remove()
            raise
        if self._trouble is not None:
            raise self._trouble
        if signals.interrupted:
            raise KeyboardInterrupt

    def _run_and_leave(self, until_idle: bool) -> None:
        try:
            self._run(until_idle)
            self._leave()
        except BaseException:
            self._broke_off = True
            self._leave()
            raise
        finally:
            until = self._clock.monotonic_ns() + CLEANUP
            for drive in self._cleaning:
                drive.wait_for_cleanup(until)
            self._cleaning.clear()

    def _run(self, until_idle: bool) -> None:
        more = True
        while more and not (self._stopping or self._signals or self._trouble):
            try:
                more = self._turn(until_idle)
            except OSError as error:
                self._wait_out(error)
            else:
                if self._outage is not None:
                    length = seconds_text(self._clock.monotonic_ns() - self._outage, 1)
                    _log.info("the store works again after %s s", length)
                    self._outage = None

    def _turn(self, until_idle: bool) -> bool:
        self._maintain()
        if self._trouble is not None:
            return True
        self._report_damaged()
        room = self._alone is None and self._capacity.check()
        if room and self._take(until_idle):
            return True
        free_in = self._store.free_in(self._flows)
        if until_idle and free_in is None and not self._drives:
            return False
        self._wait(free_in if room else None)
        return True

    def _leave(self) -> None:
        self._find_lost()
        if self._signals:
            self._log_signal()
        for drive in self._drives.values():
            drive.leave()
        while self._drives or self._leases.to_release or self._broke_off:
            try:
                self._maintain()
                if self._signals.repeated:
                    self._give_up_steps()
                if self._drives:
                    self._wait(None)
            except OSError as error:
                if self._signals.repeated:
                    raise
                self._wait_out(error)

    def _log_signal(self) -> None:
        with self._environment.lock:
            steps = sum(drive.machine.in_flight for drive in self._drives.values() if drive.loop)
        _log.info(
            "%s: the worker takes no more jobs, and waits for %d step%s in flight; a second signal"
            " does not wait",
            self._signals.first,
            steps,
            "s" * (steps != 1),
        )

    def _find_lost(self) -> None:
        """Complete the bookkeeping that an exception interrupted."""
        with self._environment.lock:
            for drive in self._drives.values():
                if drive.loop is None and drive not in self._stopped_jobs:
                    self._stopped_jobs.append(drive)
        self._leases.release_unknown(self._drives)

    def _give_up_steps(self) -> None:
        with self._environment.lock:
            for drive in self._drives.values():
                if drive.loop is not None and drive.machine.in_flight:
                    drive.loop.fail(drive, _SecondSignal("a second signal"))

    def _wait_out(self, error: OSError) -> None:
        """Wait before the next try, or give up and raise `error`."""
        now = self._clock.monotonic_ns()
        if self._outage is None:
            self._outage, self._next_wait = now, _FIRST_WAIT
            length = seconds_text(self._leases.length_ns, 1)
            _log.warning("the store fails; the worker retries for at most %s s: %s", length, error)
        end = self._outage + self._leases.length_ns
        if now >= end:
            raise error
        self._clock.wait(self._signal, min(now + self._next_wait, end), who="a worker")
        self._next_wait = min(2 * self._next_wait, _LONGEST_WAIT)

    def _maintain(self) -> None:
        self._signal.clear()
        while self._stopped_jobs:
            self._finish(self._stopped_jobs[0])
            self._stopped_jobs.popleft()
        self._leases.release()
        self._look_at_alone()
        if self._broke_off or (
            self._drives and self._leases.renew_at <= self._clock.monotonic_ns()
        ):
            self._renew()
            self._broke_off = False

    def _report_damaged(self) -> None:
        """Log the damaged jobs of the store once per lease."""
        now = self._clock.monotonic_ns()
        if now < self._report_at:
            return
        self._report_at = now + self._leases.length_ns
        for entry in self._store.entries(live=True):
            if entry.damage is not None:
                self._log_skipped(entry.job_id, entry.damage)

    def _log_skipped(self, job_id: str, error: RoutiluxError) -> None:
        if self._put_aside.get(job_id) != str(error):
            _log.error("the worker can't resume job %s and skips it for now: %s", job_id, error)
        self._put_aside[job_id] = str(error)

    def _wait(self, free_in: int | None) -> None:
        now = self._clock.monotonic_ns()
        until = self._leases.renew_at if self._drives else now + self._leases.interval_ns
        if free_in is not None:
            until = min(until, now + free_in)
        if isinstance(self._clock, SystemClock):  # other processes use no other clock
            until = min(until, now + int(POLL * SECOND))
        self._clock.wait(self._signal, until, who="a worker")

    def _look_at_alone(self) -> None:
        """Run a job that must run alone once the other jobs are given back."""
        alone = self._alone
        if alone is None:
            return
        job, machine = alone.machine.job, alone.machine
        with self._environment.lock:
            began, busy = alone.loop is not None, alone.can_start or machine.in_flight
        if not began and self._drives.get(job.job_id) is alone:
            if len(self._drives) == 1 and alone not in self._stopped_jobs:
                self._runtime.threads.drive_in_background(alone)
        elif not (began and busy and job.recoveries):
            self._alone = None  # it made progress, waits for a retry, or has stopped

    # --- its jobs -------------------------------------------------------------------------------

    def _take(self, raises: bool) -> bool:
        """Acquire and resume jobs; with `raises`, raise the error of one that can't be resumed."""
        if not self._drives:
            self._leases.plan_renewal()
        taken = self._leases.acquire(self._flows, self._capacity.batch())
        failed: list[Exception] = []
        results: list[Drive | Exception] = []
        if taken:
            results = self._runtime.resume_acquired(
                self._flows, taken, self._leases.renew_at, allow_changed=self._allow_changed_flow
            )
        self._capacity.note_claim(len(results), clean=all(clean for _, clean in taken))
        # Jobs without a result are still to be released.
        for (job_id, clean), result in zip(taken, results, strict=False):
            if isinstance(result, Drive):
                self._put_aside.pop(job_id, None)
                if self._alone is None:
                    what = f"job {job_id} of flow {result.plan.flow_id}"
                    seq = result.machine.job.seq
                    if clean:
                        _log.info("took %s at commit %d", what, seq)
                    else:
                        _log.info("took over %s at commit %d after an unclean stop", what, seq)
                    self._drive(job_id, result)
                else:
                    self._leases.release_later(job_id, 0, clean=True)
            elif isinstance(result, LeaseLostError):
                _log.info("%s", result)
                self._leases.forget(job_id)
                self._leases.keep(job_id)
            elif isinstance(result, RoutiluxError):
                self._log_skipped(job_id, result)
                self._leases.release_later(job_id, self._leases.length_ns, clean=clean)
                failed += [result] if raises else []
            else:
                failed.append(result)  # of the store
        self._leases.release()
        if failed:
            raise failed[0]
        return bool(taken)

    def _drive(self, job_id: str, drive: Drive) -> None:
        drive.on_stop, drive.on_wait = self._note_stop, self._note_wait
        drive.lease_ns = self._leases.length_ns
        self._drives[job_id] = drive
        self._capacity.add(drive)
        self._leases.keep(job_id)
        recoveries = drive.machine.job.recoveries
        if recoveries and recoveries == self._runtime.max_recoveries:
            self._alone = drive
            for other in self._drives.values():
                if other is not drive:
                    other.leave()
            self._look_at_alone()
        else:
            self._runtime.threads.drive_in_background(drive)

    def _note_stop(self, drive: Drive) -> None:
        self._stopped_jobs.append(drive)
        self._signal.set()

    def _note_wait(self, drive: Drive) -> None:
        if drive.can_start:
            self._capacity.add(drive)
        elif self._capacity.full:
            self._signal.set()  # there may be room for another job

    def _finish(self, drive: Drive) -> None:
        job, error = drive.machine.job, drive.error
        self._capacity.discard(drive)
        self._cleaning = [other for other in self._cleaning if not other.has_cleaned_up]
        if not drive.has_cleaned_up:
            self._cleaning.append(drive)
        if isinstance(error, LeaseLostError):
            _log.info("%s", error)
        elif isinstance(error, OSError) and not drive.trouble:
            _log.warning(
                "the worker releases job %s after an error on this host: %s", job.job_id, error
            )
        elif error is not None and (drive.trouble or isinstance(error, BrokenExecutor)):
            _log.error("the worker releases job %s and ends: %s", job.job_id, ErrorInfo.of(error))
            self._trouble = self._trouble or error
        elif isinstance(error, _SecondSignal):
            _log.warning("the worker releases job %s with steps in flight", job.job_id)
        elif error is not None:
            _log.error(
                "the worker releases job %s after an error on this host", job.job_id, exc_info=error
            )
        else:
            _log_stop(job)
        if self._drives.get(job.job_id) is not drive:
            return  # this worker has taken the job again meanwhile
        if error is None and job.status is JobStatus.RUNNING:
            task = drive.machine.next_task()
            wait = 0 if task is None else max(0, task.due_ns - drive.now_ns())
            self._leases.release_later(job.job_id, wait, clean=True)
        elif drive.trouble or isinstance(error, OSError):
            # Not the job's fault. If only this job meets the trouble, a short wait saves work.
            self._leases.release_later(job.job_id, self._leases.interval_ns, clean=True)
        elif error is not None and not isinstance(error, LeaseLostError):
            self._leases.release_later(job.job_id, 0, clean=False)
        else:
            self._leases.forget(job.job_id)
        del self._drives[job.job_id]

    def _renew(self) -> None:
        held = self._leases.renew()
        for job_id in sorted(self._drives.keys() - held):
            self._lose(job_id)
        self._capacity.give_back_late()

    def _lose(self, job_id: str) -> None:
        """Stop running a job whose lease is lost; thread-safe."""
        drive = self._drives.get(job_id)
        if drive is None:
            return
        lost = LeaseLostError(
            f"job {job_id!r} was taken over by an operator, or by another host while this"
            " host was suspended for longer than its lease"
        )
        with self._environment.lock:
            if drive.loop is not None:
                if drive.machine.job.status is JobStatus.RUNNING:
                    drive.loop.fail(drive, lost)
            elif drive is self._alone and drive not in self._stopped_jobs:  # it has not begun
                drive.error = lost
                self._note_stop(drive)


class _SecondSignal(BaseException):
    pass


def _log_stop(job: JobState) -> None:
    name, status = f"job {job.job_id} of flow {job.flow_id}", job.status
    if status is JobStatus.RUNNING:
        _log.info("gave back %s at commit %d", name, job.seq)
    elif status is not JobStatus.FAILED:
        _log.info("%s is %s at commit %d", name, status.value, job.seq)
    else:
        failed = [task for task in job.pending_tasks if task.failed]
        where = "".join(f" at {t.routine_id} attempt {t.attempt - 1}" for t in failed[:1])
        error = " ".join(str(job.error).split())
        line = f" ({job.error.where})" if job.error is not None and job.error.where else ""
        rest = "".join(
            f"; {t.routine_id} failed at attempt {t.attempt - 1}{job._other_error(t)}"
            for t in failed[1:_MOST_FAILED]
        )
        _log.warning("%s failed for good%s: %s%s%s", name, where, error, line, rest)


def _by_id(flows: Iterable[Flow]) -> dict[str, list[Flow]]:
    if not isinstance(flows, Iterable):
        raise FlowDefinitionError(
            f"flows must be a list of flows, not {short_repr(flows)}; pass Worker(store, [flow])"
        )
    found: dict[str, list[Flow]] = {}
    for flow in flows:
        if not isinstance(flow, Flow):
            raise FlowDefinitionError(
                f"flows holds {short_repr(flow)}, which is no Flow; pass Worker(store, [flow])"
            )
        others = found.setdefault(flow.flow_id, [])
        if any(other is not flow and other.fingerprint == flow.fingerprint for other in others):
            raise FlowDefinitionError(
                f"two flows have the id {flow.flow_id!r} and the same shape, by which a worker"
                " finds a job's flow; pass one of these flows, or give one another flow_id"
            )
        if flow not in others:
            others.append(flow)
    if not found:
        raise FlowDefinitionError(
            "a worker needs at least one flow; pass the flows whose jobs the worker runs"
        )
    return found
