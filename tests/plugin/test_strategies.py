"""Hypothesis draws payloads, faults and crashes; a failing example is shrunk by both shrinkers."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from pytest_routilux import CrashAt, Fault, FlowFactory, FlowSim
from pytest_routilux.strategies import crashes, fault_plans, payloads, values
from routilux import ErrorHandler, Flow, FlowDefinitionError, codec
from routilux.codec.equality import same_value
from tests.plugin.inner import run_inside

inside_a_test = settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def pay(order: str, cents: int = 0) -> dict[str, Any]:
    return {"receipt": order, "cents": cents}


def ship(receipt: str, cents: int) -> dict[str, Any]:
    return {"shipped": receipt}


def shop() -> Flow:
    retry = ErrorHandler("retry", max_retries=3)
    return FlowFactory()(chain=[pay, ship], error_handler=retry)


@given(values())
def test_a_value_can_be_saved(value: Any) -> None:
    assert same_value(value, codec.decode(codec.encode(value)))


@given(payloads(shop(), "pay"))
def test_a_payload_fits_the_handler(params: dict[str, Any]) -> None:
    assert {"order"} <= params.keys() <= {"order", "cents"}
    assert type(params["order"]) is str
    assert type(params.get("cents", 0)) is int


def test_a_strategy_for_a_parameter_replaces_that_of_its_type() -> None:
    drawn = payloads(shop(), "pay", cents=st.integers(100, 200))
    assert {"order": "", "cents": 100} == find(drawn, lambda params: "cents" in params)


def book(at: datetime, ratio: float, note: object = None) -> None:
    """Takes what needs care: an aware time, no NaN, any value."""


@given(payloads(FlowFactory()(chain=[book]), "book"))
def test_a_type_hint_gives_values_that_can_be_saved(params: dict[str, Any]) -> None:
    assert same_value(params, codec.decode(codec.encode(params)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: payloads(shop(), "pya"), "is no routine of flow .*did you mean 'pay'"),
        (lambda: payloads(shop(), "pay", slot="tigger"), "did you mean 'trigger'"),
        (lambda: payloads(shop(), "pay", cent=st.none()), "did you mean 'cents'"),
        (lambda: fault_plans(shop(), routines=["shop"]), "is no routine of flow"),
    ],
)
def test_a_misspelt_name_is_refused(make: Any, words: str) -> None:
    with pytest.raises(FlowDefinitionError, match=words):
        make()


def test_a_plan_shrinks_to_one_fault_in_the_first_attempt() -> None:
    plans = fault_plans(shop(), errors=[OSError])
    assert [] == find(plans, lambda plan: True)
    assert "[raises('pay', OSError, attempts=[1])]" == repr(find(plans, lambda plan: bool(plan)))


def test_a_crash_counts_round() -> None:
    assert CrashAt(0) == find(crashes(), lambda crash: True)
    assert ["b"] == CrashAt(7).points(["a", "b", "c"])
    assert [] == CrashAt(7).points([])


@inside_a_test
@given(payloads(shop(), "pay"), fault_plans(shop(), errors=[OSError]), crashes())
def test_a_sound_flow_passes_with_drawn_faults_and_crashes(
    flow_sim: FlowSim, params: dict[str, Any], faults: list[Fault], crash: CrashAt
) -> None:
    coverage = flow_sim.explore(
        shop, "pay", params, faults=faults, crashes=crash, isolated=False, view=lambda out: None
    )
    assert 1 == coverage.executed.total()
    assert "sampled" == coverage.word
    assert any("one crash point alone" in note for note in coverage.notes)


BROKEN = """
    from hypothesis import HealthCheck, given, settings

    from pytest_routilux.strategies import crashes, fault_plans, payloads
    from routilux import ErrorHandler
    from pytest_routilux import FlowFactory

    def shop(flow_sim):
        charge = flow_sim.effect("charge", key="key")

        def pay(order: str, cents: int):
            charge(order)
            return {"receipt": order}

        return lambda: FlowFactory()(chain=[pay], error_handler=ErrorHandler("retry"))

    def pay(order: str, cents: int):
        return None

    FLOW = FlowFactory()(chain=[pay])

    @settings(
        database=None, deadline=None, derandomize=True, max_examples=12,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(payloads(FLOW, "pay"), fault_plans(FLOW, errors=[OSError]), crashes())
    def test_charges_once(flow_sim, params, faults, crash):
        flow_sim.explore(
            shop(flow_sim), "pay", params, faults=faults, crashes=crash, isolated=False
        )
"""


@pytest.mark.soak  # some hundred simulations
def test_a_failing_example_shrinks_with_both_shrinkers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_shop=BROKEN)
    result = run_inside(pytester, "-p", "_hypothesis_pytestplugin")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*EFFECT REPEATED: charge(*",
            "*smallest cause  1 crash, 0 faults, FIFO order*",
            "*: test_charges_once(",
            "    params={*'order': ''*",
            "    faults=[],*",
            "    crash=CrashAt(*",
        ]
    )


def test_without_hypothesis_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "pytest_routilux.strategies")
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"install pytest-routilux\[hypothesis\]"):
        __import__("pytest_routilux.strategies")
