"""What the reports say about the doubles of a test, and about a test without one."""

from __future__ import annotations

import pytest

from tests.plugin.inner import run_inside
from tests.soak import also, sampled

PROJECT = """
    import uuid
    from functools import partial
    from types import SimpleNamespace
    from unittest.mock import Mock

    from routilux import Flow, Routine

    class Charge(Routine):
        def __init__(self, pay):
            super().__init__()
            self.pay = pay
            self.define_slot("trigger", handler=self.charge)
            self.define_event("output", ["receipt"])

        def charge(self, order):
            pay = getattr(self.pay, "charge", self.pay)
            self.emit("output", receipt=str(pay({arguments})))

    def paid(order, key=None):
        return "paid"

    class Unsaved:
        def charge(self, order):
            return "paid"

    def test_charge(flow_sim):
        def build():
            flow = Flow("orders")
            flow.add_routine(Charge({double}), "charge")
            return flow

        flow_sim.crash_everywhere(build, "charge", {{"order": "A7"}})
"""


def printed(
    pytester: pytest.Pytester, double: str, arguments: str = "order", *, passed: bool = False
) -> str:
    """Run the project's test, and return what it prints as one line."""
    pytester.makepyfile(PROJECT.format(double=double, arguments=arguments))
    result = run_inside(pytester, "-v")
    result.assert_outcomes(passed=passed, failed=not passed)
    return " ".join(result.stdout.str().split())


CALLS = {
    "no key": (
        'flow_sim.effect("gw.charge")',
        "order",
        'gw.charge(..., key=self.ctx.key("charge")):',
        '(its double: flow_sim.effect("gw.charge", key="key"); for a query:',
    ),
    "another name": (
        'flow_sim.effect("gw.charge", key="idem")',
        "order",
        'gw.charge(..., idem=self.ctx.key("charge")):',
        '(its double: flow_sim.effect("gw.charge", key="idem"); for a query:',
    ),
    "a key under another name": (
        'flow_sim.effect("gw.charge", key="idem")',
        'order, key=self.ctx.key("x")',
        "the call passed key=…, but this double has the parameter 'idem' for the key",
        'fix flow_sim.effect("gw.charge", key="key"), or pass idem=self.ctx.key("charge"):',
    ),
    "a key that the double does not know": (
        'flow_sim.effect("gw.charge")',
        'order, idempotency_key=self.ctx.key("x")',
        "the call passed idempotency_key=…, but this double has no key parameter for the key",
        'fix flow_sim.effect("gw.charge", key="idempotency_key"): the double takes',
    ),
    "a new key for each call": (
        'flow_sim.effect("gw.charge", key="idem")',
        "order, idem=str(uuid.uuid4())",
        "carries another key, which changes with the attempt, a time or a random number: the",
        'fix idem=self.ctx.key("charge"): made of the job and the task alone',
    ),
}


@pytest.mark.parametrize("case", sampled(CALLS, [*CALLS][::2]))
def test_the_fix_names_the_key_parameter_of_the_double(case, pytester):
    double, arguments, *texts = CALLS[case]
    text = printed(pytester, double, arguments)
    assert [] == [expected for expected in texts if expected not in text], text


@pytest.mark.parametrize("double", ["paid", "print"])
def test_v_says_that_no_effect_was_seen(double, pytester):
    text = printed(pytester, double, passed=True)
    assert "no effect was seen: calls of other services are not checked" in text


def test_v_says_nothing_of_effects_if_there_are_some(pytester):
    text = printed(
        pytester,
        'flow_sim.effect("pay", key="key")',
        'order, key=self.ctx.key("pay")',
        passed=True,
    )
    assert "no effect was seen" not in text


NOT_TRIED = "a resume from a saved file was not tried: a test double can't be saved (nothing to"


@pytest.mark.parametrize(
    "double",
    also(
        'flow_sim.effect("pay")',
        'SimpleNamespace(charge=flow_sim.effect("pay"))',
        'partial(flow_sim.effect("pay"))',
        'lambda order, pay=flow_sim.effect("pay"): pay(order)',
        'Mock(return_value="paid")',
    ),
)
def test_a_double_that_cannot_be_saved_is_nothing_to_mend(double, pytester):
    text = printed(pytester, double, passed="Mock" in double)
    assert NOT_TRIED in text
    assert "register_type" not in text


def test_another_argument_that_cannot_be_saved_is_named(pytester):
    text = printed(pytester, "Unsaved()", passed=True)
    assert "crashes before a resume from a document: not tried, $.flow.routines[0].args[0]" in text
    assert "register_type" in text
