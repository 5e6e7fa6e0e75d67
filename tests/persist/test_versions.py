"""Version of the saved forms: the present form is read, any other is refused."""

from __future__ import annotations

import json
from datetime import date

import pytest

from routilux import (
    Commit,
    CommitKind,
    FakeClock,
    JobState,
    JobStatus,
    MemoryStore,
    Runtime,
    SavedState,
    UnsupportedVersionError,
    cancel_job,
    retry_job,
)
from routilux.codec import signature
from routilux.persist.journal import Journal
from routilux.persist.rows import with_checksum, without_checksum
from tests.persist.orders import GOLDEN, KEY, START, pipeline
from tests.persist.stores import holding
from tests.routines import refused_at

DOCUMENT = GOLDEN / "routilux-1.json"
SIGNED = GOLDEN / "routilux-1-signed.json"
ROWS = (GOLDEN / "routilux-1-rows.jsonl").read_bytes().splitlines()
SNAPSHOT = (GOLDEN / "routilux-1-snapshot.json").read_bytes().rstrip()
FORMAT = b'"format":"routilux/1",'
NEWER = b'"format":"routilux/7",'
NO_VERSIONS = ["routilux/0", "routilux/01", "routilux/-1", "routilux/1.5", "1", "notebook/4", ""]


def stored() -> MemoryStore:
    """The store of a job that one host paused after a step and another host resumed."""
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
    Journal(store).write_snapshot(job)
    return store


FOURTH = "$.job-1[4]"


def host_with(rows: list[bytes], snapshot: bytes | None = None) -> Runtime:
    """A host whose store has these rows of a job."""
    store = holding(rows, "job-1")
    if snapshot is not None:
        store.keep_snapshot("job-1", 6, snapshot)
    return Runtime(clock=FakeClock(START), store=store)


def changed(data: bytes, old: bytes, new: bytes, place: str = "$.job-1.snapshot") -> bytes:
    """A row or a snapshot with another text and the checksum of that text."""
    return with_checksum(without_checksum(data, place).replace(old, new, 1), place)


# --- the present form -----------------------------------------------------------------------------


def test_the_stored_rows_and_snapshot_are_what_is_written_today():
    store = stored()
    assert ROWS == store.rows("job-1")
    assert (6, SNAPSHOT) == store.snapshot("job-1")


def test_the_stored_rows_and_snapshot_are_read():
    host = host_with(ROWS, SNAPSHOT)
    job, whole = host.load("job-1"), host.load("job-1", history=True)
    assert (JobStatus.COMPLETED, 6, 0) == (job.status, job.seq, len(job.commits))
    assert {**whole.serialize(), "commits": []} == job.serialize()
    assert date(2026, 1, 3) == job.shared_data["day"]


@pytest.mark.parametrize("change", [cancel_job, retry_job])
def test_the_row_of_an_operator_carries_the_version(change):
    store = MemoryStore()
    with Runtime(clock=FakeClock(START), store=store) as runtime:
        flow = pipeline(9)
        flow.routines["process"].set_error_handler(None)
        if change is retry_job:
            flow.execute("fetch", {"request_id": "r-1"}, job_id="job-1", runtime=runtime)
        else:
            runtime.submit(flow, "fetch", {"request_id": "r-1"}, job_id="job-1")
    change(store, "job-1")
    assert store.rows("job-1")[-1].startswith(b"{" + FORMAT)


def test_a_version_that_is_not_the_first_member_is_found():
    document = dict(sorted(json.loads(DOCUMENT.read_bytes()).items()))
    text = json.dumps(document, indent=1).encode()
    assert text.index(b'"execution_history_count"') < text.index(b'"format"')
    assert 2 == SavedState.from_bytes(text, verify=False).retry_count
    with pytest.raises(UnsupportedVersionError):
        SavedState.from_bytes(text.replace(b"routilux/1", b"routilux/7"), verify=False)

    row = dict(reversed(json.loads(without_checksum(ROWS[3], FOURTH)).items()))
    rows = [*ROWS[:3], with_checksum(json.dumps(row).encode(), FOURTH), *ROWS[4:]]
    assert JobStatus.COMPLETED is host_with(rows).load("job-1").status
    rows[3] = changed(rows[3], b"routilux/1", b"routilux/7", FOURTH)
    with pytest.raises(UnsupportedVersionError):
        host_with(rows).load("job-1")


