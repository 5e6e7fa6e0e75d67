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
    BrokenError,
    Verdicts,
    broken,
    commit_text,
)
from pytest_routilux.sim.conformance.shadow_job import Account, Ledger
from pytest_routilux.sim.conformance.spec import Promise, width_of
from pytest_routilux.sim.conformance.start_rules import Beginnings, same, too_early, wrong_attempt
from pytest_routilux.text import seconds
from routilux import ClockStalledError, CommitKind, JobStatus
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_routilux.sim.simulator.model import Case, Finding, Host, World
    from routilux import Commit
    from routilux.graph.messages import Task

__all__ = ["broken_law"]

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


def broken_law(world: World, hosts: Sequence[Host], case: Case) -> Finding | None:
    """Return the first law of the engine that a run has broken."""
    walk = _Walk(_promise_of(case), hosts)
    steps = ((number, step) for host in hosts for number, step in host.steps)
    number, step = next(steps, _NO_STEP)
    try:
        count = 0
        begin = walk.beginnings.take
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
    except BrokenError as error:
        return error.finding
    return None


_NO_STEP: Final[tuple[int, Any]] = (-1, None)
_latest: list[tuple[Case, Promise]] = []


def _promise_of(case: Case) -> Promise:
    # Thousands of runs of one case follow each other.
    if not _latest or _latest[0][0] is not case:
        _latest[:] = [(case, Promise(case.build()))]
    return _latest[0][1]


