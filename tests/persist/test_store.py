"""The contract of JobStore, on every store."""

from __future__ import annotations

import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routilux import (
    Acquired,
    Append,
    DuplicateJobError,
    FakeClock,
    Hold,
    JobStore,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
)
from tests.engine.concurrency import at_once as together
from tests.persist.hosts import go, line_of, processes, rest_of
from tests.persist.stores import STORES, acquire, at, damage_entry, damage_row
from tests.routines import PATIENCE, SECOND
from tests.soak import also, examples


def filled(store: JobStore, count: int, *, status: str = "running") -> JobStore:
    """A job `j` of flow `f` with `count` rows of owner `a`."""
    store.create("j", b"row 1", "a", flow_id="f", status=status)
    for seq in range(2, count + 1):
        store.append("j", seq, b"row %d" % seq, "a", status="running")
    return store


def status(stopped: bool) -> str:
    return "completed" if stopped else "running"


def queued(store: JobStore, *job_ids: str, flow_id: str = "f") -> JobStore:
    for job_id in job_ids:
        store.create(job_id, b"row 1", "a", flow_id=flow_id, status="pending")
    return store


# --- rows -----------------------------------------------------------------------------------------


def test_rows_come_back_in_order_and_are_a_copy(store):
    rows = filled(store, 3).rows("j")
    assert [b"row 1", b"row 2", b"row 3"] == rows
    rows.clear()
    assert 3 == len(store.rows("j"))
    assert [b"row 3"] == store.rows("j", 2)
    assert [] == store.rows("j", 3)


def test_a_job_that_is_not_there_has_nothing_and_is_not_listed(store):
    assert [] == store.rows("nobody")
    assert [] == store.job_ids()
    assert None is store.snapshot("nobody")
    assert [] == store.acquire("x", ["f"], SECOND)
    assert None is store.free_in(["f"])
    assert [] == store.renew("x", SECOND)
    assert {} == store.holders() == store.holders("nobody")
    store.release("nobody", "x", 0)
    store.keep_snapshot("nobody", 1, b"")
    queued(store, "b", "a")
    assert ["a", "b"] == store.job_ids()


@pytest.mark.parametrize("row", [b"", bytes(range(256)), b"x" * 1_000_000])
def test_a_row_is_any_bytes(store, row):
    filled(store, 1).append("j", 2, row, "a", status="running")
    store.keep_snapshot("j", 2, row)
    assert [row] == store.rows("j", 1)
    assert (2, row) == store.snapshot("j")


def test_writing_the_same_row_again_is_accepted_and_changes_nothing(store):
    filled(store, 1)
    store.create("j", b"row 1", "a", flow_id="f", status="running")
    for seq in (2, 3, 2, 3):
        store.append("j", seq, b"row %d" % seq, "a", status="running")
    assert 3 == len(store.rows("j"))


@pytest.mark.parametrize("seq", [-1, 0, 1, 2, 4, 100])
def test_a_row_whose_number_is_taken_or_does_not_follow_is_refused(store, seq):
    filled(store, 2)
    for write in (store.append, store.claim):
        with pytest.raises(LeaseLostError, match="the last commit of job 'j' is 2,"):
            write("j", seq, b"another", "a", status="completed")
    with pytest.raises(LeaseLostError, match="holds no job 'new'"):
        store.append("new", 2, b"x", "a", status="running")
    with pytest.raises(NotResumableError, match="holds no job 'new'"):
        store.claim("new", 1, b"x", "a", status="running")
    assert [b"row 1", b"row 2"] == store.rows("j")
    assert ["j"] == store.job_ids()
    store.append("j", 3, b"row 3", "a", status="running")


@pytest.mark.parametrize(("row", "owner"), [(b"other", "a"), (b"row 1", "b"), (b"row 1", "a")])
def test_a_second_job_of_the_same_id_is_refused(store, row, owner):
    filled(store, 2)
    with pytest.raises(DuplicateJobError, match="already holds a job 'j'"):
        store.create("j", row, owner, flow_id="f", status="pending")
    assert [b"row 1", b"row 2"] == store.rows("j")
    assert None is store.free_in(["f"])