# --- a newer version ------------------------------------------------------------------------------

FUTURE = b'{"format":"routilux/7","seq":{"$type":"of the future"}}'


def test_a_newer_signed_document_is_refused_with_what_to_do():
    body = b'{"format": "routilux/7",\n"state": {"$type": "of the future"}'
    reason = (
        "is 'routilux/7', which a newer routilux wrote; this routilux reads 'routilux/1': install"
    )
    with refused_at("$.format", reason, UnsupportedVersionError):
        SavedState.from_bytes(signature.with_digest(body, signature.new_mac(KEY)), key=KEY)


@pytest.mark.parametrize("whole", [False, True], ids=["cut off", "whole"])
@pytest.mark.parametrize("number", [1, 4])
def test_a_newer_row_is_refused_by_its_path_before_anything_else_of_it_is_read(number, whole):
    future = with_checksum(FUTURE, f"$.job-1[{number}]") if whole else FUTURE
    rows = [*ROWS[: number - 1], future, b"rows of the future"]
    reason = "is 'routilux/7', which a newer routilux wrote; this routilux"
    with refused_at(f"$.job-1[{number}].format", reason, UnsupportedVersionError):
        host_with(rows).load("job-1")


def test_a_newer_snapshot_is_refused_and_so_are_the_rows_that_its_host_wrote():
    rows = [*ROWS[:3], changed(ROWS[3], FORMAT, NEWER, FOURTH), *ROWS[4:]]
    host = host_with(rows, FUTURE)
    reason = "or resume the job where it was saved"  # and not without the snapshot
    for history, path in ((False, "$.job-1.snapshot.format"), (True, "$.job-1[4].format")):
        with pytest.raises(UnsupportedVersionError, match=f"{reason}$") as caught:
            host.load("job-1", history=history)
        assert path == caught.value.path


# --- no version, or an unknown one ----------------------------------------------------------------


@pytest.mark.parametrize("found", NO_VERSIONS)
def test_a_document_with_another_text_as_version_was_not_written_by_routilux(found):
    with refused_at("$.format", f"is {found!r}: the data was not written by routilux"):
        SavedState.from_bytes(signature.with_digest(f'{{"format": "{found}"'.encode()))


OTHERS = [*NO_VERSIONS, 1, None, ["routilux/1"]]
INVALID = [(1, b""), *((4, b'"format":%b,' % json.dumps(other).encode()) for other in OTHERS)]


@pytest.mark.parametrize(("number", "member"), INVALID)
def test_a_row_or_snapshot_without_a_version_or_with_another_is_refused_by_its_path(number, member):
    rows = [*ROWS]
    rows[number - 1] = changed(ROWS[number - 1], FORMAT, member, f"$.job-1[{number}]")
    host = host_with(rows, changed(SNAPSHOT, FORMAT, member))
    for history, path in ((True, f"$.job-1[{number}].format"), (False, "$.job-1.snapshot.format")):
        with refused_at(path, "the data was not written by routilux"):
            host.load("job-1", history=history)


# --- damage ---------------------------------------------------------------------------------------


def test_damage_is_reported_before_the_version_is_read():
    newer = DOCUMENT.read_bytes().replace(b"routilux/1", b"routilux/7")
    with refused_at("$.digest"):
        SavedState.from_bytes(newer)
    with refused_at("$.signature"):
        SavedState.from_bytes(SIGNED.read_bytes()[:-3], key=KEY)
    rows = [ROWS[0].replace(b"routilux/1", b"routilux/7"), *ROWS[1:]]
    with refused_at("$.job-1[1]", "was damaged"):
        host_with(rows).load("job-1")
