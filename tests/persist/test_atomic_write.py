"""A disk that fails while a document is written leaves the old state or the new one."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from routilux import SavedState
from routilux.persist.atomic_write import write_atomically
from tests.persist.disk import (
    Disk,
    Fault,
    fails,
    fails_late,
    left_by_power_loss,
    short,
    torn,
)
from tests.persist.orders import at_retry, pipeline
from tests.soak import sampled

ROOT = Path(__file__).parents[2]
CALLS: Final = [
    "open file",
    "write file",
    "fsync file",
    "close file",
    "replace file",
    "open folder",
    "fsync folder",
    "close folder",
]
RENAMED: Final = CALLS.index("replace file")
ERRORS: Final = {
    "disk full": (errno.ENOSPC, "make room for it and write it again"),
    "quota": (errno.EDQUOT, "make room for it and write it again"),
    "too big": (
        errno.EFBIG,
        "raise the limit for the size of files (ulimit -f) and write it again",
    ),
    "disk broken": (errno.EIO, "its disk or share fails: write it to another one"),
    "read-only": (errno.EROFS, "let this user write in its folder, or write it elsewhere"),
    "no right": (errno.EACCES, "let this user write in its folder, or write it elsewhere"),
    "any other": (errno.EBUSY, "write it again"),
}


@pytest.fixture(scope="module")
def old() -> SavedState:
    return at_retry(pipeline(9), 2)


@pytest.fixture(scope="module")
def new() -> SavedState:
    return at_retry(pipeline(9), 4)


def write(saved: SavedState, path: Path, faults: dict[int, Fault] | None = None) -> Disk:
    with Disk(faults) as disk:
        saved.write(path)
    return disk


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208  # only their number


# --- the calls ------------------------------------------------------------------------------------


def test_the_file_is_flushed_before_it_is_renamed_and_the_folder_after(tmp_path, new):
    disk = write(new, tmp_path / "job.json")
    assert CALLS == disk.names
    assert (tmp_path, str(tmp_path / "job.json")) == (
        Path(disk.calls[0].path).parent,
        disk.calls[RENAMED].target,
    )


def test_the_file_is_its_owners_alone_from_its_first_moment(tmp_path, new):
    modes = []

    def look(real: Callable[..., int], handle: int, data: memoryview) -> int:
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
    assert disk.names.count("write file") > 9
    assert new.job == SavedState.read(tmp_path / "job.json").job


# --- a call that fails ----------------------------------------------------------------------------

# A file is made or not, and a handle is gone after close whatever it says.
NEVER: Final = {("open file", "after"), ("close file", "before"), ("close folder", "before")}
HOWS: Final = [
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
        "the file is the new one, but a loss of power might bring the old one back"
        if done
        else "the file has not changed"
    )
    assert f"{os.strerror(code)}; {found}: {cure}" == caught.value.strerror
    assert (code, str(path)) == (caught.value.errno, caught.value.filename)
    assert type(OSError(code, "")) is type(caught.value)


def test_the_faults_above_are_all_there_are(tmp_path, new):
    assert {number for _, number, _ in HOWS} == set(range(len(write(new, tmp_path / "a").names)))


def test_the_first_error_is_raised_where_the_cleanup_fails_too(tmp_path, old, new):
    path = tmp_path / "job.json"
    old.write(path)
    flush = CALLS.index("fsync file")
    with pytest.raises(OSError, match="Input/output error") as caught:
        write(new, path, {flush: fails(errno.EIO), flush + 2: fails(errno.EROFS)})
    assert str(path) == caught.value.filename
    assert old.job == SavedState.read(path).job


def test_an_interrupt_at_any_call_leaves_no_other_file(tmp_path, old, new):
    def interrupt(real: Callable[..., object], *args: object) -> None:
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


def test_a_document_whose_write_failed_can_be_written_again(tmp_path, old, new):
    path = tmp_path / "job.json"
    for number in range(len(CALLS)):
        old.write(path)
        fault = fails if number == 0 else fails_late
        with pytest.raises(OSError, match="No space"):
            write(new, path, {number: fault(errno.ENOSPC)})
        new.write(path)
        assert new.job == SavedState.read(path).job


# --- a loss of power ------------------------------------------------------------------------------


def test_a_loss_of_power_after_any_call_leaves_the_old_file_or_the_new_one(tmp_path, old, new):
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "job.json"
    old.write(path)
    calls = write(new, path).calls
    was, after = path.with_name("was"), tmp_path / "after.json"
    was.write_bytes(old.to_bytes())
    found: list[set[str]] = []
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

KILLED = """
import json, os, sys
from pathlib import Path
from routilux import SavedState
from tests.persist.disk import Disk, dies, dies_late, torn
from tests.persist.orders import at_retry, pipeline