# --- jobs that are deleted ------------------------------------------------------------------------

STOPPED = ["paused", "completed", "failed", "cancelled"]


@pytest.mark.parametrize("status", STOPPED)
def test_a_deleted_job_leaves_nothing_and_its_id_is_free_again(status, store):
    filled(store, 3)
    store.append("j", 4, b"row 4", "a", status=status)
    store.keep_snapshot("j", 2, b"two")
    queued(store, "other")
    assert store.delete("j")
    assert not store.delete("j")
    assert ["other"] == store.job_ids() == [entry.job_id for entry in store.entries()]
    assert ([], None, {}) == (store.rows("j"), store.snapshot("j"), store.holders("j"))
    assert [] == store.damage()
    for seq in (2, 5):  # of a step that was in flight
        with pytest.raises(LeaseLostError, match="holds no job 'j'"):
            store.append("j", seq, b"late", "a", status="running")
    store.keep_snapshot("j", 1, b"late")
    store.create("j", b"new", "b", flow_id="g", status="running")
    store.append("j", 2, b"2", "b", status="completed")
    assert ([b"new", b"2"], None) == (store.rows("j"), store.snapshot("j"))
    assert [b"row 1"] == store.rows("other")


def test_a_job_that_is_pending_or_running_is_not_deleted(store, clock):
    filled(store, 2)
    queued(store, "queued", "leased")
    store.create("later", b"1", "a", flow_id="f", status="pending", after_ns=SECOND)
    assert "queued" == acquire(store, "b", ["f"], SECOND)
    for job_id, status in (("j", "running"), ("queued", "pending"), ("later", "pending")):
        with pytest.raises(NotResumableError, match=f"job '{job_id}' is {status}, held by .* sto"):
            store.delete(job_id)
    assert ["j", "later", "leased", "queued"] == store.job_ids()
    assert 2 == len(store.rows("j"))


def test_a_damaged_job_is_deleted_without_reading_it(store):
    filled(store, 2)
    store.append("j", 3, b"3", "a", status="failed")
    queued(store, "other")
    damage_row(store, "j")
    damage_entry(store, "j")
    assert [True, False] == [store.delete("j"), store.delete("j")]
    assert ["other"] == store.job_ids()
    assert ([], []) == (store.rows("j"), store.damage())


def test_a_job_of_any_status_is_deleted_by_force_and_its_host_can_commit_no_more(store):
    queued(store, "queued", "leased")
    assert "queued" == acquire(store, "b", ["f"], SECOND)
    filled(store, 2)
    for job_id, owner in (("queued", "b"), ("leased", "a"), ("j", "a")):
        with pytest.raises(NotResumableError):
            store.delete(job_id)
        assert store.delete(job_id, force=True)
        with pytest.raises(LeaseLostError, match=f"holds no job '{job_id}'"):
            store.append(job_id, 3, b"late", owner, status="running")
    assert ([], [], []) == (store.job_ids(), store.damage(), store.renew("b", SECOND))


def test_several_jobs_are_deleted_by_one_call_which_answers_for_each(store):
    for job_id in "abc":
        store.create(job_id, b"1", "a", flow_id="f", status="completed")
    filled(store, 1)
    refused = store.delete_all(["c", "none", "j", "a"])
    assert [True, False, True] == [refused[0], refused[1], refused[3]]
    assert isinstance(refused[2], NotResumableError)
    assert ["b", "j"] == store.job_ids()
    assert [] == store.delete_all([])


