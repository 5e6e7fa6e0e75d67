"""Living hosts that lose their jobs, on both stores: a few rounds, and forged evidence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fences.__main__ import main
from tests.fences.rounds import AT_ONCE, JOBS, KINDS, Rounds
from tests.fences.verdicts import Done, Took, in_flight, unfenced
from tests.kills.soak import hosts
from tests.kills.stores import fresh_stores
from tests.persist import postgres_server
from tests.soak import also, sampled

# What each kind of round is about; without it the round shows nothing.
ABOUT = {"stopped": "changed owner", "forward": "fenced", "back": "jobs", "operator": "fenced"}


@contextmanager
def rounds_on(store: str, folder: Path, plant: str | None = None) -> Iterator[Rounds]:
    if store == "postgres":
        postgres_server.need()
    with hosts(2) as pair:
        yield Rounds(pair, fresh_stores(store, folder), folder, plant=plant)


@pytest.mark.parametrize("count", also(1, 2))
@pytest.mark.parametrize("kind", sampled(KINDS, ["operator", "forward"]))
@pytest.mark.parametrize("store", sampled(["sqlite", "postgres"], ["sqlite"]))
def test_no_living_host_runs_an_effect_after_it_has_lost_the_job(
    store, kind, count, tmp_path, record_property
):
    with rounds_on(store, tmp_path) as rounds:
        for _ in range(count):
            rounds.run(kind)
    record_property("rounds", dict(rounds.counts[kind]))
    assert [] == rounds.broken
    about = "jobs" if (store, kind) == ("postgres", "forward") else ABOUT[kind]
    assert rounds.counts[kind][about], rounds.table()
    if about != ABOUT[kind]:
        queued = count * (JOBS - AT_ONCE)
        assert queued == rounds.counts[kind]["changed owner"], "only the queued jobs"


@pytest.mark.parametrize("kind", also("operator", "forward"))
def test_a_host_that_asks_nobody_is_found(kind, tmp_path):
    with rounds_on("sqlite", tmp_path, "asks nobody") as rounds:
        rounds.run(kind)
    assert [line for line in rounds.broken if "ms after" in line and "had taken" in line]


def test_the_script_fails_if_a_rule_is_broken_or_the_time_too_short(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.persist.postgres_server.stop", lambda: None)  # others use it
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tests.fences.__main__.KINDS", ("operator",))
    monkeypatch.setattr(sys, "argv", ["fences", "--rounds=2", "--minutes=0"])
    assert 2 == main()
    assert "the time was too short" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tests.fences.rounds.unfenced", lambda *_: ["it was not fenced"])
    assert 1 == main()
    output = capsys.readouterr().out
    assert "round 1, operator: it was not fenced\n1 broken rules; the stores are in " in output
    assert list(tmp_path.iterdir()), "the broken store is kept"


# --- forged evidence ------------------------------------------------------------------------------

TOOK = [Took("j", "a", 0, 1), Took("j", "b", 10, 20)]


@pytest.mark.parametrize(
    ("took", "effect", "is_broken"),
    [
        (TOOK, Done("j/0/charge", "a", 21), True),
        (TOOK, Done("j/0/charge", "a", 20), True),
        (TOOK, Done("j/0/charge", "a", 19), False),  # in flight
        (TOOK, Done("j/0/charge", "b", 21), False),
        (TOOK, Done("k/0/charge", "a", 21), False),  # another job
        ([*TOOK, Took("j", "a", 30, 40)], Done("j/0/charge", "a", 41), False),  # it took it again
        ([*TOOK, Took("j", "a", 15, 25)], Done("j/0/charge", "a", 41), False),  # or it may have
        ([*TOOK, Took("j", "an operator", 30, 31)], Done("j/0/charge", "b", 32), True),
    ],
)
def test_an_effect_breaks_the_rule_if_the_job_was_surely_another_owners(took, effect, is_broken):
    assert is_broken is bool(list(unfenced(took, [effect])))


def test_a_broken_rule_names_the_processes_and_the_time():
    [line] = unfenced(TOOK, [Done("j/0/charge", "a", 2_000_020)])
    assert (
        "process a did the effect j/0/charge, for which it asked 2.0 ms after b had taken the job"
        == line
    )


def test_effects_in_flight_are_counted_by_key_and_owner():
    done = [Done("j/0/charge", who, 0) for who in ("a", "b", "b", "c")]
    assert 2 == in_flight([*done, Done("j/0/send", "a", 0)])
