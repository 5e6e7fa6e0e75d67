"""Jobs in a store: what is loaded is what was driven, with snapshots and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from routilux import (
    CorruptStateError,
    FakeClock,
    Flow,
    JobState,
    JobStatus,
    JobStore,
    MemoryStore,
    Routine,
    Runtime,
    SavedStateError,
    codec,
)
from routilux.persist.journal import SNAPSHOT_EVERY
from routilux.persist.rows import CHECKSUM_BYTES, with_checksum, without_checksum
from tests.persist.stores import STORES
from tests.routines import chain
from tests.soak import sampled


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    with STORES[request.param](tmp_path, FakeClock()) as made:
        yield made


def counter(last: int, *, prints: bool = False, dies_at: int | None = None) -> Flow:
    """One routine that sends itself the numbers up to `last`; a step each."""

    def counts(self: Routine, n: int = 1) -> None:
        if n == dies_at:
            raise KeyboardInterrupt
        self.ctx.state["n"] = n
        if prints:
            self.emit("printed", n=n)
        if n < last:
            self.emit("out", n=n + 1)

    flow = chain(a=counts)
    flow.routines["a"].define_event("printed", ["n"])
    flow.connect("a", "out", "a", "trigger")
    return flow


def driven(store: JobStore, flow: Flow, **options: int) -> JobState:
    with Runtime(clock=FakeClock(), store=store, **options) as runtime:  # type: ignore[arg-type]
        return flow.execute("a", job_id="j", runtime=runtime)


def without_history(job: JobState) -> dict[str, object]:
    return {**job.serialize(), "commits": []}


STEPS = [10, SNAPSHOT_EVERY - 2, SNAPSHOT_EVERY - 1, SNAPSHOT_EVERY, 3 * SNAPSHOT_EVERY + 7]


@pytest.mark.parametrize("steps", sampled(STEPS, [10, SNAPSHOT_EVERY - 1]))
def test_a_job_is_loaded_from_its_snapshot_and_the_commits_since(store, steps):
    job = driven(store, counter(steps))
    runtime = Runtime(clock=FakeClock(), store=store)
    loaded = runtime.load("j")
    assert steps + 1 == loaded.seq
    assert without_history(job) == without_history(loaded)
    assert len(loaded.commits) < SNAPSHOT_EVERY
    assert list(job.commits[job.seq - len(loaded.commits) :]) == list(loaded.commits)
    assert job == runtime.load("j", history=True)


@pytest.mark.parametrize(
    "dies_at", sampled([5, SNAPSHOT_EVERY - 1, SNAPSHOT_EVERY, 600], [SNAPSHOT_EVERY])
)
def test_a_job_that_was_cut_off_resumes_the_same_with_a_snapshot_and_without(store, dies_at):
    with pytest.raises(KeyboardInterrupt):
        driven(store, counter(700, dies_at=dies_at))
    host = Runtime(clock=FakeClock("2026-02-01"), store=store)
    twins = [MemoryStore(), MemoryStore()]
    ends = []
    for twin, history in zip(twins, (True, False), strict=True):
        for row in store.rows("j"):
            seq = len(twin.rows("j")) + 1
            if seq == 1:
                twin.create("j", row, "x", flow_id="tale", queued=False)
            else:
                twin.append("j", seq, row, "x", stopped=False)
        other = Runtime(clock=FakeClock("2026-02-01"), store=twin)
        counter(700).resume(host.load("j", history=history), runtime=other)
        ends.append(other.load("j", history=True))
    assert JobStatus.COMPLETED is ends[0].status
    assert ends[0] == ends[1]


def test_a_job_with_a_history_limit_keeps_few_commits_and_the_store_all(store):
    most = 0

    class Lengths:
        def on_commit(self, job: JobState, commit: object) -> None:
            nonlocal most
            most = max(most, len(job.commits))

    with Runtime(
        clock=FakeClock(), store=store, history_limit=10, observers=[Lengths()]
    ) as runtime:
        job = counter(1000).execute("a", job_id="j", runtime=runtime)
        assert 10 <= len(job.commits) <= most < 20
        assert 10 <= len(runtime.load("j").commits) < 20
        whole = runtime.load("j", history=True)
    assert (1001, 1000) == (len(whole.commits), len(whole.execution_history))
    assert without_history(job) == without_history(whole)


def test_the_snapshots_of_a_job_that_grows_cost_no_more_than_its_rows(monkeypatch):
    written = []

    class Counts(MemoryStore):
        def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
            written.append(len(data))
            super().keep_snapshot(job_id, seq, data)

    store = Counts()
    driven(store, counter(4000, prints=True))
    assert 2 < len(written) < 4000 / SNAPSHOT_EVERY
    assert sum(written) < 2 * sum(map(len, store.rows("j")))


def test_a_snapshot_that_can_not_be_written_changes_nothing(caplog):
    class Full(MemoryStore):
        def keep_snapshot(self, job_id: str, seq: int, data: bytes) -> None:
            raise OSError("disk full")

    store = Full()
    job = driven(store, counter(300))
    assert JobStatus.COMPLETED is job.status
    assert job == Runtime(store=store).load("j")
    assert [f"no snapshot of job j at commit {SNAPSHOT_EVERY}: disk full"] == caplog.messages


def changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A change of the first match, with a new checksum."""
    return lambda data: with_checksum(without_checksum(data, "$").replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], "has no checksum at its end: it is cut off"),
        (lambda data: data.replace(b'"running"', b'"walking"', 1), "was damaged: its checksum"),
        (changed(b'"job_id":"j"', b'"job_id":"k"'), "is of commit 256 of job"),
        (
            changed(b'"seq":256', b'"seq":257'),
            "is of commit 257 of job 'j', but was stored for commit 256",
        ),
        (changed(b'"running"', b'"walking"'), "not a valid JobStatus"),
    ],
)
def test_a_damaged_snapshot_is_reported_and_the_rows_still_hold_everything(damage, message):
    store = MemoryStore()
    job = driven(store, counter(300))
    seq, data = store.snapshot("j") or (0, b"")
    assert damage(data) != data
    store._jobs["j"].snapshot = seq, damage(data)
    runtime = Runtime(store=store)
    with pytest.raises(CorruptStateError, match=message) as caught:
        runtime.load("j")
    assert caught.value.path.startswith("$.j.snapshot")
    assert "load('j', history=True) reads the job without the snapshot" in caught.value.reason
    assert job == runtime.load("j", history=True)