def test_of_a_host_and_a_deletion_at_once_either_the_job_stays_or_nothing_does(store):
    for number in range(20):
        job_id = f"job {number}"
        store.create(job_id, b"1", "a", flow_id="f", status="failed")
        refused: list[type[Exception]] = []

        def claims(job_id: str = job_id, refused: Any = refused) -> None:
            try:
                store.claim(job_id, 2, b"2", "b", status="running")
            except NotResumableError:
                refused.append(LeaseLostError)

        def deletes(job_id: str = job_id, refused: Any = refused) -> None:
            try:
                store.delete(job_id)
            except NotResumableError:
                refused.append(NotResumableError)

        together(claims, deletes)
        assert 1 == len(refused), "both or none"
        assert (job_id in store.job_ids()) is (refused == [NotResumableError])
    assert [] == store.damage()


# --- rows of several jobs by one write ------------------------------------------------------------


def several(store: JobStore) -> JobStore:
    """Jobs `j`, `k` and `l` of flow `f`, of owner `a`, with a row and a lease each."""
    queued(store, "j", "k", "l")
    assert ["j", "k", "l"] == [acquire(store, "a", ["f"], SECOND) for _ in range(3)]
    return store


def test_rows_of_several_jobs_are_kept_by_one_write_and_end_their_leases(store):
    several(store)
    added = [Append(job_id, 2, job_id.encode(), "a", status(job_id == "j")) for job_id in "ljk"]
    for _ in range(2):  # the first answer was lost, and it is done again
        assert [None] * 3 == store.append_all(added)
    for job_id in "jkl":
        assert [b"row 1", job_id.encode()] == store.rows(job_id)
    assert [] == store.append_all([])
    assert ["k", "l"] == sorted(store.renew("a", SECOND))


def test_a_refused_row_delays_no_other_and_its_error_is_returned_in_its_place(store):
    several(store)
    refusals = store.append_all(
        [
            Append("j", 3, b"x", "a", "running"),
            Append("k", 2, b"k", "a", "running"),
            Append("new", 2, b"x", "a", "running"),
            Append("l", 2, b"x", "b", "running"),
        ]
    )
    assert [True, False, True, True] == [isinstance(r, LeaseLostError) for r in refusals]
    assert [1, 2, 0, 1] == [len(store.rows(job_id)) for job_id in ("j", "k", "new", "l")]
    reasons = [
        "the last commit of job 'j' is 1,",
        "None",
        "holds no job 'new'",
        "'l' belongs to 'a' now",
    ]
    for refusal, reason in zip(refusals, reasons, strict=True):
        assert reason in str(refusal)


# --- owners ---------------------------------------------------------------------------------------


def test_after_a_claim_only_its_owner_can_write(store):
    filled(store, 2)
    store.claim("j", 3, b"resumed by b", "b", status="running")
    with pytest.raises(LeaseLostError, match="belongs to 'b' now; commit 4 of 'a' was refused"):
        store.append("j", 4, b"row 4", "a", status="running")
    for row in (b"resumed by b", b"row 3"):
        with pytest.raises(LeaseLostError):
            store.append("j", 3, row, "a", status="running")  # not even what is there already
    with pytest.raises(LeaseLostError, match="belongs to 'b' now; commit 2 of 'a' was refused"):
        store.append("j", 2, b"row 2", "a", status="completed")
    [refused] = store.append_all([Append("j", 2, b"row 2", "a", "completed")])
    assert isinstance(refused, LeaseLostError)
    with pytest.raises(LeaseLostError):
        store.append("j", 2, b"row 2", "b", status="running")  # a row of the owner before
    store.append("j", 4, b"of b", "b", status="running")
    assert [b"row 1", b"row 2", b"resumed by b", b"of b"] == store.rows("j")


def test_of_two_that_claim_one_is_too_late_even_with_the_same_row(store):
    filled(store, 2)
    for _ in range(2):  # its first answer may have been lost
        store.claim("j", 3, b"resumed", "b", status="running")
    for row, owner in ((b"resumed", "c"), (b"resumed otherwise", "b")):
        with pytest.raises(LeaseLostError):
            store.claim("j", 3, row, owner, status="running")


