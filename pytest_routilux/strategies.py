"""Hypothesis strategies for the payloads, the faults and the crashes of a simulated job.

Invariants:
- A drawn value can be saved, and comes back equal. Simpler values, fewer faults and earlier crashes
  come first, so that a failing example shrinks to them.
- A drawn fault names a routine of the flow. It need not strike: a job may end before.
- Hypothesis is an extra (`pip install pytest-routilux[hypothesis]`); only this module needs it.
"""

from __future__ import annotations

import inspect
import math
import typing
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "pytest_routilux.strategies needs Hypothesis; install pytest-routilux[hypothesis]"
    ) from error

from pytest_routilux.faults.faults import ClockJump, Fault, Raises, Slow, StoreFails
from pytest_routilux.sim.results import CrashAt
from routilux import FlowDefinitionError
from routilux.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

    from routilux import Flow, Slot

__all__ = ["crashes", "fault_plans", "payloads", "values"]

_MOST_LEAVES: Final = 8
_ERRORS: Final = (ConnectionError, TimeoutError)


def values() -> SearchStrategy[Any]:
    """Return a strategy for values that a payload may have, and a store can save.

    >>> from hypothesis import find
    >>> from pytest_routilux.strategies import values
    >>> find(values(), lambda value: isinstance(value, list) and len(value) == 2)
    [None, None]
    """
    numbers = st.integers() | st.floats(allow_nan=False) | st.decimals(allow_nan=False)
    times = st.datetimes(timezones=st.just(UTC)) | st.dates() | st.timedeltas()
    leaves = st.none() | st.booleans() | numbers | st.text() | st.binary() | st.uuids() | times
    keys = st.text() | st.integers()
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=_MOST_LEAVES,
    )


def payloads(
    flow: Flow, entry: str, *, slot: str = "trigger", **fields: SearchStrategy[Any]
) -> SearchStrategy[dict[str, Any]]:
    """Return a strategy for the params of a job that starts at `entry`.

    Each parameter of the handler gets a value of its type hint, or of `values()` without one;
    `fields` gives strategies for parameters by name. A parameter with a default may be missing.
    Raises `FlowDefinitionError` for an unknown routine, slot or parameter.

    >>> from hypothesis import find
    >>> from pytest_routilux import FlowFactory
    >>> from pytest_routilux.strategies import payloads
    >>> def pay(order: str, cents: int = 0):
    ...     return {"receipt": order}
    >>> find(payloads(FlowFactory()(chain=[pay]), "pay"), lambda params: len(params["order"]) == 2)
    {'order': '00'}
    """
    handler = _slot_of(flow, entry, slot)
    names = handler.binding.names
    unknown = [name for name in fields if name not in names and not handler.binding.takes_rest]
    if unknown:
        known = ", ".join(map(repr, sorted(names))) or "none"
        raise FlowDefinitionError(
            f"payloads() got a strategy for {unknown[0]!r}, which {entry}.{slot} does not take;"
            f" known: {known}{nearest(unknown[0], names)}"
        )
    hints = _hints(handler)
    drawn = {name: fields.get(name, _of_hint(hints.get(name))) for name in sorted(names)}
    required = handler.binding.required | fields.keys()
    return st.fixed_dictionaries(
        {name: each for name, each in drawn.items() if name in required} | fields,
        optional={name: each for name, each in drawn.items() if name not in required},
    )


def fault_plans(
    flow: Flow,
    *,
    errors: Sequence[type[Exception] | Exception] = _ERRORS,
    routines: Sequence[str] | None = None,
    most: int = 3,
) -> SearchStrategy[list[Fault]]:
    """Return a strategy for the `faults` of a simulation of `flow`, at most `most`.

    A plan raises one of `errors` in the first attempts of a routine, lets an attempt take longer,
    sets a clock, or fails a write of the store. `routines` are those that may have faults, by
    default all. A fault of a plan need not strike.

    >>> from hypothesis import find
    >>> from pytest_routilux import FlowFactory
    >>> from pytest_routilux.strategies import fault_plans
    >>> def pay(order):
    ...     return {"receipt": order}
    >>> flow = FlowFactory()(chain=[pay])
    >>> find(fault_plans(flow, errors=[OSError]), lambda plan: len(plan) == 1)
    [raises('pay', OSError, attempts=[1])]
    """
    names = [*flow.routines] if routines is None else [*routines]
    for name in names:
        if name not in flow.routines:
            known = ", ".join(map(repr, flow.routines))
            raise FlowDefinitionError(
                f"fault_plans() got {name!r}, which is no routine of flow {flow.flow_id!r};"
                f" known: {known}{nearest(name, [*flow.routines])}"
            )
    attempts = st.integers(1, 3).map(lambda most: range(1, most + 1))
    named, seconds = st.sampled_from(names), st.sampled_from([1, 60, 3600])
    each: SearchStrategy[Fault] = (
        st.builds(Raises, named, st.sampled_from([*errors]), attempts)
        | st.builds(Slow, named, seconds, attempts)
        | st.builds(StoreFails, st.integers(1, 12), durable=st.booleans())
        | st.builds(ClockJump, st.sampled_from([3600, -3600]))
    )
    return st.lists(each.map(_may_miss), max_size=most, unique_by=repr)


def crashes(most: int = 100) -> SearchStrategy[CrashAt]:
    """Return a strategy for the `crashes` of `FlowSim.explore`: one crash at one point.

    The number of the point is below `most`; it is counted round if the run has fewer.

    >>> from hypothesis import find
    >>> from pytest_routilux.strategies import crashes
    >>> find(crashes(), lambda crash: crash.number > 3)
    CrashAt(number=4)
    """
    return st.integers(0, most - 1).map(CrashAt)


def _may_miss(fault: Fault) -> Fault:
    fault.may_miss = True
    return fault


def _slot_of(flow: Flow, entry: str, slot: str) -> Slot:
    routine = flow.routines.get(entry)
    if routine is None:
        known = ", ".join(map(repr, flow.routines)) or "none"
        raise FlowDefinitionError(
            f"payloads() got {entry!r}, which is no routine of flow {flow.flow_id!r}; known:"
            f" {known}{nearest(entry, [*flow.routines])}"
        )
    if slot not in routine.slots:
        known = ", ".join(map(repr, routine.slots)) or "none"
        raise FlowDefinitionError(
            f"payloads() got slot={slot!r}, which {entry} does not have; known: {known}"
            f"{nearest(slot, [*routine.slots])}"
        )
    return routine.slots[slot]


def _hints(slot: Slot) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(slot.handler))
    except Exception:  # a name under TYPE_CHECKING, or a callable without hints
        return {}


def _of_hint(hint: Any) -> SearchStrategy[Any]:
    if hint is None or hint is Any or hint is object:
        return values()
    found: SearchStrategy[Any] = st.from_type(hint)
    if hint is float:
        return found.filter(lambda value: not math.isnan(value))  # it never equals itself
    if hint in (datetime, date):
        return st.datetimes(timezones=st.just(UTC)) if hint is datetime else st.dates()
    return found
