"""The schedule, compared with a list that is sorted again after each step."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from routilux.core.parts import PendingTask
from routilux.core.schedule import Schedule
from routilux.graph.messages import Task
from routilux.graph.routine import Routine
from tests.soak import examples


class One(Routine):
    max_concurrency = 1


class Two(Routine):
    max_concurrency = 2


class Many(Routine):
    max_concurrency = 9


LIMITS: dict[str, Routine] = {"one": One(), "two": Two(), "many": Many()}


def task(routine: str, due: int = 0, seq: int = 1, position: int = 0) -> PendingTask:
    task_id = f"{routine}@{due}/{seq}.{position}"
    return PendingTask(Task(task_id, routine, "trigger", {}, True, 0), seq, position, due)


moves = st.lists(
    st.tuples(
        st.sampled_from(["add", "first", "start", "end", "again"]),
        st.sampled_from(sorted(LIMITS)),
        st.integers(0, 9),
    ),
    max_size=60,
)


@settings(max_examples=examples(8))
@given(moves, st.booleans())
def test_it_gives_the_tasks_in_the_order_of_a_list_that_is_sorted_again_each_time(
    moves, sequential
):
    schedule = Schedule(None if sequential else LIMITS)
    waiting: list[PendingTask] = []
    flying: list[PendingTask] = []

    def with_room():
        busy = [pending.routine_id for pending in flying]
        return sorted(
            (
                pending
                for pending in waiting
                if sequential
                or busy.count(pending.routine_id) < LIMITS[pending.routine_id].max_concurrency
            ),
            key=lambda pending: pending.order,
        )

    for number, (move, routine, value) in enumerate(moves):
        if move == "add":
            waiting.append(task(routine, value, number // 3 + 1, number))
            schedule.add(waiting[-1])
        elif move == "first":
            assert schedule.first() is next(iter(with_room()), None)
        elif move == "start" and with_room() and not (sequential and flying):
            choices = with_room()
            chosen = choices[value % len(choices)]
            schedule.start(chosen)
            waiting.remove(chosen)
            flying.append(chosen)
        elif move in ("end", "again") and flying:
            ended = flying.pop(value % len(flying))
            schedule.end(ended.routine_id)
            if move == "again":
                waiting.append(replace(ended, due_ns=ended.due_ns + value))
                schedule.add(waiting[-1])
        for now in (0, 3, 99):
            assert schedule.ready(now) == [t for t in with_room() if t.due_ns <= now]
    assert schedule.first() is next(iter(with_room()), None)
