"""The contract of a job store, which every store keeps; here that of the one in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import (
    DuplicateJobError,
    JobStore,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
)
from tests.drivers.workshop import PATIENCE

STORES: dict[str, Callable[[], JobStore]] = {"memory": MemoryStore}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> JobStore:
    return STORES[request.param]()


def filled(store: JobStore, count: int, owner: str = "a") -> JobStore:
    for seq in range(1, count + 1):
        store.append("j", seq, b"row %d" % seq, owner)
    return store


def test_rows_come_back_in_order_and_are_a_copy(store: JobStore) -> None:
    rows = filled(store, 3).rows("j")
    assert [b"row 1", b"row 2", b"row 3"] == rows
    rows.clear()
    assert 3 == len(store.rows("j"))


def test_a_job_that_is_not_there_has_no_rows_and_is_not_listed(store: JobStore) -> None:
    assert [] == store.rows("nobody")
    assert [] == store.job_ids()
    store.append("b", 1, b"", "x")
    store.append("a", 1, b"", "x")
    assert ["a", "b"] == store.job_ids()


def test_writing_the_same_row_again_is_accepted_and_changes_nothing(store: JobStore) -> None:
    filled(store, 3)
    for seq in (1, 2, 3):
        store.append("j", seq, b"row %d" % seq, "a")
    assert 3 == len(store.rows("j"))


def test_another_row_at_a_number_that_is_taken_is_refused(store: JobStore) -> None:
    filled(store, 3)
    with pytest.raises(LeaseLostError, match="has 3 commits in the store"):
        store.append("j", 2, b"another", "a")
    assert [b"row 1", b"row 2", b"row 3"] == store.rows("j")


@pytest.mark.parametrize("seq", [0, -1, 3, 100])
def test_a_row_that_does_not_follow_is_refused(store: JobStore, seq: int) -> None:
    filled(store, 1)
    with pytest.raises(LeaseLostError):
        store.append("j", seq, b"x", "a")
    with pytest.raises(LeaseLostError):
        store.append("new", 2, b"x", "a")
    assert [b"row 1"] == store.rows("j")
    assert ["j"] == store.job_ids()


@pytest.mark.parametrize(("row", "owner"), [(b"other", "a"), (b"row 1", "b"), (b"other", "b")])
def test_a_second_job_of_the_same_id_is_refused(store: JobStore, row: bytes, owner: str) -> None:
    filled(store, 2)
    with pytest.raises(DuplicateJobError, match="holds a job 'j' already"):
        store.append("j", 1, row, owner)
    assert [b"row 1", b"row 2"] == store.rows("j")


def test_after_a_claim_only_its_owner_can_write(store: JobStore) -> None:
    filled(store, 2)
    store.claim("j", 3, b"resumed by b", "b")
    with pytest.raises(LeaseLostError, match="belongs to 'b' now"):
        store.append("j", 4, b"row 4", "a")
    with pytest.raises(LeaseLostError):
        store.append("j", 3, b"resumed by b", "a")  # not even what is there already
    store.append("j", 4, b"of b", "b")
    assert [b"row 1", b"row 2", b"resumed by b", b"of b"] == store.rows("j")


def test_of_two_that_claim_one_is_too_late_even_with_the_same_row(store: JobStore) -> None:
    filled(store, 2)
    store.claim("j", 3, b"resumed", "b")
    store.claim("j", 3, b"resumed", "b")  # its answer may have been lost
    with pytest.raises(LeaseLostError, match="claimed by 'b' meanwhile"):
        store.claim("j", 3, b"resumed", "c")
    with pytest.raises(LeaseLostError):
        store.claim("j", 3, b"resumed otherwise", "b")
    store.append("j", 4, b"of b", "b")


def test_a_job_that_is_not_there_can_not_be_claimed(store: JobStore) -> None:
    with pytest.raises(NotResumableError, match="holds no job 'nobody'"):
        store.claim("nobody", 1, b"x", "a")
    assert [] == store.job_ids()


def test_of_many_that_claim_at_once_exactly_one_succeeds(store: JobStore) -> None:
    filled(store, 1)
    gate = threading.Barrier(8)
    won: list[str] = []
    lost: list[str] = []

    def claim(owner: str) -> None:
        gate.wait(PATIENCE)
        try:
            store.claim("j", 2, b"resumed", owner)
        except LeaseLostError:
            lost.append(owner)
        else:
            won.append(owner)

    threads = [threading.Thread(target=claim, args=(f"host {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (1, 7) == (len(won), len(lost))
    store.append("j", 3, b"x", won[0])


_calls = st.lists(
    st.tuples(
        st.sampled_from(["append", "claim"]),
        st.integers(1, 5),
        st.binary(max_size=1),
        st.sampled_from("abc"),
    ),
    max_size=30,
)


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
@given(calls=_calls)
def test_rows_are_only_ever_added_and_each_by_the_owner_of_its_time(
    make: Callable[[], JobStore], calls: list[tuple[str, int, bytes, str]]
) -> None:
    store = make()
    owner = None
    for name, seq, row, who in calls:
        before = store.rows("j")
        try:
            getattr(store, name)("j", seq, row, who)
        except (LeaseLostError, DuplicateJobError, NotResumableError):
            assert before == store.rows("j")
            continue
        after = store.rows("j")
        assert before == after[: len(before)]
        assert row == after[seq - 1]
        assert len(after) - len(before) in (0, 1)
        if name == "append":
            assert owner in (None, who), "another than the owner has written"
        owner = who
