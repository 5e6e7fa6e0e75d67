"""The files of a real store under simulated hosts, and what a dead host leaves in them.

Invariants:
- A dead host leaves each file as another process reads it at that instant, while the store is open:
  nothing is committed, rolled back, flushed or closed after the host's death.
- The next host gets a copy in a folder of its own, and opens it anew.
- A store returns the rows that it acknowledged, byte for byte. It may have one more: the row
  whose write raised. It hands out no job that has ended, and refuses a row of an earlier owner
  after another host has claimed the job.
- A file is read through one handle, which is closed after the store: closing a second one would
  release the locks that the store has on it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import error_text
from routilux import (
    DuplicateJobError,
    FlowDefinitionError,
    JobStore,
    LeaseLostError,
    RoutiluxError,
)
from routilux.persist.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from pytest_routilux.sim.simulator.model import OpenStore, World
    from routilux import Commit, JobState

__all__ = ["Folder", "Image", "RealStoreFiles", "checked_store", "store_name"]

Image: TypeAlias = dict[str, tuple[bytes, ...]]
"""The files of a folder by their names, in pieces that successive images share."""

_PIECE: Final = 4096
_MEMORY: Final = Path("/dev/shm")
# Hosts die here, not machines; so no flush has to reach a disk.
_WHERE: Final = _MEMORY if os.access(_MEMORY, os.W_OK) else None
_NEEDED: Final = ("create", "append", "claim", "rows", "job_ids", "free_in")


class RealStoreFiles:
    """The files of a store, as they are `now` and as they were `after` each commit, from 0.

    `rows` are those that the store has acknowledged; `doubtful` is a commit whose write raised,
    with its row.
    """

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self.now: Image = {}
        self.after: list[Image] = []
        self.rows: list[bytes] = []
        self._owner = ""
        self._wrong: Finding | None = None
        self.doubtful: tuple[Commit, bytes] | None = None
        self._folder = Folder()
        self._store: JobStore | None = None

    def cut(self, commits: int) -> RealStoreFiles:
        """Return the files as they were after so many commits."""
        files = RealStoreFiles(self._open_store)
        files.after = self.after[: commits + 1]
        files.now = files.after[-1]
        files.rows = self.rows[:commits]
        files._owner = self._owner
        return files

    # --- a host ---------------------------------------------------------------------------------

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the store open for a host; the next host finds the files as they are at the end."""
        with self._copied() as store:
            self._store = store
            if not self.after:
                self.after.append(self._folder.image({}))
            try:
                yield
            finally:
                self.now = self._folder.image(self.now)
                self._store = None

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        """Write a commit as the host with the open store; raises what the store raises."""
        store = self._store
        assert store is not None
        watched = _Watched(store)
        try:
            Journal(cast("JobStore", watched)).write(job_id, commit, owner, claims=claims)
        except BaseException as error:
            self.doubtful = commit, watched.row
            if isinstance(error, DuplicateJobError | LeaseLostError):
                what = f"it refuses the only host that is alive: {error}"
                self._wrong = Finding("store-refuses", what, "store.owner", at_ns=commit.at_ns)
            raise
        self.rows.append(watched.row)
        self.now = self._folder.image(self.now)
        self.after.append(self.now)
        before, self._owner = self._owner, owner
        if claims and before != owner:
            with suppress(Exception):
                # The host before is not dead, only slow, and writes what it would have written.
                store.append(job_id, commit.seq, self.rows[-2], before, stopped=False)
                what = f"it takes commit {commit.seq} of a host that has lost the job to another"
                self._wrong = Finding("store-fence", what, "store.fence", at_ns=commit.at_ns)

    # --- what it left ---------------------------------------------------------------------------

    def stored_job(self, job_id: str, world: World) -> JobState | Finding | None:
        """Open the files anew and return the job in them, None where there is none.

        A commit whose write raised is in the world if it is in the files. Where the store does not
        keep to its laws, what is wrong is returned.
        """
        if self._wrong is not None:
            return self._wrong
        try:
            with self._copied() as store:
                rows = store.rows(job_id)
                if self.doubtful is not None and rows == [*self.rows, self.doubtful[1]]:
                    world.add_commit(self.doubtful[0])
                    self.rows.append(rows[-1])
                    self.after.append(self.now)
                self.doubtful = None
                if rows != self.rows:
                    return self._difference(rows, world)
                if not rows and store.job_ids():
                    what = f"job {job_id!r} is there without a commit: half of its first write"
                    return Finding("store-lost", what, "store.rows")
                job = Journal(store).read(job_id, history=True)
                if job is None or job.status.is_live or store.free_in([job.flow_id]) is None:
                    return job
        except (OSError, RoutiluxError) as error:
            what = f"what is left can't be read: {error_text(error)}"
            return Finding("store-unreadable", what, "store.read")
        what = f"the job is {job.status.value}, and whoever asks for work gets it"
        return Finding("store-frees", what, "store.free")

    def _difference(self, rows: list[bytes], world: World) -> Finding:
        for number, (kept, row) in enumerate(zip(self.rows, rows, strict=False), 1):
            if kept != row:
                what = f"commit {number} comes back with other bytes than were written"
                return Finding("store-changes", what, "store.rows")
        if len(rows) > len(self.rows):
            what = f"{len(rows)} commits come back, of which {len(self.rows)} were acknowledged"
        else:
            commit = world.commits[len(rows)]
            which = f"commit {commit.seq} ({commit.kind} of {commit.routine_id or 'the job'})"
            what = f"{which} was acknowledged, and is not in the files"
        return Finding("store-lost", what, "store.rows")

    @contextmanager
    def _copied(self) -> Iterator[JobStore]:
        with TemporaryDirectory(prefix="flow_sim-", dir=_WHERE) as name:
            self._folder = folder = Folder(Path(name))
            folder.fill(self.now)
            store = self._open_store(Path(name, "jobs.db"))
            try:
                yield store
            finally:
                close = getattr(store, "close", None)
                if close is not None:
                    close()
                folder.close()


