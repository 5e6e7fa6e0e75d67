"""Passes a real store's files from a dead host to the next host.

Invariants:
- A dead host leaves each file as another process reads it at that instant, while the store is open:
  nothing is committed, rolled back, flushed or closed after the host's death.
- The next host gets a copy in its own folder, and opens it anew.
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
from typing import TYPE_CHECKING, Final, TypeAlias

from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import error_text
from routilux import (
    DuplicateJobError,
    FlowDefinitionError,
    JobStore,
    LeaseLostError,
    RoutiluxError,
)
from routilux.persist import rows as saved_rows
from routilux.persist.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from pytest_routilux.sim.simulator.model import OpenStore, World
    from routilux import Commit, JobState

Image: TypeAlias = dict[str, tuple[bytes, ...]]
"""The contents of the files in a folder, by name, in pieces that successive images share."""

_PIECE: Final = 4096
_MEMORY: Final = Path("/dev/shm")
# Hosts die here, not machines, so no flush has to reach a disk.
_WHERE: Final = _MEMORY if os.access(_MEMORY, os.W_OK) else None
_NEEDED: Final = ("create", "append", "claim", "rows", "job_ids", "free_in")


class RealStoreFiles:
    """The contents of a real store's files during a simulation.

    `now` is the current contents, `after[n]` the contents after n commits. `rows` are the rows that
    the store has acknowledged; `doubtful` is the commit whose write raised, with its row.
    """

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self.now: Image = {}
        self.after: list[Image] = []
        self.rows: list[bytes] = []
        self._owner = ""
        self._finding: Finding | None = None
        self.doubtful: tuple[Commit, bytes] | None = None
        self._folder = Folder()
        self._store: JobStore | None = None

    def cut(self, commits: int) -> RealStoreFiles:
        """Return the store's files as they were after the first `commits` commits."""
        files = RealStoreFiles(self._open_store)
        files.after = self.after[: commits + 1]
        files.now = files.after[-1]
        files.rows = self.rows[:commits]
        files._owner = self._owner
        return files

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the store open while one host runs."""
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
        """Write a commit to the open store."""
        store = self._store
        assert store is not None
        row = saved_rows.dump(
            job_id, commit, first=claims or commit.seq == 1
        )  # as the journal makes it
        try:
            Journal(store).write(job_id, commit, owner, claims=claims)
        except BaseException as error:
            self.doubtful = commit, row
            if isinstance(error, DuplicateJobError | LeaseLostError):
                what = f"the store refuses the only host that is alive: {error}"
                self._finding = Finding("store-refuses", what, "store.owner")
            raise
        self.rows.append(row)
        self.now = self._folder.image(self.now)
        self.after.append(self.now)
        before, self._owner = self._owner, owner
        if claims and before != owner:
            with suppress(Exception):
                # The host before may be slow, not dead, and write a row now.
                store.append(job_id, commit.seq, self.rows[-2], before, status="running")
                what = f"the store accepts commit {commit.seq} of a host that has lost the job"
                self._finding = Finding("store-fence", what, "store.fence")

    def stored_job(self, job_id: str, world: World) -> JobState | Finding | None:
        """Return the job in the files; None if there is none.

        Adds the commit whose write raised to the world if it is in the files. Returns a finding if
        the store has broken a rule.
        """
        if self._finding is not None:
            return self._finding
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
                    what = f"job {job_id!r} exists without a commit: its first write was half done"
                    return Finding("store-lost", what, "store.rows")
                job = Journal(store).read(job_id, history=True)
                if job is None or job.status.is_live or store.free_in([job.flow_id]) is None:
                    return job
        except (OSError, RoutiluxError) as error:
            what = f"the files that a dead host left can't be read: {error_text(error)}"
            return Finding("store-unreadable", what, "store.read")
        what = f"the job is {job.status.value}, but a worker that asks for work gets the job"
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
            what = f"{which} was acknowledged, but is not in the files"
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
                _close(store)
                folder.close()


class Folder:
    """A folder with a store's files."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._handles: dict[tuple[int, int], BinaryIO] = {}

    def fill(self, image: Image) -> None:
        """Write the files of an image to the folder."""
        assert self._path is not None
        for name, pieces in image.items():
            file = self._path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"".join(pieces))

    def image(self, before: Image) -> Image:
        """Return the current contents of the files."""
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
                was if was == piece else piece  # equal pieces are shared
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
        """Close the file handles after the store is closed."""
        for handle in self._handles.values():
            handle.close()


def store_name(open_store: OpenStore) -> str:
    """Return the name of the function or class `open_store`."""
    return getattr(open_store, "__qualname__", type(open_store).__qualname__)


def checked_store(open_store: object) -> OpenStore:
    """Return `open_store` if it opens a store in a file.

    Raises `FlowDefinitionError` if it does not.
    """
    how = "give a function that takes a path and opens a store there, such as SqliteStore"
    if not callable(open_store):
        raise FlowDefinitionError(f"store={open_store!r} can't be called; {how}")
    with TemporaryDirectory(prefix="flow_sim-", dir=_WHERE) as name:
        try:
            store = open_store(Path(name, "jobs.db"))
        except Exception as error:
            why = f"can't open a store ({error_text(error)})"
            raise FlowDefinitionError(f"store={open_store!r} {why}; {how}") from error
        missing = [name for name in _NEEDED if not callable(getattr(store, name, None))]
        empty = not any(Path(name).iterdir())
        _close(store)
    if missing:
        raise FlowDefinitionError(
            f"store={open_store!r} opens {store!r}, which has no {missing[0]}(); {how}"
        )
    if empty:
        raise FlowDefinitionError(
            f"store={open_store!r} makes no file at the given path, so the next host would find"
            f" nothing; {how}"
        )
    return open_store


def _close(store: object) -> None:
    close = getattr(store, "close", None)
    if close is not None:
        close()
