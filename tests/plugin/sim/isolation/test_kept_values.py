"""What one job leaves to the next one is found and named; what answers alike is no fault."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest

from pytest_routilux.hosts import fork_server
from pytest_routilux.sim.determinism.check import check_determinism
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case, Finding
from tests.plugin.sim.steps import START, STEP, Work, chain, same

pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="needs os.fork")


def found(case: Case) -> Finding | None:
    """Return what `crash_everywhere` finds, in no other process."""
    result = explore(case, START, Checks(isolated=False))
    assert [] == result.failures
    return result.reference.finding


def made_anew(make: Callable[[], Work]) -> Case:
    """Return a case whose handlers `build` makes anew, with all that they keep."""
    return Case(lambda: chain(same, make()).build(), "r0")


# --- on one flow object ---------------------------------------------------------------------------


def counts(routine: Any, number: Any) -> object:
    routine.count = getattr(routine, "count", 0) + 1
    return routine.count


def remembers(routine: Any, number: Any) -> object:
    routine.seen = [*getattr(routine, "seen", []), number]
    return len(routine.seen)


def in_a_closure() -> Work:
    count = 0

    def work(routine: Any, number: Any) -> object:
        nonlocal count
        count += 1
        return count

    return work


def in_a_list_of_a_closure() -> Work:
    numbers: deque[object] = deque()

    def work(routine: Any, number: Any) -> object:
        numbers.append(number)
        return len(numbers)

    return work


def in_a_generator() -> Work:
    numbers = (n for n in itertools.count(1))
    return lambda routine, number: next(numbers)


def in_an_iterator() -> Work:
    numbers = iter([7, 8, 9])
    return lambda routine, number: next(numbers)


def in_a_cache() -> Work:
    @cache
    def rows() -> list[object]:
        return []

    def work(routine: Any, number: Any) -> object:
        rows().append(number)
        return len(rows())

    return work


def in_a_default() -> Work:
    def work(routine: Any, number: Any, seen: list[object] = []) -> object:  # noqa: B006
        seen.append(number)
        return len(seen)

    return work


def in_a_partial() -> Work:
    return partial(lambda seen, routine, number: seen.append(number) or len(seen), [])


LEAKS: dict[str, tuple[Callable[[], Work], str, str]] = {
    "an attribute that the first job adds": (lambda: counts, "instance-state", "self.count"),
    "a list in an attribute": (lambda: remembers, "instance-state", "self.seen"),
    "a closure": (in_a_closure, "closure-state", "count"),
    "a list of a closure": (in_a_list_of_a_closure, "closure-state", "numbers"),
    "a generator": (in_a_generator, "generator-state", "numbers"),
    "an iterator": (in_an_iterator, "closure-state", "numbers"),
    "a cache": (in_a_cache, "cache-state", "rows()"),
    "a default": (in_a_default, "default-state", "seen"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_what_a_flow_object_keeps_for_the_next_job_is_named(name: str) -> None:
    make, kind, variable = LEAKS[name]
    finding = found(made_anew(make))
    assert finding is not None
    assert (kind, "r1", f"kept.{variable}") == (finding.kind, finding.routine, finding.path)
    assert "keeps something for the next job of the same flow object in the " in finding.what
    assert finding.hint.startswith(f"{__file__}:") or STEP == finding.hint


def test_what_is_kept_where_it_is_not_looked_for_is_told_without_a_name() -> None:
    finding = found(made_anew(in_a_partial))
    assert finding is not None
    assert "next-job" == finding.kind


def cached_in_an_attribute(routine: Any, number: Any) -> object:
    routine.rates = getattr(routine, "rates", None) or {"EUR": 7}
    return routine.rates["EUR"]


def cached_by_functools() -> Work:
    @cache
    def rate(currency: str) -> int:
        return len(currency)

    return lambda routine, number: rate("EUR")


def makes_a_generator() -> Work:
    return lambda routine, number: next(n for n in itertools.count(3))


def kept_in_the_job(routine: Any, number: Any) -> object:
    routine.ctx.state["count"] = routine.ctx.state.get("count", 0) + 1
    return routine.ctx.state["count"]


def with_an_effect() -> Work:
    pay = Effect("pay", key="key")
    return lambda routine, number: pay(1, key=routine.ctx.key("pay"))


TWINS = [
    lambda: cached_in_an_attribute,
    cached_by_functools,
    makes_a_generator,
    lambda: kept_in_the_job,
    with_an_effect,
]


@pytest.mark.parametrize("make", TWINS)
def test_what_answers_every_job_alike_is_no_fault(make: Callable[[], Work]) -> None:
    assert found(made_anew(make)) is None
    assert check_determinism(made_anew(make), START) is None


def test_a_service_that_all_flows_share_is_no_state_of_the_flow() -> None:
    ledger: list[object] = []
    case = chain(same, lambda r, n: ledger.append(n) or len(ledger))
    assert found(case) is None


# --- in one process -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LEAKS][2:])
def test_what_a_process_keeps_for_the_next_job_is_named(name: str) -> None:
    make, kind, variable = LEAKS[name]
    finding = check_determinism(chain(same, make()), START)
    assert finding is not None
    assert (kind, "r1", f"kept.{variable}") == (finding.kind, finding.routine, finding.path)
    assert "keeps something for the next job in the same process in the " in finding.what


def test_the_instance_of_one_flow_object_is_checked_for_determinism_too() -> None:
    finding = check_determinism(chain(same, counts), START)
    assert finding is not None
    assert ("instance-state", "kept.self.count") == (finding.kind, finding.path)
