"""When a step may begin, and what it must see then.

Laws:
- A step begins while its job runs, as the next attempt of its task, not before it is due, and sees
  what is committed.
- It takes a place of the job and one of its routine, where one is free.
- Where durations are exact, nobody waits with a place free: a task that is due begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, final

from pytest_routilux.sim.conformance.retry_rules import broken, step_text
from pytest_routilux.sim.conformance.shadow_job import MOST_CONFLICTS
from pytest_routilux.text import seconds
from routilux import JobStatus
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from pytest_routilux.sim.conformance.shadow_job import Account, Ledger
    from routilux import StepInput

__all__ = ["Beginnings", "same", "too_early", "wrong_attempt"]

_RUNNING = JobStatus.RUNNING


@final
class Beginnings:
    """The laws of beginning, on the account that is kept of a job."""

    __slots__ = ("_compared", "_exact", "_ledger")

    def __init__(self, ledger: Ledger, *, exact: bool) -> None:
        self._ledger = ledger
        self._exact = exact
        # What was found to be the same, by routine; it is replaced, not changed, so once is enough.
        self._compared: dict[str | None, tuple[object, object]] = {}

    def take(self, step: StepInput) -> None:
        """Look at a step that begins, and take a place for it."""
        ledger = self._ledger
        task = step.task
        account = ledger.accounts.get(task.task_id)
        at = step.started_ns
        if account is None:
            broken(
                "unknown-task", f"{step_text(step)} begins, but no commit creates its task", task
            )
        if ledger.status is not _RUNNING:
            self._begun_at_rest(step)
        if account.ended or account.failed or account.attempt != step.attempt:
            wrong_attempt(account, step.attempt, "begins", at)
        if task.task_id in ledger.flights:
            what = f"{step_text(step)} begins while it is in flight already"
            broken("begun-twice", what, task, at)
        if at < ledger.at:
            what = (
                f"time runs back: {step_text(step)} begins {seconds(ledger.at - at)} s before the"
                " commit that was there already"
            )
            broken("time-ran-back", what, task, at)
        if at < account.due:
            too_early(account, at)
        if self._exact:
            self._too_late(account, at)
        self._places(step)
        self._snapshot(step, account)
        ledger.began(step)

    def _begun_at_rest(self, step: StepInput) -> NoReturn:
        status = self._ledger.status
        what = f"{step_text(step)} begins although the job is {status.value} by then"
        kind = "ran-after-failure" if status is JobStatus.FAILED else "ran-at-rest"
        broken(kind, what, step.task, step.started_ns)

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
        late = f"{seconds(at - ready)} s"
        if not account.delay:
            what = (
                f"attempt {account.attempt} of {account} begins {late} after it could, with a"
                " place free for it all the time"
            )
            broken("started-late", what, account.task, at)
        told = (
            f"retry {account.spent} of {account} begins {late} after it was due, with a place free"
            " for it all the time"
        )
        if account.since_resume == 0 and at == account.resumed + account.delay:
            what = (
                f"retry {account.spent} of {account} waits its {seconds(account.delay)} s anew"
                f" after the resume: it begins {late} late"
            )
            broken("timer-restarted", what, account.task, at)
        broken("retry-late", told, account.task, at)

    def _places(self, step: StepInput) -> None:
        ledger = self._ledger
        task = step.task
        if len(ledger.flights) >= ledger.width:
            what = (
                f"{step_text(step)} begins with {len(ledger.flights)} in flight of {ledger.width}"
            )
            broken("too-many-at-once", what, task, step.started_ns)
        if ledger.busy.get(task.routine_id, 0) >= ledger.limits[task.routine_id]:
            what = (
                f"{step_text(step)} begins with {ledger.busy[task.routine_id]} steps of"
                f" {task.routine_id} in flight; its max_concurrency is"
                f" {ledger.limits[task.routine_id]}"
            )
            broken("too-many-at-once", what, task, step.started_ns)

    def _snapshot(self, step: StepInput, account: Account) -> None:
        ledger = self._ledger
        task = step.task
        seen, known = step.state, ledger.state.get(task.routine_id)
        if seen or known:
            was = self._compared.get(task.routine_id)
            if was is None or was[0] is not seen or was[1] is not known:
                if not same(known or {}, seen):
                    self._wrong_snapshot(step, f"the state of {task.routine_id}", known or {}, seen)
                self._compared[task.routine_id] = seen, known
        seen, known = step.shared, ledger.shared
        if seen or known:
            was = self._compared.get(None)
            if was is None or was[0] is not seen or was[1] is not known:
                if not same(known, seen):
                    self._wrong_snapshot(step, "the shared data", known, seen)
                self._compared[None] = seen, known
        if task.payload is not account.task.payload and not same(
            account.task.payload, task.payload
        ):
            self._wrong_snapshot(step, "its payload", account.task.payload, task.payload)
        if (step.effects or account.recorded) and set(step.effects or ()) != account.recorded:
            what = (
                f"{step_text(step)} knows the records of once() {sorted(step.effects or ())},"
                f" but {sorted(account.recorded)} are committed"
            )
            broken("record-lost", what, task, step.started_ns)

    def _wrong_snapshot(self, step: StepInput, whose: str, known: object, seen: object) -> NoReturn:
        what = (
            f"{step_text(step)} sees {whose} otherwise than it is committed:"
            f" {first_difference(known, seen)}"
        )
        broken("snapshot-wrong", what, step.task, step.started_ns)


def too_early(account: Account, at: int) -> NoReturn:
    """Tell of an attempt that begins before its task may be begun."""
    early = f"{seconds(account.due - at)} s"
    if not account.delay:
        what = f"attempt {account.attempt} of {account} begins {early} before it was created"
        broken("time-ran-back", what, account.task, at)
    told = (
        f"retry {account.spent} of {account} begins {early} before it is due; its wait is"
        f" {seconds(account.delay)} s"
    )
    if account.since_resume is not None and not account.since_resume:
        what = f"{told}, which the host that went on did not keep"
        broken("timer-lost", what, account.task, at)
    broken("retry-too-early", told, account.task, at)


def wrong_attempt(account: Account, attempt: int, does: str, at: int) -> NoReturn:
    """Tell of an attempt that is not the next one of its task."""
    told = f"attempt {attempt} of {account} {does}"
    if account.ended or account.failed:
        how = account.ended or "has failed"
        broken("attempt-repeated", f"{told} after the task {how}", account.task, at)
    if attempt < account.attempt:
        what = f"{told} again; attempt {account.attempt} is the next"
        broken("attempt-repeated", what, account.task, at)
    what = f"{told}, but attempt {account.attempt} is the next"
    broken("attempt-skipped", what, account.task, at)


def same(a: object, b: object) -> bool:
    """Return whether two values are the same, by type and all."""
    return a is b or same_value(a, b)
