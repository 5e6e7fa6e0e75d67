"""A second library that sets the time of a test is refused, with both names."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import freezegun
import pytest
import time_machine

from pytest_routilux.virtual_time.freeze import frozen_clock, frozen_simulation
from tests.plugin.inner import run_first, run_fresh
from tests.soak import also

START = datetime(2026, 1, 1, tzinfo=UTC)

SUMMER = """
    import datetime
    import freezegun
    import pytest

    @pytest.fixture
    def summer():
        with freezegun.freeze_time("2030-07-01"):
            yield

    def test_fixture_around(summer, flow_clock):
        pass

    def test_fixture_inside(flow_runtime, summer):
        pass

    @freezegun.freeze_time("2030-07-01")
    def test_decorator(flow_clock):
        pass

    @freezegun.freeze_time("2030-07-01")
    class TestDecorated:
        def test_of_a_class(self, flow_sim):
            pass

    def test_context(flow_runtime):
        with freezegun.freeze_time("2030-07-01"):
            pass

    @pytest.mark.freeze_time("2030-07-01")
    def test_marker(flow_clock):
        pass

    def test_plugin_around(freezer, flow_sim):
        pass

    def test_plugin_inside(flow_clock, freezer):
        pass

    def test_after_all(flow_runtime):
        assert datetime.datetime.now() == datetime.datetime(2026, 1, 1)

    def test_without(summer):
        assert datetime.datetime.now() == datetime.datetime(2030, 7, 1)
"""


def test_every_freeze_of_the_users_own_is_refused_by_name(pytester):
    pytester.makepyfile(test_summer=SUMMER)
    result = run_first(pytester, "-p", "pytest_freezer")
    result.assert_outcomes(errors=5, failed=3, passed=2)
    ends = "both set the time of this test; remove one of the two"
    found = [line.partition(f" {ends}")[0] for line in result.outlines if ends in line]
    july = "freeze_time('2030-07-01 00:00:00')"
    assert 8 == len(found)
    assert {
        f"flow_clock and {july} around it",
        f"flow_clock and {july} that decorates the test",
        f"flow_sim and {july} that decorates the test",
        f"flow_clock and {july} at test_summer.py:7 in summer",
        f"flow_clock and {july} at test_summer.py:26 in test_context",
    } <= set(found)
    [plugin] = [line for line in found if line.endswith(" in freezer")]
    assert "pytest_freezer.py:" in plugin


TRAVELS = """
    import datetime
    import pytest
    import time_machine

    @pytest.fixture
    def summer():
        with time_machine.travel("2030-07-01", tick=False):
            yield

    def test_fixture_around(summer, flow_clock):
        pass

    def test_fixture_inside(flow_runtime, summer):
        pass

    @time_machine.travel("2030-07-01")
    def test_decorator(flow_clock):
        pass

    def test_context(flow_sim):
        with time_machine.travel(datetime.datetime(2030, 7, 1, tzinfo=datetime.UTC)):
            pass

    def test_in_a_handler(flow_runtime):
        from tests.routines import chain

        def work(self, n=0):
            try:
                time_machine.travel(1909094400).start()
            except Exception:
                pass

        chain(work=work).execute("work")

    @pytest.mark.time_machine("2030-07-01")
    def test_marker(flow_clock):
        pass

    def test_plugin_inside(flow_clock, time_machine):
        time_machine.move_to("2030-07-01")

    def test_after_all(flow_runtime):
        assert datetime.datetime.now() == datetime.datetime(2026, 1, 1)

    def test_without(summer):
        assert datetime.datetime.now() == datetime.datetime(2030, 7, 1)
"""


def test_every_travel_of_time_machine_is_refused_by_name(pytester):
    pytester.makepyfile(test_summer=TRAVELS)
    pytester.makeini("[pytest]\nmarkers = time_machine")
    result = run_first(pytester, "-p", "time_machine")
    result.assert_outcomes(errors=3, failed=4, passed=2)
    ends = "both set the time of this test; remove one of the two"
    found = {line.partition(f" {ends}")[0] for line in result.outlines if ends in line}
    july = "'2030-07-01 00:00:00'"
    assert {
        f"flow_clock and time_machine.travel() to {july} around it",
        f"flow_clock and time_machine.travel({july}) that decorates the test",
        f"flow_clock and time_machine.travel({july}) at test_summer.py:7 in summer",
        f"flow_clock and time_machine.travel({july}) at test_summer.py:29 in work",
        f"flow_clock and time_machine.travel({july}) at test_summer.py:40 in test_plugin_inside",
        f"flow_sim and time_machine.travel({july}) at test_summer.py:21 in test_context",
    } == {re.sub(r"00\.\d+", "00", line) for line in found}


@pytest.mark.parametrize("library", also("freezegun", "time_machine"))
def test_a_library_that_a_frozen_test_imports_first_is_refused_too(pytester, library):
    pytester.makepyfile(
        f"""
        def test_it(flow_clock):
            import {library} as library
            start = getattr(library, "freeze_time", None) or library.travel
            start("2030-01-01").start()
        """
    )
    result = run_fresh(pytester)
    result.assert_outcomes(failed=1)
    assert "flow_clock and" in result.stdout.str()


@pytest.mark.parametrize(
    ("frozen", "ours", "later"),
    [
        (frozen_clock, "flow_clock", ", or call flow_clock.move_to(...)"),
        (lambda: frozen_simulation(0), "flow_sim", ""),
    ],
)
def test_a_freeze_around_it_is_refused(frozen, ours, later):
    with (
        freezegun.freeze_time("2030-01-01"),
        pytest.raises(pytest.fail.Exception) as caught,
        frozen(),
    ):
        pass
    assert str(caught.value) == (
        f"{ours} and freeze_time('2030-01-01 00:00:00') around it both set the time of this"
        " test; remove one of the two; to set the time, mark the test with"
        f" @pytest.mark.flow_time(start=...){later}"
    )
    with frozen():
        pass


def test_a_freeze_inside_it_is_refused_and_changes_nothing(flow_clock):
    flow_clock.advance(1)
    freeze = freezegun.freeze_time("2030-01-01")
    with pytest.raises(pytest.fail.Exception, match="flow_clock and freeze_time") as caught:
        freeze.start()
    assert "test_a_freeze_inside_it_is_refused_and_changes_nothing both set" in str(caught.value)
    assert START + timedelta(seconds=1) == datetime.now(UTC)


def test_a_travel_inside_it_is_refused_and_changes_nothing(flow_clock):
    flow_clock.advance(1)
    travel = time_machine.travel("2030-01-01")
    with pytest.raises(pytest.fail.Exception, match=r"flow_clock and time_machine\.travel"):
        travel.start()
    assert not time_machine.escape_hatch.is_travelling()
    assert START + timedelta(seconds=1) == datetime.now(UTC)


def test_a_freeze_after_it_is_the_users_own_again():
    with frozen_clock():
        pass
    with freezegun.freeze_time("2030-01-01"):
        assert datetime(2030, 1, 1) == datetime.now()


def test_a_frozen_clock_inside_of_another_is_refused_by_its_name(flow_clock):
    with pytest.raises(pytest.fail.Exception, match="flow_clock and the flow_clock of an"):
        frozen_clock().__enter__()
