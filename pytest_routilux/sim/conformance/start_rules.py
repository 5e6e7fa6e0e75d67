"""When a step may begin, and what it must see then.

Laws:
- A step begins while its job runs, as the next attempt of its task, not before it is due, and sees
  what is committed.
- It takes a place of the job and one of its routine, where one is free.
- Where durations are exact, nobody waits with a place free: a task that is due begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, final

from pytest_routilux.sim.conformance.retry_rules import fail, step_text
from pytest_routilux.sim.conformance.shadow_job import MOST_CONFLICTS
from pytest_routilux.text import seconds
from routilux import JobStatus
from routilux.codec.equality import first_difference, same_value

if TYPE_CHECKING:
    from pytest_routilux.sim.conformance.shadow_job import ShadowJob, ShadowTask
    from routilux import StepInput

__all__ = ["StartRules", "same", "too_early", "wrong_attempt"]

_RUNNING = JobStatus.RUNNING


@final
class StartRules:
    """The laws of beginning, on the account that is kept of a job."""

    __slots__ = ("_compared", "_exact", "_shadow")

    def __init__(self, shadow: ShadowJob, *, exact: bool) -> None:
        self._shadow = shadow
        self._exact = exact
        # What was found to be the same, by routine; it is replaced, not changed, so once is enough.
        self._compared: dict[str | None, tuple[object, object]] = {}

    def take(self, step: StepInput) -> None:
        """Look at a step that begins, and take a place for it."""
        shadow = self._shadow
        task = step.task
        account = shadow.tasks.get(task.task_id)
        at = step.started_ns
        if account is None:
            fail("unknown-task", f"{step_text(step)} begins, but no commit creates its task", task)
        if shadow.status is not _RUNNING:
            self._begun_at_rest(step)
        if account.ended or account.failed or account.attempt != step.attempt:
            wrong_attempt(account, step.attempt, "begins", at)
        if task.task_id in shadow.flights:
            what = f"{step_text(step)} begins while it is in flight already"
            fail("started-twice", what, task, at)
        if at < shadow.at:
            what = (
                f"time runs back: {step_text(step)} begins {seconds(shadow.at - at)} s before the"
                " commit that was there already"
            )
            fail("time-ran-back", what, task, at)
        if at < account.due:
            too_early(account, at)
        if self._exact:
            self._too_late(account, at)
        self._places(step)
        self._snapshot(step, account)
        shadow.began(step)

    def _begun_at_rest(self, step: StepInput) -> NoReturn:
        status = self._shadow.status
        what = f"{step_text(step)} begins although the job is {status.value} by then"
        kind = "ran-after-failure" if status is JobStatus.FAILED else "ran-while-stopped"
        fail(kind, what, step.task, step.started_ns)

    def _too_late(self, account: ShadowTask, at: int) -> None:
        shadow = self._shadow
        if account.conflicts >= MOST_CONFLICTS or shadow.aloof:
            ready = max(account.due, account.ready, shadow.idle_since)
            if shadow.flights or account.conflicts < MOST_CONFLICTS:
                return
        else:
            ready = max(account.due, account.ready, shadow.free_since)
            room = shadow.room_since.get(account.task.routine_id)
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
            fail("started-late", what, account.task, at)
        told = (
            f"retry {account.spent} of {account} begins {late} after it was due, with a place free"
            " for it all the time"
        )
        if account.since_resume == 0 and at == account.resumed + account.delay:
            what = (
                f"retry {account.spent} of {account} waits its {seconds(account.delay)} s anew"
                f" after the resume: it begins {late} late"
            )
            fail("timer-restarted", what, account.task, at)
        fail("retry-late", told, account.task, at)

    def _places(self, step: StepInput) -> None:
        shadow = self._shadow
        task = step.task
        if len(shadow.flights) >= shadow.width:
            what = (
                f"{step_text(step)} begins with {len(shadow.flights)} in flight of {shadow.width}"
            )
            fail("too-many-at-once", what, task, step.started_ns)
        if shadow.busy.get(task.routine_id, 0) >= shadow.limits[task.routine_id]:
            what = (
                f"{step_text(step)} begins with {shadow.busy[task.routine_id]} steps of"
                f" {task.routine_id} in flight; its max_concurrency is"
                f" {shadow.limits[task.routine_id]}"
            )
            fail("too-many-at-once", what, task, step.started_ns)

    def _snapshot(self, step: StepInput, account: ShadowTask) -> None:
        shadow = self._shadow
        task = step.task
        seen, known = step.state, shadow.state.get(task.routine_id)
        if seen or known:
            was = self._compared.get(task.routine_id)
            if was is None or was[0] is not seen or was[1] is not known:
                if not same(known or {}, seen):
                    self._wrong_snapshot(step, f"the state of {task.routine_id}", known or {}, seen)
                self._compared[task.routine_id] = seen, known
        seen, known = step.shared, shadow.shared
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
            fail("record-lost", what, task, step.started_ns)

    def _wrong_snapshot(self, step: StepInput, whose: str, known: object, seen: object) -> NoReturn:
        what = (
            f"{step_text(step)} sees {whose} otherwise than it is committed:"
            f" {first_difference(known, seen)}"
        )
        fail("snapshot-wrong", what, step.task, step.started_ns)


def too_early(account: ShadowTask, at: int) -> NoReturn:
    """Tell of an attempt that begins before its task may be begun."""
    early = f"{seconds(account.due - at)} s"
    if not account.delay:
        what = f"attempt {account.attempt} of {account} begins {early} before it was created"
        fail("time-ran-back", what, account.task, at)
    told = (
        f"retry {account.spent} of {account} begins {early} before it is due; its wait is"
        f" {seconds(account.delay)} s"
    )
    if account.since_resume is not None and not account.since_resume:
        what = f"{told}, which the host that went on did not keep"
        fail("timer-lost", what, account.task, at)
    fail("retry-too-early", told, account.task, at)


def wrong_attempt(account: ShadowTask, attempt: int, does: str, at: int) -> NoReturn:
    """Tell of an attempt that is not the next one of its task."""
    told = f"attempt {attempt} of {account} {does}"
    if account.ended or account.failed:
        how = account.ended or "has failed"
        fail("attempt-repeated", f"{told} after the task {how}", account.task, at)
    if attempt < account.attempt:
        what = f"{told} again; attempt {account.attempt} is the next"
        fail("attempt-repeated", what, account.task, at)
    what = f"{told}, but attempt {account.attempt} is the next"
    fail("attempt-skipped", what, account.task, at)


def same(a: object, b: object) -> bool:
    """Return whether two values are the same, by type and all."""
    return a is b or same_value(a, b)
