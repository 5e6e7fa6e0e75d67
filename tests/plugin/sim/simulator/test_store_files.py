"""The files that a dead host leaves, and stores that break their rules."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from pytest_routilux.faults.faults import StoreFails
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import (
    Case,
    Disturbed,
    Finding,
    OpenStore,
    Undisturbed,
    World,
)
from pytest_routilux.sim.simulator.store_files import Folder, Image, RealStoreFiles
from routilux import Append, FakeClock, SqliteStore
from tests.persist.hosts import line_of, process
from tests.persist.stores import writing
from tests.plugin.sim import sqlite_stores as stores
from tests.plugin.sim.conformance.test_checker import worked
from tests.routines import PATIENCE
from tests.soak import also, sampled

START = FakeClock().now_ns()
ALONE = Checks(isolated=False)
WORKED = Case(worked, "first", {"data": "x"}, faults=(StoreFails(4),))  # so that a host claims
"""Start, effect, retry, resumed, done; effect, retry, done."""
ALONE_WORKED = replace(WORKED, faults=())


def saved(world: World) -> list[str]:
    return [commit.dumps() for commit in world.commits]


def died_before(run: Undisturbed, seq: int) -> Disturbed:
    """The host dies before a commit is written, and others finish the job."""
    [point] = [p for p in crash_points(run) if p.kind == "before a write" and p.commits == seq - 1]
    return recover(run, point)


def died_inside(run: Undisturbed, seq: int, image: Image) -> Disturbed | Finding:
    """The host dies while a commit is written, and leaves these files."""
    files = run.world.files
    kept = files.after[seq - 1]
    files.after[seq - 1] = image
    try:
        given = files.cut(seq - 1).stored_job("job", run.world)
        if isinstance(given, Finding):
            return given
        assert (seq - 1, run.states[seq - 1] if seq > 1 else None) == (seq - 1, given)
        return died_before(run, seq)
    finally:
        files.after[seq - 1] = kept


def stepped(every: int, store: type[stores.Stepped] = stores.Stepped) -> type[stores.Stepped]:
    return type("Stepped", (store,), {"seen": [], "every": every})


def run_stepped(open_store):
    run = run_undisturbed(replace(WORKED, store=open_store), START)
    assert 8 == len(run.world.commits)
    return run, [*open_store.seen]


def test_between_the_statements_of_a_write_the_files_show_the_job_before_it():
    memory = run_undisturbed(WORKED, START)
    run, seen = run_stepped(stepped(0))
    expected = {seq: saved(died_before(memory, seq).world) for seq in range(1, 9)}
    for seq, _, image in seen:
        after = died_inside(run, seq, image)
        assert not isinstance(after, Finding), after.what
        assert expected[seq] == saved(after.world)
    has_begun = ["BEGIN IMMEDIATE", "SELECT number,", "COMMIT"]
    statements = [[what for number, what, _ in seen if number == seq] for seq in (1, 4, 5, 8)]
    assert [
        ["BEGIN IMMEDIATE", "INSERT INTO", "INSERT INTO", "COMMIT"],
        [*has_begun, "BEGIN IMMEDIATE", "SELECT owner,", "INSERT OR", "UPDATE jobs", "COMMIT"],
        ["INSERT OR"],
        ["BEGIN IMMEDIATE", "INSERT OR", "UPDATE jobs", "COMMIT"],
    ] == [[what for what in each if what != "the trigger"] for each in statements]
    assert [1, 2, 2, 2] == [each.count("the trigger") for each in statements]


@pytest.mark.parametrize("every", also(9, 3))
def test_at_each_instruction_of_a_write_the_files_show_all_of_it_or_nothing(every):
    run, seen = run_stepped(stepped(every))
    files = run.world.files
    assert files is not None
    shown: dict[int, list[bool]] = {}
    for seq, _, image in seen:
        world = run.world.cut(seq - 1, 0, START)
        world.files.now = image
        world.files.doubtful = run.world.commits[seq - 1], files.rows[seq - 1]
        given = world.files.stored_job("job", world)
        whole = len(world.commits) == seq
        assert (run.states[len(world.commits)] if world.commits else None) == given
        shown.setdefault(seq, []).append(whole)
    for looks in shown.values():
        assert sorted(looks) == looks  # nothing, until it is all
        assert 9 // every <= looks.count(False)
    assert [*range(1, 9)] == [*shown]
    assert any(any(looks) for looks in shown.values())  # after COMMIT, before it was acknowledged


@pytest.mark.soak
def test_within_a_write_of_several_jobs_the_files_show_none_of_them_or_all(tmp_path):
    open_store = stepped(3)
    appends = [
        Append(name, 2, b"row 2", "a", "completed" if name == "b" else "running") for name in "abc"
    ]
    with open_store(tmp_path / "jobs.db") as store:
        for name in "abc":
            SqliteStore.create(store, name, b"row 1", "a", flow_id="f", status="running")
        assert [None, None, None] == store.append_all(appends)
    shown = []
    for number, (_, _, image) in enumerate(open_store.seen):
        folder = tmp_path / str(number)
        Folder(folder).fill(image)
        with SqliteStore(folder / "jobs.db") as left:
            shown.append([len(left.rows(name)) for name in "abc"])
    assert sorted(shown) == shown
    assert {(1, 1, 1), (2, 2, 2)} == set(map(tuple, shown))
    assert 10 < shown.count([1, 1, 1])


def test_a_log_that_is_cut_anywhere_within_a_write_shows_the_job_before_it():
    run = run_undisturbed(replace(WORKED, store=SqliteStore), START)
    files = run.world.files
    tried = 0
    for seq in range(1, 9):
        before, after = files.after[seq - 1], files.after[seq]
        if "jobs.db-wal" not in before or len(before["jobs.db-wal"]) > len(after["jobs.db-wal"]):
            continue  # it was opened anew
        old, new = b"".join(before["jobs.db-wal"]), b"".join(after["jobs.db-wal"])
        assert new.startswith(old)
        frame = 24 + 4096
        cuts = {len(old), len(old) + 1, len(old) + 24, len(old) + 2000, len(new) - 1}
        cuts |= {at + d for at in range(len(old) + frame, len(new), frame) for d in (-1, 0, 1)}
        for at in sorted(cuts):
            cut = files.cut(seq - 1)
            cut.now = {**before, "jobs.db-wal": (new[:at],)}
            given = cut.stored_job("job", run.world)
            assert (run.states[seq - 1] if seq > 1 else None) == given, (seq, at)
            tried += 1
        cut = files.cut(seq)
        cut.now = {**before, "jobs.db-wal": (new,)}
        assert run.states[seq] == cut.stored_job("job", run.world)
    assert 30 < tried


HOLDS = """
import sys
from routilux import SqliteStore
store = SqliteStore(sys.argv[1])
store.create("j", b"row 1", "a", flow_id="f", status="running")
for seq in range(2, 40):
    store.append("j", seq, b"row %d" % seq * 300, "a", status="running")
