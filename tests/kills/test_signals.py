"""Workers that get signals at any instant, and each rule of how they must end."""

from __future__ import annotations

import signal

import pytest

from routilux import Hold
from tests.kills.host import INTERRUPTED
from tests.kills.signals import Sent, Signals
from tests.kills.soak import hosts
from tests.kills.stores import fresh_stores

FREE = Hold(None, 0, clean=True)
TERM, INT = signal.SIGTERM, signal.SIGINT


def test_workers_that_get_signals_at_any_instant_end_and_give_back_every_job(tmp_path):
    with hosts(1) as (host,):
        signals = Signals(host, fresh_stores("sqlite", tmp_path), tmp_path, seed=0)
        signals.round(6)
    assert [] == signals.broken
    assert 6 == len(signals.sent)


@pytest.mark.parametrize(
    ("sent", "lines"),
    [
        (Sent([TERM], 0, 0.1, {"j": FREE}), []),
        (Sent([INT], INTERRUPTED, 0.1, {"j": FREE}), []),
        (Sent([TERM, INT], INTERRUPTED, 0.1, {"j": Hold(None, 0, clean=False)}), []),
        (Sent([INT], -signal.SIGALRM, 20), ["after SIGINT a worker did not end"]),
        (Sent([INT], 0, 0), ["after SIGINT a worker ended with 0"]),
        (Sent([TERM], 0, 1.5), ["after SIGTERM a worker took 1.50 s after its last step"]),
        (
            Sent([TERM, TERM], 0, 0, {"j": Hold("web-1", 10**9, clean=False)}),
            ["after SIGTERM and SIGTERM job j is held by web-1, whose lease ends in 1 s"],
        ),
        (
            Sent([TERM], 0, 0, {"j": Hold(None, 0, clean=False)}),
            ["after SIGTERM job j was given back unclean"],
        ),
    ],
)
def test_a_worker_that_ends_in_a_wrong_way_is_reported(sent, lines):
    assert lines == sent.broken()
