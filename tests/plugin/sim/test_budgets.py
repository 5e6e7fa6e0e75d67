"""How far an exploration goes: `--routilux-runs`, `--routilux-seed`, shards, the progress line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

import pytest_routilux
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.orders.search import Search
from pytest_routilux.sim.results import Checks, Scope, Shard
from pytest_routilux.sim.simulator.model import Case
from routilux import FakeClock, Flow, FlowDefinitionError
from tests.plugin.inner import PLUGIN, ROOT, run_inside
from tests.routines import chain, sends, sleeps
from tests.soak import also

START = FakeClock().now_ns()
SHOP = """
    import pytest_routilux
    from tests.routines import chain, sends, sleeps

    def fan():
        return chain(workers=3, split=sends(0, 1, 2), work=sleeps(1))

    def test_all(flow_sim):
        assert flow_sim.explore(fan, "split", schedules="all", crashes="none").word == "complete"

    def test_pairs(flow_sim):
        coverage = flow_sim.explore(fan, "split", schedules="fifo", crashes="pairs")
        assert coverage.executed["pairs of crashes"] > 3

    def test_some(flow_sim):
        assert flow_sim.explore(fan, "split", crashes="none").word == "sampled"

    @pytest_routilux.shards(2)
    def test_part(flow_sim, shard):
        coverage = flow_sim.explore(fan, "split", shard=shard)
        assert coverage.word == f"part {shard}: sampled"
"""


def fan() -> Flow:
    return chain(workers=3, split=sends(0, 1, 2), work=sleeps(1))


# --- budgets --------------------------------------------------------------------------------------


def test_a_search_that_is_cut_fails_and_says_what_to_do(pytester):
    pytester.makepyfile(SHOP)
    run_inside(pytester).assert_outcomes(passed=5)
    cut = run_inside(pytester, "--routilux-runs=3")
    cut.assert_outcomes(passed=3, failed=2)
    cut.stdout.fnmatch_lines(
        [
            "cut at * of at least * orders: no failure was found, but the budget of 3 runs*",
            "cut at * of at least * crash points: no failure was found, but the budget of 3*",
        ]
    )
    pytester.makeini("[pytest]\nroutilux_runs = 3\nroutilux_seed = 7\n")
    run_inside(pytester).assert_outcomes(passed=3, failed=2)
    run_inside(pytester, "--routilux-runs=5000").assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("runs", "0", 1),
        ("runs", "many", 1),
        ("seed", "-1", 0),
        ("seed", "0.5", 0),
        ("seed", "1000000001", 0),
    ],
)
def test_another_number_ends_the_session(name, value, least, pytester):
    pytester.makepyfile("def test_it(): pass")
    allowed = f"it must be a whole number from {least} to 1,000,000,000"
    for option in (f"--routilux-{name}={value}", f"-oroutilux_{name}={value}"):
        result = run_inside(pytester, option)
        assert pytest.ExitCode.USAGE_ERROR == result.ret
        [line] = [line for line in result.errlines if line]
        assert line.startswith("ERROR: ")
        assert line.endswith(allowed)
        assert value in line


RACE = """
    from tests.routines import chain

    def split(self):
        for n in range(2):
            self.emit("out", n=n)

    def load(self, n):
        self.emit("out", n=n, was=self.ctx.shared.get("sum", 0))

    def store(self, n, was):
        self.ctx.shared["sum"] = was + 1

    def build():
        from tests.routines import Works
        from routilux import Flow
        flow = Flow("bank", execution_strategy="concurrent")
        flow.add_routine(Works(split), "split")
        flow.add_routine(Works(load, out=["n", "was"]), "load")
        flow.add_routine(Works(store), "store")
        flow.connect("split", "out", "load", "trigger")
        flow.connect("load", "out", "store", "trigger")
        return flow

    def test_race(flow_sim):
        flow_sim.explore(build, "split", schedules=flow_sim.random(5), crashes="none")
