"""The marker `flow_time` and its settings choose the start of virtual time and the local zone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pytest_routilux.virtual_time.freeze import frozen_clock
from tests.plugin.inner import run_first
from tests.soak import also, sampled

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham"]
LEAP_DAY = pytest.mark.flow_time(start="2024-02-29T23:30:00+01:00", zone="Europe/Berlin")
HEAD = """
    import os, time
    from datetime import UTC, date, datetime, timedelta
    import pytest
    from routilux import FakeClock
    from tests.routines import chain
"""


def run(pytester: pytest.Pytester, text: str, *args: str, ini: str = "") -> pytest.RunResult:
    pytester.makepyfile(test_it=f"{HEAD}{text}")
    pytester.makeini(f"[pytest]\n{ini}")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TZ", raising=False)
        return run_first(pytester, "--strict-markers", *args)


# --- what it sets ---------------------------------------------------------------------------------


@LEAP_DAY
def test_the_marker_sets_the_start_and_the_zone_of_flow_clock(flow_clock):
    assert datetime(2024, 2, 29, 22, 30, tzinfo=UTC) == flow_clock.now() == datetime.now(UTC)
    assert datetime(2024, 2, 29, 23, 30) == datetime.now() == datetime.today()
    assert (23, 30, 3600) == (
        time.localtime().tm_hour,
        time.localtime().tm_min,
        datetime.now().astimezone().utcoffset().seconds,
    )
    assert 22 == time.gmtime().tm_hour
    assert "CET" == time.strftime("%Z")
    flow_clock.advance(1800)
    assert datetime(2024, 3, 1) == datetime.now()
    assert "Fri Mar  1 00:00:00 2024" == time.ctime() == time.asctime()


@LEAP_DAY
def test_the_marker_sets_the_start_and_the_zone_of_flow_clock_bare(flow_clock_bare):
    assert datetime(2024, 2, 29, 22, 30, tzinfo=UTC) == flow_clock_bare.now()
    assert ("CET", "CEST") == time.tzname


@LEAP_DAY
def test_the_marker_sets_the_start_and_the_zone_of_flow_sim(flow_sim, flow_factory):
    def read():
        return {"now": datetime.now(), "utc": datetime.now(UTC)}

    data = flow_sim.run(lambda: flow_factory(chain=[read]), "read").job.outputs[0].data
    assert (datetime(2024, 2, 29, 23, 30), datetime(2024, 2, 29, 22, 30, tzinfo=UTC)) == (
        data["now"],
        data["utc"],
    )
    flow_sim.crash_everywhere(lambda: flow_factory(chain=[read]), "read")
    flow_sim.check_determinism(lambda: flow_factory(chain=[read]), "read")


@pytest.mark.flow_time(start=datetime(2026, 7, 1, 12, tzinfo=BERLIN))
def test_the_start_may_be_a_datetime(flow_clock):
    assert datetime(2026, 7, 1, 10) == datetime.now()


@pytest.mark.flow_time(zone="Europe/Berlin")
def test_the_zone_alone_keeps_the_default_start(flow_clock):
    assert datetime(2026, 1, 1, 1) == datetime.now()


def test_by_default_it_is_new_year_in_utc(flow_clock):
    assert datetime(2026, 1, 1, tzinfo=UTC) == flow_clock.now()
    assert datetime(2026, 1, 1) == datetime.now()


@pytest.mark.parametrize("zone", ZONES)
def test_local_time_is_as_the_zone_says_around_the_year(zone):
    info = ZoneInfo(zone)
    with frozen_clock(start="2026-01-01T00:29:59.999999+00:00", zone=zone) as clock:
        for _ in range(60):
            clock.advance(timedelta(days=6, hours=5, minutes=17, seconds=3).total_seconds())
            there = clock.now().astimezone(info)
            local = there.replace(tzinfo=None)
            assert (local, there.fold) == (datetime.now(), datetime.now().fold)
            assert clock.now() == datetime.now().astimezone()
            assert time.time() == datetime.now().timestamp()
            assert local.strftime("%FT%T") == time.strftime("%FT%T")


def test_the_hour_that_occurs_twice_has_a_fold():
    with frozen_clock(start="2026-10-25T00:30:00.000001+00:00", zone="Europe/Berlin") as clock:
        first = datetime.now()
        clock.advance(3600)
        second = datetime.now()
    assert datetime(2026, 10, 25, 2, 30, 0, 1) == first == second
    assert (0, 1) == (first.fold, second.fold)


# --- whose marker counts --------------------------------------------------------------------------


def test_the_nearest_marker_counts_for_each_part(pytester):
    result = run(
        pytester,
        """
    pytestmark = pytest.mark.flow_time(zone="America/New_York")

    def test_module(flow_clock):
        assert datetime.now() == datetime(2025, 12, 31, 19)

    @pytest.mark.flow_time(start="2024-02-29")
    class TestClass:
        def test_class(self, flow_clock):
            assert datetime.now() == datetime(2024, 2, 28, 19)

        @pytest.mark.flow_time(zone="UTC")
        def test_function(self, flow_clock):
            assert datetime.now() == datetime(2024, 2, 29)

        @pytest.mark.parametrize(
            "day",
            [pytest.param(n, marks=pytest.mark.flow_time(start=f"2026-03-{n}")) for n in (28, 29)],
        )
        def test_parameter(self, flow_clock, day):
            assert datetime.now(UTC).day == day
    """,
    )
    result.assert_outcomes(passed=5)


def test_the_settings_are_for_tests_without_a_marker(pytester):
    text = """
    def test_setting(flow_clock):
        assert flow_clock.now() == datetime(2024, 2, 29, 12, tzinfo=UTC)
        assert datetime.now() == datetime(2024, 2, 29, 21)

    @pytest.mark.flow_time(start="2025-02-28")
    def test_marker(flow_clock):
        assert datetime.now() == datetime(2025, 2, 28, 9)

    def test_bare(flow_clock_bare):
        assert time.tzname == ("JST", "JST")

    def test_sim(flow_sim):
        assert datetime.now() == datetime(2024, 2, 29, 21)
    """
    ini = "routilux_start = 2024-02-29T12:00\nroutilux_zone = Asia/Tokyo"
    for args in ((), ("-p", "xdist.plugin", "-n", "2")):
        run(pytester, text, *args, ini=ini).assert_outcomes(passed=4)


# --- before and after -----------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "Asia/Tokyo"])
@pytest.mark.parametrize("clock", ["flow_clock", "flow_clock_bare", "flow_sim"])
def test_the_zone_is_as_before_when_the_test_ends(pytester, clock, before):
    result = run(
        pytester,
        f"""
    @pytest.fixture(autouse=True, scope="session")
    def session():
        if {before!r}:
            os.environ["TZ"] = {before!r}
            time.tzset()

    @pytest.mark.flow_time(zone="Europe/Berlin")
    def test_it({clock}, monkeypatch):
        assert time.tzname == ("CET", "CEST")
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()

    @pytest.mark.flow_time(zone="Europe/Berlin")
    def test_patches_first(monkeypatch, request):
        request.getfixturevalue({clock!r})
        monkeypatch.setenv("TZ", "America/New_York")

    def test_after():
        assert os.environ.get("TZ", "") == {before!r}
        assert time.tzname == (("JST", "JST") if {before!r} else {time_names()})
    """,
    )
    result.assert_outcomes(passed=3)


def time_names() -> str:
    code = "import time; print(time.tzname)"
    environment = {name: value for name, value in os.environ.items() if name != "TZ"}
    return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip()


def test_processes_of_the_test_have_its_zone(pytester):
    result = run(
        pytester,
        """
    import multiprocessing, subprocess, sys

    def send(pipe):
        pipe.send((time.tzname, datetime.now().replace(minute=0, second=0, microsecond=0)))

    @pytest.mark.flow_time(zone="Asia/Kolkata")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_child(flow_clock, method):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context(method).Process(target=send, args=[theirs])
        child.start()
        assert ours.recv()[0] == ("IST", "IST")
        child.join()

    @pytest.mark.flow_time(zone="Asia/Kolkata")
    def test_program(flow_clock):
        code = "import time; print(*time.tzname)"
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "IST IST\\n"

    @pytest.mark.flow_time(start="2024-02-29T22:00", zone="Asia/Kolkata")
    def test_host(flow_hosts):
        host = flow_hosts.start("shop:build", "read")
        assert host.job.outputs[0].data["now"] == datetime(2024, 3, 1, 3, 30)
        assert flow_hosts.start("shop:build", "read", clock_start="2026-01-01").job.outputs[
            0
        ].data["now"] == datetime(2026, 1, 1, 5, 30)
    """,
        ini="pythonpath = .",
    )
    result.assert_outcomes(passed=4)


@pytest.fixture(autouse=True)
def shop(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        shop="""
        from datetime import datetime
        from pytest_routilux.factory import FlowFactory

        def read():
            return {"now": datetime.now()}

        def build():
            return FlowFactory()(chain=[read])
        """
    )


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "start='yesterday'": "start='yesterday' is no instant; give a datetime or an ISO text",
    "start=0": "start=0 is no instant",
    "start=None": "start=None is no instant",
    "start='0001-01-01', zone='America/New_York'": "start='0001-01-01' is too near to the first",
    "start='0001-01-02T23:59:59.999999'": "start='0001-01-02T23:59:59.999999' is too near to the",
    "start='9999-12-30T00:00:00.000001'": "start='9999-12-30T00:00:00.000001' is too near to the",
    "start=datetime.max": "start=datetime.datetime(9999, 12, 31, 23, 59, 59, 999999) is too near",
    "zone='Berlin'": "zone='Berlin' is no time zone of this system; give a name of",
    "zone='Europe'": "zone='Europe' is no time zone",
    "zone='../etc/passwd'": "zone='../etc/passwd' is no time zone",
    "zone=''": "zone='' is no time zone",
    "zone=7": "zone=7 is no time zone",
    "'2024-02-29'": "'2024-02-29' is neither start=… nor zone=…",
    "tz='UTC'": "tz is neither start=… nor zone=…",
}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Manila", "Pacific/Kiritimati", "America/Juneau"])
@pytest.mark.parametrize("start", ["0001-01-03", "9999-12-30"])
def test_the_first_and_the_last_start_have_a_local_time_in_each_zone(start, zone):
    with frozen_clock(start=start, zone=zone):
        assert datetime.now(UTC) == datetime.fromisoformat(start).replace(tzinfo=UTC)
        assert abs(datetime.now() - datetime.fromisoformat(start)) < timedelta(hours=16)


@pytest.mark.parametrize("arguments", sampled(REFUSED, [*REFUSED][::3]))
@pytest.mark.parametrize("clock", also("flow_clock", "flow_sim"))
def test_a_marker_that_can_not_be_meant_is_refused_with_its_place(pytester, arguments, clock):
    result = run(
        pytester,
        f"""
    @pytest.mark.flow_time({arguments})
    class TestIt:
        def test_it(self, {clock}):
            pass

    def test_after({clock}):
        assert datetime.now() == datetime(2026, 1, 1)
    """,
    )
    result.assert_outcomes(errors=1, passed=1)
    expected = f"the marker flow_time of test_it.py::TestIt: {REFUSED[arguments]}"
    assert any(line.startswith(expected) for line in result.outlines), result.stdout.str()


@pytest.mark.parametrize(
    ("ini", "message"),
    [
        ("routilux_start = soon", "routilux_start: start='soon' is no instant"),
        ("routilux_start = 0001-01-01", "routilux_start: start='0001-01-01' is too near to the"),
        ("routilux_zone = Mars/Base", "routilux_zone: zone='Mars/Base' is no time zone"),
    ],
)
def test_a_setting_that_can_not_be_meant_ends_the_session(pytester, ini, message):
    result = run(pytester, "    def test_it(): pass", ini=ini)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert message in result.stderr.str()


def test_a_zone_that_the_c_library_does_not_know_is_refused(pytester):
    # It would silently be UTC, as on a system whose zones come from the package tzdata alone.
    result = run(
        pytester,
        """
    @pytest.mark.flow_time(zone="Europe/Berlin")
    def test_it(flow_clock, monkeypatch):
        pass
    """,
        *("-p", "broken"),
        ini="pythonpath = .",
    )
    result.assert_outcomes(errors=1)
    assert "can't set the local time zone 'Europe/Berlin'; install" in result.stdout.str()


@pytest.fixture(autouse=True)
def broken(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(broken="import os, time\ntime.tzset = lambda: None\n")
