"""What becomes of an attempt that did not succeed: tried again after a wait, given up, or dropped.

Laws:
- A failed attempt leaves no trace but its record.
- A retry is made where the handler's options say so, as often as they say, after the wait that they
  say; what each task has spent is its own, and lasts.
- An error whose class was not seen is judged by nothing that depends on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, final

from pytest_routilux.sim.conformance.spec import error_name, raised_by_engine
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import seconds
from routilux import CommitKind, ErrorStrategy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
    from pytest_routilux.sim.conformance.spec import FlowSpec, RetryPolicy
    from pytest_routilux.sim.simulator.model import Host
    from routilux import Commit, StepInput
    from routilux.graph.messages import Task

__all__ = ["BrokenRuleError", "RetryRules", "commit_text", "fail", "step_text"]

_SECOND: Final = 10**9
_RETRY = CommitKind.RETRY
_FAILED = CommitKind.FAILED
_DROPPED = CommitKind.DROPPED


class BrokenRuleError(Exception):
    """A law does not hold; raised by `broken` to stop the walk."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


@final
class RetryRules:
    """The laws of failed attempts, on the account that is kept of a job."""

    __slots__ = ("_asked", "_errors", "_shadow", "_spec")

    def __init__(self, spec: FlowSpec, shadow: ShadowJob, hosts: Sequence[Host]) -> None:
        self._spec = spec
        self._shadow = shadow
        self._errors = hosts[0].errors
        self._asked = hosts[0].retry_after
        if len(hosts) > 1:
            # An attempt whose end was lost is made again: the later host knows how it ended.
            self._errors = {key: e for host in hosts for key, e in host.errors.items()}
            self._asked = {key: d for host in hosts for key, d in host.retry_after.items()}

    def check_no_trace(self, commit: Commit, account: ShadowTask) -> None:
        """A failed attempt leaves nothing but its record, and the event `error` where it ends."""
        who = f"attempt {commit.attempt} of {account}"
        for writes, where in ((commit.state, "state"), (commit.shared, "shared data")):
            if writes is not None:
                keys = ", ".join(map(repr, [*writes.values, *writes.removed]))
                what = f"{who} did not succeed, but its {where} {keys} is kept"
                fail("failed-attempt-wrote", what, commit)
        ends = commit.kind in (_FAILED, _DROPPED)
        events = [emission.event for emission in commit.emissions]
        told = ["error"] if ends and account.task.routine_id in self._spec.emits_error else []
        if told and not events:
            what = f"{who} fails for good, and its event 'error' is not emitted"
            fail("error-not-emitted", what, commit)
        if events != told:
            what = f"{who} did not succeed, but what it emitted is kept: {', '.join(events)}"
            fail("failed-attempt-emitted", what, commit)
        if commit.tasks and not ends:
            what = f"{who} did not succeed, but it creates task {commit.tasks[0].task_id}"
            fail("failed-attempt-emitted", what, commit)

    def check_failure(self, commit: Commit, account: ShadowTask) -> None:
        """What becomes of a failed attempt is what its handler's options say."""
        policy = self._spec.policies[account.task.routine_id]
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
        self,
        commit: Commit,
        account: ShadowTask,
        policy: RetryPolicy,
        error: type[BaseException] | None,
    ) -> None:
        name = "" if commit.error is None else commit.error.type
        again = f"{account} is tried again after {name} at attempt {commit.attempt}"
        if not policy.retries:
            what = f"{again}, but its strategy is {policy.given_up.name}"
            fail("retried-unexpectedly", what, commit)
        if error is not None and not policy.is_retryable(error):
            fail("non-retryable-retried", f"{again}, which is not retryable", commit)
        most = policy.max_retries
        if most is not None and account.spent >= most:
            what = f"{again}, but its {most} retries are spent"
            if account.since_resume is not None and account.since_resume < most:
                what += f"; {account.since_resume} of them since another host went on"
                fail("budget-reset", what, commit)
            fail("retry-too-many", what, commit)
        if policy.deadline is not None and account.first is not None:
            late = (commit.due_ns or 0) - account.first - policy.deadline
            if late > 0:
                fail("deadline-crossed", f"{again}, {seconds(late)} s after its deadline", commit)

    def _delay(
        self, commit: Commit, account: ShadowTask, policy: RetryPolicy, asked: int | None
    ) -> None:
        delay = commit.delay_ns or 0
        retry = account.spent + 1
        if commit.due_ns != commit.at_ns + delay:
            off = (commit.due_ns or 0) - commit.at_ns
            what = (
                f"retry {retry} of {account} waits {seconds(delay)} s, but is due in"
                f" {seconds(off)} s"
            )
            fail("due-wrong", what, commit)
        bounds = (asked, asked) if asked is not None else policy.bounds(retry)
        if bounds is None or bounds[0] <= delay <= bounds[1]:
            return
        expected = f"{seconds(bounds[0])} s"
        if bounds[1] > bounds[0]:
            expected = f"{seconds(bounds[0])} to {seconds(bounds[1])} s"
        what = f"retry {retry} of {account}: expected {expected}, waited {seconds(delay)} s"
        if asked is None:
            for number, kind, why in self._other_counts(account):
                other = policy.bounds(number) if number != retry else None
                if other is not None and other[0] <= delay <= other[1]:
                    fail(kind, f"{what}, as before retry {number}: {why}", commit)
        fail("backoff-wrong", what, commit)

    def _other_counts(self, account: ShadowTask) -> Iterator[tuple[int, str, str]]:
        """Yield how else a retry may have been counted."""
        routine = account.task.routine_id
        if account.since_resume is not None:
            why = "the retries before another host went on are forgotten"
            yield account.since_resume + 1, "budget-reset", why
        if self._shadow.retries.get(routine, 0) > account.spent:
            why = f"retries of other tasks of {routine} are counted"
            yield self._shadow.retries[routine] + 1, "budget-shared", why

    def _given_up(
        self,
        commit: Commit,
        account: ShadowTask,
        policy: RetryPolicy,
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
            fail("strategy-wrong", what, commit)
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
        made = self._shadow.retries.get(account.task.routine_id, 0)
        if most is not None and made >= most:
            what += f"; all tasks of {account.task.routine_id} together have spent {made}"
            fail("budget-shared", what, commit)
        if error not in policy.handler.retryable_exceptions:
            fail("subclass-not-retried", f"{what}; it derives from what is retryable", commit)
        fail("given-up-early", what, commit)


# --- telling it -----------------------------------------------------------------------------------


def fail(kind: str, what: str, of: Commit | Task | None, at: int | str | None = None) -> NoReturn:
    routine = at if isinstance(at, str) else None if of is None else of.routine_id
    instant = at if isinstance(at, int) else getattr(of, "at_ns", None)
    path = f"engine.{routine or 'job'}"
    raise BrokenRuleError(Finding(kind, what, path, routine, at_ns=instant))


def step_text(step: StepInput) -> str:
    """Name a step."""
    return f"attempt {step.attempt} of {step.task.routine_id} (task {step.task.task_id})"


def commit_text(commit: Commit) -> str:
    """Name a commit."""
    if commit.task_id is None:
        return f"commit {commit.seq} ({commit.kind.value})"
    return (
        f"commit {commit.seq} ({commit.kind.value} of {commit.routine_id}, task {commit.task_id},"
        f" attempt {commit.attempt})"
    )
