"""The command `routilux`: lists, shows, retries, cancels and exports the jobs of a store.

Invariants:
- Reading changes nothing, creates nothing, and needs none of the modules that the jobs need.
- An error is one line on stderr that names the culprit, the place and the cure; the exit status is
  1, or 2 for wrong usage.
- `--json` writes one object, {"format": "routilux-COMMAND/1", "store": …, "at_ns": …, …}: instants
  are UTC nanoseconds; members may be added, but keep their meaning. Its other members are
  jobs            "counts" by status, "jobs" (job_id, flow_id, status, started_ns, updated_ns,
                  commits, retries, due_ns or null, error or null, held or null), "damaged"
                  (job_id, reason)
  show            "job": what `JobState.deserialize` reads, with all commits; "held" or null
  retry, cancel   "job_id", "status", "seq" of the commit that the command made
  export          "job_id", "status", "seq" of the last commit, "file", "bytes"
  "held" is null for a job that is not active, else it has "owner" (null: none) and "free_in_ns":
  the time by the store's clock until any host may take the job (null: never, the owner holds it
  without a lease).
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from routilux import codec
from routilux.cli.jobs import held, held_data, listing, no_commits, show_jobs
from routilux.cli.open_store import changed, looked, shown
from routilux.cli.show import show_job
from routilux.cli.terminal import Page, plain
from routilux.clocks.clock import SystemClock
from routilux.core.commits import JobStatus
from routilux.errors import RoutiluxError, SavedStateError, UnsupportedVersionError
from routilux.persist import admin
from routilux.persist.atomic_write import write_atomically
from routilux.persist.journal import Journal
from routilux.persist.versions import FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routilux.clocks.clock import Clock
    from routilux.core.state import JobState
    from routilux.persist.store import Hold, JobStore

__all__ = ["main"]

_INTERRUPTED: Final = 130  # the status that a shell gives for SIGINT
_PIPE_BROKE: Final = 141  # and for SIGPIPE
_NEAREST: Final = 3


class _RefusedError(Exception):
    """The command can't be run; only the message is printed."""


def main(argv: Sequence[str] | None = None, *, clock: Clock | None = None) -> int:
    """Run a command and return its exit status; `clock` gives the time."""
    options = _parser().parse_args(argv)
    options.shown = shown(options.store)
    options.clock = SystemClock() if clock is None else clock
    now = options.clock.now_ns()
    try:
        if sys.stdout is None:
            raise _RefusedError("stdout is closed, so nothing can be told; open it")
        with codec.foreign_types():
            page = Page(sys.stdout)
            status: int = options.run(options, page, now)
        page.flush()
    except BrokenPipeError:
        _let_go_of_stdout()
        return _PIPE_BROKE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (_RefusedError, RoutiluxError, OSError, sqlite3.Error) as error:
        _complain(_line_of(error))
        return 1
    return status


# --- the commands -------------------------------------------------------------------------------


def _jobs(options: argparse.Namespace, page: Page, now: int) -> int:
    total, found = looked(
        options.store,
        lambda store: (len(store.job_ids()), listing(store, options.status, options.flow)),
        options.clock,
    )
    if options.json:
        _write_json(page, options, now, found.data(options.limit))
    else:
        show_jobs(page, found, total, options.limit, now)
    page.flush()
    for job_id, error in found.damaged.items():
        _complain(_damaged(options.shown, job_id, error))
    return 1 if found.damaged else 0


def _show(options: argparse.Namespace, page: Page, now: int) -> int:
    def look(store: JobStore) -> tuple[JobState, Hold | None]:
        job = _read(store, options)
        return job, held(job, store.holders(job.job_id)[job.job_id])

    job, hold = looked(options.store, look, options.clock)
    if options.json:
        _write_json(page, options, now, {"job": job.serialize(), "held": held_data(hold)})
    else:
        show_job(page, job, hold, now)
    return 0


def _retry(options: argparse.Namespace, page: Page, now: int) -> int:
    job = _change(
        options,
        lambda store: admin.retry(store, options.job, now, take_over=options.take_over),
    )
    fresh = (job.commits[-1].detail or {})["retry_failed"]
    left = "is completed: nothing was left to do"
    if job.status is JobStatus.PENDING:
        done = "has a fresh budget" if fresh else "is taken over"
        left = f"{done}; a worker of flow {job.flow_id} can take it up"
    return _tell_change(options, page, now, job, left)


def _cancel(options: argparse.Namespace, page: Page, now: int) -> int:
    job = _change(options, lambda store: admin.cancel(store, options.job, now, options.reason))
    return _tell_change(options, page, now, job, "is cancelled")


def _export(options: argparse.Namespace, page: Page, now: int) -> int:
    file = Path(options.file)
    job = looked(options.store, lambda store: _read(store, options), options.clock)
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else "would stand in a folder that is not there"
        raise _RefusedError(f"{file} {what}; name a file in a folder that is there")
    if file.exists() and Path(options.store).exists() and file.samefile(options.store):
        raise _RefusedError(f"{file} is the store itself; name another file")
    data = f'{{"format":{codec.dumps(FORMAT)},"job_state":{job.dumps()}}}\n'.encode()
    write_atomically(file, data)
    if options.json:
        facts = {"file": str(file), "bytes": len(data)}
        _write_json(page, options, now, {**_facts(job), **facts})
    else:
        page.line(f"job {job.job_id} as of commit {job.seq:,} is in {file}, {len(data):,} bytes")
    return 0