"""


def test_the_command_that_repeats_a_failure_names_the_seed(pytester):
    pytester.makepyfile(RACE)
    result = run_inside(pytester, "--routilux-seed=7")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["repro *--routilux-repro=R1.* --routilux-seed=7"])
    assert "--routilux-seed" not in run_inside(pytester).stdout.str()


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
def test_shards_try_other_orders_and_together_all(parts):
    case = Case(fan, "split")
    plan = fan().plan()

    def tapes(shard: Shard | None, *, prunes: bool) -> list[str]:
        search = Search(case, START, plan, prunes=prunes, shard=shard)
        return [str(tape) for _, _, tape in search.runs()]

    for prunes in (True, False):
        found = [tapes(Shard(n, parts), prunes=prunes) for n in range(1, parts + 1)]
        counts = Counter(tape for part in found for tape in part)
        assert set(counts.values()) == {1}
        whole = set(tapes(None, prunes=prunes))
        assert whole <= set(counts)
        if not prunes:
            assert whole == set(counts)


def test_shards_try_other_crash_points_and_together_all():
    case = Case(fan, "split")
    scope = Scope("fifo", "pairs")

    def tried(shard: Shard | None) -> Counter[str]:
        coverage = explore(case, START, Checks(scope=replace(scope, shard=shard))).coverage
        assert coverage.planned == coverage.executed
        return coverage.executed

    parts = [tried(Shard(n, 3)) for n in (1, 2, 3)]
    whole = tried(None)
    pairs = "pairs of crashes"
    assert sum(part.pop(pairs) for part in parts) >= whole.pop(pairs)
    assert sum(parts, Counter()) == whole


def test_the_ids_of_shards_are_stable():
    mark = pytest_routilux.shards(3).mark
    assert mark.kwargs["ids"] == ["1of3", "2of3", "3of3"]
    for wrong in (0, True, "2"):
        with pytest.raises(FlowDefinitionError, match="is not a number of parts"):
            pytest_routilux.shards(wrong)


def test_another_value_is_no_shard(flow_sim):
    with pytest.raises(FlowDefinitionError, match=r"shard=1 is not a part.*shards\(n\)"):
        flow_sim.explore(fan, "split", shard=1)


# --- progress -------------------------------------------------------------------------------------

SLOW = """
    import pytest_routilux.report.progress as progress
    from tests.routines import chain, sends, sleeps

    def fan():
        return chain(workers=3, split=sends(0, 1, 2), work=sleeps(1))

    progress._AFTER = progress._EVERY = 0.0

    def test_pairs(flow_sim):
        print("captured")
        flow_sim.explore(fan, "split", schedules="fifo", crashes="pairs")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("options", "variables", "shown"),
    [
        ((), {}, True),
        *also(
            (("-s",), {}, False),
            ((), {"TERM": "dumb"}, False),
            (("-p", "xdist.plugin", "-n", "1"), {}, False),
        ),
    ],
)
def test_a_long_exploration_shows_its_progress_on_a_terminal(options, variables, shown, pytester):
    pytester.makepyfile(SLOW)
    terminal, other = os.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TERM": "xterm",
        **variables,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *PLUGIN, *options],
        stdout=other,
        stderr=other,
        env=environment,
        cwd=pytester.path,
    )
    os.close(other)
    output = b""
    try:
        while data := os.read(terminal, 65536):
            output += data
    except OSError:
        pass  # the end of a pseudo-terminal on Linux
    os.close(terminal)
    assert process.wait() == 0, output.decode()
    assert (b"exploring: " in output) is shown
    assert b"captured" not in output or "-s" in options
    if shown:
        assert b"runs/s, " in output
        assert b"crash points left" in output
        assert output.rindex(b"\r\x1b[2K") > output.rindex(b"exploring: ")


def test_a_pipe_gets_no_progress(pytester):
    pytester.makepyfile(SLOW)
    result = run_inside(pytester)
    result.assert_outcomes(passed=1)
    assert "exploring" not in result.stdout.str()