def at_once(count, call):
    """What `count` hosts, all at once, get from a call: its result, or LeaseLostError."""
    gate, got = threading.Barrier(count), {}

    def run(owner):
        gate.wait(PATIENCE)
        try:
            got[owner] = call(owner)
        except LeaseLostError:
            got[owner] = LeaseLostError

    together(*(partial(run, f"host {i}") for i in range(count)))
    return got


def test_of_many_that_claim_at_once_exactly_one_succeeds(store):
    filled(store, 1)
    got = at_once(8, lambda owner: store.claim("j", 2, b"resumed", owner, status="running"))
    [winner] = [owner for owner, result in got.items() if result is None]
    assert 7 == list(got.values()).count(LeaseLostError)
    store.append("j", 3, b"x", winner, status="running")


def test_of_many_that_acquire_at_once_each_gets_another_job(store):
    queued(store, *(f"job {i}" for i in range(6)))
    got = at_once(8, lambda owner: acquire(store, owner, ["f"], SECOND))
    assert [f"job {i}" for i in range(6)] == sorted(filter(None, got.values()))


def test_threads_share_one_store(store):
    def appends(name: str) -> None:
        store.create(name, b"1", name, flow_id="f", status="running")
        for seq in range(2, 10):
            store.append(name, seq, b"%d" % seq, name, status="running")

    together(*(partial(appends, f"job {number:02}") for number in range(32)))
    assert [f"job {number:02}" for number in range(32)] == store.job_ids()
    for name in store.job_ids():
        assert [b"%d" % seq for seq in range(1, 10)] == store.rows(name)


# --- processes ------------------------------------------------------------------------------------


OPENS = """
import sys
from tests.persist.stores import at
print(flush=True)
sys.stdin.readline()
with at(sys.argv[1]) as store:
    for number in range(20):
        store.create(f"{sys.argv[2]}-{number}", b"row", "a", flow_id="f", status="pending")
    while acquired := store.acquire(sys.argv[2], ["f"], 10**12):
        print(acquired[0].job_id)
"""


@pytest.mark.parametrize("count", also(2, 3))
def test_processes_that_make_a_store_at_once_share_it(where, count):
    with processes(OPENS, *([where, number] for number in range(count))) as children:
        assert [""] * count == [line_of(child) for child in children]
        go(children)
        taken = [job_id for child in children for job_id in rest_of(child).split()]
    assert 20 * count == len(taken)
    with at(where) as store:
        assert sorted(taken) == store.job_ids()


def test_a_store_that_was_closed_is_opened_again_when_it_is_used(where):
    with at(where) as store:
        store.create("j", b"1", "a", flow_id="f", status="running")
    assert ["j"] == store.job_ids()
    store.close()
    store.close()


# --- leases ---------------------------------------------------------------------------------------


def test_a_queued_job_is_free_at_once_and_the_one_that_waited_longest_comes_first(store, clock):
    queued(store, "z")
    clock.advance(1)
    queued(store, "y", "x")
    assert 0 == store.free_in(["f"])
    assert ["z", "y", "x", None] == [acquire(store, "b", ["f"], SECOND) for _ in range(4)]


def test_a_job_that_is_queued_for_later_is_free_when_that_time_has_passed(store, clock):
    for _ in range(2):  # the first answer was lost
        store.create("later", b"1", "a", flow_id="f", status="pending", after_ns=60 * SECOND)
    queued(store, "now")
    assert 60 * SECOND == store.holders("later")["later"].free_in_ns
    assert ["now", None] == [acquire(store, "b", ["f"], 100 * SECOND) for _ in range(2)]
    assert 60 * SECOND == store.free_in(["f"])
    clock.advance(59.999)
    assert [] == store.acquire("b", ["f"], SECOND)
    clock.advance(0.001)
    assert [Acquired("later", clean=True)] == store.acquire("b", ["f"], SECOND)