def ended(text: bytes) -> bytes:
    """A row with the right checksum and this text, which ends with a brace."""
    row = with_checksum(text)
    assert text == without_checksum(row, "$")
    return row


NO_CHECKSUM = "has no checksum at its end: it is cut off, or was not written by routilux"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"", NO_CHECKSUM),
        (b"{", NO_CHECKSUM),
        (b'{"seq":17', NO_CHECKSUM),
        (b"no JSON at all", NO_CHECKSUM),
        (b"\x00" * 40, NO_CHECKSUM),
        (b"null", NO_CHECKSUM),
        (ended(b"  }"), "is not JSON"),
        (ended(b"{}{}"), "is not JSON"),
        (ended(b"{]}"), "is not JSON"),
        (ended(b'{"seq":"17}'), "is cut off"),
        (ended(b"\xff\xfe}"), "is not UTF-8"),
        (ended(b'{"seq":NaN}'), "is NaN, which JSON does not have"),
        (ended(b'{"seq":' + b"[" * 200 + b"]" * 200 + b"}"), "is nested deeper"),
        (ended(b'{"seq":' + b"9" * 5000 + b"}"), "is an integer of 5,000 characters"),
        (ended(b'{"$type":"of another program","value":1}'), "has the unknown"),
        (ended(b'{"$type":"tuple","value":[{}]}'), "is of type tuple, not an object|is missing"),
        (ended(b'{"format":"routilux/1"}'), "is missing"),
        (ended(b'{"format":{}}'), "was not written by routilux"),
    ],
)
def test_an_invalid_row_is_reported_by_its_job_and_number(row, reason):
    store = MemoryStore()
    job_id = "a [strange] $.id"
    with Runtime(clock=FakeClock(), store=store) as runtime:
        counter(300).execute("a", job_id=job_id, runtime=runtime)
    rows = store._jobs[job_id].rows
    for number in (1, 17, 300):
        rows[number - 1], whole = row, rows[number - 1]
        with pytest.raises(SavedStateError, match=reason) as caught:
            runtime.load(job_id, history=True)
        assert caught.value.path.startswith(f"$.{job_id}[{number}]")
        rows[number - 1] = whole


def flipped(data: bytes, bit: int) -> bytes:
    number = int.from_bytes(data) ^ 1 << bit
    return number.to_bytes(len(data))


def test_a_bit_that_changes_anywhere_in_a_row_or_a_snapshot_is_reported():
    store = MemoryStore()
    driven(store, counter(260))
    kept = store._jobs["j"]
    assert kept.snapshot is not None
    seq, data = kept.snapshot
    runtime = Runtime(store=store)
    whole = kept.rows[258]
    for at in (
        *range(0, len(whole) * 8, 7),
        *range(len(whole) * 8 - CHECKSUM_BYTES * 8, len(whole) * 8),
    ):
        kept.rows[258] = flipped(whole, at)
        with pytest.raises(SavedStateError) as caught:
            runtime.load("j")
        assert caught.value.path.startswith("$.j[259]"), at
    kept.rows[258] = whole
    for at in range(0, len(data) * 8, 7):
        kept.snapshot = seq, flipped(data, at)
        with pytest.raises(SavedStateError) as caught:
            runtime.load("j")
        assert caught.value.path.startswith("$.j.snapshot"), at


def test_a_damaged_row_after_a_snapshot_is_reported_by_its_number_in_the_job():
    store = MemoryStore()
    driven(store, counter(300))
    store._jobs["j"].rows[289] = b"no JSON"
    with pytest.raises(CorruptStateError) as caught:
        Runtime(store=store).load("j")
    assert "$.j[290]" == caught.value.path


def test_rows_that_make_sense_only_together_are_refused():
    store = MemoryStore()
    driven(store, counter(10))
    rows = store._jobs["j"].rows
    third, fourth, fifth = (without_checksum(row, "$") for row in rows[2:5])
    head, tail = fifth.split(b"},", 1)
    rows[2:5] = [ended(third + b"," + fourth), ended(head + b"}"), ended(tail)]
    assert 11 == len(rows)
    with pytest.raises(CorruptStateError, match="is not JSON: Extra data") as caught:
        Runtime(store=store).load("j")
    assert "$.j[3]" == caught.value.path


def test_only_the_batch_of_a_damaged_row_is_read_row_by_row(
    monkeypatch,
):
    calls = []

    def counted(text: bytes, **options: bool) -> object:
        calls.append(text)
        return loads(text, **options)

    loads = codec.loads
    monkeypatch.setattr("routilux.codec.loads", counted)
    store = MemoryStore()
    job = driven(store, counter(199))
    runtime = Runtime(store=store)
    assert job == runtime.load("j")
    assert 4 == len(calls)
    store._jobs["j"].rows[70] = ended(b"no JSON}")
    calls.clear()
    with pytest.raises(CorruptStateError, match=r"^\$\.j\[71\]: is not JSON"):
        runtime.load("j")
    assert 1 + 7 == len(calls)