class _Watched:
    """A store that is only written to; `row` is the last one that it got."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.row = b""

    def create(self, job_id: str, row: bytes, owner: str, *, flow_id: str, queued: bool) -> None:
        self.row = row
        self._store.create(job_id, row, owner, flow_id=flow_id, queued=queued)

    def append(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        self.row = row
        self._store.append(job_id, seq, row, owner, stopped=stopped)

    def claim(self, job_id: str, seq: int, row: bytes, owner: str, *, stopped: bool) -> None:
        self.row = row
        self._store.claim(job_id, seq, row, owner, stopped=stopped)


class Folder:
    """A folder whose files are read while a store has them open."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._handles: dict[tuple[int, int], BinaryIO] = {}

    def fill(self, image: Image) -> None:
        """Write the files of an image."""
        assert self._path is not None
        for name, pieces in image.items():
            file = self._path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"".join(pieces))

    def image(self, before: Image) -> Image:
        """Return what the files hold now; it shares with another image what is the same."""
        assert self._path is not None
        found: Image = {}
        for file in sorted(self._path.rglob("*")):
            if not file.is_file():
                continue
            name = str(file.relative_to(self._path))
            data = self._read(file)
            pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
            old = before.get(name, ())
            found[name] = tuple(
                was if was == piece else piece
                for was, piece in zip_longest(old[: len(pieces)], pieces)
            )
        return found

    def _read(self, file: Path) -> bytes:
        stat = file.stat()
        handle = self._handles.get((stat.st_dev, stat.st_ino))
        if handle is None:
            handle = self._handles[stat.st_dev, stat.st_ino] = file.open("rb", buffering=0)
        handle.seek(0)
        return handle.read()

    def close(self) -> None:
        """Close the handles; no store has the files open any more."""
        for handle in self._handles.values():
            handle.close()


def store_name(open_store: OpenStore) -> str:
    """Return the name of a function or class that opens a store."""
    return getattr(open_store, "__qualname__", type(open_store).__qualname__)


def checked_store(open_store: object) -> OpenStore:
    """Check that a function or class opens a store in a file, and return it.

    Raises `FlowDefinitionError` for anything else.
    """
    how = "give what opens a store in the file at a path, anew for each host, such as SqliteStore"
    if not callable(open_store):
        raise FlowDefinitionError(f"store={open_store!r} can't be called; {how}")
    with TemporaryDirectory(prefix="flow_sim-", dir=_WHERE) as name:
        try:
            store = open_store(Path(name, "jobs.db"))
        except Exception as error:
            why = error_text(error)
            raise FlowDefinitionError(
                f"store={open_store!r} opens no file ({why}); {how}"
            ) from error
        try:
            lacks = [name for name in _NEEDED if not callable(getattr(store, name, None))]
            if lacks:
                raise FlowDefinitionError(
                    f"store={open_store!r} opens {store!r}, which has no {lacks[0]}(); {how}"
                )
            if not any(Path(name).iterdir()):
                raise FlowDefinitionError(
                    f"store={open_store!r} makes no file at the given path, so the next host would"
                    f" find nothing; {how}"
                )
        finally:
            close = getattr(store, "close", None)
            if close is not None:
                close()
    return open_store
