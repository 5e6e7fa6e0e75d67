"""A real store under simulated hosts: what it keeps in files, and what of that a dead host leaves.

Laws:
- What a host leaves is each file as another process finds it at that instant, taken while the store
  is open: nothing is committed, rolled back, flushed or closed for the dead.
- The next host gets a copy in a folder of its own, and opens it anew.
- A store gives back the rows that it acknowledged, byte for byte. It may have one more: the row
  whose write raised. It hands out no job that rests, and takes no row from a host that was believed
  dead once another one has claimed the job.
- A file is looked at through one handle, which is closed after the store: to close a second one
  would release the locks that the store has on it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeAlias

from pytest_routilux.oracle import Finding
from routilux import FlowDefinitionError, JobStatus, JobStore, RoutiluxError, codec
from routilux.persist.store import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from pytest_routilux.world import World
    from routilux import Commit, JobState

__all__ = ["Files", "Folder", "Image", "Opens", "checked_store", "store_name"]

Opens: TypeAlias = Callable[[Path], JobStore]
"""Opens a store in the file at a path, which may be there already; such as `SqliteStore`."""
Image: TypeAlias = dict[str, tuple[bytes, ...]]
"""The files of a folder by their names, in pieces that successive images share."""

_PIECE: Final = 4096
_MEMORY: Final = Path("/dev/shm")
# Hosts die here, not machines; so no flush has to reach a disk.
_WHERE: Final = _MEMORY if _MEMORY.is_dir() else None
_LIVE: Final = (JobStatus.PENDING, JobStatus.RUNNING)
_NEEDED: Final = ("create", "append", "claim", "rows", "job_ids", "free_in")


class Files:
    """The files of a store, as they are now and as they were after each commit.

    `rows` are those that the store has acknowledged.
    """

    def __init__(self, opens: Opens) -> None:
        self._opens = opens
        self._now: Image = {}
        self._after: list[Image] = []
        self.rows: list[bytes] = []
        self._owner = ""
        self._doubtful: tuple[Commit, bytes] | None = None
        self._folder = Folder()
        self._store: JobStore | None = None

    def cut(self, commits: int) -> Files:
        """Return the files as they stood after so many commits."""
        files = Files(self._opens)
        files._after = self._after[: commits + 1]
        files._now = files._after[-1]
        files.rows = self.rows[:commits]
        files._owner = self._owner
        return files

    # --- a host ---------------------------------------------------------------------------------

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let a host have the store open; what it leaves at the end is what the next one finds."""
        with self._copied() as store:
            self._store = store
            if not self._after:
                self._after.append(self._folder.image({}))
            try:
                yield
            finally:
                self._now = self._folder.image(self._now)
                self._store = None

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> Finding | None:
        """Write a commit as the host does that has the store open; raises what the store raises.

        Returns what is wrong if the store still takes a row of the host before.
        """
        store = self._store
        assert store is not None
        row = codec.dumps(commit.serialize()).encode()
        self._doubtful = commit, row
        Journal(store).write(job_id, commit, owner, claims=claims)
        self._doubtful = None
        self.rows.append(row)
        self._now = self._folder.image(self._now)
        self._after.append(self._now)
        before, self._owner = self._owner, owner
        if not claims or before == owner:
            return None
        with suppress(Exception):
            store.append(job_id, commit.seq, self.rows[-2], before, rests=False)
            what = (
                f"the store takes commit {commit.seq} of a host that was believed dead and writes"
                " on, although another one has claimed the job with that commit"
            )
            return Finding("store-fence", what, "store.fence", at_ns=commit.at_ns)
        return None

    # --- what it left ---------------------------------------------------------------------------

    def given_back(self, job_id: str, world: World) -> JobState | Finding | None:
        """Open the files anew and return the job in them, None where there is none.

        A commit whose write raised is in the world if it is in the files. Where the store gives
        back anything else than what it has acknowledged, what is wrong is returned.
        """
        try:
            with self._copied() as store:
                rows = store.rows(job_id)
                if self._doubtful is not None and rows == [*self.rows, self._doubtful[1]]:
                    world.committed(self._doubtful[0])
                    self.rows.append(rows[-1])
                    self._after.append(self._now)
                self._doubtful = None
                wrong = self._difference(rows, world)
                if wrong is None and not rows and store.job_ids():
                    wrong = f"holds job {job_id!r} without a commit: its first write is half there"
                if wrong is not None:
                    return Finding("store-lost", f"the store {wrong}", "store.rows")
                job = Journal(store).read(job_id, history=True)
                if job is None or job.status in _LIVE or store.free_in([job.flow_id]) is None:
                    return job
        except (OSError, RoutiluxError) as error:
            what = f"the store can't be read after the crash: {type(error).__name__}: {error}"
            return Finding("store-unreadable", what, "store.read")
        what = f"the job rests, it is {job.status.value}; the store gives it to any host that asks"
        return Finding("store-frees", what, "store.free")

    def _difference(self, rows: list[bytes], world: World) -> str | None:
        if rows == self.rows:
            return None
        for number, (kept, row) in enumerate(zip_longest(self.rows, rows), 1):
            if kept is None:
                return f"gives back {len(rows)} commits, and has acknowledged {len(self.rows)}"
            if row is None:
                commit = world.commits[number - 1]
                which = f"commit {number} ({commit.kind} of {commit.routine_id or 'the job'})"
                return f"acknowledged {which} and does not have it after the crash"
            if kept != row:
                return f"gives back other bytes for commit {number} than were written"
        raise AssertionError

    @contextmanager
    def _copied(self) -> Iterator[JobStore]:
        with TemporaryDirectory(prefix="flow_sim-", dir=_WHERE) as name:
            self._folder = folder = Folder(Path(name))
            folder.fill(self._now)
            store = self._opens(Path(name, "jobs.db"))
            try:
                yield store
            finally:
                close = getattr(store, "close", None)
                if close is not None:
                    close()
                folder.close()


class Folder:
    """A folder whose files are looked at while somebody has them open."""

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


def store_name(opens: Opens) -> str:
    """Return what opens a store by its name in the code."""
    return getattr(opens, "__qualname__", type(opens).__qualname__)


def checked_store(opens: object) -> Opens:
    """Return what opens a store in a file, once it has been seen to do so.

    Raises `FlowDefinitionError` for anything else.
    """
    how = "give what opens a store in the file at a path, anew for each host, such as SqliteStore"
    if not callable(opens):
        raise FlowDefinitionError(f"store={opens!r} can't be called; {how}")
    with TemporaryDirectory(prefix="flow_sim-", dir=_WHERE) as name:
        try:
            store = opens(Path(name, "jobs.db"))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise FlowDefinitionError(f"store={opens!r} opens no file ({why}); {how}") from error
        try:
            lacks = [name for name in _NEEDED if not callable(getattr(store, name, None))]
            if lacks:
                raise FlowDefinitionError(
                    f"store={opens!r} opens {store!r}, which has no {lacks[0]}(); {how}"
                )
            if not any(Path(name).iterdir()):
                raise FlowDefinitionError(
                    f"store={opens!r} makes no file at the path that it is given, so a host would"
                    f" leave nothing to the next; {how}"
                )
        finally:
            close = getattr(store, "close", None)
            if close is not None:
                close()
    return opens