def test_a_time_that_is_passed_with_a_job_that_runs_is_ignored(store):
    store.create("j", b"1", "a", flow_id="f", status="running", after_ns=SECOND)
    assert None is store.holders("j")["j"].free_in_ns


def test_a_host_is_given_only_jobs_of_its_own_flows(store):
    queued(store, "j", flow_id="other")
    assert [] == store.acquire("b", ["f", "g"], SECOND)
    assert [] == store.acquire("b", [], SECOND)
    assert None is store.free_in(["f"])
    assert [Acquired("j", clean=True)] == store.acquire("b", ["f", "other"], SECOND)


@pytest.mark.parametrize("claimed", [False, True])
def test_a_job_that_was_made_or_claimed_by_name_is_held_without_a_lease(store, clock, claimed):
    filled(store, 1, status="pending" if claimed else "running")
    if claimed:
        store.acquire("b", ["f"], SECOND)
        clock.advance(1)
        store.claim("j", 2, b"resumed", "a", status="running")
    clock.advance(10**6)
    assert [] == store.acquire("b", ["f"], SECOND)
    assert None is store.free_in(["f"])
    assert [] == store.renew("a", SECOND) == store.renew("b", SECOND)


def test_a_lease_keeps_others_away_until_it_ends_by_the_stores_time(store, clock):
    filled(store, 2, status="running")
    store.claim("j", 3, b"held", "a", status="running")
    queued(store, "k")
    assert "k" == acquire(store, "b", ["f"], 3 * SECOND)
    store.claim("k", 2, b"resumed", "b", status="running")
    clock.advance(2.999)
    assert [] == store.acquire("c", ["f"], SECOND)
    assert 1_000_000 == store.free_in(["f"])
    with pytest.raises(LeaseLostError, match="belongs to 'b'"):
        store.claim("k", 3, b"resumed", "c", status="running")
    clock.advance(0.001)
    assert 0 == store.free_in(["f"])
    store.append("k", 3, b"late, but no host has acquired it", "b", status="running")
    assert "k" == acquire(store, "c", ["f"], SECOND)
    with pytest.raises(LeaseLostError, match="belongs to 'c'"):
        store.append("k", 4, b"too late", "b", status="running")
    store.claim("k", 4, b"resumed", "c", status="running")
    assert SECOND == store.free_in(["f"])


def test_a_lease_can_be_renewed_as_long_as_nobody_has_taken_the_job(store, clock):
    queued(store, "j", "k", "l")
    assert ["j", "k"] == [acquire(store, "b", ["f"], SECOND) for _ in range(2)]
    clock.advance(2)
    assert "l" == acquire(store, "c", ["f"], SECOND)
    assert "j" == acquire(store, "c", ["f"], SECOND)
    assert ["k"] == store.renew("b", 5 * SECOND)
    assert ["j", "l"] == sorted(store.renew("c", 3 * SECOND))
    assert 3 * SECOND == store.free_in(["f"])


def test_a_job_that_has_ended_or_is_paused_is_never_free_and_has_no_lease(store, clock):
    queued(store, "j", "k")
    for job_id in ("j", "k"):
        store.acquire("b", ["f"], SECOND)
        store.claim(job_id, 2, b"resumed", "b", status=status(job_id == "k"))
    assert ["j"] == store.renew("b", SECOND)
    store.append("j", 3, b"paused", "b", status="completed")
    store.append("j", 4, b"a step that was in flight", "b", status="completed")
    assert [] == store.renew("b", SECOND)
    clock.advance(10)
    assert [] == store.acquire("c", ["f"], SECOND)
    store.release("j", "b", 0)
    assert None is store.free_in(["f"])
    store.claim("j", 5, b"resumed by name", "c", status="running")


