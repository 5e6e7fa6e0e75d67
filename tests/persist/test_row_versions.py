"""Rows and snapshots of other versions: earlier ones are read step by step, newer ones are refused.

The versions 2 and 3 of these stories are made up: version 2 calls `at_ns` `when` and writes a date
as three numbers, version 3 is what this program reads today.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    Commit,
    CommitKind,
    CorruptStateError,
    FakeClock,
    JobState,
    JobStatus,
    MemoryStore,
    Runtime,
    SavedStateError,
    UnsupportedVersionError,
)
from routilux.persist import operator, upgrades
from routilux.persist.checksums import checked
from routilux.persist.journal import Journal
from tests.persist.orders import GOLDEN, START, pipeline
from tests.persist.test_upgrades import everywhere, to_numbers, to_text

ROWS = GOLDEN / "routilux-1-rows.jsonl"
SNAPSHOT = GOLDEN / "routilux-1-snapshot.json"
FORMAT = b'"format":"routilux/1",'
NEWER = b'"format":"routilux/7",'


def written() -> MemoryStore:
    """The store of a job that was paused after a step and gone on with by another host."""
    clock = FakeClock(START, autojump=False)
    store = MemoryStore(clock)

    class Pauses:
        def on_commit(self, job: JobState, commit: Commit) -> None:
            if commit.kind is CommitKind.DONE:
                run.pause()

    with Runtime(clock=clock, store=store, observers=[Pauses()]) as first:
        run = pipeline(0).start("fetch", {"request_id": "r-1"}, job_id="job-1", runtime=first)
        clock.advance(0.8)
        run.wait()
        clock.advance(1)
    with Runtime(clock=FakeClock(clock.now()), store=store) as second:
        job = pipeline(0).resume(second.load("job-1"), runtime=second)
    Journal(store).keep(job)
    return store


def holding(rows: list[bytes], snapshot: tuple[int, bytes] | None = None) -> Runtime:
    """A host whose store has these rows of a job."""
    store = MemoryStore()
    for seq, row in enumerate(rows, 1):
        if seq == 1:
            store.create("job-1", row, "a", flow_id="orders", queued=False)
        else:
            store.append("job-1", seq, row, "a", rests=False)
    if snapshot is not None:
        store.keep_snapshot("job-1", *snapshot)
    return Runtime(clock=FakeClock(START), store=store)


def plain(file: Path) -> list[bytes]:
    """What stands in a file, a line each, without the checksums: so it can be changed."""
    return [checked(line, "$") for line in file.read_bytes().splitlines()]


def bare(rows: list[bytes]) -> list[bytes]:
    """Rows of before they said their version and ended with a checksum."""
    return [checked(row, "$").replace(FORMAT, b"") for row in rows]


# --- this version ---------------------------------------------------------------------------------


def test_the_rows_and_the_snapshot_of_the_first_version_are_written_byte_by_byte():
    store = written()
    assert ROWS.read_bytes().splitlines() == store.rows("job-1")
    assert (6, SNAPSHOT.read_bytes().rstrip()) == store.snapshot("job-1")


@pytest.mark.parametrize("version", range(1, upgrades.VERSION + 1))
def test_the_rows_and_the_snapshot_of_every_version_are_kept_and_read(version):
    rows = (GOLDEN / f"routilux-{version}-rows.jsonl").read_bytes().splitlines()
    snapshot = (GOLDEN / f"routilux-{version}-snapshot.json").read_bytes().rstrip()
    host = holding(rows, (6, snapshot))
    job, whole = host.load("job-1"), host.load("job-1", history=True)
    assert (JobStatus.COMPLETED, 6, 0) == (job.status, job.seq, len(job.commits))
    assert {**whole.serialize(), "commits": []} == job.serialize()
    assert date(2026, 1, 3) == job.shared_data["day"]


def test_there_is_a_step_from_each_version_to_the_next_for_rows_and_snapshots():
    versions = set(range(1, upgrades.VERSION))
    assert versions == set(upgrades.ROWS) == set(upgrades.SNAPSHOTS)


def test_whoever_begins_to_write_says_the_version_and_no_other_row_does():
    store = written()
    assert [True, False, False, True, False, False] == [
        row.startswith(b"{" + FORMAT) for row in store.rows("job-1")
    ]
    assert (store.snapshot("job-1") or (0, b""))[1].startswith(b"{" + FORMAT)


@pytest.mark.parametrize("change", [operator.cancel, operator.retry])
def test_an_operator_says_the_version_too(change: Callable[..., JobState]):
    store = MemoryStore()
    with Runtime(clock=FakeClock(START), store=store) as runtime:
        flow = pipeline(9)
        flow.routines["process"].set_error_handler(None)
        if change is operator.retry:
            flow.execute("fetch", {"request_id": "r-1"}, job_id="job-1", runtime=runtime)
        else:
            runtime.submit(flow, "fetch", {"request_id": "r-1"}, job_id="job-1")
    change(store, "job-1", 0)
    assert store.rows("job-1")[-1].startswith(b"{" + FORMAT)


def test_rows_and_snapshots_from_before_the_versions_are_of_the_first():
    store = written()
    [snapshot] = bare(plain(SNAPSHOT))
    host = holding(bare(store.rows("job-1")), (6, snapshot))
    today = Runtime(store=store)
    for history in (True, False):
        assert today.load("job-1", history=history) == host.load("job-1", history=history)


# --- earlier versions -----------------------------------------------------------------------------


def renamed(data: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in data.items()}


def second_row(data: Mapping[str, Any]) -> dict[str, Any]:
    return everywhere(renamed(data, "at_ns", "when"), to_numbers)


def third_row(data: Mapping[str, Any]) -> dict[str, Any]:
    return everywhere(renamed(data, "when", "at_ns"), to_text)


def second_snapshot(data: Mapping[str, Any]) -> dict[str, Any]:
    return everywhere(renamed(data, "started_ns", "began"), to_numbers)


def third_snapshot(data: Mapping[str, Any]) -> dict[str, Any]:
    return everywhere(renamed(data, "began", "started_ns"), to_text)


Steps = dict[int, upgrades.Upgrade]


@pytest.fixture
def version_three(monkeypatch: pytest.MonkeyPatch) -> tuple[Steps, Steps]:
    rows: Steps = {1: second_row, 2: third_row}
    snapshots: Steps = {1: second_snapshot, 2: third_snapshot}
    monkeypatch.setattr(upgrades, "VERSION", 3)
    monkeypatch.setattr("routilux.persist.rows.VERSION", 3)
    monkeypatch.setattr("routilux.persist.rows.ROWS", rows)
    monkeypatch.setattr("routilux.persist.rows.FORMAT", "routilux/3")
    monkeypatch.setattr("routilux.persist.journal.SNAPSHOTS", snapshots)
    monkeypatch.setattr("routilux.persist.journal.FORMAT", "routilux/3")
    return rows, snapshots


def of_version_two(data: bytes, step: upgrades.Upgrade, **head: str) -> bytes:
    plain = json.loads(data.replace(FORMAT, b""))
    return json.dumps({**head, **step(plain)}, separators=(",", ":")).encode()


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.usefixtures("version_three")
def test_a_job_that_the_first_version_began_is_upgraded_and_goes_on_in_the_version_of_today(says):
    rows = plain(ROWS)[:3]
    host = holding(rows if says else bare(rows))
    job = pipeline(0).resume(host.load("job-1"), runtime=host)
    assert JobStatus.COMPLETED is job.status
    kept = host.store.rows("job-1")
    assert [b'{"format":"routilux/3"'] == [row[:22] for row in kept[3:] if b"format" in row]
    assert b'{"format":"routilux/3"' == kept[3][:22]
    assert job == host.load("job-1", history=True)


@pytest.mark.usefixtures("version_three")
def test_each_host_of_a_job_may_have_written_in_its_own_version():
    rows = plain(ROWS)
    second = [of_version_two(row, second_row) for row in rows[3:5]]
    second[0] = of_version_two(rows[3], second_row, format="routilux/2")
    third = rows[5].replace(b"{", b'{"format":"routilux/3",', 1)
    mixed = holding([*bare(rows[:3]), *second, third]).load("job-1", history=True)
    assert holding(rows).load("job-1", history=True) == mixed


def test_only_the_steps_that_are_needed_are_made(version_three):
    rows, snapshots = version_three
    rows[1] = snapshots[1] = lambda data: pytest.fail("it was of version 2 already")
    kept = [of_version_two(row, second_row) for row in plain(ROWS)]
    kept[0] = of_version_two(kept[0], dict, format="routilux/2")
    snapshot = of_version_two(plain(SNAPSHOT)[0], second_snapshot, format="routilux/2")
    host = holding(kept, (6, snapshot))
    assert JobStatus.COMPLETED is host.load("job-1", history=True).status
    assert JobStatus.COMPLETED is host.load("job-1").status


@pytest.mark.usefixtures("version_three")
def test_the_rows_after_a_snapshot_are_of_its_version_until_one_says_another():
    rows = plain(ROWS)
    snapshot = json.loads(plain(SNAPSHOT)[0])
    whole = holding(rows).load("job-1", history=True)
    early = {**snapshot, **json.loads(whole.at(5).dumps(history=False))}
    for head, after in (
        ("routilux/1", rows[5:]),
        ("routilux/2", [of_version_two(row, second_row) for row in rows[5:]]),
    ):
        step = second_snapshot if head == "routilux/2" else dict
        data = json.dumps({**step(early), "format": head}).encode()
        host = holding([*rows[:5], *after], (5, data))
        assert JobStatus.COMPLETED is host.load("job-1").status, head


def test_a_part_that_is_of_no_earlier_version_is_refused_at_its_place(version_three):
    rows, snapshots = version_three
    rows[1] = snapshots[1] = lambda data: data["no such member"]
    kept = plain(ROWS)
    host = holding(kept, (6, plain(SNAPSHOT)[0]))
    for history, place in ((True, "$.job-1[1]"), (False, "$.job-1.snapshot")):
        with pytest.raises(
            CorruptStateError, match="is no part of routilux/1: it can't be"
        ) as told:
            host.load("job-1", history=history)
        assert place == told.value.path


# --- newer versions -------------------------------------------------------------------------------

FUTURE = b'{"format":"routilux/7","seq":{"$type":"of the future"}}'


@pytest.mark.parametrize("number", [1, 4])
def test_a_newer_row_is_refused_by_its_place_before_anything_else_of_it_is_read(number):
    rows = plain(ROWS)
    rows[number - 1 :] = [FUTURE, b"rows of the future"]
    with pytest.raises(UnsupportedVersionError) as told:
        holding(rows).load("job-1")
    assert f"$.job-1[{number}].format" == told.value.path
    assert "is 'routilux/7', of a newer routilux; this one reads up to" in told.value.reason


def test_a_newer_snapshot_is_refused_and_so_are_the_rows_that_its_host_wrote():
    rows = plain(ROWS)
    rows[3] = rows[3].replace(FORMAT, NEWER)
    host = holding(rows, (6, FUTURE))
    for history, place in ((False, "$.job-1.snapshot.format"), (True, "$.job-1[4].format")):
        with pytest.raises(UnsupportedVersionError) as told:
            host.load("job-1", history=history)
        assert place == told.value.path
        assert "does without" not in told.value.reason


@pytest.mark.parametrize(
    "said", ["routilux/0", "routilux/01", "other/1", "", 1, None, ["routilux/1"]]
)
def test_what_is_no_version_is_refused_by_its_place(said):
    rows = plain(ROWS)
    rows[3] = rows[3].replace(b'"routilux/1"', json.dumps(said).encode(), 1)
    with pytest.raises(SavedStateError, match="was not written by routilux") as told:
        holding(rows).load("job-1")
    assert "$.job-1[4].format" == told.value.path


def test_a_version_that_does_not_stand_first_is_found_too():
    rows = plain(ROWS)
    rows[3] = json.dumps(dict(reversed(json.loads(rows[3]).items()))).encode()
    host = holding(rows)
    assert JobStatus.COMPLETED is host.load("job-1").status
    rows[3] = rows[3].replace(b"routilux/1", b"routilux/7")
    with pytest.raises(UnsupportedVersionError):
        holding(rows).load("job-1")
