"""What a failed test shows of the code: all of it, or the user's lines where an error says all."""

from __future__ import annotations

from typing import Final

import pytest

from tests.plugin.inner import PLUGIN

SHOP: Final = """
    import threading
    from datetime import date
    import pytest
    import routilux.runtime
    from routilux import Flow, IllegalTransitionError, Routine, register_type

    class Pay(Routine):
        def __init__(self):
            super().__init__()
            self.define_slot("trigger", handler=self.pay)
            self.define_event("output", ["receipt"])

        def pay(self, order):
            self.ctx.sleep(1)
            if order < 0:
                raise ValueError("no such order")
            self.emit("output", receipt=order)

    def shop():
        flow = Flow("shop")
        flow.add_routine(Pay(), "pay")
        return flow

    class Price:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return self.value == other.value

    register_type(Price, name="price", encode=lambda price: price.value, decode=Price)
"""
MISTAKES: Final = {
    "entry": ('shop().execute("pya", {"order": 7})', "FlowDefinitionError: flow 'shop' has no*"),
    "params": ('shop().execute("pay", {"ordre": 7})', "FlowDefinitionError: params for pay*"),
    "payload": (
        'shop().execute("pay", {"order": threading.Lock()})',
        "UnserializableError: params for pay.trigger.order:*",
    ),
    "status": (
        'shop().execute("pay", {"order": -1}).raise_for_status()',
        "JobFailedError: job * failed: ValueError: no such order; *",
    ),
    "timeout": ('shop().start("pay", {"order": 7}).wait(0.5)', "TimeoutError: job * is running*"),
    "saving": ("serialize_roundtrip([open])", "UnserializableError: $[[]0[]]: *"),
    "order": (
        "flow_monitor.assert_not_run('pay')",
        "AssertionError: flow_monitor recorded no job*",
    ),
    "host": ('flow_hosts.start(lambda: 1, "pay")', "HostError: *can't be found by its name*"),
    "simulated": ('flow_sim.run(shop, "pya")', "FlowDefinitionError: flow 'shop' has no*"),
    "explored": (
        'flow_sim.crash_everywhere(shop, "pay", {"ordre": 7})',
        "FlowDefinitionError: params for pay*",
    ),
}

QUIET: Final = (*PLUGIN, "--routilux-report=never")


def after_the_test(result: pytest.RunResult) -> list[str]:
    """Return the lines of a single failure, from the one at which its first frame stands."""
    lines = [line for line in result.outlines if line.strip(" ^_")]
    [start, *_] = [at for at, line in enumerate(lines) if line.startswith(">")]
    return lines[start : next(at for at in range(start, len(lines)) if "short test" in lines[at])]


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_that_says_all_is_shown_at_the_line_of_the_test_alone(
    inner: pytest.Pytester, name: str
) -> None:
    statement, message = MISTAKES[name]
    fixtures = "flow_runtime, flow_monitor, serialize_roundtrip, flow_hosts, flow_sim"
    inner.makepyfile(test_shop=f"{SHOP}\n    def test_it({fixtures}):\n        {statement}")
    result = inner.runpytest_inprocess(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E  *{message}"])
    line, *rest, place = after_the_test(result)
    assert line.endswith(f"    {statement}")
    assert [] == [line for line in rest if not line.startswith("E  ")]
    assert place.startswith("test_shop.py:")


def test_user_code_between_frames_of_ours_stays(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        test_shop=SHOP
        + """
    def build():
        flow = shop()
        flow.connect("pay", "outptu", "pay", "trigger")
        return flow

    def test_it(flow_sim):
        flow_sim.run(build, "pay")
    """
    )
    result = inner.runpytest_inprocess(*QUIET)
    lines = after_the_test(result)
    assert '>       flow_sim.run(build, "pay")' == lines[0]
    assert '>       flow.connect("pay", "outptu", "pay", "trigger")' in lines
    assert [] == [line for line in lines if "routilux/" in line]


BUG: Final = """
    @pytest.mark.parametrize("kind", [IllegalTransitionError, RuntimeError])
    def test_it(flow_runtime, monkeypatch, kind):
        def broken(*args):
            raise kind("this can not be")
        monkeypatch.setattr(routilux.runtime, "checked_params", broken)
        shop().execute("pay", {"order": 7})
"""


def test_where_it_may_be_a_bug_of_ours_all_frames_are_shown(inner: pytest.Pytester) -> None:
    inner.makepyfile(test_shop=SHOP + BUG)
    result = inner.runpytest_inprocess(*QUIET)
    result.assert_outcomes(failed=2)
    for place in ("flow.py:*: in execute", "runtime.py:*: in execute", "runtime.py:*: in _new"):
        result.stdout.fnmatch_lines([f"*routilux/{place}"] * 2)


def test_all_frames_are_shown_where_they_are_asked_for(inner: pytest.Pytester) -> None:
    inner.makepyfile(test_shop=f"{SHOP}\n    def test_it(): shop().execute('pya')")
    plain = inner.runpytest_inprocess(*QUIET)
    plain.stdout.no_fnmatch_line("*routilux/runtime.py*")
    whole = inner.runpytest_inprocess(*QUIET, "--full-trace")
    whole.stdout.fnmatch_lines(["*routilux/runtime.py:*", "E *FlowDefinitionError: flow 'shop'*"])
