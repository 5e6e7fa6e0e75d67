"""A disk that fails while a document is written leaves the old state or the new one."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import stat
from functools import partial
from pathlib import Path

import pytest

from routilux import SavedState
from routilux.persist.atomic_write import write_atomically
from tests.engine.concurrency import in_a_child
from tests.persist.disk import (
    Disk,
    dies,
    dies_late,
    fails,
    fails_late,
    left_by_power_loss,
    short,
    torn,
)
from tests.persist.orders import at_retry, pipeline
from tests.soak import sampled

CALLS = [
    "open file",
    "write file",
    "fsync file",
    "close file",
    "replace file",
    "open folder",
    "fsync folder",
    "close folder",
]
RENAMED = CALLS.index("replace file")
ERRORS = {
    "disk full": (errno.ENOSPC, "make room and write the file again"),
    "quota": (errno.EDQUOT, "make room and write the file again"),
    "too big": (
        errno.EFBIG,
        "raise the limit for the size of files (ulimit -f) and write the file again",
    ),
    "disk broken": (errno.EIO, "the disk or the share fails; write the file to another disk"),
    "read-only": (errno.EROFS, "let this user write in the folder, or choose another folder"),
    "no right": (errno.EACCES, "let this user write in the folder, or choose another folder"),
    "any other": (errno.EBUSY, "write the file again"),
}


@pytest.fixture(scope="module")
def old():
    return at_retry(pipeline(9), 2)


@pytest.fixture(scope="module")
def new():
    return at_retry(pipeline(9), 4)


def write(saved, path, faults=None):
    with Disk(faults) as disk:
        saved.write(path)
    return disk


def open_files():
    return len(os.listdir("/dev/fd"))  # noqa: PTH208  # only their number


# --- the calls ------------------------------------------------------------------------------------


def test_the_file_is_flushed_before_it_is_renamed_and_the_folder_after(tmp_path, new):
    disk = write(new, tmp_path / "job.json")
    assert CALLS == [*map(str, disk.calls)]
    assert (tmp_path, str(tmp_path / "job.json")) == (
        Path(disk.calls[0].path).parent,
        disk.calls[RENAMED].target,
    )


def test_the_file_is_its_owners_alone_from_its_first_moment(tmp_path, new):
    modes = []

    def look(real, handle, data):
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return real(handle, data)

    path = tmp_path / "job.json"
    path.write_bytes(b"{}")
    path.chmod(0o666)
    write(new, path, {CALLS.index("write file"): look})
    assert [0o600, 0o600] == [*modes, stat.S_IMODE(path.stat().st_mode)]


def test_a_system_that_takes_the_bytes_in_pieces_gets_them_all(tmp_path, new):
    write_at = CALLS.index("write file")
    disk = write(new, tmp_path / "job.json", {write_at + n: short for n in range(9)})
    assert [*map(str, disk.calls)].count("write file") > 9
    assert new.job == SavedState.read(tmp_path / "job.json").job


# --- a call that fails ----------------------------------------------------------------------------

# A file is made or not, and a handle is gone after close whatever it says.
NEVER = {("open file", "after"), ("close file", "before"), ("close folder", "before")}
HOWS = [
    (name, number, how)
    for number, name in enumerate(CALLS)
    for how in ("before", "after", "half")
    if (how != "half" or name == "write file") and (name, how) not in NEVER
]


@pytest.mark.parametrize("there", [True, False], ids=["over an old file", "anew"])
@pytest.mark.parametrize("error", sampled(ERRORS, ["disk full", "no right"]))
@pytest.mark.parametrize(("name", "number", "how"), HOWS)
def test_a_call_that_fails_leaves_the_old_file_or_the_new_one_and_says_which(
    name, number, how, error, there, tmp_path, old, new
):
    path = tmp_path / "job.json"
    if there:
        old.write(path)
    code, cure = ERRORS[error]
    fault = {"before": fails, "after": fails_late, "half": lambda n: torn(fails(n))}[how](code)
    handles = open_files()
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
        write(new, path, {number: fault})
    assert handles == open_files()
    done = number > RENAMED or (number, how) == (RENAMED, "after")
    assert [path] * (there or done) == list(tmp_path.iterdir())
    if there or done:
        assert (new if done else old).job == SavedState.read(path).job
    found = (
        "the new file is there, but a loss of power might bring the old file back"
        if done
        else "the file has not changed"
    )
    assert f"{os.strerror(code)}; {found}: {cure}" == caught.value.strerror
    assert (code, str(path)) == (caught.value.errno, caught.value.filename)
    assert type(OSError(code, "")) is type(caught.value)
    new.write(path)
    assert new.job == SavedState.read(path).job


def test_the_first_error_is_raised_where_the_cleanup_fails_too(tmp_path, old, new):
    path = tmp_path / "job.json"
    old.write(path)
    flush = CALLS.index("fsync file")
    with pytest.raises(OSError, match="Input/output error") as caught:
        write(new, path, {flush: fails(errno.EIO), flush + 2: fails(errno.EROFS)})
    assert str(path) == caught.value.filename
    assert old.job == SavedState.read(path).job


def test_an_interrupt_at_any_call_leaves_no_other_file(tmp_path, old, new):
    def interrupt(real, *args):
        if real.__name__ == "close":
            real(*args)
        raise KeyboardInterrupt

    path = tmp_path / "job.json"
    for number in range(len(CALLS)):
        old.write(path)
        handles = open_files()
        with pytest.raises(KeyboardInterrupt):
            write(new, path, {number: interrupt})
        assert (handles, [path]) == (open_files(), list(tmp_path.iterdir()))
        assert (new if number > RENAMED else old).job == SavedState.read(path).job


# --- a loss of power ------------------------------------------------------------------------------


def test_a_loss_of_power_after_any_call_leaves_the_old_file_or_the_new_one(tmp_path, old, new):
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "job.json"
    old.write(path)
    calls = write(new, path).calls
    was, after = path.with_name("was"), tmp_path / "after.json"
    was.write_bytes(old.to_bytes())
    found = []
    for count in range(len(calls) + 1):
        found.append(set())
        for files in left_by_power_loss(calls[:count]):
            after.write_bytes(files.get(str(path), was.read_bytes()))
            job = SavedState.read(after).job
            assert job in (old.job, new.job)
            found[-1].add("new" if job == new.job else "old")
    flushed = CALLS.index("fsync folder")
    assert [{"old"}] * (RENAMED + 1) + [{"old", "new"}] * (flushed - RENAMED) + [{"new"}] * 2 == (
        found
    )


# --- a process that is killed ---------------------------------------------------------------------


def test_a_process_killed_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path, old, new):
    path = tmp_path / "job.json"
    faults = {"before": dies, "after": dies_late, "half": torn(dies)}
    for number, name in enumerate(CALLS):
        for how in ("before", "after", *(["half"] if name == "write file" else [])):
            old.write(path)
            in_a_child(partial(write, new, path, {number: faults[how]}), ends=-signal.SIGKILL)
            done = (number, how == "after") >= (RENAMED, True)
            assert (new if done else old).job == SavedState.read(path).job
            left = [hidden for hidden in tmp_path.iterdir() if hidden != path]
            assert (not done and (number, how) != (0, "before")) is bool(left)
            for hidden in left:
                assert hidden.name.startswith(".job.json.")
                hidden.unlink()


# --- a symbolic link ------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["over an old file", "anew"])
@pytest.mark.parametrize(
    "links",
    [
        {"job.json": "/real/job.json"},
        {"job.json": "real/job.json"},
        {"job.json": "link", "link": "real/other", "real/other": "job.json"},
        {"job.json": "other/job.json", "other": "real"},
    ],
    ids=["absolute", "relative", "a chain", "through a linked folder"],
)
def test_a_link_is_followed_and_stays(links, there, tmp_path, monkeypatch, old, new):
    file = tmp_path / "real" / "job.json"
    file.parent.mkdir()
    if there:
        old.write(file)
    for name, target in links.items():
        target = f"{tmp_path}{target}" if target.startswith("/") else target
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "job.json", "job.json"):
        new.write(path)
        assert not file.is_symlink()
        assert new.job == SavedState.read(file).job == SavedState.read(path).job
    for name in links:
        assert (tmp_path / name).is_symlink()
    names = {*links, "real", "real/job.json"}
    assert names >= {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("links", "error", "cure"),
    [
        ({"job.json": "folder"}, IsADirectoryError, "a folder has this name; choose another"),
        ({"job.json": "job.json"}, OSError, "remove the symbolic link, which leads to itself"),
        ({"job.json": "b", "b": "job.json"}, OSError, "remove the symbolic link, which leads"),
        ({"job.json": "nowhere/file"}, FileNotFoundError, "create the file's folder first"),
    ],
)
def test_a_link_that_leads_to_no_file_is_reported_and_stays(links, error, cure, tmp_path):
    (tmp_path / "folder").mkdir()
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    with pytest.raises(error) as caught:
        write_atomically(tmp_path / "job.json", b"{}")
    assert f"; the file has not changed: {cure}" in caught.value.strerror
    assert {"folder", *links} == {path.name for path in tmp_path.iterdir()}
    assert links == {name: str((tmp_path / name).readlink()) for name in links}


# --- what the kernel itself refuses ---------------------------------------------------------------


def test_a_file_that_gets_too_big_for_the_kernel_is_no_file(tmp_path, old, new):
    path = tmp_path / "job.json"
    size = len(new.to_bytes())

    def writes(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"File too large; the file has not.* \(ulimit -f\)"):
            new.write(path)

    for limit in (0, 1, size // 2, size - 1):
        old.write(path)
        in_a_child(partial(writes, limit))
        assert old.job == SavedState.read(path).job
        assert [path] == list(tmp_path.iterdir())


def test_a_folder_without_write_permission_is_reported_with_the_cure(tmp_path, old, new):
    def writes():
        if not os.getuid():
            os.setresuid(-1, 65534, -1)  # nobody; root may write anywhere
        with pytest.raises(PermissionError, match="has not changed: let this user write in the"):
            new.write("job.json")

    old.write(tmp_path / "job.json")
    tmp_path.chmod(0o555)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        in_a_child(writes)
    assert old.job == SavedState.read(tmp_path / "job.json").job
    assert ["job.json"] == os.listdir(tmp_path)  # noqa: PTH208


@pytest.mark.parametrize(
    ("name", "error", "cure"),
    [
        ("nowhere/job.json", FileNotFoundError, "create the file's folder first"),
        ("file/job.json", NotADirectoryError, "create the file's folder first"),
        ("folder", IsADirectoryError, "a folder has this name; choose another name"),
        ("j" * 256, OSError, "choose a shorter name"),
    ],
)
def test_a_place_where_no_file_can_be_is_reported_with_the_cure(name, error, cure, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(error) as caught:
        write_atomically(tmp_path / name, b"{}")
    assert caught.value.strerror.endswith(f"; the file has not changed: {cure}")
    assert str(tmp_path / name) == caught.value.filename
    assert ["file", "folder"] == sorted(path.name for path in tmp_path.iterdir())
