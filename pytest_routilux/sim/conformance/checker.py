"""Checks a simulated run against the engine's rules.

Invariants:
- One walk over the durable commits, and over the steps that started between them, keeps a
  `ShadowJob`. A rule looks at one commit, one start of a step or the end of the run. The first
  broken rule stops the walk.
- A finding names the broken rule in the user's terms: routine, task, attempt, times in seconds.
- A rule that lacks the facts to decide reports nothing, so a sound engine never breaks one. A late
  start is reported only where durations are exact, and only for a step whose every wait is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.conformance.end_rules import check_reading
from pytest_routilux.sim.conformance.gather_rules import GatherRules
from pytest_routilux.sim.conformance.retry_rules import (
    BrokenRuleError,
    RetryRules,
    commit_text,
    fail,
)
from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
from pytest_routilux.sim.conformance.spec import FlowSpec, child_id, error_name, width_of
from pytest_routilux.sim.conformance.start_rules import StartRules, same, too_early, wrong_attempt
from pytest_routilux.text import seconds
from routilux import ClockStalledError, CommitKind, JobStatus, PoisonJobError
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.simulator.model import Case, Finding, Host, World
    from routilux import Commit

_POISONED: Final = error_name(PoisonJobError)
_DONE = CommitKind.DONE
_FAILED = CommitKind.FAILED
_CONFLICT = CommitKind.CONFLICT
_EFFECT = CommitKind.EFFECT
_RESUMED = CommitKind.RESUMED
_RUNNING = JobStatus.RUNNING
_COMPLETED = JobStatus.COMPLETED
_CANCELLED = JobStatus.CANCELLED
_STEP_ENDS: Final = (_DONE, CommitKind.RETRY, CommitKind.DROPPED, _CONFLICT)
# The commits that may change the status of a job that stopped.
_WAYS_OUT: Final = {
    JobStatus.FAILED: (_RESUMED, CommitKind.CANCELLED),
    JobStatus.PAUSED: (_RESUMED, CommitKind.CANCELLED, _FAILED, *_STEP_ENDS),
}
_NO_STEP: Final[tuple[int, Any]] = (-1, None)

_latest: list[tuple[Case, FlowSpec]] = []


def broken_rule(
    world: World, hosts: Sequence[Host], case: Case, *, reading: bool = False
) -> Finding | None:
    """Return a finding for the first engine rule that a run breaks.

    With `reading` also check all that a user can read of the job at its end.
    """
    checker = _Checker(_spec_of(case), hosts)
    steps = ((number, step) for host in hosts for number, step in host.steps)
    number, step = next(steps, _NO_STEP)
    try:
        start = checker.start_rules.check
        for count, commit in enumerate(world.commits):
            while number == count:
                start(step)
                number, step = next(steps, _NO_STEP)
            checker.check(commit)
        while number == len(world.commits):
            start(step)
            number, step = next(steps, _NO_STEP)
        checker.check_end(hosts[-1])
        if checker.start_rules.overtaken is not None:  # else it may never start, which says more
            shadow, what = checker.start_rules.overtaken
            fail("started-out-of-order", what, shadow.task)
        last = hosts[-1]
        if reading and last.job is not None and last.error is None:
            check_reading(world.commits, last.job)
    except BrokenRuleError as error:
        return error.finding
    return None


def _spec_of(case: Case) -> FlowSpec:
    # Thousands of runs of one case follow each other.
    if not _latest or _latest[0][0] is not case:
        _latest[:] = [(case, FlowSpec(case.build()))]
    return _latest[0][1]


class _Checker:
    __slots__ = (
        *("_exact", "_gathers", "_job", "_retry_rules", "_spec", "_starts_known"),
        "start_rules",
    )

    def __init__(self, spec: FlowSpec, hosts: Sequence[Host]) -> None:
        self._spec = spec
        widths = {width_of(host.flow) for host in hosts}
        self._exact = len(widths) == 1 and all(host.exact for host in hosts)
        self._starts_known = False  # of the steps of the host that made the last commit of a step
        self._job = ShadowJob(max(widths), spec.limits)
        self._retry_rules = RetryRules(spec, self._job, hosts)
        self._gathers = GatherRules(spec, self._job)
        self.start_rules = StartRules(self._job, self._gathers, exact=self._exact)

    # --- a commit -------------------------------------------------------------------------------

    def check(self, commit: Commit) -> None:
        job = self._job
        at, kind = commit.at_ns, commit.kind
        if at < job.at:
            back = f"{seconds(job.at - at)} s"
            fail("time-ran-back", f"time runs back by {back} at {commit_text(commit)}", commit)
        if kind is _DONE:
            shadow = self._end_attempt(commit)
            if commit.emissions or commit.tasks:
                self._check_tasks(commit, shadow)
            self._check_timeout(commit, shadow)
            job.close(shadow, "was done")
            reports = shadow.reports
            if commit.state is not None or commit.shared is not None:
                job.write(shadow.task.routine_id, commit.state, commit.shared, commit.seq)
            self._create(commit, shadow, reports=reports)
        elif kind is CommitKind.START:
            self._check_new(commit)
            job.start = at
            job.create(commit)
            self._gathers.check_commit(commit)
        elif kind is _RESUMED:
            job.resume(commit)
        elif kind is CommitKind.INTERRUPTED:
            self._check_interrupted(commit)
        elif commit.task_id is not None:
            self._check_unfinished(commit)
        self._check_status(commit)
        self._gathers.settle(at)
        job.at = at
        job.status = commit.status

    def _create(self, commit: Commit, shadow: ShadowTask, *, reports: bool) -> None:
        """Add the tasks and the deliveries of a commit that ends the task `shadow`."""
        self._job.create(commit, shadow.children, reports=reports)
        self._gathers.check_commit(commit)
        self._gathers.deliver(commit, shadow, shadow.children)

    def _check_interrupted(self, commit: Commit) -> None:
        """Check that the attempt that broke off the run is in flight, and stays the next one."""
        job = self._job
        job.interrupted = True
        if commit.task_id is None:
            return
        shadow = job.tasks.get(commit.task_id)
        if shadow is None or commit.task_id not in job.in_flight:
            fail("unknown-task", f"{commit_text(commit)} breaks off no step in flight", commit)
        if shadow.attempt != commit.attempt:
            wrong_attempt(shadow, commit.attempt, "is broken off", commit.at_ns)

    def _end_attempt(self, commit: Commit) -> ShadowTask:
        """Record the attempt in `commit`, and return the attempt's task."""
        job = self._job
        shadow = job.tasks.get(commit.task_id or "")
        if shadow is None or shadow.task.routine_id != commit.routine_id:
            what = f"{commit_text(commit)} belongs to a task that no commit creates"
            fail("unknown-task", what, commit)
        if shadow.ended or shadow.failed or shadow.attempt != commit.attempt:
            wrong_attempt(shadow, commit.attempt, "is committed", commit.at_ns)
        started = commit.at_ns if commit.started_ns is None else commit.started_ns
        if started > commit.at_ns:
            fail("time-ran-back", f"{commit_text(commit)} ends before it starts", commit)
        if started < shadow.due:
            too_early(shadow, started)
        if commit.kind is not _EFFECT:
            self._starts_known = shadow.task.task_id in job.in_flight
            if self._starts_known and commit.kind is not CommitKind.INTERRUPTED:
                self._retry_rules.check_conflict(commit, shadow)
            job.end_step(shadow, commit.at_ns)
            if shadow.first is None:
                shadow.first = started
            if commit.kind is not _CONFLICT and commit.started_ns is not None:
                routine = shadow.task.routine_id
                job.attempts[routine] = job.attempts.get(routine, 0) + 1
        return shadow

    def _check_tasks(self, commit: Commit, shadow: ShadowTask) -> None:
        """Check that `commit` creates exactly the tasks that the emissions require."""
        task = shadow.task
        tasks = [new for new in commit.tasks if new.emission >= 0]
        created = 0
        for index, emission in enumerate(commit.emissions):
            edges = self._spec.edges.get((task.routine_id, emission.event))
            if edges is None:
                self._job.outputs.append((task.routine_id, emission.event))
                continue
            for target, slot, names in edges:
                new = tasks[created] if created < len(tasks) else None
                if new is None or (target, slot, index) != (
                    new.routine_id,
                    new.slot,
                    new.emission,
                ):
                    what = (
                        f"{task.routine_id} emits {emission.event!r} in {commit_text(commit)},"
                        f" but no task is created for the connected slot {target}.{slot}"
                    )
                    fail("edge-missing", what, commit)
                expected = child_id(task.task_id, shadow.children + created)
                if new.task_id != expected:
                    what = (
                        f"task {created + 1} that {commit_text(commit)} creates has the id"
                        f" {new.task_id}, but the id must be {expected}"
                    )
                    known = new.task_id in self._job.tasks
                    fail("task-id-twice" if known else "task-id-wrong", what, commit)
                if names or new.payload is not emission.payload:
                    sent = {names.get(name, name): v for name, v in emission.payload.items()}
                    if not same(sent, new.payload):
                        what = (
                            f"{new.routine_id} gets a payload that {task.routine_id} did not emit"
                            f" in {commit_text(commit)}: {first_difference(sent, new.payload)}"
                        )
                        fail("payload-wrong", what, commit)
                created += 1
        if created < len(tasks):
            what = (
                f"{commit_text(commit)} creates task {tasks[created].task_id} for"
                f" {tasks[created].routine_id}, but emits nothing that is connected to that routine"
            )
            fail("task-unexpected", what, commit)
        self._check_new(commit)

    def _check_new(self, commit: Commit) -> None:
        for task in commit.tasks:
            if task.task_id in self._job.tasks:
                what = (
                    f"{commit_text(commit)} creates task {task.task_id} of {task.routine_id}, but a"
                    " task with this id exists"
                )
                fail("task-id-twice", what, task)

    def _check_timeout(self, commit: Commit, shadow: ShadowTask) -> None:
        timeout = self._spec.policies[shadow.task.routine_id].timeout
        took = commit.at_ns - (commit.started_ns or 0)
        if timeout is not None and self._exact and took > timeout:
            what = (
                f"attempt {commit.attempt} of {shadow} took {seconds(took)} s and counts as done;"
                f" its timeout is {seconds(timeout)} s"
            )
            fail("timeout-ignored", what, commit)

    def _check_unfinished(self, commit: Commit) -> None:
        """Check a task's commit of any kind except `DONE`."""
        job, kind = self._job, commit.kind
        if commit.error is not None and commit.error.type == _POISONED:
            job.begin_host(commit.at_ns)  # which fails the task instead of resuming the job
        shadow = self._end_attempt(commit)
        if kind is _EFFECT:
            self._record_effect(commit, shadow)
            return
        self._retry_rules.check_no_trace(commit, shadow)
        if kind is _CONFLICT:
            job.conflict(shadow, commit.at_ns)
            return
        self._retry_rules.check_failure(commit, shadow)
        if kind is CommitKind.RETRY:
            job.retry(shadow, commit)
            return
        self._check_tasks(commit, shadow)
        if kind is not _FAILED:
            job.close(shadow, "was dropped")
            job.dropped += 1
            self._gathers.drop(shadow)
        self._create(commit, shadow, reports=True)
        if kind is _FAILED:
            shadow.failed = job.failing = True
            shadow.children += sum(task.emission >= 0 for task in commit.tasks)
            shadow.attempt += 1
            shadow.delay = 0

    def _record_effect(self, commit: Commit, shadow: ShadowTask) -> None:
        name = str((commit.detail or {}).get("name"))
        if name in shadow.effects:
            what = f"once({name!r}) of {shadow} is recorded twice, at attempt {commit.attempt}"
            fail("record-twice", what, commit)
        shadow.effects.add(name)

    # --- the job --------------------------------------------------------------------------------

    def _check_status(self, commit: Commit) -> None:
        job = self._job
        before, after = job.status, commit.status
        if before is _COMPLETED or (
            after is not before
            and (before is _CANCELLED or commit.kind not in _WAYS_OUT.get(before, (commit.kind,)))
        ):
            what = f"{commit_text(commit)} changes the job from {before.value} to {after.value}"
            fail("changed-after-end", what, commit)
        if job.failing and before is not _CANCELLED and after is not _CANCELLED:
            self._check_failing(commit)
        if after is _COMPLETED and job.open:
            shadow = next(iter(job.open.values()))
            waits = f"waits for its retry {shadow.retries}" if shadow.delay else "is pending"
            what = f"the job is completed at {commit_text(commit)}, but {shadow} {waits}"
            fail("completed-too-early", what, shadow.task)
        if after is _RUNNING and not job.open:
            what = f"no task is left after {commit_text(commit)}, but the job is still running"
            fail("not-completed", what, commit)

    def _check_failing(self, commit: Commit) -> None:
        """Check that a job with a failed task is failed once its failures are reported."""
        job, after = self._job, commit.status
        left = [shadow for shadow in job.open.values() if shadow.reports and not shadow.failed]
        if after is JobStatus.FAILED and (left or job.in_flight):
            who = left[0] if left else next(iter(job.in_flight.values())).who
            what = f"the job is failed after {commit_text(commit)}, but {who} has not ended"
            fail("failed-too-early", what, commit)
        if after is not JobStatus.FAILED and self._starts_known and not (left or job.in_flight):
            what = f"the job is {after.value} after {commit_text(commit)}"
            fail("failure-ignored", what, commit)

    def check_end(self, host: Host) -> None:
        """Compare the last host's job with the job that the commits describe."""
        job, real = self._job, host.job
        if host.error is not None or real is None:
            if isinstance(host.error, ClockStalledError) and not job.in_flight:
                self._check_stalled()
            return
        for name, routine in real.routine_states.items():
            state = job.state.get(name, {})
            if (state or routine.state) and not same(state, routine.state):
                difference = first_difference(state, routine.state)
                what = f"the state of {name} is not what its commits wrote: {difference}"
                fail("state-not-folded", what, None, name)
            attempts = job.attempts.get(name, 0)
            if routine.attempts != attempts:
                what = f"{name} counts {routine.attempts} attempts, but its commits show {attempts}"
                fail("attempts-miscounted", what, None, name)
        if (job.shared or real.shared_data) and not same(job.shared, real.shared_data):
            difference = first_difference(job.shared, real.shared_data)
            what = f"the shared data is not what the commits wrote: {difference}"
            fail("shared-not-folded", what, None)
        if len(real.outputs) != len(job.outputs) or len(real.dropped) != job.dropped:
            what = (
                f"the job has {len(real.outputs)} outputs and {len(real.dropped)} dropped tasks;"
                f" its commits have {len(job.outputs)} and {job.dropped}"
            )
            fail("outputs-not-folded", what, None)
        if real.status is not job.status:
            what = f"the job is {real.status.value}; by its commits it is {job.status.value}"
            fail("status-not-folded", what, None)
        if job.open or real.pending_tasks:
            held = {t.task_id: (t.attempt, t.retries, t.failed) for t in real.pending_tasks}
            known = {name: (t.attempt, t.retries, t.failed) for name, t in job.open.items()}
            if held != known:
                what = (
                    "pending tasks (next attempt, retries, failed) are not as in the commits:"
                    f" {first_difference(known, held)}"
                )
                fail("pending-not-folded", what, None)

    def _check_stalled(self) -> None:
        job = self._job
        waiting = [
            shadow
            for shadow in job.open.values()
            if not (shadow.failed or shadow.waits) and (shadow.reports or not job.failing)
        ]
        if job.status is _RUNNING and waiting:
            shadow = min(waiting, key=lambda shadow: shadow.due)
            if shadow.gather:
                what = f"gather {shadow} never starts, though no task can deliver to it any more"
                fail("gather-never", what, shadow.task)
            what = (
                f"attempt {shadow.attempt} of {shadow} never starts, though it is due"
                f" {seconds(shadow.due - job.start)} s after the start of the job and no step is in"
                " flight: a wake-up was lost"
            )
            fail("wake-up-lost", what, shadow.task)
