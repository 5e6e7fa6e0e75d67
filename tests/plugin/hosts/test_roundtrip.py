"""serialize_roundtrip: the loaded object is equal in value and type, or the difference is shown."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from pytest_routilux.hosts.flow_hosts import HostError
from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    Runtime,
    SavedState,
    UnserializableError,
    register_type,
)
from tests.plugin.hosts import rates
from tests.plugin.shop import GatewayDown, Home, Loose, Money, shop
from tests.soak import also, sampled

VIAS = ["memory", "file", "process"]


def shop_job(flow: Flow) -> JobState:
    job = flow.execute("order", {"price": Decimal("19.90")}, runtime=Runtime(clock=FakeClock()))
    job.raise_for_status()
    return job


def give_price(price):
    return {"price": price}


@pytest.mark.parametrize("via", VIAS)
def test_flows_jobs_states_and_error_handlers_come_back_whole(
    serialize_roundtrip, flow_factory, via
):
    flow = shop(tries=3)
    twin = serialize_roundtrip(flow, via=via)
    assert twin is not flow
    assert flow.fingerprint == twin.fingerprint
    assert ((3,), {"calls": None}) == twin.routines["charge"].arguments
    assert GatewayDown in twin.routines["charge"].error_handler.retryable_exceptions
    functions = serialize_roundtrip(flow_factory(chain=[give_price, give_price]), via=via)
    job = functions.execute("give_price", {"price": 2}, runtime=Runtime())
    assert {"price": 2} == job.outputs[0].data
    state = SavedState.capture(flow, shop_job(flow))
    loaded = serialize_roundtrip(state, via=via)
    assert (state.job, state.saved_at_ns) == (loaded.job, loaded.saved_at_ns)
    assert 2 == loaded.flow.routines["charge"].error_handler.retry_count
    assert state.job == serialize_roundtrip(state.job, via=via)
    assert Money(Decimal("19.90")) == loaded.job.outputs[0].data["charged"]
    handler = ErrorHandler(
        "retry", max_retries=None, retry_delay=0.3, retryable_exceptions=(GatewayDown, OSError)
    )
    assert handler == serialize_roundtrip(handler, via=via)


VALUES = [
    datetime(2026, 1, 3, tzinfo=UTC),
    timedelta(seconds=0.45),
    [Money(Decimal("1.50")), UUID(int=7), b"\x00", Path("a/b")],
    {(1, 2.0), frozenset({3})},
    {1: "one", None: float("inf"), float("nan"): 1},
    [float("nan"), -0.0, 0.0, float("-inf"), True, 1, 1.0, Decimal(1)],
    {"b": 1, "a": {"d": 2, "c": 3}, "$type": "mine"},
    [({"deep": [((1,), {"set": {1, (2,)}})]},)],
]


@pytest.mark.parametrize("via", sampled(VIAS, ["memory", "file"]))
def test_values_come_back_whole_in_type_sign_and_order(serialize_roundtrip, via):
    assert repr(VALUES) == repr(serialize_roundtrip(VALUES, via=via))


@pytest.mark.parametrize("via", sampled(VIAS, ["memory", "file"]))
def test_a_type_that_is_lost_is_shown_with_its_path(serialize_roundtrip, via):
    payload = {"items": [Loose(Decimal("1.5"))]}
    expected = f"$.items[0].price: Decimal('1.5') became float 1.5 (saved and loaded via {via})"
    with pytest.raises(AssertionError, match=f"^{re.escape(expected)}$"):
        serialize_roundtrip(payload, via=via)


def test_a_type_that_is_lost_is_found_deep_in_a_job(serialize_roundtrip, flow_factory):
    job = flow_factory(chain=[give_price]).execute(
        "give_price", {"price": Loose(Decimal("1.5"))}, runtime=Runtime()
    )
    with pytest.raises(AssertionError, match=r"^\$\.outputs\[0\]\.data\.price\.price: Decimal"):
        serialize_roundtrip(job)


def test_an_attribute_that_was_set_after_the_constructor_is_found(serialize_roundtrip):
    flow = shop(tries=3)
    flow.routines["charge"].rate = 2.5
    with pytest.raises(AssertionError, match=r"^\$\.routines\.charge\.rate: 2\.5 became 1\.5"):
        serialize_roundtrip(flow)


def test_an_error_handler_that_was_taken_away_stays_away(serialize_roundtrip):
    flow = shop(tries=3)
    flow.routines["charge"].set_error_handler(None)
    assert None is serialize_roundtrip(flow).routines["charge"].error_handler


class Cell:
    """Holds a value, whatever its own `__eq__` returns."""

    def __init__(self, value: object) -> None:
        self.value = value


class AlwaysEqual(Cell):
    def __eq__(self, other: object) -> bool:
        return True


class NeverEqual(Cell):
    def __eq__(self, other: object) -> bool:
        return False


class Incomparable(Cell):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparing")


LIARS = [AlwaysEqual, NeverEqual, Incomparable]
for _liar in LIARS:
    _liar.__hash__ = object.__hash__  # type: ignore[method-assign]
    register_type(
        _liar,
        name=f"tests.roundtrip.{_liar.__name__}",
        encode=lambda liar: float(liar.value) if isinstance(liar.value, Decimal) else liar.value,
        decode=_liar,
    )


@pytest.mark.parametrize(
    ("liar", "via"),
    [
        *product(LIARS, ["memory"]),
        *also(*product(LIARS, ["process"])),
    ],
)
def test_the_values_inside_of_an_object_with_a_false_eq_are_compared(
    serialize_roundtrip, liar, via
):
    assert [1, 2] == serialize_roundtrip([liar([1, 2])], via=via)[0].value
    expected = f"$[0].value: Decimal('1.5') became float 1.5 (saved and loaded via {via})"
    with pytest.raises(AssertionError, match=f"^{re.escape(expected)}$"):
        serialize_roundtrip([liar(Decimal("1.5"))], via=via)


def test_an_order_that_is_lost_is_found(serialize_roundtrip):
    @register_type(name="tests.roundtrip.basket")
    @dataclass
    class Basket:
        items: dict[str, int]

    tidy = lambda basket: dict(sorted(basket.items.items()))  # noqa: E731 - one form of two
    register_type(Basket, name="tests.roundtrip.basket", encode=tidy, decode=Basket)
    assert Basket({"a": 1, "b": 2}) == serialize_roundtrip(Basket({"a": 1, "b": 2}))
    with pytest.raises(AssertionError) as lost:
        serialize_roundtrip({"x y": [Basket({"b": 2, "a": 1})]})
    assert (
        "$[\"x y\"][0].items: keys saved in the order 'b', 'a' were loaded as 'a', 'b'"
        " (saved and loaded via memory)"
    ) == str(lost.value)


@pytest.mark.parametrize("via", VIAS)
def test_a_value_that_can_not_be_saved_is_refused_with_its_path(serialize_roundtrip, via):
    for value, path in (({"f": [lambda: 1]}, "$.f[0]"), ([[threading.Lock()]], "$[0][0]")):
        with pytest.raises(UnserializableError) as refused:
            serialize_roundtrip(value, via=via)
        assert path == refused.value.path


def test_a_form_is_imported_with_the_module_that_registers_it(serialize_roundtrip):
    assert Fraction(1, 3) == serialize_roundtrip({"rate": Fraction(1, 3)}, via="process")["rate"]


def test_a_form_whose_module_is_unknown_is_named_with_what_to_do(serialize_roundtrip):
    value = {"shop": SimpleNamespace(name="pens")}
    with pytest.raises(HostError) as unknown:
        serialize_roundtrip(value, via="process")
    text = str(unknown.value)
    assert "a fresh interpreter can't load the object: $.shop: " in text
    assert "'tests.rates.namespace'" in text
    assert "the interpreter imported builtins, types; " in text
    assert "add the missing modules to imports=[...]" in text
    for imports in ([rates], ["tests.plugin.hosts.rates"]):
        assert value == serialize_roundtrip(value, via="process", imports=imports)


def test_a_type_that_only_this_process_knows_is_named_with_what_to_do(serialize_roundtrip):
    @register_type(name="tests.roundtrip.local_money")
    @dataclass
    class LocalMoney:
        amount: int

    assert LocalMoney(5) == serialize_roundtrip(LocalMoney(5), via="file")
    with pytest.raises(HostError) as unknown:
        serialize_roundtrip([LocalMoney(5)], via="process")
    assert "can't load the object: $[0]: " in str(unknown.value)
    assert "register each class at the top level of a module" in str(unknown.value)


def test_via_process_loads_in_another_process(serialize_roundtrip):
    with pytest.raises(AssertionError, match=rf"^\$\.pid: {os.getpid()} became \d+ \("):
        serialize_roundtrip(Home(os.getpid()), via="process")


def test_an_unknown_via_is_refused(serialize_roundtrip):
    with pytest.raises(ValueError, match="via='pipe'; choose 'memory', 'file' or 'process'"):
        serialize_roundtrip(1, via="pipe")