def _read(store: JobStore, options: argparse.Namespace) -> JobState:
    job_id: str = options.job
    known = store.job_ids()
    if job_id not in known:
        raise _RefusedError(_not_there(options.shown, job_id, known))
    try:
        job = Journal(store).read(job_id, history=True)
    except SavedStateError as error:
        raise _RefusedError(_damaged(options.shown, job_id, error)) from None
    if job is None:
        raise _RefusedError(_damaged(options.shown, job_id, no_commits(job_id)))
    return job


def _change(options: argparse.Namespace, change: Callable[[JobStore], JobState]) -> JobState:
    looked(
        options.store, lambda store: _read(store, options), options.clock
    )  # what is unsound is not written to
    return changed(options.store, change, options.clock)


def _tell_change(
    options: argparse.Namespace, page: Page, now: int, job: JobState, told: str
) -> int:
    if options.json:
        _write_json(page, options, now, _facts(job))
    else:
        page.line(f"job {job.job_id} {told} (commit {job.seq:,})")
    return 0


def _facts(job: JobState) -> dict[str, object]:
    return {"job_id": job.job_id, "status": job.status.value, "seq": job.seq}


# --- what is told -------------------------------------------------------------------------------


def _write_json(
    page: Page, options: argparse.Namespace, now: int, members: dict[str, object]
) -> None:
    head = {"format": f"routilux-{options.command}/1", "store": options.shown, "at_ns": now}
    page.text(json.dumps({**head, **members}, indent=1))


def _not_there(store: str, job_id: str, known: list[str]) -> str:
    near = [name for name in known if job_id and name.startswith(job_id)]
    near += [name for name in get_close_matches(job_id, known) if name not in near]
    if near:
        cure = f"did you mean {' or '.join(near[:_NEAREST])}?"
    elif known:
        cure = f"`routilux jobs {store}` lists those that are"
    else:
        cure = "it holds no jobs at all"
    return f"no job {job_id} is in {store}; {cure}"


def _damaged(store: str, job_id: str, error: SavedStateError) -> str:
    if isinstance(error, UnsupportedVersionError):
        return f"job {job_id} in {store} can't be read: {error}"
    return f"job {job_id} in {store} is damaged: {error}; restore the store from a copy"


def _line_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        name = f"{error.filename}: " if error.filename is not None else ""
        return f"{name}{error.strerror}"
    return str(error)


def _complain(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"routilux: {plain(text)}\n")


def _let_go_of_stdout() -> None:
    # Else the interpreter flushes it once more when it ends, and complains.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


# --- what can be asked --------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="routilux",
        description="Look into a store of jobs. Times are UTC; reading never changes the store.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    jobs = _command(commands, "jobs", _jobs, "list the jobs, the newest first")
    statuses = [status.value for status in JobStatus]
    jobs.add_argument(
        "--status",
        metavar="STATUS",
        choices=statuses,
        help=f"only the jobs of this status: {', '.join(statuses)}",
    )
    jobs.add_argument("--flow", metavar="FLOW", help="only the jobs of this flow")
    jobs.add_argument("--limit", metavar="N", type=_count, help="at most so many")
    _of_job(_command(commands, "show", _show, "tell what a job did, and what it waits for"))
    retry = _command(
        commands,
        "retry",
        _retry,
        "give a failed job a fresh retry budget",
        "The job then waits for a worker of its flow. The worker takes it up within moments;"
        " where none runs, nothing happens before one does.",
    )
    _of_job(retry)
    retry.add_argument(
        "--take-over",
        action="store_true",
        help="also a job that a process holds which is gone for good; if it is not, it can commit"
        " no more",
    )
    cancel = _command(
        commands,
        "cancel",
        _cancel,
        "end a job for good",
        "A host that runs the job can commit no more; a handler that it is in the middle of still"
        " runs to its end, and counts for nothing.",
    )
    _of_job(cancel)
    cancel.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the job later")
    export = _command(
        commands,
        "export",
        _export,
        "write a job to a file that another host can read",
        "A store does not hold flows, so the file holds the job alone, with all its commits. Where"
        " the flow is at hand: job = JobState.deserialize(json.load(open(FILE))['job_state']), then"
        " flow.resume(job). The file is a copy and locks nothing.",
    )
    _of_job(export)
    export.add_argument("file", metavar="FILE", help="is replaced if it is there")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace, Page, int], int],
    what: str,
    more: str = "",
) -> argparse.ArgumentParser:
    described = f"{what[0].upper()}{what[1:]}. {more}"
    parser = commands.add_parser(name, help=what, description=described)
    parser.set_defaults(run=run)
    parser.add_argument(
        "store",
        metavar="STORE",
        help="the path of a SQLite file, or postgresql://user@host/database",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    return parser


def _of_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the whole id of a job")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)
