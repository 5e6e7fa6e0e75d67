"""Rules for failed attempts: retry, fail or drop the task.

Invariants:
- A failed attempt leaves nothing in the job but its record.
- A task is retried exactly when its handler's options allow it, after the delay that they set. Its
  retries are counted for it alone, and outlive the host.
- Where the class of an error is not known, no rule that depends on the class applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, final

from pytest_routilux.sim.conformance.spec import (
    FAILED_BY_ENGINE,
    RAISED_BY_ENGINE,
    error_name,
)
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import seconds
from routilux import CommitKind, ErrorStrategy, RetryAfter, StepTimeoutError
from routilux.codec.equality import same_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
    from pytest_routilux.sim.conformance.spec import FlowSpec, RetryPolicy
    from pytest_routilux.sim.simulator.model import Host
    from routilux import Commit
    from routilux.graph.messages import Task

_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED
_TIMED_OUT = error_name(StepTimeoutError)


class BrokenRuleError(Exception):
    """Raised by `fail` at the first broken rule."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


@final
class RetryRules:
    """Checks each failed attempt against the routine's retry policy."""

    __slots__ = ("_errors", "_job", "_reads", "_retry_after", "_spec", "_unspent")

    def __init__(self, spec: FlowSpec, job: ShadowJob, hosts: Sequence[Host]) -> None:
        self._spec = spec
        self._job = job
        self._errors = hosts[0].errors
        self._retry_after = hosts[0].retry_after
        self._reads = hosts[0].reads
        self._unspent = {attempt for host in hosts for attempt in host.unspent}
        if len(hosts) > 1:
            # An attempt whose commit was lost is repeated; the later host knows how it ended.
            self._errors = {key: e for host in hosts for key, e in host.errors.items()}
            self._retry_after = {key: d for host in hosts for key, d in host.retry_after.items()}
            self._reads = {number: read for host in hosts for number, read in host.reads.items()}

    def check_conflict(self, commit: Commit, shadow: ShadowTask) -> None:
        """Check that a step conflicts exactly if another one changed shared data that it read."""
        written = self._job.written
        number, begun = shadow.step
        reads = self._reads.get(number, frozenset())
        changed = sorted(
            key for key, seq in written.items() if seq > begun and (reads is None or key in reads)
        )
        if commit.error is not None and commit.error.type == _TIMED_OUT:
            return  # the engine has given the step up, and does not know what it read
        conflicts = commit.kind is CommitKind.CONFLICT
        if changed and not conflicts and commit.started_ns is not None:
            what = (
                f"attempt {commit.attempt} of {shadow} read shared {changed[0]!r}, which commit"
                f" {written[changed[0]]} changed meanwhile, and is committed without a conflict"
            )
            fail("conflict-missed", what, commit)
        if conflicts and not changed:
            what = f"{commit_text(commit)} is a conflict, but no other step changed what it read"
            fail("conflict-needless", what, commit)

    def check_no_trace(self, commit: Commit, shadow: ShadowTask) -> None:
        """Check that a failed attempt writes nothing and emits only `error`."""
        failed = f"attempt {commit.attempt} of {shadow} did not succeed"
        for writes, where in ((commit.state, "state"), (commit.shared, "shared data")):
            if writes is not None:
                keys = ", ".join(map(repr, writes.keys))
                fail("failed-attempt-wrote", f"{failed}, but its {where} {keys} is kept", commit)
        # A task that reports a failure emits no `error`: failures could be reported without end.
        final = commit.kind in (_FAILED, _DROPPED) and not shadow.reports
        events = [emission.event for emission in commit.emissions]
        expected = ["error"] if final and shadow.task.routine_id in self._spec.emits_error else []
        if expected and not events:
            what = (
                f"attempt {commit.attempt} of {shadow} fails for good, and its event 'error' is not"
                " emitted"
            )
            fail("error-not-emitted", what, commit)
        if events == ["error"] and expected:
            self._check_report(commit, shadow)
        if events != expected:
            what = f"{failed}, but what it emitted is kept: {', '.join(events)}"
            fail("failed-attempt-emitted", what, commit)
        if commit.tasks and not final:
            what = f"{failed}, but its commit creates task {commit.tasks[0].task_id}"
            fail("failed-attempt-emitted", what, commit)

    def _check_report(self, commit: Commit, shadow: ShadowTask) -> None:
        """Check the payload of the event `error` that reports a task."""
        error, task = commit.error, shadow.task
        known = {
            "error_type": None if error is None else error.type,
            "message": None if error is None else error.text,
            "task_id": task.task_id,
            "slot": task.slot,
            "attempt": commit.attempt,
            "payload": task.payload,
        }
        given = commit.emissions[0].payload
        for name in given:
            right = known.get(name)
            if not (same_value(right, given[name]) or (name == "payload" and shadow.gather)):
                what = f"the event 'error' of {shadow} says {name}={given[name]!r}, not {right!r}"
                fail("error-misreported", what, commit)

    def check_failure(self, commit: Commit, shadow: ShadowTask) -> None:
        """Check that a failed attempt ends as the retry policy requires."""
        policy = self._spec.policies[shadow.task.routine_id]
        key = (shadow.task.task_id, commit.attempt)
        name = "" if commit.error is None else commit.error.type
        error = self._errors.get(key, ())
        retry_after = self._retry_after.get(key)
        if error and error_name(error[0]) != name:
            # The engine raised it: a timeout, or an author's mistake.
            error, retry_after = (), None
        if not error and name in RAISED_BY_ENGINE:
            error = (RAISED_BY_ENGINE[name],)
        if commit.kind is CommitKind.RETRY:
            self._check_retry(commit, shadow, policy, error)
            if error:  # else the handler may have asked for this delay
                self._check_delay(commit, shadow, policy, retry_after)
        else:
            self._check_given_up(commit, shadow, policy, error, retry_after)

    def _check_retry(
        self,
        commit: Commit,
        shadow: ShadowTask,
        policy: RetryPolicy,
        error: tuple[type[BaseException], ...],
    ) -> None:
        name = "" if commit.error is None else commit.error.type
        retried = f"{shadow} is retried after {name} at attempt {commit.attempt}"
        if not policy.retries:
            what = f"{retried}, but its handler's strategy is {policy.given_up.name}"
            fail("retried-unexpectedly", what, commit)
        if error and not policy.is_retryable(error):
            fail("non-retryable-retried", f"{retried}, but the error is not retryable", commit)
        most = policy.max_retries
        spends = commit.detail is None
        leaves = error[1:] or error
        if not spends and leaves and not all(issubclass(kind, RetryAfter) for kind in leaves):
            fail("retry-not-spent", f"{retried}, but spends none of its retries", commit)
        if spends and (shadow.task.task_id, commit.attempt) in self._unspent:
            fail("retry-spent", f"{retried}, which should spend none of its retries", commit)
        if spends and most is not None and shadow.retries >= most:
            what = f"{retried}, but its {most} retries are spent"
            if shadow.since_resume is not None and shadow.since_resume < most:
                what += f"; {shadow.since_resume} of them since another host resumed the job"
                fail("budget-reset", what, commit)
            fail("retry-too-many", what, commit)
        if policy.deadline is not None and shadow.first is not None:
            late = (commit.due_ns or 0) - shadow.first - policy.deadline
            if late > 0:
                what = f"{retried}, but the retry is due {seconds(late)} s after the deadline"
                fail("deadline-crossed", what, commit)

    def _check_delay(
        self, commit: Commit, shadow: ShadowTask, policy: RetryPolicy, retry_after: int | None
    ) -> None:
        delay = commit.delay_ns or 0
        retry = shadow.retries + 1
        if commit.due_ns != commit.at_ns + delay:
            due = seconds((commit.due_ns or 0) - commit.at_ns)
            what = f"retry {retry} of {shadow} waits {seconds(delay)} s, but is due in {due} s"
            fail("due-wrong", what, commit)
        bounds = policy.bounds(retry, retry_after)
        if bounds is None or bounds[0] <= delay <= bounds[1]:
            return
        least, most = map(seconds, bounds)
        expected = f"{least} s" if least == most else f"{least} to {most} s"
        what = f"retry {retry} of {shadow}: expected {expected}, waited {seconds(delay)} s"
        if retry_after is None:
            for number, kind, why in self._miscounts(shadow):
                other = policy.bounds(number)
                if number != retry and other is not None and other[0] <= delay <= other[1]:
                    fail(kind, f"{what}, the wait before retry {number}: {why}", commit)
        fail("backoff-wrong", what, commit)

    def _miscounts(self, shadow: ShadowTask) -> Iterator[tuple[int, str, str]]:
        """Yield (retry number, finding's kind, reason) for each known way to miscount retries."""
        routine = shadow.task.routine_id
        if shadow.since_resume is not None:
            why = "the retries before another host resumed the job are forgotten"
            yield shadow.since_resume + 1, "budget-reset", why
        if self._job.retries.get(routine, 0) > shadow.retries:
            why = f"retries of other tasks of {routine} are counted"
            yield self._job.retries[routine] + 1, "budget-shared", why

    def _check_given_up(
        self,
        commit: Commit,
        shadow: ShadowTask,
        policy: RetryPolicy,
        error: tuple[type[BaseException], ...],
        retry_after: int | None,
    ) -> None:
        if commit.error is not None and commit.error.type in FAILED_BY_ENGINE:
            if commit.kind is not _FAILED:
                fail("strategy-wrong", f"{shadow} is dropped after {commit.error.type}", commit)
            return
        end = (
            "failed" if commit.kind is _FAILED else f"dropped as {(commit.detail or {}).get('as')}"
        )
        expected = {
            ErrorStrategy.STOP: "failed",
            ErrorStrategy.SKIP: "dropped as skipped",
        }.get(policy.given_up, "dropped as error_continued")
        if end != expected:
            what = f"{shadow} is {end}, but its handler's strategy is {policy.given_up.name}"
            fail("strategy-wrong", what, commit)
        if not policy.retries or not error or not policy.is_retryable(error):
            return
        most = policy.max_retries
        if most is not None and shadow.retries >= most:
            return
        if policy.deadline is not None:
            bounds = policy.bounds(shadow.retries + 1, retry_after)
            first = commit.started_ns if shadow.first is None else shadow.first
            if bounds is None or commit.at_ns + bounds[1] > (first or 0) + policy.deadline:
                return
        what = (
            f"{shadow} is given up after {error[0].__name__} at attempt {commit.attempt}, with"
            f" {shadow.retries} of {'endless' if most is None else most} retries spent"
        )
        routine = shadow.task.routine_id
        made = self._job.retries.get(routine, 0)
        if most is not None and made >= most:
            what += f"; all tasks of {routine} together have spent {made}"
            fail("budget-shared", what, commit)
        if not set(error) & set(policy.handler.retryable_exceptions):
            fail("subclass-not-retried", f"{what}; the error is of a retryable class", commit)
        fail("given-up-early", what, commit)


# --- findings -------------------------------------------------------------------------------------


def fail(kind: str, what: str, of: Commit | Task | None, routine: str | None = None) -> NoReturn:
    """Raise `BrokenRuleError` with a new finding."""
    if routine is None and of is not None:
        routine = of.routine_id
    path = f"engine.{routine or 'job'}"
    raise BrokenRuleError(Finding(kind, what, path, routine))


def commit_text(commit: Commit) -> str:
    if commit.task_id is None:
        return f"commit {commit.seq} ({commit.kind.value})"
    return (
        f"commit {commit.seq} ({commit.kind.value} of {commit.routine_id}, task {commit.task_id},"
        f" attempt {commit.attempt})"
    )