def holds(db):
    db.execute("UPDATE jobs SET owner = 'b'")
    print("holds", flush=True)
    sys.stdin.readline()
store._file.write(holds)
"""


def test_the_files_of_an_open_store_are_the_files_that_a_kill_leaves(tmp_path):
    folder = Folder(tmp_path)
    with process(HOLDS, tmp_path / "jobs.db") as child:
        assert "holds" == line_of(child)
        alive = folder.image({})
        child.kill()
        assert -signal.SIGKILL == child.wait(PATIENCE)
    assert alive == folder.image({})
    assert {"jobs.db", "jobs.db-shm", "jobs.db-wal"} == set(alive)
    folder.close()
    copied = tmp_path / "copied"
    Folder(copied).fill(alive)
    with SqliteStore(copied / "jobs.db") as store, SqliteStore(tmp_path / "jobs.db") as killed:
        assert 39 == len(killed.rows("j"))
        assert killed.rows("j") == store.rows("j")


def test_reading_a_file_takes_no_lock_from_the_store(tmp_path):
    folder = Folder(tmp_path)
    tries = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=0);"
        "db.execute('BEGIN IMMEDIATE')"
    )
    with SqliteStore(tmp_path / "jobs.db") as store:
        store.create("j", b"row 1", "a", flow_id="f", status="running")
        with writing(store):
            for _ in range(3):
                folder.image({})
            with process(tries, tmp_path / "jobs.db") as child:
                assert 1 == child.wait(PATIENCE)  # it is locked
    folder.close()


def test_images_share_unchanged_pieces(tmp_path):
    folder = Folder(tmp_path)
    (tmp_path / "log").write_bytes(b"a" * 9_000)
    first = folder.image({})
    with (tmp_path / "log").open("ab") as log:
        log.write(b"b" * 5_000)
    second = folder.image(first)
    assert first["log"][0] is second["log"][0]
    assert b"a" * 9_000 + b"b" * 5_000 == b"".join(second["log"])
    assert b"a" * 9_000 == b"".join(first["log"])
    (tmp_path / "log").write_bytes(b"c")
    assert {"log": (b"c",)} == folder.image(second)
    folder.close()


def test_nothing_is_committed_or_closed_after_the_death_of_a_host():
    run = run_undisturbed(ALONE_WORKED, START)
    files = RealStoreFiles(stores.CommitsAtStop)
    with files.opened():
        for commit in run.world.commits[:3]:
            files.write("job", commit, "host 1", claims=False)
    left = files.stored_job("job", run.world)
    assert isinstance(left, Finding)
    assert "commit 2 (effect of first) was acknowledged, but is not in the files" == left.what


LOST = "was acknowledged, but is not in the files"
LIES: dict[str, tuple[OpenStore, str, str | None, str]] = {
    "acknowledged before COMMIT": (
        stores.CommitsLate,
        "store-lost",
        None,
        f"commit 7 (done of second) {LOST}",
    ),
    "one transaction for the whole job": (
        stores.CommitsAtStop,
        "store-lost",
        "0@a1.retry",
        f"commit 2 (effect of first) {LOST}",
    ),
    "the owner forgotten": (
        stores.ForgetsOwner,
        "store-refuses",
        "start",
        "the store refuses the only host that is alive: job",
    ),
    "no fence": (
        stores.NoFence,
        "store-fence",
        "start",
        "the store accepts commit 2 of a host that has lost the job",
    ),
    "stops forgotten": (
        stores.ForgetsStops,
        "store-frees",
        None,
        "the job is completed, but a worker that asks for",
    ),
    "another row than was given": (
        stores.Tidies,
        "store-changes",
        None,
        "commit 2 comes back with other bytes than were writ",
    ),
}


@pytest.mark.parametrize("lie", sampled(LIES, [*LIES][::2]))
def test_a_store_that_lies_is_found_and_named(lie):
    open_store, kind, place, says = LIES[lie]
    found = explore(replace(ALONE_WORKED, store=open_store), START, ALONE)
    failed = {point.name: finding for point, finding in found.failures}
    finding = found.reference.finding if place is None else failed[place]
    assert kind == finding.kind
    assert says in finding.what
    assert found.coverage.planned == found.coverage.executed


@pytest.mark.parametrize(
    ("half", "seq", "says"),
    [
        (stores.HalfCreates, 1, "$.job: its last commit is 1, but the store returns no commit 1"),
        (stores.HalfClaims, 4, "4 commits come back, of which 3 were acknowledged"),
    ],
)
def test_a_write_in_two_transactions_is_seen_by_a_crash_between_them(half, seq, says):
    run, seen = run_stepped(stepped(0, half))
    found = [died_inside(run, number, image) for number, _, image in seen if number == seq]
    wrong = [after.what for after in found if isinstance(after, Finding)]
    assert wrong
    assert all(says in what for what in wrong)
    assert len(wrong) < len(found)