class _Walk:
    __slots__ = ("_exact", "_ledger", "_promise", "_verdicts", "beginnings")

    def __init__(self, promise: Promise, hosts: Sequence[Host]) -> None:
        self._promise = promise
        widths = {width_of(host.flow) for host in hosts}
        self._exact = len(widths) == 1 and all(host.exact for host in hosts)
        self._ledger = Ledger(max(widths), promise.limits)
        self._verdicts = Verdicts(promise, self._ledger, hosts)
        self.beginnings = Beginnings(self._ledger, exact=self._exact)

    # --- a commit -------------------------------------------------------------------------------

    def take(self, commit: Commit) -> None:
        ledger = self._ledger
        at, kind = commit.at_ns, commit.kind
        if at < ledger.at:
            back = f"{seconds(ledger.at - at)} s"
            broken("time-ran-back", f"time runs back by {back} at {commit_text(commit)}", commit)
        if kind is _DONE:
            account = self._ended(commit)
            if commit.emissions or commit.tasks:
                self._deliveries(commit, account.task)
                self._unique(commit)
            self._in_time(commit, account)
            ledger.close(account, "was done")
            if commit.state is not None or commit.shared is not None:
                ledger.write(account.task.routine_id, commit.state, commit.shared)
            if commit.tasks:
                ledger.create(commit)
        elif kind is _START:
            self._unique(commit)
            ledger.start = at
            ledger.create(commit)
        elif kind is _RESUMED:
            ledger.resume(commit)
        elif commit.task_id is not None:
            self._unhappy(commit)
        self._status(commit)
        ledger.at = at
        ledger.status = commit.status

    def _ended(self, commit: Commit) -> Account:
        """Return the account of the task whose attempt a commit ends."""
        ledger = self._ledger
        account = ledger.accounts.get(commit.task_id or "")
        if account is None or account.task.routine_id != commit.routine_id:
            what = f"{commit_text(commit)} is of a task that no commit creates"
            broken("unknown-task", what, commit)
        if account.ended or account.failed or account.attempt != commit.attempt:
            wrong_attempt(account, commit.attempt, "is committed", commit.at_ns)
        started = commit.started_ns or 0
        if started > commit.at_ns:
            broken("time-ran-back", f"{commit_text(commit)} ends before it begins", commit)
        if started < account.due:
            too_early(account, started)
        if commit.kind is not _EFFECT:
            ledger.left(account, commit.at_ns)
            if account.first is None:
                account.first = started
            if commit.kind is not _CONFLICT:
                routine = account.task.routine_id
                ledger.attempts[routine] = ledger.attempts.get(routine, 0) + 1
        return account

    def _deliveries(self, commit: Commit, task: Task) -> None:
        """Hold the tasks of a commit against the connections of what it emits."""
        ledger, edges, tasks = self._ledger, self._promise.edges, commit.tasks
        routine = task.routine_id
        place = 0
        for index, emission in enumerate(commit.emissions):
            following = edges.get((routine, emission.event))
            if following is None:
                ledger.outputs.append((routine, emission.event))
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
                    broken("edge-missing", what, commit)
                lineage = _child(task.task_id, place)
                if made.task_id != lineage:
                    what = (
                        f"task {place + 1} that {commit_text(commit)} creates is named"
                        f" {made.task_id}; by its lineage it is {lineage}"
                    )
                    kind = "task-id-twice" if made.task_id in ledger.accounts else "task-id-strange"
                    broken(kind, what, commit)
                if names or made.payload is not emission.payload:
                    self._payload(commit, made, emission.payload, names)
                place += 1
        if place < len(tasks):
            what = (
                f"{commit_text(commit)} creates task {tasks[place].task_id} for"
                f" {tasks[place].routine_id}, to which nothing that it emits is connected"
            )
            broken("task-unasked", what, commit)

    def _payload(
        self, commit: Commit, made: Task, sent: Mapping[str, object], names: Mapping[str, str]
    ) -> None:
        expected = {names.get(name, name): value for name, value in sent.items()}
        if not same(expected, made.payload):
            what = (
                f"what {commit.routine_id} sends in {commit_text(commit)} does not reach"
                f" {made.routine_id} as it is: {first_difference(expected, made.payload)}"
            )
            broken("payload-wrong", what, commit)

    def _unique(self, commit: Commit) -> None:
        known = self._ledger.accounts
        for task in commit.tasks:
            if task.task_id in known:
                what = (
                    f"{commit_text(commit)} creates task {task.task_id} of {task.routine_id}, but"
                    " there is one of that name already"
                )
                broken("task-id-twice", what, task, commit.at_ns)

    def _in_time(self, commit: Commit, account: Account) -> None:
        policy = self._promise.policies[account.task.routine_id]
        if policy.timeout is None or not self._exact:
            return
        took = commit.at_ns - (commit.started_ns or 0)
        if took > policy.timeout:
            what = (
                f"attempt {commit.attempt} of {account} took {seconds(took)} s and is taken for"
                f" done; its timeout is {seconds(policy.timeout)} s"
            )
            broken("timeout-ignored", what, commit)

    def _unhappy(self, commit: Commit) -> None:
        ledger = self._ledger
        kind = commit.kind
        account = self._ended(commit)
        if kind is _EFFECT:
            self._record(commit, account)
            return
        self._verdicts.no_trace(commit, account)
        if kind is _CONFLICT:
            ledger.conflict(account, commit.at_ns)
            return
        self._verdicts.follows(commit, account)
        if kind is _RETRY:
            ledger.spend(account, commit)
            return
        self._deliveries(commit, account.task)
        self._unique(commit)
        if kind is _FAILED:
            account.failed = True
            account.attempt += 1
            account.delay = 0
        else:
            ledger.close(account, "was dropped")
            ledger.dropped += 1
        ledger.create(commit)

    def _record(self, commit: Commit, account: Account) -> None:
        name = str((commit.detail or {}).get("name"))
        if name in account.recorded:
            what = f"once({name!r}) of {account} is recorded twice, at attempt {commit.attempt}"
            broken("record-twice", what, commit)
        account.recorded.add(name)

    # --- the job --------------------------------------------------------------------------------

    def _status(self, commit: Commit) -> None:
        ledger = self._ledger
        before, after = ledger.status, commit.status
        left = len(ledger.open)
        if (
            before is _COMPLETED
            or (after is not before and before is _CANCELLED)
            or (after is not before and commit.kind not in _WAYS_OUT.get(before, (commit.kind,)))
        ):
            what = f"{commit_text(commit)} makes the job {after.value}, which was {before.value}"
            broken("changed-after-end", what, commit)
        if commit.kind is _FAILED and after is not JobStatus.FAILED and before is not _CANCELLED:
            what = f"the job is {after.value} after {commit_text(commit)}"
            broken("failure-ignored", what, commit)
        if after is _COMPLETED and left:
            account = next(iter(ledger.open.values()))
            waits = f" waits for its retry {account.spent}" if account.delay else " is pending"
            what = f"the job is completed at {commit_text(commit)}, but {account}{waits}"
            broken("completed-too-early", what, account.task, commit.at_ns)
        if after is _RUNNING and not left:
            what = f"nothing is left to do after {commit_text(commit)}, but the job goes on"
            broken("not-completed", what, commit)

    def end(self, host: Host) -> None:
        """Hold what the last host has in memory against what the commits say."""
        ledger, job = self._ledger, host.job
        if host.error is not None or job is None:
            if isinstance(host.error, ClockStalledError) and not ledger.flights:
                self._stalled()
            return
        for name, routine in job.routine_states.items():
            state = ledger.state.get(name)
            if (state or routine.state) and not same(state or {}, routine.state):
                difference = first_difference(state or {}, routine.state)
                what = f"the state of {name} is not what its commits wrote: {difference}"
                broken("state-not-folded", what, None, name)
            if routine.attempts != ledger.attempts.get(name, 0):
                what = (
                    f"{name} is said to have made {routine.attempts} attempts; its commits end"
                    f" {ledger.attempts.get(name, 0)}"
                )
                broken("attempts-miscounted", what, None, name)
        if (ledger.shared or job.shared_data) and not same(ledger.shared, job.shared_data):
            difference = first_difference(ledger.shared, job.shared_data)
            what = f"the shared data is not what the commits wrote: {difference}"
            broken("shared-not-folded", what, None)
        if len(job.outputs) != len(ledger.outputs) or len(job.dropped) != ledger.dropped:
            what = (
                f"the job has {len(job.outputs)} outputs and {len(job.dropped)} dropped tasks; its"
                f" commits have {len(ledger.outputs)} and {ledger.dropped}"
            )
            broken("outputs-not-folded", what, None)
        if job.status is not ledger.status:
            what = f"the job is {job.status.value}; by its commits it is {ledger.status.value}"
            broken("status-not-folded", what, None)
        if ledger.open or job.pending_tasks:
            self._still_pending(host)

    def _stalled(self) -> None:
        ledger = self._ledger
        waiting = [account for account in ledger.open.values() if not account.failed]
        if ledger.status is _RUNNING and waiting:
            account = min(waiting, key=lambda account: account.due)
            due = account.due - ledger.start
            what = (
                f"attempt {account.attempt} of {account} is never begun, though it is due"
                f" {seconds(due)} s after the start and nothing is in flight: a wake-up was lost"
            )
            broken("wake-up-lost", what, account.task)

    def _still_pending(self, host: Host) -> None:
        assert host.job is not None
        held = {
            task.task_id: (task.attempt, task.retries, task.failed)
            for task in host.job.pending_tasks
        }
        known = {
            task_id: (account.attempt, account.spent, account.failed)
            for task_id, account in self._ledger.open.items()
        }
        if held != known:
            what = (
                "pending tasks (next attempt, retries, failed) are not those of the commits:"
                f" {first_difference(known, held)}"
            )
            broken("pending-not-folded", what, None)


def _child(parent: str, number: int) -> str:
    name = f"{parent}.{number}"
    if len(name) <= _LONGEST_ID:
        return name
    return f"~{hashlib.sha256(parent.encode()).hexdigest()[:16]}.{number}"