@pytest.mark.parametrize("clean", [True, False])
def test_a_job_that_was_given_back_is_free_when_its_time_comes(store, clock, clean):
    queued(store, "j")
    store.acquire("b", ["f"], SECOND)
    store.release("j", "c", 0)  # who does not own it gives nothing back
    assert SECOND == store.free_in(["f"])
    store.release("j", "b", 60 * SECOND, clean=clean)
    assert 60 * SECOND == store.free_in(["f"])
    assert [] == store.renew("b", SECOND)
    with pytest.raises(LeaseLostError, match="'j' is free to be taken by any host now; commit 2"):
        store.append("j", 2, b"x", "b", status="running")
    clock.advance(59)
    assert [] == store.acquire("c", ["f"], SECOND)
    store.claim("j", 2, b"by name, before its time", "c", status="running")
    store.append("j", 3, b"x", "c", status="running")


def test_an_acquired_job_says_whether_it_was_given_back(store, clock):
    def take(owner: str) -> bool:
        [acquired] = store.acquire(owner, ["f"], SECOND)
        assert "j" == acquired.job_id
        return acquired.clean

    queued(store, "j")
    assert take("a"), "it was queued and never acquired"
    store.release("j", "a", 0)
    assert take("b"), "it was given back"
    clock.advance(1)
    assert not take("c"), "its lease has ended with an owner"
    store.release("j", "c", 0, clean=False)
    assert not take("d"), "it was abandoned"
    store.release("j", "d", 0)
    assert take("e"), "it was given back by the last one who had it"
    store.overrule("j", 2, b"row 2", "operator", status="pending")
    assert take("f"), "an operator has set it free"


def test_a_store_lists_the_owner_of_each_job_and_the_end_of_its_lease(store, clock):
    queued(store, "queued", "leased", "over", "back", "fallen")
    for _ in range(5):
        store.acquire("a", ["f"], 3 * SECOND)
    store.release("queued", "a", 0)
    store.release("back", "a", 9 * SECOND)
    store.release("fallen", "a", 0, clean=False)
    store.create("held", b"row 1", "b", flow_id="f", status="running")
    clock.advance(1)
    assert {
        "queued": Hold(None, 0, clean=True),
        "leased": Hold("a", 2 * SECOND, clean=False),
        "over": Hold("a", 2 * SECOND, clean=False),
        "back": Hold(None, 8 * SECOND, clean=True),
        "fallen": Hold(None, 0, clean=False),
        "held": Hold("b", None, clean=False),
    } == store.holders()
    clock.advance(2)
    assert {"over": Hold("a", 0, clean=False)} == store.holders("over")


# --- snapshots ------------------------------------------------------------------------------------


def test_the_latest_snapshot_is_kept_in_any_order_of_writing(store):
    filled(store, 5)
    assert None is store.snapshot("j")
    store.keep_snapshot("j", 3, b"three")
    store.keep_snapshot("j", 2, b"two, late")
    assert (3, b"three") == store.snapshot("j")
    store.keep_snapshot("j", 6, b"of a commit that is not there")
    assert (3, b"three") == store.snapshot("j")
    store.keep_snapshot("j", 5, b"five")
    assert (5, b"five") == store.snapshot("j")
    assert 5 == len(store.rows("j"))


# --- an operator ----------------------------------------------------------------------------------


def test_an_operator_ends_the_lease_of_an_owner_which_can_then_not_write(store, clock):
    queued(store, "j")
    store.acquire("a", ["f"], SECOND)
    store.overrule("j", 2, b"the end", "operator", status="cancelled")
    with pytest.raises(LeaseLostError, match="belongs to 'operator' now; commit 3 of 'a' was"):
        store.append("j", 3, b"row 3", "a", status="running")
    with pytest.raises(LeaseLostError):
        store.append("j", 2, b"row 2", "a", status="running")
    assert [] == store.renew("a", SECOND)
    clock.advance(2)
    assert None is store.free_in(["f"])
    assert [b"row 1", b"the end"] == store.rows("j")


