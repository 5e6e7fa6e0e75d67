"""Jobs in a store: what is loaded is what was driven, with snapshots and without."""

from __future__ import annotations

import pytest

from routilux import (
    CorruptStateError,
    FakeClock,
    JobState,
    JobStatus,
    MemoryStore,
    Runtime,
)
from routilux.persist.journal import SNAPSHOT_EVERY
from routilux.persist.rows import with_checksum, without_checksum
from tests.persist.stores import counter, driven, holding
from tests.routines import Watcher, chain
from tests.soak import sampled


def without_history(job: JobState) -> dict[str, object]:
    saved = job.serialize()
    return {name: saved[name] for name in saved if name not in ("commits", "commit_forms")}


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
    ends = []
    for history in (True, False):
        twin = Runtime(clock=FakeClock("2026-02-01"), store=holding(store.rows("j")))
        copy = JobState.deserialize(host.load("j", history=history).serialize())
        counter(700).resume(copy, runtime=twin)
        ends.append(twin.load("j", history=True))
    assert JobStatus.COMPLETED is ends[0].status
    assert ends[0] == ends[1]


def test_a_job_with_a_history_limit_keeps_few_commits_and_the_store_all(store):
    watcher = Watcher()
    with Runtime(clock=FakeClock(), store=store, history_limit=10, observers=[watcher]) as runtime:
        job = counter(300).execute("a", job_id="j", runtime=runtime)
        assert 10 <= len(job.commits) <= max(len(each.commits) for each in watcher.jobs) < 20
        assert 10 <= len(runtime.load("j").commits) < 20
        whole = runtime.load("j", history=True)
    assert (301, 300) == (len(whole.commits), len(whole.execution_history))
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
    assert [f"job j: no snapshot kept at commit {SNAPSHOT_EVERY}: disk full"] == caplog.messages


def changed(old, new):
    """A change of the first match, with a new checksum."""
    place = "$.j.snapshot"
    return lambda data: with_checksum(without_checksum(data, place).replace(old, new, 1), place)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.replace(b'"running"', b'"walking"', 1), "was damaged: its checksum"),
        (changed(b'"job_id":"j"', b'"job_id":"k"'), "holds commit 256 of job"),
        (
            changed(b'"seq":256', b'"seq":257'),
            "holds commit 257 of job 'j', but was stored for commit 256",
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


@pytest.mark.parametrize("every", [5, 1_000])
def test_values_that_were_saved_as_patches_are_read_whole(store, every, monkeypatch):
    monkeypatch.setattr("routilux.persist.journal.SNAPSHOT_EVERY", every)

    def adds(self, n=0):
        self.ctx.state.append("rows", {"n": n})
        self.ctx.state.setdefault("by_number", {})[str(n)] = [n]
        self.ctx.shared.add("sum", n)
        if n < 20:
            self.emit("out", n=n + 1)

    flow = chain(a=adds)
    flow.connect("a", "out", "a", "trigger")
    runtime = Runtime(store=store)
    job = runtime.execute(flow, "a", job_id="j")

    assert job.routine_states["a"].state == {
        "rows": [{"n": n} for n in range(21)],
        "by_number": {str(n): [n] for n in range(21)},
    }
    for history in (True, False):
        kept = runtime.load("j", history=history)
        assert kept.routine_states["a"].state == job.routine_states["a"].state
        assert kept.shared_data == {"sum": 210}
    assert runtime.load("j", history=True) == job
