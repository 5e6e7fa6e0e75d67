"""A user's project with a flow that charges an order, and its tests."""

from __future__ import annotations

import re

import pytest

from tests.plugin.inner import run_inside

SHOP = """
    import pytest
    from tests.routines import chain, retrying, saveable

    KEYED = {keyed}
    gateway = None

    def take(self, id):
        self.emit("out", order=f"A{{id}}")

    def charges(self, order):
        self.ctx.sleep(0.36)
        key = self.ctx.key("charge") if KEYED else None
        self.emit("out", order=gateway(order, key=key))

    def build(**bodies):
        bodies = bodies or dict(orders=take, charge=charges)
        flow = chain(**{{name: saveable(body, out=["order"]) for name, body in bodies.items()}})
        flow.set_error_handler(retrying(max_retries=2, retry_delay=0.5))
        return flow

    @pytest.fixture(autouse=True)
    def double(flow_sim, monkeypatch):
        monkeypatch.setitem(globals(), "gateway", flow_sim.effect("gateway.charge", key="key"))
"""
SURVIVES = """
    def test_survives(flow_sim):
        flow_sim.crash_everywhere(build, entry="orders", params={{"id": 7}})
"""
_reproducers: dict[str, str] = {}


def shop(pytester: pytest.Pytester, tests: str = SURVIVES, *, keyed: bool = False) -> None:
    pytester.makepyfile(test_shop=(SHOP + tests).format(keyed=keyed))


def check_shop(
    pytester: pytest.Pytester,
    tests: str,
    says: list[str],
    *options: str,
    keyed: bool = True,
    **outcomes: int,
) -> pytest.RunResult:
    """Run a shop's tests, and check their outcomes and the lines that they print."""
    shop(pytester, tests, keyed=keyed)
    result = run_inside(pytester, *options)
    result.assert_outcomes(**outcomes)
    result.stdout.fnmatch_lines(says)
    return result


def repro_of(result: pytest.RunResult) -> str:
    found = re.search(r"--routilux-repro=(\S+)", result.stdout.str())
    return found[1]


def reproducer(pytester: pytest.Pytester, tests: str = SURVIVES) -> str:
    """Return the reproducer of a shop without keys, which is always the same."""
    shop(pytester, tests)
    if tests not in _reproducers:
        _reproducers[tests] = repro_of(run_inside(pytester))
    return _reproducers[tests]


def glob(text: str) -> str:
    """Return a pattern that matches just this text."""
    return text.replace("[", "[[]")


_STORES = """
    from routilux import MemoryStore, SqliteStore
    from tests.plugin.sim.sqlite_stores import CommitsAtStop

    def opens_elsewhere(path):
        return SqliteStore("elsewhere.db")
"""


def survives(*arguments: str, build: str = "build") -> str:
    """Return a test for each of these arguments of `crash_everywhere`."""
    tests = [
        f"""
    def test_survives_{number}(flow_sim, flow_faults):
        flow_sim.crash_everywhere({build}, "orders", {{{{"id": 7}}}}, {argument})
"""
        for number, argument in enumerate(arguments)
    ]
    return _STORES + "".join(tests)
