"""One job, driven at random: no task, update or attempt is lost or doubled.

The machine is driven without a runtime and without a clock. A model knows only which tasks were
created, how they ended, and what was counted. After each move the model and the job must agree, and
the job must be the same by each way of restoring it.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from routilux.codec.equality import same_value
from routilux.core.commits import CommitKind, JobStatus
from routilux.core.machine import Machine
from routilux.core.requests import request
from routilux.errors import NotResumableError
from routilux.graph.messages import (
    Emission,
    ErrorInfo,
    RecordedEffect,
    StepInput,
    StepOutcome,
    Writes,
)
from routilux.graph.routine import Routine
from tests.core.job_model import (
    FINAL,
    HANDLERS,
    MOST_RECOVERIES,
    MOST_TASKS,
    RESTORED_BY,
    JobModel,
    most_retries,
)
from tests.core.stories import emission, text_of
from tests.routines import SECOND
from tests.soak import examples

payloads = st.one_of(
    st.integers(0, 3),
    st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from([float("nan"), -0.0, "ü", (1, {2}), None]),
)
errors = st.sampled_from([ValueError("v"), KeyError("k"), OSError("o")])
lengths = st.one_of(st.sampled_from([0, 1, SECOND // 2, SECOND]), st.integers(0, 20 * SECOND))
picks = st.integers(0, 9)


class JobUnderWay(JobModel):
    """A job, its model, and every event that may happen to it."""

    @initialize(
        width=st.sampled_from([1, 2, 3, 5]),
        queued=st.booleans(),
        start=st.integers(-5, 5),
        spread=st.integers(0, 3),
    )
    def start(self, width, queued, start, spread):
        self.prepare(width, queued, start)
        if spread:
            self.succeed(0, [("out", 1)] * spread, False, False, "", None, 0)

    @precondition(lambda self: self.machine.startable(self.now))
    @rule(pick=picks, times=st.integers(1, 5))
    def begin(self, pick, times):
        for _ in range(times):
            choices = self.machine.startable(self.now)
            if not choices:
                return
            chosen = choices[pick % len(choices)]
            known = self.known[chosen.task_id]
            step = self.machine.begin(chosen, self.now)
            assert step.number not in self.numbers
            self.numbers.add(step.number)
            assert step.attempt == known.attempts + 1
            recorded = {name: effect.result for name, effect in (step.effects or {}).items()}
            assert same_value(recorded, known.effects)
            assert (step.shared, step.seq) == (self.job.shared_data, self.job.seq)
            assert step.final is (known.spent >= most_retries(HANDLERS[known.routine]))

    def one_in_flight(self, pick: int) -> StepInput:
        if not self.machine.in_flight:
            self.begin(pick, 2)
        return self.machine.flights[pick % self.machine.in_flight]

    @precondition(lambda self: self.machine.flights or self.machine.startable(self.now))
    @rule(
        pick=picks,
        emitted=st.lists(st.tuples(st.sampled_from(["out", "out", "extra"]), payloads), max_size=3),
        adds=st.booleans(),
        counts=st.booleans(),
        looks=st.sampled_from(["", "", "mark", "all"]),
        mark=st.none() | st.integers(0, 2),
        after=lengths,
    )
    def succeed(self, pick, emitted, adds, counts, looks, mark, after):
        step = self.one_in_flight(pick)
        routine = self.plan.routines[step.task.routine_id]
        outcome = StepOutcome(step.number, self.emissions(routine, emitted))
        reads, written, removed = set(), dict[str, object](), tuple[str, ...]()
        if looks == "mark":
            reads.add("mark")
        if mark == 0 and "mark" in step.shared:
            removed = ("mark",)
        elif mark:
            written["mark"] = [mark]
        if adds:
            reads.add("total")
            written["total"] = self.total(step.shared) + 1
        outcome.shared = Writes(written, removed) if written or removed else None
        outcome.shared_reads = None if looks == "all" else frozenset(reads)
        if counts and routine.max_concurrency == 1:
            outcome.state = Writes({"total": self.total(step.state) + 1})
        self.end(step, outcome, after, adds=adds)

    @precondition(lambda self: self.plan.width > 1 and len(self.machine.startable(self.now)) > 1)
    @rule(times=st.integers(1, 5))
    def race(self, times):
        """Let other steps commit while one task runs, so that it conflicts several times."""
        unlucky = self.machine.startable(self.now)[0].task_id
        for number in range(times):
            if self.machine.startable(self.now):
                self.begin(0, 4)
            flying = [step.task.task_id for step in self.machine.flights]
            if len(flying) < 2 or unlucky not in flying:
                return
            other = len(flying) - 1 - (flying[-1] == unlucky)
            self.succeed(other, [("out", 1)] * 3, True, True, "", 1, 0)
            flying.pop(other)
            looks = ["", "all"][number % 2]
            self.succeed(flying.index(unlucky), [("out", 1)], looks == "", False, looks, None, 0)

    def emissions(self, routine: Routine, emitted: list[tuple[str, object]]) -> list[Emission]:
        if len(self.known) >= MOST_TASKS:
            return []
        return [emission(event, n=n) for event, n in emitted if event in routine.events]

    @precondition(lambda self: self.machine.flights or self.machine.startable(self.now))
    @rule(
        pick=picks,
        error=errors,
        retry_after=st.none() | st.integers(0, 9 * SECOND),
        looks=st.sampled_from([None, (), (), ("mark",), ("total",)]),
        after=lengths,
    )
    def fail(self, pick, error, retry_after, looks, after):
        step = self.one_in_flight(pick)
        outcome = StepOutcome(
            step.number,
            [emission("extra", n=1)],  # must not be committed, nor the writes
            Writes({"total": -1}),
            Writes({"total": -1}),
            None if looks is None else frozenset(looks),
            ErrorInfo.of(error),
            type(error),
            retry_after,
        )
        self.end(step, outcome, after)

    @precondition(lambda self: self.machine.flights)
    @rule(pick=picks, result=payloads)
    def record_effect(self, pick, result):
        step = self.machine.flights[pick % self.machine.in_flight]
        known = self.known[step.task.task_id]
        name = f"effect {len(known.effects)}"
        self.accept(
            self.pure(
                lambda: self.machine.effect(step, name, RecordedEffect("digest", result), self.now)
            )
        )
        known.effects[name] = result
        self.recoveries = 0

    @precondition(lambda self: self.ended)
    @rule(pick=picks)
    def an_outcome_comes_late_or_twice(self, pick):
        step, outcome = self.ended[pick % len(self.ended)]
        assert self.pure(lambda: self.machine.finish(step, outcome, self.now)) is None
        assert (
            self.pure(lambda: self.machine.effect(step, "x", RecordedEffect("", 0), self.now))
            is None
        )

    @rule(length=lengths)
    def time_passes(self, length):
        self.now += length

    def due(self) -> int | None:
        task = self.machine.next_task()
        return None if task is None else task.due_ns

    @precondition(lambda self: (self.due() or self.now) > self.now)
    @rule()
    def time_passes_until_something_is_due(self):
        due = self.due()
        assert due is not None
        self.now = due
        assert self.machine.startable(self.now), "a task is due, but none may start"

    @precondition(lambda self: self.machine.in_flight)
    @rule()
    def pause(self):
        self.ask_for("pause")

    @precondition(lambda self: self.job.seq > 12)
    @rule()
    def cancel(self):
        self.ask_for("cancel")

    def ask_for(self, kind: Any) -> None:
        job = self.job
        allowed = job.status not in FINAL and (kind == "cancel" or job.status is JobStatus.RUNNING)
        if not allowed:
            with pytest.raises(NotResumableError):
                self.pure(lambda: request(self.job, kind, self.now))
            return
        pending = list(job.pending_tasks)
        self.accept(self.pure(lambda: request(self.job, kind, self.now)))
        assert job.status is (JobStatus.PAUSED if kind == "pause" else JobStatus.CANCELLED)
        assert list(job.pending_tasks) == pending

    @precondition(lambda self: self.machine.in_flight or self.job.status != JobStatus.RUNNING)
    @rule(retry_failed=st.booleans())
    def resume(self, retry_failed):
        job = self.job
        if (
            job.status in FINAL
            or self.machine.in_flight
            or (job.status is JobStatus.FAILED and not retry_failed)
        ):
            before = text_of(job)
            with pytest.raises(NotResumableError):
                self.machine.resume(
                    self.now, retry_failed=retry_failed, max_recoveries=MOST_RECOVERIES
                )
            assert text_of(job) == before
            return
        self.restart(retry_failed)

    @precondition(lambda self: self.job.commits[-1].kind is not CommitKind.RESUMED)
    @rule(
        way=st.sampled_from(sorted(RESTORED_BY)),
        how=st.sampled_from(["died", "died", "given back", "taken over", "broke off", "trouble"]),
        idle=lengths,
        retry_failed=st.booleans(),
        times=st.sampled_from([1, 1, 1, 2, 5]),
    )
    def crash_and_restore(self, way, how, idle, retry_failed, times):
        for _ in range(times):
            restored = RESTORED_BY[way](self.job)
            assert restored == self.job
            assert text_of(restored) == text_of(self.job)
            if how in ("broke off", "trouble"):
                self.interrupt(how)
                restored = RESTORED_BY[way](self.job)
            lost = [(s, StepOutcome(s.number, [])) for s in self.machine.flights]
            self.ended += lost
            self.machine = Machine(self.plan, restored)
            self.seen["steps lost"] += len(lost)
            # The new host's clock may be behind the old host's, but not behind the last commit.
            self.now = self.job.updated_ns + idle
            if self.job.status not in FINAL and (
                retry_failed or self.job.status is not JobStatus.FAILED
            ):
                self.seen[how] += 1
                self.restart(retry_failed, how)


def test_no_task_update_or_attempt_is_lost_or_doubled():
    JobUnderWay.seen.clear()
    run_state_machine_as_test(
        JobUnderWay, settings=settings(stateful_step_count=40, max_examples=examples(1))
    )
    # The examples must contain each kind of commit and each kind of restart.
    seen = " ".join(JobUnderWay.seen)
    missed = [kind.value for kind in CommitKind if f"{kind} -> " not in seen]
    assert not missed, f"no example has a commit of these kinds: {missed}"
    assert JobUnderWay.seen["steps lost"], "no example lost a step in a crash"
    unseen = {"died", "given back", "taken over", "broke off", "trouble"} - set(JobUnderWay.seen)
    assert not unseen, f"no example has a job that was resumed after its host {unseen}"
