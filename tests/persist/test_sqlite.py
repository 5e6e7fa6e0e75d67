"""SqliteStore: durability, and the cost of a look for a job."""

from __future__ import annotations

import itertools
import time

import pytest

from routilux import Acquired, CorruptStateError, FakeClock, Hold, SqliteStore, SystemClock
from routilux.persist.sqlite import _CREATE
from tests.persist.stores import acquire, using, writing
from tests.routines import SECOND


def test_a_commit_is_on_the_disk_when_append_returns(sqlite):
    with using(sqlite) as db:
        assert ("wal",) == db.execute("PRAGMA journal_mode").fetchone()
        assert (2,) == db.execute("PRAGMA synchronous").fetchone()  # FULL: the log is flushed


def test_a_look_for_a_job_costs_no_more_where_thousands_of_other_flows_are_free(sqlite):
    def instructions():
        count = itertools.count()
        with using(sqlite) as db:
            db.set_progress_handler(lambda: next(count) * 0, 1)
        assert None is acquire(sqlite, "b", ["f", "g"], SECOND)
        assert SECOND < (sqlite.free_in(["f", "g"]) or 0)
        with using(sqlite) as db:
            db.set_progress_handler(None, 1)
        return next(count)

    sqlite.create("leased", b"1", "a", flow_id="f", status="pending")
    sqlite.acquire("a", ["f"], 10**6 * SECOND)
    alone = instructions()
    with writing(sqlite) as db:
        for flow in "ah":
            for n in range(1000):
                db.execute(_CREATE, (f"{flow}-{n}", flow, "", 1, 0, "pending"))
    assert 0 < instructions() <= alone + 10


def test_rows_and_snapshots_without_their_job_are_damage(sqlite):
    with writing(sqlite) as db:
        db.execute("INSERT INTO commits VALUES (7, 1, 'a', x'31')")
        db.execute("INSERT INTO snapshots VALUES (7, 1, x'31')")
    expected = [f"rows of {table} belong to no job" for table in ("commits", "snapshots")]
    assert expected == [error.reason.split(";")[0] for error in sqlite.damage()]


# --- its time -------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """The start of this machine, the seconds since, and those of UTC; all can be set."""

    class Machine:
        start, seconds, utc = "first", 1000.0, 1_000_000.0

    monkeypatch.setattr(SystemClock, "now_ns", staticmethod(lambda: int(Machine.utc * SECOND)))
    monkeypatch.setattr("routilux.persist.sqlite.boot_id", lambda: Machine.start)
    monkeypatch.setattr("routilux.persist.sqlite.boot_ns", lambda: int(Machine.seconds * SECOND))
    return Machine


def leased(path, machine):
    """A store with a job that host `a` leased for 30 s, and a job that is free in 60 s."""
    store = SqliteStore(path)
    for job_id in "jk":
        store.create(job_id, b"1", "x", flow_id=job_id, status="pending")
    assert "j" == acquire(store, "a", ["j"], 30 * SECOND)
    assert "k" == acquire(store, "a", ["k"], 30 * SECOND)
    store.release("k", "a", 60 * SECOND)
    return store


def test_a_lease_lasts_as_long_whatever_the_clock_of_the_machine_is_set_to(tmp_path, monkeypatch):
    with SqliteStore(tmp_path / "jobs.db") as store:
        store.create("j", b"1", "x", flow_id="f", status="pending")
        assert "j" == acquire(store, "a", ["f"], 3600 * SECOND)
        for jump in (-7200, 7200):
            at = time.time_ns() + jump * SECOND
            monkeypatch.setattr(SystemClock, "now_ns", staticmethod(lambda at=at: at))
            with SqliteStore(tmp_path / "jobs.db", clock=None) as other:
                assert None is acquire(other, "b", ["f"], SECOND)
                assert 3500 * SECOND < other.free_in(["f"]) <= 3600 * SECOND


@pytest.mark.parametrize(
    ("utc", "left"),
    [(1_000_020, 40), (1_000_060, 0), (1_009_000, 0), (900_000, 60)],
    ids=["within the wait", "at its end", "later", "of a clock that was set back"],
)
def test_after_a_new_start_of_the_machine_leases_are_over_and_waits_go_on(
    utc, left, tmp_path, machine
):
    leased(tmp_path / "jobs.db", machine).close()
    machine.start, machine.seconds, machine.utc = "second", 5.0, utc
    with SqliteStore(tmp_path / "jobs.db", read_only=True) as reader:
        holds = {"j": Hold("a", 0, clean=False), "k": Hold(None, left * SECOND, clean=True)}
        assert holds == reader.holders(), "a reader writes nothing, and knows it"
    with SqliteStore(tmp_path / "jobs.db") as store:
        assert left * SECOND == store.free_in(["k"])
        assert [Acquired("j", clean=False)] == store.acquire("b", ["j"], 100 * SECOND)
        machine.seconds += left
        assert [Acquired("k", clean=True)] == store.acquire("b", ["k"], 100 * SECOND)
        with SqliteStore(tmp_path / "jobs.db") as other:
            assert None is acquire(other, "c", ["j", "k"], SECOND), "the start is known now"
        assert [] == store.acquire("c", ["j", "k"], SECOND)


def test_without_an_id_of_the_start_no_wait_is_longer_than_when_it_began(tmp_path, machine):
    machine.start = ""
    leased(tmp_path / "jobs.db", machine).close()
    machine.seconds = 5.0
    with SqliteStore(tmp_path / "jobs.db") as store:
        assert [30 * SECOND, 60 * SECOND] == [store.free_in([flow_id]) for flow_id in "jk"]
        machine.seconds = 15.0
        with SqliteStore(tmp_path / "jobs.db"):
            assert 20 * SECOND == store.free_in(["j"]), "the wait began anew"


def test_a_store_with_a_given_clock_follows_that_clock(tmp_path):
    clock = FakeClock()
    with SqliteStore(tmp_path / "jobs.db", clock=clock) as store:
        store.create("j", b"1", "x", flow_id="f", status="pending")
        assert "j" == acquire(store, "a", ["f"], 30 * SECOND)
        with SqliteStore(tmp_path / "jobs.db", clock=clock) as other:
            assert None is acquire(other, "b", ["f"], SECOND)
            clock.advance(30)
            assert "j" == acquire(other, "b", ["f"], SECOND)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE time SET source = 'anothes'",
        "DELETE FROM time",
        "UPDATE time SET utc = utc + 1",
        "INSERT INTO time VALUES ('b', 0, 1)",
    ],
)
def test_a_damaged_record_of_the_time_ends_no_lease_and_is_reported(tmp_path, damage):
    path = tmp_path / "jobs.db"
    with SqliteStore(path) as store:
        store.create("j", b"1", "x", flow_id="f", status="pending")
        assert "j" == acquire(store, "a", ["f"], 30 * SECOND)
        holds = [hold.owner for hold in store.holders().values()]
        with using(store) as db:
            kept = db.execute("SELECT * FROM time").fetchone()
            db.execute(damage)
        with pytest.raises(CorruptStateError, match="its record of the store's time is damaged"):
            SqliteStore(path)
        with using(store) as db:
            db.execute("DELETE FROM time")
            db.execute("INSERT INTO time VALUES (?, ?, ?)", kept)
        with SqliteStore(path) as again:
            assert holds == [hold.owner for hold in again.holders().values()] == ["a"]
