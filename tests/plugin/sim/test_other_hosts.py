"""What depends on a host is found and named with its line; what only mentions it is clean."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from os import getpid
from typing import Any

import pytest

from pytest_routilux.sim.explain.explain import explain_cause
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.shrink import shrink
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.other_host import ANOTHER, TRAITS, OtherHost
from pytest_routilux.virtual_time.freeze import frozen_simulation
from tests.plugin.sim.steps import START, Work, chain, same

pay = Effect("pay", key="key")
log = Effect("log", reads=True)


@pytest.fixture(autouse=True)
def _virtual_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REGION", "north")
    with frozen_simulation(START):
        yield


def explored(*works: Work) -> Exploration:
    return explore(chain(*works), START, Checks(isolated=False))


def late(routine: Any, saved: Any) -> object:
    routine.ctx.sleep(1)
    return datetime.now() > datetime.fromisoformat(saved) + timedelta(minutes=5)


def late_in_utc(routine: Any, saved: Any) -> object:
    routine.ctx.sleep(1)
    return datetime.now(UTC) > datetime.fromisoformat(saved) + timedelta(minutes=5)


def early(routine: Any, saved: Any) -> object:
    routine.ctx.sleep(1)
    return datetime.now() < datetime.fromisoformat(saved) - timedelta(minutes=5)


def pays_under_a_name(routine: Any, number: Any) -> object:
    return pay(7, key=f"{socket.gethostname()}/{routine.ctx.task_id}")


def pays_under_a_day(routine: Any, number: Any) -> object:
    return pay(7, key=f"{datetime.now():%Y-%m-%d}")


BUGS: dict[str, tuple[str, list[Work], int]] = {
    "a local time that is compared with a later one": (
        "zone",
        [lambda r, n: datetime.now().isoformat(), late, same],
        1,
    ),
    "a local time that is compared with an earlier one": (
        "zone",
        [lambda r, n: datetime.now().isoformat(), early, same],
        1,
    ),
    "a number that is shown as local time": (
        "zone",
        [same, lambda r, n: datetime.fromtimestamp(0).isoformat()],
        1,
    ),
    "a structure of local time": ("zone", [same, lambda r, n: time.localtime(0).tm_hour], 1),
    "a key with the local day": ("zone", [same, pays_under_a_day], 1),
    "a host name in a payload": ("host-name", [lambda r, n: socket.gethostname(), same], 0),
    "a node name in a payload": ("host-name", [lambda r, n: platform.node(), same], 0),
    "a host name in a key": ("host-name", [same, pays_under_a_name], 1),
    "a process id": ("process-id", [same, lambda r, n: os.getpid()], 1),
    "a process id by a name of its own": ("process-id", [same, lambda r, n: getpid()], 1),
    "a variable": ("environment", [same, lambda r, n: os.environ["REGION"]], 1),
    "a variable that is missing": ("environment", [same, lambda r, n: os.getenv("HOSTNAME_")], 1),
    "a variable in a key": (
        "environment",
        [lambda r, n: pay(1, key=os.environ["REGION"] + r.ctx.key("pay"))],
        0,
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_what_depends_on_a_host_is_found_with_its_line(name: str) -> None:
    kind, works, number = BUGS[name]
    result = explored(*works)
    assert result.failures
    finding = result.failures[0][1]
    assert (kind, f"r{number}") == (finding.kind, finding.routine)
    file, _, line = finding.hint.rpartition(":")
    code = works[number].__code__  # type: ignore[attr-defined]  # of a function
    assert __file__ == file
    assert {int(line)} <= {at for _, _, at in code.co_lines()}
    assert finding.what.startswith(f"r{number} depends on the ")


def test_a_report_names_the_difference_the_line_and_the_cure() -> None:
    case = chain(same, lambda r, n: socket.gethostname(), same)
    result = explore(case, START, Checks(isolated=False))
    text = explain_cause(shrink(result, case, START, Checks(isolated=False)), case, 100, repro=None)
    words = " ".join(text.split())
    assert text.startswith("DEPENDS ON THE HOST NAME: r1 depends on the name of its host")
    assert "on the first host on another host" in words
    assert "test_other_hosts.py:" in words
    assert "asks its host for the name, and the job or a call depends on it" in words
    assert "self.ctx.job_id, .task_id or .key(...) are the same on every host" in words


@pytest.mark.parametrize(
    "works",
    [
        [lambda r, n: datetime.now(UTC).isoformat(), late_in_utc, same],
        [lambda r, n: r.ctx.now().isoformat(), late_in_utc, same],
        [lambda r, n: datetime.now().isoformat(), same],
        [lambda r, n: datetime.fromtimestamp(0, UTC).isoformat()],
        [lambda r, n: log(socket.gethostname()) and n, lambda r, n: pay(1, key=r.ctx.key("pay"))],
        [lambda r, n: len(str(os.getpid())) > 0],
        [lambda r, n: {"north": 1}[os.environ["REGION"]], same],
        [lambda r, n: os.environ["REGION"] == "north", same],
        [lambda r, n: os.environ.get("DEBUG_LEVEL", "0") != "1"],
    ],
)
def test_what_does_not_depend_on_a_host_is_clean(works: list[Work]) -> None:
    result = explored(*works)
    assert result.reference.finding is None
    assert [] == [finding.what for _, finding in result.failures]


def test_a_crash_that_makes_the_difference_is_no_matter_of_hosts() -> None:
    def counts(routine: Any, number: Any) -> object:
        routine.tries = getattr(routine, "tries", 0) + 1
        if routine.tries < 3:
            raise OSError
        return socket.gethostname() != "" and number

    result = explore(chain(same, counts, retry_delay=1), START, Checks(isolated=False))
    kinds = {finding.kind for _, finding in result.failures}
    assert "attempts-differ" in kinds
    assert not kinds & {*TRAITS}


def test_another_host_leaves_nothing_behind() -> None:
    def seen() -> tuple[object, ...]:
        functions = socket.gethostname, platform.node, os.getpid, getpid, os.environ.__getitem__
        return *functions, os.environ.get("TZ"), time.localtime(0).tm_hour, dict(os.environ)

    before = seen()
    here = os.getpid()
    with OtherHost(*TRAITS).running():
        assert ANOTHER == socket.gethostname()
        assert ANOTHER == os.uname().nodename
        assert here != getpid()
        assert 5 == time.localtime(0).tm_hour
    assert before == seen()


def test_a_function_that_the_test_has_patched_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "fixed")
    result = explored(lambda r, n: socket.gethostname(), same)
    assert [] == result.failures
