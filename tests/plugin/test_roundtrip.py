"""serialize_roundtrip: what comes back is equal in value and type, or the difference is shown."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from pytest_routilux import FlowFactory, SerializeRoundtrip
from pytest_routilux.hosts import HostError
from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    Routine,
    Runtime,
    SavedState,
    UnserializableError,
)
from tests.plugin.shop import GatewayDown, Home, Loose, Money, shop

VIAS = ["memory", "file", "process"]


def shop_job(flow: Flow) -> JobState:
    job = flow.execute("order", {"price": Decimal("19.90")}, runtime=Runtime(clock=FakeClock()))
    job.raise_for_status()
    return job


@pytest.mark.parametrize("via", VIAS)
def test_a_flow_comes_back_whole(serialize_roundtrip: SerializeRoundtrip, via) -> None:
    flow = shop(tries=3)
    twin = serialize_roundtrip(flow, via=via)
    assert twin is not flow
    assert flow.fingerprint == twin.fingerprint
    assert ((3,), {"calls": None}) == twin.routines["charge"].arguments
    assert GatewayDown in twin.routines["charge"].error_handler.retryable_exceptions


@pytest.mark.parametrize("via", VIAS)
def test_a_flow_of_functions_comes_back_whole(
    serialize_roundtrip: SerializeRoundtrip, flow_factory: FlowFactory, via
) -> None:
    twin = serialize_roundtrip(flow_factory(chain=[give_price, give_price]), via=via)
    job = twin.execute("give_price", {"price": 2}, runtime=Runtime())
    assert {"price": 2} == job.outputs[0].data


def give_price(price):
    return {"price": price}


@pytest.mark.parametrize("via", VIAS)
def test_a_job_comes_back_whole(serialize_roundtrip: SerializeRoundtrip, via) -> None:
    job = shop_job(shop(tries=3))
    twin = serialize_roundtrip(job, via=via)
    assert job == twin
    assert Money(Decimal("19.90")) == twin.outputs[0].data["charged"]


@pytest.mark.parametrize("via", VIAS)
def test_a_saved_state_comes_back_whole(serialize_roundtrip: SerializeRoundtrip, via) -> None:
    flow = shop(tries=3)
    state = SavedState.capture(flow, shop_job(flow))
    twin = serialize_roundtrip(state, via=via)
    assert (state.job, state.saved_at_ns) == (twin.job, twin.saved_at_ns)
    assert 2 == twin.flow.routines["charge"].error_handler.retry_count


@pytest.mark.parametrize("via", VIAS)
def test_an_error_handler_comes_back_whole(serialize_roundtrip: SerializeRoundtrip, via) -> None:
    handler = ErrorHandler(
        "retry", max_retries=None, retry_delay=0.3, retryable_exceptions=(GatewayDown, OSError)
    )
    assert handler == serialize_roundtrip(handler, via=via)


@pytest.mark.parametrize("via", VIAS)
def test_values_come_back_whole(serialize_roundtrip: SerializeRoundtrip, via) -> None:
    values = {
        "at": datetime(2026, 1, 3, tzinfo=UTC),
        "left": timedelta(seconds=0.45),
        "money": [Money(Decimal("1.50"))],
        "id": UUID(int=7),
        "raw": b"\x00",
        "sizes": {(1, 2.0), frozenset({3})},
        "by id": {1: "one", None: float("inf")},
        "path": Path("a/b"),
        "$type": "mine",
    }
    assert values == serialize_roundtrip(values, via=via)


@pytest.mark.parametrize("via", VIAS)
def test_a_type_that_is_lost_is_shown_with_its_path(
    serialize_roundtrip: SerializeRoundtrip, via
) -> None:
    payload = {"items": [Loose(Decimal("1.5"))]}
    expected = f"$.items[0].price: Decimal('1.5') became float 1.5 (saved and loaded via {via})"
    with pytest.raises(AssertionError, match=f"^{re.escape(expected)}$"):
        serialize_roundtrip(payload, via=via)


def test_a_type_that_is_lost_is_found_deep_in_a_job(
    serialize_roundtrip: SerializeRoundtrip, flow_factory: FlowFactory
) -> None:
    job = flow_factory(chain=[give_price]).execute(
        "give_price", {"price": Loose(Decimal("1.5"))}, runtime=Runtime()
    )
    with pytest.raises(AssertionError, match=r"^\$\.outputs\[0\]\.data\.price\.price: Decimal"):
        serialize_roundtrip(job)


def test_what_was_set_after_the_constructor_is_found(
    serialize_roundtrip: SerializeRoundtrip,
) -> None:
    flow = shop(tries=3)
    flow.routines["charge"].rate = 2.5
    with pytest.raises(AssertionError, match=r"^\$\.routines\.charge\.rate: 2\.5 became 1\.5"):
        serialize_roundtrip(flow)


def test_an_error_handler_that_was_taken_away_stays_away(
    serialize_roundtrip: SerializeRoundtrip,
) -> None:
    flow = shop(tries=3)
    flow.routines["charge"].set_error_handler(None)
    assert None is serialize_roundtrip(flow).routines["charge"].error_handler


def test_the_other_process_is_another_one(serialize_roundtrip: SerializeRoundtrip) -> None:
    with pytest.raises(AssertionError, match=rf"^\$\.pid: {os.getpid()} became \d+ \("):
        serialize_roundtrip(Home(os.getpid()), via="process")


def test_what_can_not_be_saved_is_told_with_its_path(
    serialize_roundtrip: SerializeRoundtrip,
) -> None:
    with pytest.raises(UnserializableError) as refused:
        serialize_roundtrip({"items": [object()]})
    assert "$.items[0]" == refused.value.path


def test_a_class_that_another_process_can_not_find_is_told(
    serialize_roundtrip: SerializeRoundtrip,
) -> None:
    class Local(Routine):
        routine_name = "tests.roundtrip.local"

        def __init__(self) -> None:
            super().__init__()
            self.define_slot("trigger", handler=lambda: None)

    flow = Flow("local")
    flow.add_routine(Local(), "local")
    serialize_roundtrip(flow, via="file")
    with pytest.raises(HostError, match=r"no routine class 'tests\.roundtrip\.local' is"):
        serialize_roundtrip(flow, via="process")


def test_an_unknown_way_is_refused(serialize_roundtrip: SerializeRoundtrip) -> None:
    with pytest.raises(ValueError, match="via='pipe'; choose 'memory', 'file' or 'process'"):
        serialize_roundtrip(1, via="pipe")
