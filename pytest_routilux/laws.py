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
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_routilux.ledger import ENDS, MOST_CONFLICTS, Account, Ledger
from pytest_routilux.oracle import Finding
from pytest_routilux.promises import Promise, error_name, raised_by_engine, width_of
from routilux import ClockStalledError, CommitKind, ErrorStrategy, JobStatus
from routilux.values import first_difference, same_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_routilux.promises import Policy
    from pytest_routilux.simulation import Case, Life
    from pytest_routilux.world import World
    from routilux import Commit, StepInput
    from routilux.exchange import Task

__all__ = ["broken_law"]

_SECOND: Final = 10**9
_LONGEST_ID: Final = 64

_START = CommitKind.START
_DONE = CommitKind.DONE
_RETRY = CommitKind.RETRY
_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED
_CONFLICT = CommitKind.CONFLICT
_EFFECT = CommitKind.EFFECT
_RESUMED = CommitKind.RESUMED
_RUNNING = JobStatus.RUNNING
_COMPLETED = JobStatus.COMPLETED
_FINAL: Final = (_COMPLETED, JobStatus.CANCELLED)
# What may lead out of a status in which the job rests.
_WAYS_OUT: Final = {
    JobStatus.FAILED: (_RESUMED, CommitKind.CANCELLED),
    JobStatus.PAUSED: (_RESUMED, CommitKind.CANCELLED, _FAILED),
}


class _BrokenError(Exception):
    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def broken_law(world: World, lives: Sequence[Life], case: Case) -> Finding | None:
    """Return the first law of the engine that a run has broken."""
    walk = _Walk(_promise_of(case), lives)
    steps = ((number, step) for life in lives for number, step in life.steps)
    number, step = next(steps, _NO_STEP)
    try:
        count = 0
        for commit in world.commits:
            while number == count:
                walk.begin(step)
                number, step = next(steps, _NO_STEP)
            walk.take(commit)
            count += 1
        while number == count:
            walk.begin(step)
            number, step = next(steps, _NO_STEP)
        walk.end(lives[-1])
    except _BrokenError as broken:
        return broken.finding
    return None


_NO_STEP: Final[tuple[int, Any]] = (-1, None)
_latest: list[tuple[Case, Promise]] = []


def _promise_of(case: Case) -> Promise:
    # Thousands of runs of one case follow each other.
    if not _latest or _latest[0][0] is not case:
        _latest[:] = [(case, Promise(case.build()))]
    return _latest[0][1]