def test_a_job_that_an_operator_sets_free_is_free_at_once_for_anybody(store):
    filled(store, 1).append("j", 2, b"row 2", "a", status="completed")
    assert None is store.free_in(["f"])
    store.overrule("j", 3, b"again", "operator", status="pending")
    assert 0 == store.free_in(["f"])
    assert "j" == acquire(store, "b", ["f"], SECOND)
    store.overrule(
        "j", 3, b"again", "operator", status="pending"
    )  # the answer was lost, and is no news
    store.append("j", 4, b"row 4", "b", status="running")
    assert 4 == len(store.rows("j"))


def test_an_operator_that_is_too_late_changes_nothing(store):
    filled(store, 2)
    for seq, row in ((1, b"row 1"), (2, b"row 2"), (2, b"late"), (4, b"early")):
        with pytest.raises(LeaseLostError, match=f"last commit of job .* is 2, so commit {seq}"):
            store.overrule("j", seq, row, "operator", status="pending")
    with pytest.raises(NotResumableError, match="the store holds no job 'nobody'"):
        store.overrule("nobody", 2, b"row", "operator", status="pending")
    store.append("j", 3, b"row 3", "a", status="running")


# --- any order ------------------------------------------------------------------------------------

_owners = st.sampled_from("abc")
_rows = st.binary(max_size=1)
_seqs = st.integers(1, 5)
_flags = st.booleans()
_statuses = st.sampled_from(["pending", "running", "completed"])
_calls = st.lists(
    st.one_of(
        st.tuples(st.just("create"), _rows, _owners, _statuses),
        st.tuples(st.sampled_from(["append", "claim"]), _seqs, _rows, _owners, _statuses),
        st.tuples(st.just("overrule"), _seqs, _rows, _owners, _statuses),
        st.tuples(st.just("acquire"), _owners),
        st.tuples(st.just("release"), _owners, st.integers(0, 2), _flags),
        st.tuples(st.just("renew"), _owners),
        st.tuples(st.just("advance"), st.integers(0, 2)),
    ),
    max_size=30,
)


def _called(store: JobStore, clock: FakeClock, call: tuple[Any, ...]) -> object:
    try:
        match call:
            case ("create", row, owner, status):
                store.create("j", row, owner, flow_id="f", status=status)
            case ("append" | "claim" as name, seq, row, owner, status):
                getattr(store, name)("j", seq, row, owner, status=status)
            case ("overrule", seq, row, owner, status):
                store.overrule("j", seq, row, owner, status=status)
            case ("acquire", owner):
                return store.acquire(owner, ["f"], SECOND)
            case ("release", owner, seconds, clean):
                store.release("j", owner, seconds * SECOND, clean=clean)
            case ("renew", owner):
                return store.renew(owner, SECOND)
            case ("advance", seconds):
                clock.advance(seconds)
    except (LeaseLostError, DuplicateJobError, NotResumableError) as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
@settings(max_examples=examples(0.25))  # each makes a database
@given(calls=_calls)
def test_every_store_answers_as_the_one_in_memory_and_rows_are_only_ever_added(make, calls):
    clock = FakeClock()
    model = MemoryStore(clock)
    with tempfile.TemporaryDirectory() as folder, make(Path(folder), clock) as store:
        owner = None  # of the last row that was added
        for call in calls:
            before = store.rows("j")
            ticking = call[0] == "advance"
            assert _called(model, clock, call) == (None if ticking else _called(store, clock, call))
            after = store.rows("j")
            assert before == after[: len(before)]
            assert len(after) - len(before) in (0, 1)
            assert model.rows("j") == after
            assert model.free_in(["f"]) == store.free_in(["f"])
            assert model.holders() == store.holders()
            assert model.entries() == store.entries()
            assert model.entries(live=True) == store.entries(live=True)
            if len(after) > len(before):
                if call[0] == "append":
                    assert owner == call[3], "another than the owner has written"
                owner = call[2] if call[0] == "create" else call[3]
            elif call[0] == "acquire":
                owner = call[1] if model.renew(call[1], SECOND) else owner
                store.renew(call[1], SECOND)