old, new = at_retry(pipeline(9), 2), at_retry(pipeline(9), 4)
path = Path("job.json")
for number, name in enumerate(json.loads(sys.argv[1])):
    for how in ("before", "after", "half"):
        if how == "half" and name != "write file":
            continue
        old.write(path)
        child = os.fork()
        if not child:
            with Disk({number: {"before": dies, "after": dies_late, "half": torn(dies)}[how]}):
                new.write(path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        job = SavedState.read(path).job
        left = sorted(name for name in os.listdir() if name != "job.json")
        for hidden in left:
            os.unlink(hidden)
        which = "old" if job == old.job else "new" if job == new.job else "neither"
        print(json.dumps([number, how, -os.WTERMSIG(status), which, [n[:10] for n in left]]))
"""


def run(folder: Path, code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("", 0) == (done.stderr, done.returncode)
    return done.stdout.splitlines()


def test_a_process_killed_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path):
    lines = [json.loads(line) for line in run(tmp_path, KILLED, json.dumps(CALLS))]
    expected = []
    for number, name in enumerate(CALLS):
        for how in ("before", "after", *(["half"] if name == "write file" else [])):
            done = (number, how == "after") >= (RENAMED, True)
            begun = not done and (number, how) != (0, "before")
            left = [".job.json."] if begun else []
            expected.append([number, how, -9, "new" if done else "old", left])
    assert expected == lines


# --- what the kernel itself refuses ---------------------------------------------------------------

LIMITED = """
import os, resource
from pathlib import Path
from routilux import SavedState
from tests.persist.orders import at_retry, pipeline

path = Path("job.json")
old, new = at_retry(pipeline(9), 2), at_retry(pipeline(9), 4)
old.write(path)
size = len(new.to_bytes())
for limit in (0, 1, size // 2, size - 1, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        new.write(path)
        print("written")
    except OSError as error:
        print(error)
    assert (old if limit < size else new).job == SavedState.read(path).job
    assert ["job.json"] == os.listdir()
"""

FORBIDDEN = """
import os
from routilux import SavedState
from tests.persist.orders import at_retry, pipeline

old, new = at_retry(pipeline(9), 2), at_retry(pipeline(9), 4)
old.write("job.json")
os.chmod("job.json", 0o644)
os.chmod(".", 0o555)
if not os.getuid():
    os.setresuid(-1, 65534, -1)  # nobody; root may write anywhere
try:
    new.write("job.json")
except PermissionError as error:
    print(error)
assert old.job == SavedState.read("job.json").job
assert ["job.json"] == os.listdir()
"""


def test_a_file_that_gets_too_big_for_the_kernel_is_no_file(tmp_path):
    refused = (
        "[Errno 27] File too large; the file has not changed: raise the limit for the size of"
        " files (ulimit -f) and write it again: 'job.json'"
    )
    assert [*[refused] * 4, "written"] == run(tmp_path, LIMITED)


def test_a_folder_without_write_permission_is_reported_with_the_cure(tmp_path):
    refused = (
        "[Errno 13] Permission denied; the file has not changed: let this user write in its"
        " folder, or write it elsewhere: 'job.json'"
    )
    assert [refused] == run(tmp_path, FORBIDDEN)


@pytest.mark.parametrize(
    ("name", "error", "cure"),
    [
        ("nowhere/job.json", FileNotFoundError, "create its folder first"),
        ("file/job.json", NotADirectoryError, "create its folder first"),
        ("folder", IsADirectoryError, "a folder has this name; choose another one"),
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