class _Walk:
    __slots__ = ("_asked", "_errors", "_exact", "_ledger", "_promise")

    def __init__(self, promise: Promise, lives: Sequence[Life]) -> None:
        self._promise = promise
        self._errors = lives[0].errors
        self._asked = lives[0].asked
        if len(lives) > 1:
            # An attempt whose end was lost is made again: the later host knows how it ended.
            self._errors = {key: e for life in lives for key, e in life.errors.items()}
            self._asked = {key: d for life in lives for key, d in life.asked.items()}
        widths = {width_of(life.flow) for life in lives}
        self._exact = len(widths) == 1 and all(life.exact for life in lives)
        self._ledger = Ledger(max(widths), promise.limits)

    # --- a step begins --------------------------------------------------------------------------

    def begin(self, step: StepInput) -> None:
        ledger = self._ledger
        task = step.task
        account = ledger.accounts.get(task.task_id)
        at = step.started_ns
        if account is None:
            _broken("unknown-task", f"{_step(step)} begins, but no commit creates its task", task)
        if ledger.status is not _RUNNING:
            self._begun_at_rest(step)
        if account.ended or account.failed or account.attempt != step.attempt:
            self._wrong_attempt(account, step.attempt, "begins", at)
        if task.task_id in ledger.flights:
            what = f"{_step(step)} begins while it is in flight already"
            _broken("begun-twice", what, task, at)
        if at < ledger.at:
            what = (
                f"time runs back: {_step(step)} begins {_s(ledger.at - at)} before the commit"
                " that was there already"
            )
            _broken("time-ran-back", what, task, at)
        if at < account.due:
            self._too_early(account, at)
        if self._exact:
            self._too_late(account, at)
        self._places(step)
        self._snapshot(step, account)
        ledger.began(step)

    def _begun_at_rest(self, step: StepInput) -> NoReturn:
        status = self._ledger.status
        what = f"{_step(step)} begins although the job is {status.value} by then"
        kind = "ran-after-failure" if status is JobStatus.FAILED else "ran-at-rest"
        _broken(kind, what, step.task, step.started_ns)

    def _too_early(self, account: Account, at: int) -> NoReturn:
        early = _s(account.due - at)
        if not account.delay:
            what = f"attempt {account.attempt} of {account} begins {early} before it was created"
            _broken("time-ran-back", what, account.task, at)
        told = (
            f"retry {account.spent} of {account} begins {early} before it is due; its wait is"
            f" {_s(account.delay)}"
        )
        if account.since_resume is not None and not account.since_resume:
            what = f"{told}, which the host that went on did not keep"
            _broken("timer-lost", what, account.task, at)
        _broken("retry-too-early", told, account.task, at)

    def _too_late(self, account: Account, at: int) -> None:
        ledger = self._ledger
        if account.conflicts >= MOST_CONFLICTS or ledger.aloof:
            ready = max(account.due, account.ready, ledger.idle_since)
            if ledger.flights or account.conflicts < MOST_CONFLICTS:
                return
        else:
            ready = max(account.due, account.ready, ledger.free_since)
            room = ledger.room_since.get(account.task.routine_id)
            if room is not None and room > ready:
                ready = room
        if at <= ready:
            return
        late = _s(at - ready)
        if not account.delay:
            what = (
                f"attempt {account.attempt} of {account} begins {late} after it could, with a"
                " place free for it all the time"
            )
            _broken("started-late", what, account.task, at)
        told = (
            f"retry {account.spent} of {account} begins {late} after it was due, with a place free"
            " for it all the time"
        )
        if account.since_resume == 0 and at == account.resumed + account.delay:
            what = (
                f"retry {account.spent} of {account} waits its {_s(account.delay)} anew after the"
                f" resume: it begins {late} late"
            )
            _broken("timer-restarted", what, account.task, at)
        _broken("retry-late", told, account.task, at)

    def _places(self, step: StepInput) -> None:
        ledger = self._ledger
        task = step.task
        if len(ledger.flights) >= ledger.width:
            what = f"{_step(step)} begins with {len(ledger.flights)} in flight of {ledger.width}"
            _broken("too-many-at-once", what, task, step.started_ns)
        if ledger.busy.get(task.routine_id, 0) >= ledger.limits[task.routine_id]:
            what = (
                f"{_step(step)} begins with {ledger.busy[task.routine_id]} steps of"
                f" {task.routine_id} in flight; its max_concurrency is"
                f" {ledger.limits[task.routine_id]}"
            )
            _broken("too-many-at-once", what, task, step.started_ns)

    def _snapshot(self, step: StepInput, account: Account) -> None:
        ledger = self._ledger
        task = step.task
        for seen, known, whose in (
            (step.state, ledger.state.get(task.routine_id, {}), f"the state of {task.routine_id}"),
            (step.shared, ledger.shared, "the shared data"),
            (task.payload, account.task.payload, "its payload"),
        ):
            if seen is not known and (seen or known) and not _same(seen, known):
                what = (
                    f"{_step(step)} sees {whose} otherwise than it is committed:"
                    f" {first_difference(known, seen)}"
                )
                _broken("snapshot-wrong", what, task, step.started_ns)
        if (step.effects or account.recorded) and set(step.effects or ()) != account.recorded:
            what = (
                f"{_step(step)} knows the records of once() {sorted(step.effects or ())},"
                f" but {sorted(account.recorded)} are committed"
            )
            _broken("record-lost", what, task, step.started_ns)

    # --- a commit -------------------------------------------------------------------------------

    def take(self, commit: Commit) -> None:
        ledger = self._ledger
        at, kind = commit.at_ns, commit.kind
        if at < ledger.at:
            back = _s(ledger.at - at)
            _broken("time-ran-back", f"time runs back by {back} at {_commit(commit)}", commit)
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
            what = f"{_commit(commit)} is of a task that no commit creates"
            _broken("unknown-task", what, commit)
        if account.ended or account.failed or account.attempt != commit.attempt:
            self._wrong_attempt(account, commit.attempt, "is committed", commit.at_ns)
        started = commit.started_ns or 0
        if started > commit.at_ns:
            _broken("time-ran-back", f"{_commit(commit)} ends before it begins", commit)
        if started < account.due:
            self._too_early(account, started)
        if commit.kind is not _EFFECT:
            ledger.left(account, commit.at_ns)
            if account.first is None:
                account.first = started
            if commit.kind is not _CONFLICT:
                routine = account.task.routine_id
                ledger.attempts[routine] = ledger.attempts.get(routine, 0) + 1
        return account

    def _wrong_attempt(self, account: Account, attempt: int, does: str, at: int) -> NoReturn:
        told = f"attempt {attempt} of {account} {does}"
        if account.ended or account.failed:
            how = account.ended or "has failed"
            _broken("attempt-repeated", f"{told} after the task {how}", account.task, at)
        if attempt < account.attempt:
            what = f"{told} again; attempt {account.attempt} is the next"
            _broken("attempt-repeated", what, account.task, at)
        what = f"{told}, but attempt {account.attempt} is the next"
        _broken("attempt-skipped", what, account.task, at)

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
                        f"{routine} emits {emission.event!r} in {_commit(commit)}, but no task"
                        f" comes of it for {target}.{slot}, which is connected to it"
                    )
                    _broken("edge-missing", what, commit)
                lineage = _child(task.task_id, place)
                if made.task_id != lineage:
                    what = (
                        f"task {place + 1} that {_commit(commit)} creates is named"
                        f" {made.task_id}; by its lineage it is {lineage}"
                    )
                    kind = "task-id-twice" if made.task_id in ledger.accounts else "task-id-strange"
                    _broken(kind, what, commit)
                if names or made.payload is not emission.payload:
                    self._payload(commit, made, emission.payload, names)
                place += 1
        if place < len(tasks):
            what = (
                f"{_commit(commit)} creates task {tasks[place].task_id} for"
                f" {tasks[place].routine_id}, to which nothing that it emits is connected"
            )
            _broken("task-unasked", what, commit)

    def _payload(
        self, commit: Commit, made: Task, sent: Mapping[str, object], names: Mapping[str, str]
    ) -> None:
        expected = {names.get(name, name): value for name, value in sent.items()}
        if not _same(expected, made.payload):
            what = (
                f"what {commit.routine_id} sends in {_commit(commit)} does not reach"
                f" {made.routine_id} as it is: {first_difference(expected, made.payload)}"
            )
            _broken("payload-wrong", what, commit)

    def _unique(self, commit: Commit) -> None:
        known = self._ledger.accounts
        for place, task in enumerate(commit.tasks):
            twice = any(other.task_id == task.task_id for other in commit.tasks[:place])
            if task.task_id in known or twice:
                what = (
                    f"{_commit(commit)} creates task {task.task_id} of {task.routine_id}, but there"
                    " is one of that name already"
                )
                _broken("task-id-twice", what, task, commit.at_ns)

    def _in_time(self, commit: Commit, account: Account) -> None:
        policy = self._promise.policies[account.task.routine_id]
        took = commit.at_ns - (commit.started_ns or 0)
        if policy.timeout is not None and self._exact and took > policy.timeout:
            what = (
                f"attempt {commit.attempt} of {account} took {_s(took)} and is taken for done; its"
                f" timeout is {_s(policy.timeout)}"
            )
            _broken("timeout-ignored", what, commit)

    # --- a commit of an attempt that did not succeed --------------------------------------------

    def _unhappy(self, commit: Commit) -> None:
        ledger = self._ledger
        kind = commit.kind
        account = self._ended(commit)
        if kind is _EFFECT:
            self._record(commit, account)
            return
        self._no_trace(commit, account)
        if kind is _CONFLICT:
            ledger.conflict(account, commit.at_ns)
            return
        policy = self._promise.policies[account.task.routine_id]
        self._verdict(commit, account, policy)
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
            ledger.close(account, ENDS[kind])
            ledger.dropped += 1
        ledger.create(commit)

    def _record(self, commit: Commit, account: Account) -> None:
        name = str((commit.detail or {}).get("name"))
        if name in account.recorded:
            what = f"once({name!r}) of {account} is recorded twice, at attempt {commit.attempt}"
            _broken("record-twice", what, commit)
        account.recorded.add(name)

    def _no_trace(self, commit: Commit, account: Account) -> None:
        who = f"attempt {commit.attempt} of {account}"
        for writes, where in ((commit.state, "state"), (commit.shared, "shared data")):
            if writes is not None:
                keys = ", ".join(map(repr, [*writes.values, *writes.removed]))
                what = f"{who} did not succeed, but its {where} {keys} is kept"
                _broken("failed-attempt-wrote", what, commit)
        ends = commit.kind in (_FAILED, _DROPPED)
        events = [emission.event for emission in commit.emissions]
        told = ["error"] if ends and account.task.routine_id in self._promise.tells_errors else []
        if told and not events:
            what = f"{who} fails for good, and its event 'error' is not emitted"
            _broken("error-untold", what, commit)
        if events != told:
            what = f"{who} did not succeed, but what it emitted is kept: {', '.join(events)}"
            _broken("failed-attempt-emitted", what, commit)
        if commit.tasks and not ends:
            what = f"{who} did not succeed, but it creates task {commit.tasks[0].task_id}"
            _broken("failed-attempt-emitted", what, commit)

    def _verdict(self, commit: Commit, account: Account, policy: Policy) -> None:
        key = (account.task.task_id, commit.attempt)
        name = "" if commit.error is None else commit.error.type
        error = self._errors.get(key)
        asked = self._asked.get(key)
        if error is not None and error_name(error) != name:
            error, asked = None, None  # it was not the handler's: a timeout, an author's mistake
        error = error or raised_by_engine(name)
        if commit.kind is _RETRY:
            self._retried(commit, account, policy, error)
            if error is not None:  # else it may have asked for the delay that it got
                self._delay(commit, account, policy, asked)
        else:
            self._given_up(commit, account, policy, error, asked)

    def _retried(
        self, commit: Commit, account: Account, policy: Policy, error: type[BaseException] | None
    ) -> None:
        name = "" if commit.error is None else commit.error.type
        again = f"{account} is tried again after {name} at attempt {commit.attempt}"
        if not policy.retries:
            what = f"{again}, but its strategy is {policy.given_up.name}"
            _broken("retried-unasked", what, commit)
        if error is not None and not policy.is_retryable(error):
            _broken("non-retryable-retried", f"{again}, which is not retryable", commit)
        most = policy.max_retries
        if most is not None and account.spent >= most:
            what = f"{again}, but its {most} retries are spent"
            if account.since_resume is not None and account.since_resume < most:
                what += f"; {account.since_resume} of them since another host went on"
                _broken("budget-reset", what, commit)
            _broken("retry-too-many", what, commit)
        if policy.deadline is not None and account.first is not None:
            late = (commit.due_ns or 0) - account.first - policy.deadline
            if late > 0:
                _broken("deadline-crossed", f"{again}, {_s(late)} after its deadline", commit)

    def _delay(self, commit: Commit, account: Account, policy: Policy, asked: int | None) -> None:
        delay = commit.delay_ns or 0
        retry = account.spent + 1
        if commit.due_ns != commit.at_ns + delay:
            off = (commit.due_ns or 0) - commit.at_ns
            what = f"retry {retry} of {account} waits {_s(delay)}, but is due in {_s(off)}"
            _broken("due-wrong", what, commit)
        bounds = (asked, asked) if asked is not None else policy.bounds(retry)
        if bounds is None or bounds[0] <= delay <= bounds[1]:
            return
        expected = _s(bounds[0])
        if bounds[1] > bounds[0]:
            expected = f"{expected} to {_s(bounds[1])}"
        what = f"retry {retry} of {account}: expected {expected}, waited {_s(delay)}"
        if asked is None:
            for number, kind, why in self._other_counts(account):
                other = policy.bounds(number) if number != retry else None
                if other is not None and other[0] <= delay <= other[1]:
                    _broken(kind, f"{what}, as before retry {number}: {why}", commit)
        _broken("backoff-wrong", what, commit)

    def _other_counts(self, account: Account) -> Iterator[tuple[int, str, str]]:
        """Yield how else a retry may have been counted."""
        routine = account.task.routine_id
        if account.since_resume is not None:
            why = "the retries before another host went on are forgotten"
            yield account.since_resume + 1, "budget-reset", why
        if self._ledger.retries.get(routine, 0) > account.spent:
            why = f"retries of other tasks of {routine} are counted"
            yield self._ledger.retries[routine] + 1, "budget-shared", why

    def _given_up(
        self,
        commit: Commit,
        account: Account,
        policy: Policy,
        error: type[BaseException] | None,
        asked: int | None,
    ) -> None:
        as_ = (commit.detail or {}).get("as")
        if policy.given_up is ErrorStrategy.STOP:
            fits = commit.kind is _FAILED
        else:
            skips = policy.given_up is ErrorStrategy.SKIP
            fits = commit.kind is _DROPPED and as_ == ("skipped" if skips else "error_continued")
        if not fits:
            how = "failed" if commit.kind is _FAILED else f"dropped as {as_}"
            what = f"{account} is {how}, but {policy.given_up.name} is what its handler says"
            _broken("strategy-wrong", what, commit)
        if not policy.retries or error is None or not policy.is_retryable(error):
            return
        most = policy.max_retries
        if most is not None and account.spent >= most:
            return
        if policy.deadline is not None:
            bounds = (asked, asked) if asked is not None else policy.bounds(account.spent + 1)
            first = commit.started_ns if account.first is None else account.first
            if bounds is None or commit.at_ns + bounds[1] > (first or 0) + policy.deadline:
                return
        what = (
            f"{account} is given up after {error.__name__} at attempt {commit.attempt}, with"
            f" {account.spent} of {'endless' if most is None else most} retries spent"
        )
        made = self._ledger.retries.get(account.task.routine_id, 0)
        if most is not None and made >= most:
            what += f"; all tasks of {account.task.routine_id} together have spent {made}"
            _broken("budget-shared", what, commit)
        if error not in policy.handler.retryable_exceptions:
            _broken("subclass-not-retried", f"{what}; it derives from what is retryable", commit)
        _broken("given-up-early", what, commit)

    # --- the job --------------------------------------------------------------------------------

    def _status(self, commit: Commit) -> None:
        ledger = self._ledger
        before, after = ledger.status, commit.status
        left = len(ledger.open)
        if before is _COMPLETED or (before in _FINAL and after is not before):
            what = f"{_commit(commit)} makes the job {after.value}, which was {before.value}"
            _broken("changed-after-end", what, commit)
        if after is not before and commit.kind not in _WAYS_OUT.get(before, (commit.kind,)):
            what = f"{_commit(commit)} makes the job {after.value}, which was {before.value}"
            _broken("changed-after-end", what, commit)
        if commit.kind is _FAILED and after is not JobStatus.FAILED and before not in _FINAL:
            what = f"the job is {after.value} after {_commit(commit)}"
            _broken("failure-ignored", what, commit)
        if after is _COMPLETED and left:
            account = next(iter(ledger.open.values()))
            waits = f" waits for its retry {account.spent}" if account.delay else " is pending"
            what = f"the job is completed at {_commit(commit)}, but {account}{waits}"
            _broken("completed-too-early", what, account.task, commit.at_ns)
        if after is _RUNNING and not left:
            what = f"nothing is left to do after {_commit(commit)}, but the job goes on"
            _broken("not-completed", what, commit)

    def end(self, life: Life) -> None:
        """Hold what the last host has in memory against what the commits say."""
        ledger, job = self._ledger, life.job
        if life.error is not None or job is None:
            if isinstance(life.error, ClockStalledError) and not ledger.flights:
                self._stalled()
            return
        for name, routine in job.routine_states.items():
            state = ledger.state.get(name)
            if (state or routine.state) and not _same(state or {}, routine.state):
                difference = first_difference(state or {}, routine.state)
                what = f"the state of {name} is not what its commits wrote: {difference}"
                _broken("state-not-folded", what, None, name)
            if routine.attempts != ledger.attempts.get(name, 0):
                what = (
                    f"{name} is said to have made {routine.attempts} attempts; its commits end"
                    f" {ledger.attempts.get(name, 0)}"
                )
                _broken("attempts-miscounted", what, None, name)
        if (ledger.shared or job.shared_data) and not _same(ledger.shared, job.shared_data):
            difference = first_difference(ledger.shared, job.shared_data)
            what = f"the shared data is not what the commits wrote: {difference}"
            _broken("shared-not-folded", what, None)
        if len(job.outputs) != len(ledger.outputs) or len(job.dropped) != ledger.dropped:
            what = (
                f"the job has {len(job.outputs)} outputs and {len(job.dropped)} dropped tasks; its"
                f" commits have {len(ledger.outputs)} and {ledger.dropped}"
            )
            _broken("outputs-not-folded", what, None)
        if job.status is not _COMPLETED:
            self._still_pending(life)

    def _stalled(self) -> None:
        ledger = self._ledger
        waiting = [account for account in ledger.open.values() if not account.failed]
        if ledger.status is _RUNNING and waiting:
            account = min(waiting, key=lambda account: account.due)
            due = account.due - ledger.start
            what = (
                f"attempt {account.attempt} of {account} is never begun, though it is due"
                f" {_s(due)} after the start and nothing is in flight: a wake-up was lost"
            )
            _broken("wake-up-lost", what, account.task)

    def _still_pending(self, life: Life) -> None:
        assert life.job is not None
        held = {
            task.task_id: (task.attempt, task.retries, task.failed)
            for task in life.job.pending_tasks
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
            _broken("pending-not-folded", what, None)


# --- telling it -----------------------------------------------------------------------------------


def _broken(
    kind: str, what: str, of: Commit | Task | None, at: int | str | None = None
) -> NoReturn:
    routine = at if isinstance(at, str) else None if of is None else of.routine_id
    instant = at if isinstance(at, int) else getattr(of, "at_ns", None)
    path = f"engine.{routine or 'job'}"
    raise _BrokenError(Finding(kind, what, path, routine, at_ns=instant))


def _same(a: object, b: object) -> bool:
    return a is b or same_value(a, b)


def _child(parent: str, number: int) -> str:
    name = f"{parent}.{number}"
    if len(name) <= _LONGEST_ID:
        return name
    return f"~{hashlib.sha256(parent.encode()).hexdigest()[:16]}.{number}"


def _step(step: StepInput) -> str:
    return f"attempt {step.attempt} of {step.task.routine_id} (task {step.task.task_id})"


def _commit(commit: Commit) -> str:
    if commit.task_id is None:
        return f"commit {commit.seq} ({commit.kind.value})"
    return (
        f"commit {commit.seq} ({commit.kind.value} of {commit.routine_id}, task {commit.task_id},"
        f" attempt {commit.attempt})"
    )


def _s(length: int) -> str:
    """Return a length in seconds, exactly."""
    whole, part = divmod(abs(length), _SECOND)
    text = f"{whole}.{part:09d}".rstrip("0").rstrip(".")
    return f"{'-' if length < 0 else ''}{text} s"
