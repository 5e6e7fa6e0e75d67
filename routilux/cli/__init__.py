"""The command `routilux` lists, shows, retries, cancels, exports and purges the jobs of a store.

It also copies a whole store, and checks it.

Invariants:
- Reading changes nothing, creates nothing, and needs none of the modules that the jobs need.
- An error is one line on stderr: what happened, where, what to do. The exit status is then 1, or 2
  for wrong usage.
- `--json` writes one object: {"format": "routilux-COMMAND/1", "store": …, "at_ns": …, …}: instants
  are UTC nanoseconds. A later version may add members; a member keeps its meaning.
  jobs            "counts" by status, "jobs" (job_id, flow_id, status, started_ns, updated_ns,
                  commits, retries, due_ns or null, error or null, task or null, reason or null,
                  held or null), "damaged" (job_id, reason). "task" is the task that failed or is
                  next: task_id, routine_id, slot, attempt, error or null, "more" pending tasks.
                  "reason" is that of a cancellation
  show            "job": what `JobState.deserialize` reads, with all commits; "held" or null
  retry, cancel   "job_id", "status", "seq" of the commit that the command made
  export          "job_id", "status", "seq" of the last commit, "file", "bytes"
  purge           "dry_run", "jobs" (job_id, flow_id, status, updated_ns: null if damaged),
                  "damaged" (job_id, reason)
  backup          "file", "bytes"
  check           "damaged": (path, reason) of each damage; $.JOB is a job
  "held" is null for a job that has stopped. Otherwise it has "owner" (null: none) and "free_in_ns":
  the time by the store's clock until any host may take the job (null: never, because the owner
  holds it without a lease).
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from routilux import codec
from routilux.cli.jobs import held, held_data, list_jobs, show_jobs
from routilux.cli.open_store import change_store, is_server, read_store, without_password
from routilux.cli.purge import add_arguments, purge_data, purge_jobs, show_purge
from routilux.cli.show import show_job
from routilux.cli.terminal import Page
from routilux.clocks.clock import SystemClock
from routilux.core.commits import JobStatus
from routilux.errors import RoutiluxError, SavedStateError, UnsupportedVersionError
from routilux.persist import admin
from routilux.persist.atomic_write import write_atomically
from routilux.persist.journal import Journal
from routilux.persist.store import BACKUP
from routilux.persist.versions import FORMAT, PACKAGE
from routilux.timeline import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from routilux.clocks.clock import Clock
    from routilux.core.state import JobState
    from routilux.persist.sqlite import SqliteStore
    from routilux.persist.store import Hold, JobStore

__all__ = ["main"]

_INTERRUPTED: Final = 130  # the exit status of SIGINT in a shell
_PIPE_BROKE: Final = 141  # that of SIGPIPE
_NEAREST: Final = 3


def main(argv: Sequence[str] | None = None, *, clock: Clock | None = None) -> int:
    """Run the command line `argv`, and return the exit status of the process.

    `argv=None` means `sys.argv[1:]`; `clock=None` means the system's clock.
    """
    options = _parser().parse_args(argv)
    options.shown = without_password(options.store)
    options.clock = SystemClock() if clock is None else clock
    now = options.clock.now_ns()
    try:
        if sys.stdout is None:
            raise RoutiluxError("stdout is closed; run the command with an open stdout")
        with codec.foreign_types():
            page = Page(sys.stdout)
            status: int = options.run(options, page, now)
        page.flush()
    except BrokenPipeError:
        _discard_stdout()
        return _PIPE_BROKE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (RoutiluxError, OSError, sqlite3.Error) as error:
        _complain(_line_of(error))
        return 1
    return status


# --- the commands -------------------------------------------------------------------------------


def _jobs(options: argparse.Namespace, page: Page, now: int) -> int:
    found = read_store(
        options.store,
        lambda store: list_jobs(store, options.status, options.flow, options.limit, now),
        options.clock,
    )
    if options.json:
        _write_json(page, options, now, found.data())
    else:
        show_jobs(page, found, now)
    return _report_damaged(page, options, found.damaged)


def _report_damaged(
    page: Page, options: argparse.Namespace, damaged: Mapping[str, SavedStateError]
) -> int:
    page.flush()
    for job_id, error in damaged.items():
        _complain(_damaged(f"job {job_id} in {options.shown}", error))
    return 1 if damaged else 0


def _show(options: argparse.Namespace, page: Page, now: int) -> int:
    if options.json and (options.last, options.routine) != (None, None):
        raise RoutiluxError("--json writes the whole job; leave out --last and --routine")

    def read(store: JobStore) -> tuple[JobState, Hold | None]:
        job = _read(store, options)
        return job, held(job, store.holders(job.job_id)[job.job_id])

    job, hold = read_store(options.store, read, options.clock)
    if options.json:
        _write_json(page, options, now, {"job": job.serialize(), "held": held_data(hold)})
    else:
        show_job(page, job, hold, now, last=options.last, routine=options.routine)
    return 0


def _retry(options: argparse.Namespace, page: Page, now: int) -> int:
    over, clock = options.take_over, options.clock
    job = _change(
        options, lambda store: admin.retry_job(store, options.job, take_over=over, clock=clock)
    )
    result = "is completed: no task was left to run"
    if job.status is JobStatus.PENDING:
        fresh = (job.commits[-1].detail or {})["retry_failed"]
        result = "has a fresh budget" if fresh else "is taken over"
        result = f"{result}; a worker of flow {job.flow_id} can resume it"
    return _report(options, page, now, job, f"{result} (commit {job.seq:,})")


def _cancel(options: argparse.Namespace, page: Page, now: int) -> int:
    reason, clock = options.reason, options.clock
    job = _change(options, lambda store: admin.cancel_job(store, options.job, reason, clock=clock))
    return _report(options, page, now, job, f"is cancelled (commit {job.seq:,})")


def _export(options: argparse.Namespace, page: Page, now: int) -> int:
    file = Path(options.file)
    job = read_store(options.store, lambda store: _read(store, options), options.clock)
    if file.is_dir():
        raise RoutiluxError(f"{file} is a folder; give the path of a file")
    if not file.parent.is_dir():
        raise RoutiluxError(f"the folder of {file} does not exist; create that folder first")
    if file.exists() and Path(options.store).exists() and file.samefile(options.store):
        raise RoutiluxError(f"{file} is the store itself; export to another file")
    data = f'{{"format":{codec.dumps(FORMAT)},"job_state":{job.dumps()}}}\n'.encode()
    write_atomically(file, data)
    result = f"as of commit {job.seq:,} is in {file}, {len(data):,} bytes"
    return _report(options, page, now, job, result, file=str(file), bytes=len(data))


def _purge(options: argparse.Namespace, page: Page, now: int) -> int:
    found = purge_jobs(options, now)
    if options.json:
        _write_json(page, options, now, purge_data(options, found))
    else:
        show_purge(page, options, found, now)
    return _report_damaged(page, options, found.damaged)


def _backup(options: argparse.Namespace, page: Page, now: int) -> int:
    file = Path(options.file)
    if is_server(options.store):
        raise RoutiluxError(f"{options.shown} is no file; copy it with pg_dump")

    def copy(store: JobStore) -> None:
        cast("SqliteStore", store).backup(file, replace=options.replace)

    read_store(options.store, copy, options.clock)
    size = file.stat().st_size
    if options.json:
        _write_json(page, options, now, {"file": str(file), "bytes": size})
    else:
        page.line(f"a copy of {options.shown} is in {file}, {size:,} bytes")
    return 0


def _check(options: argparse.Namespace, page: Page, now: int) -> int:
    found = read_store(options.store, lambda store: Journal(store).damage(), options.clock)
    if options.json:
        damaged = [{"path": error.path, "reason": error.reason} for error in found]
        _write_json(page, options, now, {"damaged": damaged})
    elif not found:
        page.line(f"no damage in {options.shown}")
    page.flush()
    for error in found:
        _complain(_damaged(options.shown, error))
    return 1 if found else 0


def _read(store: JobStore, options: argparse.Namespace) -> JobState:
    job_id: str = options.job
    known = store.job_ids()
    if job_id not in known:
        raise RoutiluxError(_unknown_job(options.shown, job_id, known))
    try:
        job = Journal(store).read(job_id, history=True)
    except SavedStateError as error:
        raise RoutiluxError(_damaged(f"job {job_id} in {options.shown}", error)) from None
    if job is None:
        raise RoutiluxError(_unknown_job(options.shown, job_id, known))
    return job


def _change(options: argparse.Namespace, change: Callable[[JobStore], JobState]) -> JobState:
    # Reads first: a damaged store or job is refused before anything is written to it.
    read_store(options.store, lambda store: _read(store, options), options.clock)
    return change_store(options.store, change, options.clock)


def _report(
    options: argparse.Namespace, page: Page, now: int, job: JobState, result: str, **facts: object
) -> int:
    if options.json:
        members = {"job_id": job.job_id, "status": job.status.value, "seq": job.seq, **facts}
        _write_json(page, options, now, members)
    else:
        page.line(f"job {job.job_id} {result}")
    return 0


# --- the output ---------------------------------------------------------------------------------


def _write_json(
    page: Page, options: argparse.Namespace, now: int, members: dict[str, object]
) -> None:
    head = {"format": f"routilux-{options.command}/1", "store": options.shown, "at_ns": now}
    page.text(json.dumps({**head, **members}, indent=1))


def _unknown_job(store: str, job_id: str, known: list[str]) -> str:
    near = [name for name in known if job_id and name.startswith(job_id)]
    near += [name for name in get_close_matches(job_id, known) if name not in near]
    if near:
        cure = f"did you mean {' or '.join(near[:_NEAREST])}?"
    elif known:
        cure = f"run `routilux jobs {store}` to list its jobs"
    else:
        cure = "the store holds no jobs; check its name"
    return f"there is no job {job_id} in {store}; {cure}"


def _damaged(what: str, error: SavedStateError) -> str:
    if isinstance(error, UnsupportedVersionError):
        return f"{what} can't be read: {error}"
    cure = "" if BACKUP in error.reason else f"; {BACKUP}"
    return f"{what} is damaged: {error}{cure}"


def _line_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        name = f"{error.filename}: " if error.filename is not None else ""
        return f"{name}{error.strerror}"
    return str(error)


def _complain(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"routilux: {plain(text)}\n")


def _discard_stdout() -> None:
    # The interpreter flushes stdout when it ends; this would fail again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


# --- the arguments ------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    description = "Read and change the jobs of a store. Times are UTC."
    parser = argparse.ArgumentParser(prog="routilux", description=description)
    parser.add_argument("--version", action="version", version=f"routilux {PACKAGE}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    jobs = _command(commands, "jobs", _jobs, "list the jobs, newest first")
    statuses = [status.value for status in JobStatus]
    jobs.add_argument(
        "--status",
        metavar="STATUS",
        choices=statuses,
        help=f"only the jobs of this status: {', '.join(statuses)}",
    )
    jobs.add_argument("--flow", metavar="FLOW", help="only the jobs of this flow")
    jobs.add_argument("--limit", metavar="N", type=_count, default=100, help="at most N jobs (100)")
    show = _command(commands, "show", _show, "show the status of a job, its commits and its tasks")
    show.add_argument("--last", metavar="N", type=_count, help="only the last N commits")
    show.add_argument("--routine", metavar="ROUTINE", help="only what concerns this routine")
    retry = _command(
        commands,
        "retry",
        _retry,
        "give a failed job a fresh retry budget",
        "The job then waits until a worker of its flow resumes it.",
    )
    retry.add_argument(
        "--take-over",
        action="store_true",
        help="also take a job from the process that holds it; use this if that process is gone. If"
        " it still runs, its commits are refused",
    )
    cancel = _command(
        commands,
        "cancel",
        _cancel,
        "cancel a job for good",
        "A host that runs the job can commit no more. A running handler ends, but its result is"
        " dropped.",
    )
    cancel.add_argument("--reason", metavar="TEXT", help="the reason, which `show` reports")
    export = _command(
        commands,
        "export",
        _export,
        "write a job to a file that another host can read",
        "The file holds the job with all its commits, but not its flow. In a program that has the"
        " flow: job = JobState.deserialize(json.load(open(FILE))['job_state']); flow.resume(job)."
        " The file is a copy and locks nothing.",
    )
    export.add_argument("file", metavar="FILE", help="the file to write; replaces an existing one")
    purge = _command(
        commands,
        "purge",
        _purge,
        "delete old jobs that have stopped",
        "A SQLite file keeps its size; later jobs use the room. A damaged job stays, unless"
        " --status damaged selects it.",
    )
    add_arguments(purge)
    backup = _command(
        commands,
        "backup",
        _backup,
        "copy a whole store to another file, also while it is in use",
        "To restore the copy, end all processes that use the store and move its files away: STORE,"
        " STORE-wal and STORE-shm. Then put the copy in their place.",
    )
    backup.add_argument("file", metavar="FILE", help="the file to write")
    backup.add_argument("--replace", action="store_true", help="replace an existing file")
    _command(
        commands,
        "check",
        _check,
        "read everything in a store, and report what is damaged",
        "The exit status is 1 if anything is damaged.",
    )
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
    if run not in (_jobs, _purge, _backup, _check):
        parser.add_argument("job", metavar="JOB", help="the whole id of a job")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)
