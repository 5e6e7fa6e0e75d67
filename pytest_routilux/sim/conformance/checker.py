"""What must hold of every run, disturbed or not, by a model that shares no code with the engine.

Laws:
- One walk over the durable commits, and the steps that began between them, by a second account of
  the job. Every law looks at one commit, one beginning or the end, and stops the walk.
- A law says what broke it in the user's terms: routine, task, attempt, figures in seconds.
- Whatever a sound engine could do is left alone: a law that can't know is silent. Being late is
  looked at only where durations are exact, and at steps whose whole life was seen.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.conformance.retry_rules import (
    BrokenRuleError,
    RetryRules,
    commit_text,
    fail,
)
from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
from pytest_routilux.sim.conformance.spec import FlowSpec, width_of
from pytest_routilux.sim.conformance.start_rules import StartRules, same, too_early, wrong_attempt
from pytest_routilux.text import seconds
from routilux import ClockStalledError, CommitKind, JobStatus
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_routilux.sim.simulator.model import Case, Finding, Host, World
    from routilux import Commit
    from routilux.graph.messages import Task

__all__ = ["broken_rule"]

_LONGEST_ID: Final = 64

_START = CommitKind.START
_DONE = CommitKind.DONE
_RETRY = CommitKind.RETRY
_FAILED = CommitKind.FAILED
_CONFLICT = CommitKind.CONFLICT
_EFFECT = CommitKind.EFFECT
_RESUMED = CommitKind.RESUMED
_RUNNING = JobStatus.RUNNING
_COMPLETED = JobStatus.COMPLETED
_CANCELLED: Final = JobStatus.CANCELLED
# What may lead out of a status in which the job rests.
_WAYS_OUT: Final = {
    JobStatus.FAILED: (_RESUMED, CommitKind.CANCELLED),
    JobStatus.PAUSED: (_RESUMED, CommitKind.CANCELLED, _FAILED),
}


def broken_rule(world: World, hosts: Sequence[Host], case: Case) -> Finding | None:
    """Return the first law of the engine that a run has broken."""
    walk = _Walk(_spec_of(case), hosts)
    steps = ((number, step) for host in hosts for number, step in host.steps)
    number, step = next(steps, _NO_STEP)
    try:
        count = 0
        begin = walk.start_rules.take
        for commit in world.commits:
            while number == count:
                begin(step)
                number, step = next(steps, _NO_STEP)
            walk.take(commit)
            count += 1
        while number == count:
            begin(step)
            number, step = next(steps, _NO_STEP)
        walk.end(hosts[-1])
    except BrokenRuleError as error:
        return error.finding
    return None


_NO_STEP: Final[tuple[int, Any]] = (-1, None)
_latest: list[tuple[Case, FlowSpec]] = []


def _spec_of(case: Case) -> FlowSpec:
    # Thousands of runs of one case follow each other.
    if not _latest or _latest[0][0] is not case:
        _latest[:] = [(case, FlowSpec(case.build()))]
    return _latest[0][1]


class _Walk:
    __slots__ = ("_exact", "_retry_rules", "_shadow", "_spec", "start_rules")

    def __init__(self, spec: FlowSpec, hosts: Sequence[Host]) -> None:
        self._spec = spec
        widths = {width_of(host.flow) for host in hosts}
        self._exact = len(widths) == 1 and all(host.exact for host in hosts)
        self._shadow = ShadowJob(max(widths), spec.limits)
        self._retry_rules = RetryRules(spec, self._shadow, hosts)
        self.start_rules = StartRules(self._shadow, exact=self._exact)

    # --- a commit -------------------------------------------------------------------------------

    def take(self, commit: Commit) -> None:
        shadow = self._shadow
        at, kind = commit.at_ns, commit.kind
        if at < shadow.at:
            back = f"{seconds(shadow.at - at)} s"
            fail("time-ran-back", f"time runs back by {back} at {commit_text(commit)}", commit)
        if kind is _DONE:
            account = self._ended(commit)
            if commit.emissions or commit.tasks:
                self._deliveries(commit, account.task)
                self._unique(commit)
            self._in_time(commit, account)
            shadow.close(account, "was done")
            if commit.state is not None or commit.shared is not None:
                shadow.write(account.task.routine_id, commit.state, commit.shared)
            if commit.tasks:
                shadow.create(commit)
        elif kind is _START:
            self._unique(commit)
            shadow.start = at
            shadow.create(commit)
        elif kind is _RESUMED:
            shadow.resume(commit)
        elif commit.task_id is not None:
            self._unhappy(commit)
        self._status(commit)
        shadow.at = at
        shadow.status = commit.status

    def _ended(self, commit: Commit) -> ShadowTask:
        """Return the account of the task whose attempt a commit ends."""
        shadow = self._shadow
        account = shadow.tasks.get(commit.task_id or "")
        if account is None or account.task.routine_id != commit.routine_id:
            what = f"{commit_text(commit)} is of a task that no commit creates"
            fail("unknown-task", what, commit)
        if account.ended or account.failed or account.attempt != commit.attempt:
            wrong_attempt(account, commit.attempt, "is committed", commit.at_ns)
        started = commit.started_ns or 0
        if started > commit.at_ns:
            fail("time-ran-back", f"{commit_text(commit)} ends before it begins", commit)
        if started < account.due:
            too_early(account, started)
        if commit.kind is not _EFFECT:
            shadow.left(account, commit.at_ns)
            if account.first is None:
                account.first = started
            if commit.kind is not _CONFLICT:
                routine = account.task.routine_id
                shadow.attempts[routine] = shadow.attempts.get(routine, 0) + 1
        return account

    def _deliveries(self, commit: Commit, task: Task) -> None:
        """Hold the tasks of a commit against the connections of what it emits."""
        shadow, edges, tasks = self._shadow, self._spec.edges, commit.tasks
        routine = task.routine_id
        place = 0
        for index, emission in enumerate(commit.emissions):
            following = edges.get((routine, emission.event))
            if following is None:
                shadow.outputs.append((routine, emission.event))
                continue
            for target, slot, names in following:
                made = tasks[place] if place < len(tasks) else None
                if (
                    made is None
                    or made.routine_id != target
                    or made.slot != slot
                    or made.emission != index
                ):
                    what = (
                        f"{routine} emits {emission.event!r} in {commit_text(commit)}, but no task"
                        f" comes of it for {target}.{slot}, which is connected to it"
                    )
                    fail("edge-missing", what, commit)
                lineage = _child(task.task_id, place)
                if made.task_id != lineage:
                    what = (
                        f"task {place + 1} that {commit_text(commit)} creates is named"
                        f" {made.task_id}; by its lineage it is {lineage}"
                    )
                    kind = "task-id-twice" if made.task_id in shadow.tasks else "task-id-wrong"
                    fail(kind, what, commit)
                if names or made.payload is not emission.payload:
                    self._payload(commit, made, emission.payload, names)
                place += 1
        if place < len(tasks):
            what = (
                f"{commit_text(commit)} creates task {tasks[place].task_id} for"
                f" {tasks[place].routine_id}, to which nothing that it emits is connected"
            )
            fail("task-unexpected", what, commit)

    def _payload(
        self, commit: Commit, made: Task, sent: Mapping[str, object], names: Mapping[str, str]
    ) -> None:
        expected = {names.get(name, name): value for name, value in sent.items()}
        if not same(expected, made.payload):
            what = (
                f"what {commit.routine_id} sends in {commit_text(commit)} does not reach"
                f" {made.routine_id} as it is: {first_difference(expected, made.payload)}"
            )
            fail("payload-wrong", what, commit)

    def _unique(self, commit: Commit) -> None:
        known = self._shadow.tasks
        for task in commit.tasks:
            if task.task_id in known:
                what = (
                    f"{commit_text(commit)} creates task {task.task_id} of {task.routine_id}, but"
                    " there is one of that name already"
                )
                fail("task-id-twice", what, task, commit.at_ns)

    def _in_time(self, commit: Commit, account: ShadowTask) -> None:
        policy = self._spec.policies[account.task.routine_id]
        if policy.timeout is None or not self._exact:
            return
        took = commit.at_ns - (commit.started_ns or 0)
        if took > policy.timeout:
            what = (
                f"attempt {commit.attempt} of {account} took {seconds(took)} s and is taken for"
                f" done; its timeout is {seconds(policy.timeout)} s"
            )
            fail("timeout-ignored", what, commit)

    def _unhappy(self, commit: Commit) -> None:
        shadow = self._shadow
        kind = commit.kind
        account = self._ended(commit)
        if kind is _EFFECT:
            self._record(commit, account)
            return
        self._retry_rules.check_no_trace(commit, account)
        if kind is _CONFLICT:
            shadow.conflict(account, commit.at_ns)
            return
        self._retry_rules.check_failure(commit, account)
        if kind is _RETRY:
            shadow.spend(account, commit)
            return
        self._deliveries(commit, account.task)
        self._unique(commit)
        if kind is _FAILED:
            account.failed = True
            account.attempt += 1
            account.delay = 0
        else:
            shadow.close(account, "was dropped")
            shadow.dropped += 1
        shadow.create(commit)

    def _record(self, commit: Commit, account: ShadowTask) -> None:
        name = str((commit.detail or {}).get("name"))
        if name in account.recorded:
            what = f"once({name!r}) of {account} is recorded twice, at attempt {commit.attempt}"
            fail("record-twice", what, commit)
        account.recorded.add(name)

    # --- the job --------------------------------------------------------------------------------

    def _status(self, commit: Commit) -> None:
        shadow = self._shadow
        before, after = shadow.status, commit.status
        left = len(shadow.open)
        if (
            before is _COMPLETED
            or (after is not before and before is _CANCELLED)
            or (after is not before and commit.kind not in _WAYS_OUT.get(before, (commit.kind,)))
        ):
            what = f"{commit_text(commit)} makes the job {after.value}, which was {before.value}"
            fail("changed-after-end", what, commit)
        if commit.kind is _FAILED and after is not JobStatus.FAILED and before is not _CANCELLED:
            what = f"the job is {after.value} after {commit_text(commit)}"
            fail("failure-ignored", what, commit)
        if after is _COMPLETED and left:
            account = next(iter(shadow.open.values()))
            waits = f" waits for its retry {account.spent}" if account.delay else " is pending"
            what = f"the job is completed at {commit_text(commit)}, but {account}{waits}"
            fail("completed-too-early", what, account.task, commit.at_ns)
        if after is _RUNNING and not left:
            what = f"nothing is left to do after {commit_text(commit)}, but the job goes on"
            fail("not-completed", what, commit)

    def end(self, host: Host) -> None:
        """Hold what the last host has in memory against what the commits say."""
        shadow, job = self._shadow, host.job
        if host.error is not None or job is None:
            if isinstance(host.error, ClockStalledError) and not shadow.flights:
                self._stalled()
            return
        for name, routine in job.routine_states.items():
            state = shadow.state.get(name)
            if (state or routine.state) and not same(state or {}, routine.state):
                difference = first_difference(state or {}, routine.state)
                what = f"the state of {name} is not what its commits wrote: {difference}"
                fail("state-not-folded", what, None, name)
            if routine.attempts != shadow.attempts.get(name, 0):
                what = (
                    f"{name} is said to have made {routine.attempts} attempts; its commits end"
                    f" {shadow.attempts.get(name, 0)}"
                )
                fail("attempts-miscounted", what, None, name)
        if (shadow.shared or job.shared_data) and not same(shadow.shared, job.shared_data):
            difference = first_difference(shadow.shared, job.shared_data)
            what = f"the shared data is not what the commits wrote: {difference}"
            fail("shared-not-folded", what, None)
        if len(job.outputs) != len(shadow.outputs) or len(job.dropped) != shadow.dropped:
            what = (
                f"the job has {len(job.outputs)} outputs and {len(job.dropped)} dropped tasks; its"
                f" commits have {len(shadow.outputs)} and {shadow.dropped}"
            )
            fail("outputs-not-folded", what, None)
        if job.status is not shadow.status:
            what = f"the job is {job.status.value}; by its commits it is {shadow.status.value}"
            fail("status-not-folded", what, None)
        if shadow.open or job.pending_tasks:
            self._still_pending(host)

    def _stalled(self) -> None:
        shadow = self._shadow
        waiting = [account for account in shadow.open.values() if not account.failed]
        if shadow.status is _RUNNING and waiting:
            account = min(waiting, key=lambda account: account.due)
            due = account.due - shadow.start
            what = (
                f"attempt {account.attempt} of {account} is never begun, though it is due"
                f" {seconds(due)} s after the start and nothing is in flight: a wake-up was lost"
            )
            fail("wake-up-lost", what, account.task)

    def _still_pending(self, host: Host) -> None:
        assert host.job is not None
        held = {
            task.task_id: (task.attempt, task.retries, task.failed)
            for task in host.job.pending_tasks
        }
        known = {
            task_id: (account.attempt, account.spent, account.failed)
            for task_id, account in self._shadow.open.items()
        }
        if held != known:
            what = (
                "pending tasks (next attempt, retries, failed) are not those of the commits:"
                f" {first_difference(known, held)}"
            )
            fail("pending-not-folded", what, None)


def _child(parent: str, number: int) -> str:
    name = f"{parent}.{number}"
    if len(name) <= _LONGEST_ID:
        return name
    return f"~{hashlib.sha256(parent.encode()).hexdigest()[:16]}.{number}"
