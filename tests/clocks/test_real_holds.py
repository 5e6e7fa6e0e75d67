"""Tests of the real work for which the time of a fake clock waits."""

import threading

import pytest

from routilux import FakeClock
from routilux.clocks import real_holds
from routilux.clocks.durations import SECOND
from routilux.clocks.real_holds import RealHolds
from routilux.clocks.real_waits import BLOCKED_NS, WatchedThread
from routilux.clocks.turns import ClockParty

TURN = 7
NOW = 3 * SECOND


@pytest.fixture
def spent(monkeypatch):
    """Set the real time and the CPU time of a thread by hand, in nanoseconds."""
    times = {"real": 0, "cpu": 0}
    monkeypatch.setattr(real_holds, "real_ns", lambda: times["real"])
    monkeypatch.setattr(real_holds, "thread_busy_ns", lambda _: times["cpu"])
    return times


def party(*, blocks=True):
    found = ClockParty(FakeClock(), "handler", (), result=False, blocks=blocks)
    found.entered = found.opened = True
    return found


@pytest.mark.parametrize(
    ("blocks", "computes", "freed"),
    [(True, False, True), (True, True, False), (False, False, False)],
    ids=["blocked", "computing", "may-not-block"],
)
def test_a_thread_loses_its_turn_if_it_may_block_and_computes_nothing(
    spent, blocks, computes, freed
):
    holds, who = RealHolds(), party(blocks=blocks)
    assert not holds.frees(who, TURN, NOW)
    spent["real"] += BLOCKED_NS
    spent["cpu"] += BLOCKED_NS * computes
    assert freed == holds.frees(who, TURN, NOW)
    assert freed == (who in holds.free) == (not who.opened)


def test_a_thread_that_has_just_got_its_turn_keeps_it(spent):
    holds, who = RealHolds(), party()
    assert not holds.frees(who, TURN, NOW)
    spent["real"] += BLOCKED_NS
    assert not holds.frees(who, TURN + 1, NOW)
    assert not holds


def test_a_thread_that_has_ended_is_forgotten_and_holds_no_time():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    holds = RealHolds()
    holds.watched[thread.ident] = WatchedThread(thread, "app.py:1", NOW)
    assert holds
    assert not holds.has_busy_thread(NOW, NOW + SECOND, 5 * SECOND)
    assert not holds
