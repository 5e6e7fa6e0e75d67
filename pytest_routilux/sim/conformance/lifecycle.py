"""Rules for requests about a whole job: queue, pause, cancel, resume, recover, retry the failed.

Invariants:
- The rules are tried on copies of the job as it was after some of its commits. No handler runs.
- A request that the job's status does not allow is refused, and every request is pure: it changes
  nothing before its commit is folded in.
- A copy that folds in a commit does not change the job that it was copied from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

from pytest_routilux.sim.conformance.refusals import accepted_corruption
from pytest_routilux.sim.conformance.retry_rules import BrokenRuleError, fail
from routilux import (
    Commit,
    CommitKind,
    ErrorInfo,
    JobState,
    JobStatus,
    NotResumableError,
    StepOutcome,
)
from routilux.clocks.durations import SECOND
from routilux.core.machine import Machine
from routilux.core.requests import request, requeue, take_over
from routilux.graph.messages import RecordedEffect

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pytest_routilux.sim.simulator.model import Finding, Undisturbed
    from routilux.graph.plan import Plan

_MOST: Final = 6  # of the states of a run that are tried
_LIMIT: Final = 2  # recoveries
_ENDS_NOTHING: Final = (CommitKind.START, CommitKind.RESUMED, CommitKind.INTERRUPTED)


def broken_lifecycle(run: Undisturbed) -> Finding | None:
    """Return a finding for the first rule that the engine breaks."""
    plan = run.host.flow.plan()
    states = [state for state in run.states if state.seq]
    if len(states) > _MOST:
        states = [states[round(i * (len(states) - 1) / (_MOST - 1))] for i in range(_MOST)]
    try:
        _check_queue(plan, run.case.job_id, run.durable[0])
        for job in states:
            following = run.durable[job.seq] if job.seq < len(run.durable) else None
            before = job.copy()
            _Lifecycle(plan, job, following).check()
            if job != before:
                fail("lifecycle-wrong", f"a request changes {job!r} before its commit", None)
            if job.seq <= run.job.seq and run.job.at(job.seq) != job:
                fail("lifecycle-wrong", f"job.at({job.seq}) is not the job of that moment", None)
        what = accepted_corruption(run.durable, run.states)
        if what is not None:
            fail("corruption-accepted", what, None)
    except BrokenRuleError as error:
        return error.finding
    return None


def _check_queue(plan: Plan, job_id: str, start: Commit) -> None:
    root = start.tasks[0]
    job = JobState(job_id)
    now = start.at_ns
    queued = Machine(plan, job).start(root.routine_id, root.slot, root.payload, now, queued=True)
    _expect("a queued job starts with", queued, start, status=JobStatus.PENDING)
    job.fold(queued)
    machine = Machine(plan, job)
    if machine.next_task() is not None or machine.startable(now):
        fail("lifecycle-wrong", "a queued job has a task to start before a host resumes it", None)
    resumed = machine.resume(now, retry_failed=False, max_recoveries=0)
    detail = {"recoveries": 0, "retry_failed": False}
    _expect("a queued job is resumed by", resumed, _resumed(job, now, detail))
    machine.accept(resumed)
    if [task.task_id for task in machine.startable(now)] != ["0"]:
        fail("lifecycle-wrong", "a queued job that a host has resumed has no task to start", None)


def _resumed(job: JobState, now: int, detail: Any, status: JobStatus = JobStatus.RUNNING) -> Commit:
    return Commit(job.seq + 1, CommitKind.RESUMED, now, status, detail=detail)


def _expect(who: str, given: Commit, expected: Commit, **changed: Any) -> None:
    """Fail if a commit is not the expected one, with those fields changed."""
    expected = replace(expected, **changed)
    for name in Commit.__slots__:
        was, is_ = getattr(expected, name), getattr(given, name)
        if was != is_:
            what = f"{who} a commit whose {name} is {is_!r}; it must be {was!r}"
            fail("lifecycle-wrong", what, None)


@final
class _Lifecycle:
    """Tries the requests on one state of a job."""

    def __init__(self, plan: Plan, job: JobState, following: Commit | None) -> None:
        self._plan = plan
        self._job = job
        self._following = following
        self._now = job.updated_ns + SECOND
        self._text = f"a job that is {job.status.value} after commit {job.seq}"

    def check(self) -> None:
        self._check_pause()
        self._check_cancel()
        self._check_failed()
        self._check_taken_over()
        self._check_recoveries()
        self._check_outcomes()

    def _fail(self, what: str) -> None:
        fail("lifecycle-wrong", f"{self._text} {what}", None)

    def _refuses(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except NotResumableError:
            return
        self._fail(f"can be {what}")

    def _resume(
        self, job: JobState, *, most: int | None = None, clean: bool = True, failed: bool = False
    ) -> Commit:
        machine = Machine(self._plan, job)
        return machine.resume(self._now, retry_failed=failed, max_recoveries=most, clean=clean)

    def _folded(self, job: JobState, commit: Commit) -> JobState:
        twin = job.copy()
        if twin != job:
            self._fail("differs from its copy")
        twin.fold(commit)
        return twin

    def _check_pause(self) -> None:
        job, now = self._job, self._now
        if job.status is not JobStatus.RUNNING:
            self._refuses("paused", lambda: request(job, "pause", now))
            return
        pause = request(job, "pause", now, "lunch")
        expected = Commit(job.seq + 1, CommitKind.PAUSED, now, JobStatus.PAUSED)
        _expect("a pause is", pause, expected, detail={"reason": "lunch"})
        paused = self._folded(job, pause)
        if paused.status is not JobStatus.PAUSED or paused.pending_tasks != job.pending_tasks:
            self._fail("loses or changes a task when it is paused")
        machine = Machine(self._plan, paused)
        if machine.next_task() is not None or not machine.stopped:
            self._fail("starts a task while it is paused")
        self._refuses("paused twice", lambda: request(paused, "pause", now))
        self._refuses("taken over while it is paused", lambda: take_over(paused, now))
        resume = self._resume(paused, most=0, clean=False)
        if job.tasks_to_run():
            _expect("a pause is ended by", resume, _resumed(paused, now, resume.detail))
            if (resume.detail or {}).get("recoveries") != job.recoveries:
                self._fail("counts a resume after a pause as a recovery")
            if self._ready(self._folded(paused, resume)) != self._ready(job):
                self._fail("has other tasks after a pause and a resume")

    def _ready(self, job: JobState) -> list[tuple[str, int, int]]:
        return [(task.task_id, task.attempt, task.retries) for task in job.tasks_to_run()]

    def _check_cancel(self) -> None:
        job, now = self._job, self._now
        if job.status in (JobStatus.COMPLETED, JobStatus.CANCELLED):
            self._refuses("cancelled", lambda: request(job, "cancel", now))
            self._refuses("resumed", lambda: self._resume(job, failed=True))
            return
        cancel = request(job, "cancel", now)
        expected = Commit(job.seq + 1, CommitKind.CANCELLED, now, JobStatus.CANCELLED)
        _expect("a cancellation is", cancel, expected)
        cancelled = self._folded(job, cancel)
        if Machine(self._plan, cancelled).next_task() is not None or not cancelled.is_final:
            self._fail("starts a task after it was cancelled")
        self._refuses("resumed after it was cancelled", lambda: self._resume(cancelled))
        self._refuses("cancelled twice", lambda: request(cancelled, "cancel", now))

    def _check_failed(self) -> None:
        job, now = self._job, self._now
        if job.status is not JobStatus.FAILED:
            self._refuses("requeued", lambda: requeue(job, now))
            return
        self._refuses("resumed without retry_failed", lambda: self._resume(job))
        failed = {task.task_id: task for task in job.pending_tasks if task.failed}
        detail = {"recoveries": 0, "retry_failed": True}
        resume = self._resume(job, failed=True, most=0, clean=False)
        if failed:
            _expect("retry_failed resumes with", resume, _resumed(job, now, detail))
        queued = _resumed(job, now, detail, JobStatus.PENDING)
        if job.pending_tasks:
            _expect("requeue makes", requeue(job, now), queued)
        again = self._folded(job, resume)
        for task in again.pending_tasks:
            old = failed.get(task.task_id)
            if old is None:
                continue
            if task.failed or task.retries or task.attempt != old.attempt or task.due_ns != now:
                self._fail(f"gives {task.routine_id} (task {task.task_id}) no fresh budget")
        self._check_new_tasks(again, failed)
        if again.error is not None or any(s.failed for s in again.routine_states.values()):
            self._fail("keeps the error of the failure that is retried")

    def _check_new_tasks(self, again: JobState, failed: Collection[str]) -> None:
        """Check that a task which has reported its failure gets no ids for a second time."""
        known = {task.task_id for commit in self._job.commits for task in commit.tasks}
        machine = Machine(self._plan, again.copy())
        for pending in again.tasks_to_run():
            like = next(
                (
                    commit
                    for commit in self._job.commits
                    if commit.kind is CommitKind.DONE
                    and commit.routine_id == pending.routine_id
                    and commit.tasks
                ),
                None,
            )
            if pending.task_id not in failed or like is None:
                continue
            step = machine.begin(machine.job._pending[pending.task_id], self._now)
            outcome = StepOutcome(step.number, list(like.emissions))
            commit = machine.finish(step, outcome, self._now)
            twice = known & {task.task_id for task in (commit.tasks if commit else ())}
            if twice:
                self._fail(f"creates task {min(twice)} again after retry_failed")
            machine.abandon(step)

    def _check_taken_over(self) -> None:
        job, now = self._job, self._now
        if not job.status.is_live:
            self._refuses("taken over", lambda: take_over(job, now))
            return
        counts = job.status is JobStatus.RUNNING and bool(self._ready_now())
        detail = {"recoveries": job.recoveries + counts, "retry_failed": False}
        expected = _resumed(job, now, detail, JobStatus.PENDING)
        _expect("a job is taken over by", take_over(job, now), expected)

    def _ready_now(self) -> list[str]:
        return [
            task.task_id
            for task in self._job.tasks_to_run()
            if task.due_ns <= self._now or not task.delay_ns
        ]

    def _check_recoveries(self) -> None:
        """Check that hosts that die without progress are counted, and poison the job."""
        job, ready = self._job, self._ready_now()
        if job.status is not JobStatus.RUNNING or not job.tasks_to_run():
            return
        resume = self._resume(job, clean=True)
        if (resume.detail or {}).get("recoveries") != job.recoveries:
            self._fail("counts a resume after a clean stop as a recovery")
        self._check_interrupted(bool(ready))
        dies = job
        for number in range(1, _LIMIT + 1):
            resume = self._resume(dies, most=_LIMIT + job.recoveries, clean=False)
            expected = job.recoveries + number * bool(ready)
            if (resume.detail or {}).get("recoveries") != expected:
                self._fail(f"counts {resume.detail} after recovery {number}")
            dies = self._folded(dies, resume)
            if dies.recoveries != expected:
                self._fail(f"says {dies.recoveries} recoveries after {expected}")
        if not ready:
            return
        if len(dies.stops) != min(dies.recoveries, 10):
            self._fail(f"names {len(dies.stops)} ends of {dies.recoveries} hosts")
        poisoned = self._resume(dies, most=_LIMIT + job.recoveries, clean=False)
        error = poisoned.error
        if poisoned.kind is not CommitKind.FAILED or error is None or poisoned.task_id not in ready:
            self._fail(f"is not poisoned after {dies.recoveries} recoveries without progress")
            return
        left = len(self._folded(dies, poisoned)._reports)
        ended = JobStatus.RUNNING if left else JobStatus.FAILED
        if poisoned.status is not ended:
            self._fail(f"is {poisoned.status.value} when it is poisoned; it must be {ended.value}")
        words = [f"recovered {dies.recoveries} time", *(f"task {name}," for name in ready[:10])]
        if error.type != "routilux.PoisonJobError" or not all(
            one in error.message for one in words
        ):
            self._fail(f"is poisoned by an error that does not name its tasks: {error}")
        if self._following is not None and self._following.kind not in _ENDS_NOTHING:
            following = replace(self._following, seq=dies.seq + 1)
            if following.kind is not CommitKind.CONFLICT and following.task_id is not None:
                progress = self._folded(dies, following)
                if progress.recoveries or progress.stops:
                    self._fail("counts recoveries on after progress")

    def _check_interrupted(self, ready: bool) -> None:
        """Check that trouble of the host is no recovery, and that of a step is one."""
        job, now = self._job, self._now
        machine = Machine(self._plan, job.copy())
        first, error = machine.next_task(), ErrorInfo("OSError", "no thread")
        steps = [None] if first is None else [None, machine.begin(first, max(now, first.due_ns))]
        for step in steps:
            commit = machine.interrupt(step, error, now)
            broken = self._folded(job, commit)
            if broken.interruption != error or commit.error != error:
                self._fail("does not keep the error that interrupts it")
            detail = self._resume(broken, clean=False).detail or {}
            counts = step is not None and ready
            if detail.get("recoveries") != job.recoveries + counts:
                who = "trouble of the host" if step is None else "a step that ends its host"
                self._fail(f"counts {detail.get('recoveries')} recoveries after {who}")
            if self._folded(broken, self._resume(broken)).interruption is not None:
                self._fail("keeps what interrupted it after a resume")

    def _check_outcomes(self) -> None:
        """Check that only the outcome of a step in flight makes a commit, and only once."""
        job = self._job.copy()
        machine = Machine(self._plan, job)
        first = machine.next_task()
        if first is None:
            return
        now = max(self._now, first.due_ns)
        step = machine.begin(first, now)
        if machine.in_flight != 1 or not machine.is_in_flight(step):
            self._fail("does not know the step that it has started")
        self._refuses_in_flight(machine)
        late = StepOutcome(step.number + 1, [])
        if machine.finish(step, late, now) is not None:
            self._fail("accepts the outcome of another step")
        outcome = StepOutcome(step.number, [])
        commit = machine.finish(step, outcome, now)
        if commit is None or commit.kind is not CommitKind.DONE or commit.attempt != first.attempt:
            self._fail("does not commit the outcome of its step")
            return
        if machine.in_flight != 1 or job.seq != self._job.seq:
            self._fail("changes by an outcome that is not committed yet")
        effect = RecordedEffect("", "ok")
        if machine.effect(step, "pay", effect, now) is None:
            self._fail("does not record an effect of its step")
        machine.accept(commit)
        if machine.effect(step, "pay", effect, now) is not None:
            self._fail("records an effect of a step that has ended")
        if machine.finish(step, outcome, now) is not None or machine.is_in_flight(step):
            self._fail("accepts one outcome twice")

    def _refuses_in_flight(self, machine: Machine) -> None:
        def resume() -> object:
            return machine.resume(self._now, retry_failed=False, max_recoveries=None)

        self._refuses("resumed while a step is in flight", resume)
