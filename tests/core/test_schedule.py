"""The schedule against a list that is sorted anew at each look, then short tales of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from routilux.core.parts import PendingTask
from routilux.core.schedule import Schedule
from routilux.graph.messages import Task


@dataclass
class Limit:
    max_concurrency: int


LIMITS = {"one": Limit(1), "two": Limit(2), "many": Limit(9)}


def task(routine: str, due: int = 0, seq: int = 1, position: int = 0) -> PendingTask:
    task_id = f"{routine}@{due}/{seq}.{position}"
    return PendingTask(Task(task_id, routine, "trigger", {}, True, 0), seq, position, due)


def names(tasks: list[PendingTask]) -> list[str]:
    return [pending.task_id for pending in tasks]


def test_the_earliest_comes_first_then_the_oldest_commit_then_the_position() -> None:
    tasks = [
        task("many", 0, 7, 1),
        task("many", 5, 1, 0),
        task("many", 0, 7, 0),
        task("many", 0, 2, 9),
    ]
    schedule = Schedule(LIMITS, tasks)
    expected = ["many@0/2.9", "many@0/7.0", "many@0/7.1"]
    assert names(schedule.ready(4)) == expected
    assert names(schedule.ready(5)) == [*expected, "many@5/1.0"]


def test_the_first_choice_may_lie_ahead() -> None:
    later = task("one", due=10)
    schedule = Schedule(LIMITS, [later])
    assert schedule.first() is later
    assert schedule.ready(9) == []


def test_what_waits_for_a_busy_routine_is_put_aside_and_comes_back_in_its_place() -> None:
    first, second, other = task("one", 0), task("one", 1), task("two", 2)
    schedule = Schedule(LIMITS, [first, second, other])
    schedule.start(first)
    assert schedule.first() is other
    schedule.end("one")
    assert schedule.first() is second


def test_all_that_a_routine_has_room_for_is_ready_though_only_one_was_put_back() -> None:
    first, *waiting = [task("one", 0, 1, n) for n in range(4)]
    schedule = Schedule(LIMITS, [first, *waiting])
    schedule.start(first)
    assert schedule.first() is None
    schedule.end("one")
    assert schedule.ready(0) == waiting
    schedule.start(waiting[2])
    schedule.end("one")
    assert schedule.ready(0) == waiting[:2]


def test_nothing_comes_first_in_an_empty_schedule() -> None:
    assert Schedule(LIMITS).first() is None
    assert Schedule(LIMITS).ready(10**30) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_where_one_step_at_a_time_is_in_flight_nothing_waits_for_its_routine(
    told: list[tuple[int, bool]],
) -> None:
    schedule = Schedule(None)
    waiting: list[PendingTask] = []
    for number, (due, starts) in enumerate(told):
        waiting.append(task("one", due, number // 3 + 1, number))
        schedule.add(waiting[-1])
        waiting.sort(key=lambda pending: pending.order)
        for now in (0, 3, 99):
            assert schedule.ready(now) == [t for t in waiting if t.due_ns <= now]
        assert schedule.first() is waiting[0]
        if starts:
            chosen = waiting.pop(due % len(waiting))
            schedule.start(chosen)
            schedule.end("one")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(sorted(LIMITS)), st.integers(0, 5)),
        st.tuples(st.just("first"), st.just(""), st.just(0)),
        st.tuples(st.just("start"), st.just(""), st.integers(0, 9)),
        st.tuples(st.just("end"), st.just(""), st.integers(0, 9)),
        st.tuples(st.just("again"), st.just(""), st.integers(0, 9)),
    ),
    max_size=60,
)


@given(steps)
def test_it_says_what_a_list_that_is_sorted_at_each_look_would_say(
    told: list[tuple[str, str, int]],
) -> None:
    schedule = Schedule(LIMITS)
    waiting: list[PendingTask] = []
    flying: list[PendingTask] = []

    def with_room() -> list[PendingTask]:
        busy = [pending.routine_id for pending in flying]
        return sorted(
            (t for t in waiting if busy.count(t.routine_id) < LIMITS[t.routine_id].max_concurrency),
            key=lambda pending: pending.order,
        )

    for number, (what, routine, value) in enumerate(told):
        if what == "add":
            waiting.append(task(routine, value, number // 3 + 1, number))
            schedule.add(waiting[-1])
        elif what == "first":
            assert schedule.first() is next(iter(with_room()), None)
        elif what == "start" and with_room():
            choices = with_room()
            chosen = choices[value % len(choices)]
            schedule.start(chosen)
            waiting.remove(chosen)
            flying.append(chosen)
        elif what in ("end", "again") and flying:
            ended = flying.pop(value % len(flying))
            schedule.end(ended.routine_id)
            if what == "again":
                waiting.append(replace(ended, due_ns=ended.due_ns + value))
                schedule.add(waiting[-1])
        for now in (0, 3, 99):
            assert schedule.ready(now) == [t for t in with_room() if t.due_ns <= now]
    assert schedule.first() is next(iter(with_room()), None)
