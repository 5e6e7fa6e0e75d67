"""Reads saved jobs: of a document, of a folder of documents, or of a store.

Invariants:
- Reading changes nothing, and needs no class of the flow that saved the job.
- A file that can't be read raises the error of its place; nothing is skipped in silence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from routilux import CorruptStateError, FakeClock, FlowDefinitionError, JobState, codec
from routilux.cli.open_store import is_server, read_store, without_password
from routilux.codec.signature import DIGEST_BYTES, without_digest
from routilux.persist.journal import Journal
from routilux.persist.versions import loads_versioned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from routilux import JobStore

_SQLITE: Final = b"SQLite format 3\0"


def saved_jobs(source: object) -> Iterator[tuple[str, JobState]]:
    """Yield each saved job with the place of its file or store.

    `source` is the path of a document, of a folder with documents (`*.json`) and SQLite stores, of
    a SQLite store, the URL of a PostgreSQL database, or a `JobStore`.
    """
    if all(callable(getattr(source, name, None)) for name in ("rows", "job_ids")):
        yield from _jobs_of(cast("JobStore", source), type(source).__name__)
        return
    if isinstance(source, str) and is_server(source):
        yield from _stored(source)
        return
    if not isinstance(source, str | os.PathLike):
        raise FlowDefinitionError(
            f"replay() got {source!r}; give the path of a saved job, of a folder of saved jobs or"
            " of a store, or a JobStore"
        )
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_saved(file)]
        if not files:
            raise FlowDefinitionError(
                f"replay() found no saved job in {path}; a folder holds documents (*.json) or"
                " SQLite stores"
            )
    else:
        files = [path]
    for file in files:
        if _starts_as_sqlite(file):
            yield from _stored(os.fspath(file))
        else:
            yield os.fspath(file), _document(file)


def _is_saved(file: Path) -> bool:
    return file.suffix == ".json" or _starts_as_sqlite(file)


def _starts_as_sqlite(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_SQLITE)) == _SQLITE


def _document(file: Path) -> JobState:
    # Not SavedState.read, which makes the flow that was saved: its classes may be gone.
    with file.open("rb") as opened:
        data = opened.read(codec.MAX_BYTES + DIGEST_BYTES + 1)
    try:
        text = without_digest(data, None, verify=True)
        document: Any = loads_versioned(data if text is None else text)
        return JobState.load(document["job_state"], "$.job_state")
    except (LookupError, TypeError):
        raise CorruptStateError("$.job_state", f"is missing (in {file})") from None


def _stored(name: str) -> Iterator[tuple[str, JobState]]:
    def read(store: JobStore) -> list[tuple[str, JobState]]:
        return list(_jobs_of(store, without_password(name)))

    yield from read_store(name, read, FakeClock())


def _jobs_of(store: JobStore, place: str) -> Iterator[tuple[str, JobState]]:
    for job_id in store.job_ids():
        job = Journal(store).read(job_id, history=True)
        if job is not None:
            yield place, job
