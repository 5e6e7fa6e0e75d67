"""A failed test shows all frames, or only the user's if the error names its culprit."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Final

import pytest

from pytest_routilux.frames import show_notes
from tests.plugin.inner import PLUGIN, run_pytest

SHOP: Final = """
    import threading
    from datetime import date
    import pytest
    import routilux.runtime
    from routilux import IllegalTransitionError, register_type
    from tests.routines import chain

    def pay(self, order):
        self.ctx.sleep(1)
        if order < 0:
            raise ValueError("no such order")
        self.emit("out", n=order)

    def shop():
        return chain(pay=pay)

    class Price:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return self.value == other.value

    register_type(Price, name="price", encode=lambda price: price.value, decode=Price)
"""
MISTAKES: Final = {
    "entry": ('shop().execute("pya", {"order": 7})', "FlowDefinitionError: flow 'tale' has no*"),
    "params": ('shop().execute("pay", {"ordre": 7})', "FlowDefinitionError: params for pay*"),
    "payload": (
        'shop().execute("pay", {"order": threading.Lock()})',
        "UnserializableError: params for pay.trigger.order:*",
    ),
    "timeout": ('shop().start("pay", {"order": 7}).wait(0.5)', "TimeoutError: job *"),
    "saving": ("serialize_roundtrip([open])", "UnserializableError: $[[]0[]]: *"),
    "order": ("flow_monitor.assert_not_run('pay')", "AssertionError: *recorded no job*"),
    "retries": (
        'shop().execute("pay", {"order": 7}); flow_monitor.assert_retried("pay", times=2)',
        "AssertionError: pay: expected 2 retries, but none was made",
    ),
    "routine": (
        'shop().execute("pay", {"order": 7}); flow_monitor.assert_not_run("pya")',
        "FlowDefinitionError: unknown routine of the flow: 'pya'*",
    ),
    "host": ('flow_hosts.start(lambda: 1, "pay")', "HostError: *another host can't import*"),
    "simulated": ('flow_sim.run(shop, "pya")', "FlowDefinitionError: flow 'tale' has no*"),
    "explored": (
        'flow_sim.crash_everywhere(shop, "pay", {"ordre": 7})',
        "FlowDefinitionError: params for pay*",
    ),
}

QUIET: Final = (*PLUGIN, "--routilux-report=never")


def failures(result: pytest.RunResult) -> list[list[str]]:
    """Return the lines of each failure, from the line of its first frame."""
    lines = [line for line in result.outlines if line.strip(" ^_")]
    lines = lines[: next(at for at, line in enumerate(lines) if "short test" in line)]
    starts = [at for at, line in enumerate(lines) if line.startswith("__") or "= FAILURES" in line]
    parts = [lines[a:b] for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]
    firsts = [next((at for at, line in enumerate(p) if line[0] == ">"), len(p)) for p in parts]
    return [part[first:] for part, first in zip(parts, firsts, strict=True) if first < len(part)]


def test_an_error_that_names_its_culprit_is_shown_at_the_line_of_the_test_alone(inner):
    fixtures = "flow_runtime, flow_monitor, serialize_roundtrip, flow_hosts, flow_sim"
    tests = [
        f"\n    def test_{name}({fixtures}):\n        {statement}"
        for name, (statement, _) in MISTAKES.items()
    ]
    inner.makepyfile(test_shop=SHOP + "".join(tests))
    result = run_pytest(inner, *QUIET)
    result.assert_outcomes(failed=len(MISTAKES))
    shown = failures(result)
    for (statement, message), (line, *rest, place) in zip(MISTAKES.values(), shown, strict=True):
        assert line.endswith(f"    {statement}")
        assert fnmatch(rest[0], f"E  *{message}")
        assert [] == [line for line in rest if not line.startswith("E  ")]
        assert place.startswith("test_shop.py:")


def test_a_failed_job_is_shown_at_the_line_of_the_handler_and_at_that_of_the_test(inner):
    inner.makepyfile(
        test_shop=SHOP
        + """
    def test_status(flow_runtime):
        shop().execute("pay", {"order": -1}).raise_for_status()
"""
    )
    result = run_pytest(inner, *QUIET)
    result.assert_outcomes(failed=1)
    [lines] = failures(result)
    code = [line.strip("> ") for line in lines if line[0] == ">"]
    assert [
        'raise ValueError("no such order")',
        'shop().execute("pay", {"order": -1}).raise_for_status()',
    ] == code
    assert "The above exception was the direct cause of the following exception:" in lines
    assert fnmatch(lines[-2], "E  *JobFailedError: job * failed: ValueError: no such order; *")
    assert not any("routilux/" in line for line in lines)


def test_user_code_between_frames_of_ours_stays(inner):
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
    result = run_pytest(inner, *QUIET)
    [lines] = failures(result)
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


def test_all_frames_are_shown_if_the_error_may_be_a_bug_of_ours(inner):
    inner.makepyfile(test_shop=SHOP + BUG)
    result = run_pytest(inner, *QUIET)
    result.assert_outcomes(failed=2)
    for place in ("flow.py:*: in execute", "runtime.py:*: in execute", "runtime.py:*: in _new"):
        result.stdout.fnmatch_lines([f"*routilux/{place}"] * 2)


def test_all_frames_are_shown_with_full_trace(inner):
    inner.makepyfile(test_shop=f"{SHOP}\n    def test_it(): shop().execute('pya')")
    plain = run_pytest(inner, *QUIET)
    plain.stdout.no_fnmatch_line("*routilux/runtime.py*")
    whole = run_pytest(inner, *QUIET, "--full-trace")
    whole.stdout.fnmatch_lines(["*routilux/runtime.py:*", "E *FlowDefinitionError: flow 'tale'*"])


@pytest.mark.parametrize("pytrace", [True, False])
def test_the_notes_of_a_failure_without_a_traceback_are_shown(pytrace: bool) -> None:
    with pytest.raises(pytest.fail.Exception) as failed:
        pytest.fail("EFFECT REPEATED", pytrace=pytrace)
    failed.value.add_note("Failing test case: test_pays(cents=1)")
    show_notes(failed.value)
    show_notes(failed.value)  # a second time nothing is added
    text = "EFFECT REPEATED" + "\n\nFailing test case: test_pays(cents=1)" * (not pytrace)
    assert text == str(failed.value)
