"""The timeline of a simulated job, as rows of a table.

Invariants:
- The rows are the entries of the world's log, in its order. Times are virtual seconds since the
  job's start, with as many digits as the rows need.
- The crash is marked, and so is the first entry that the undisturbed run does not have.
- If there are too many rows, those near the marks stay, and `…` replaces the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_routilux.sim.oracle import canonical, masked
from pytest_routilux.sim.simulator.model import Call, Note
from pytest_routilux.text import padded, shorten, shown, width
from routilux import Commit, CommitKind, codec
from routilux.clocks.durations import seconds_text
from routilux.core.wire.writes import writes_text
from routilux.timeline import describe, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import CrashPoint, Finding, LogEntry, World
    from routilux.graph.messages import Writes

_HEAD: Final = ("t (s)", "host", "commit", "what happened")
_LONGEST_ID: Final = 16
_LONGEST_NAME: Final = 20
_LONGEST_PLACE: Final = 32
_OURS: Final = Path(__file__).parents[2]  # an error that a fault raises has no line of the user
_AFTER_WRITE: Final = ("after a write", "in a recovery", "by document", "no host")


@dataclass(slots=True)
class TimelineRow:
    """One row of a timeline."""

    at_ns: int
    host: int
    commit: str
    task: tuple[str, str] | None  # task id, routine id
    what: str
    where: str = ""  # file:line
    marked: bool = False
    call: Call | None = None


# --- what happened --------------------------------------------------------------------------------


def rows_of(
    world: World, root: Path, *, reference: Reference, finding: Finding, point: CrashPoint | None
) -> list[TimelineRow]:
    """Return the timeline of `world` as rows."""
    entries = _shown(world.log, point)
    crash = next((i for i, (_, _, what) in enumerate(entries) if isinstance(what, Note)), None)
    different = None
    if crash is not None:
        different = _first_difference(entries, reference, finding, crash)
    elif reference.disturbed is not None:
        different = _first_in_other_order(entries, reference.run.world.log)
    rows, points = [], _points_of(point)
    for index, (at_ns, host, what) in enumerate(entries):
        if isinstance(what, Commit):
            task = None if what.task_id is None else (what.task_id, what.routine_id or "")
            row = TimelineRow(at_ns, host, f"#{what.seq}", task, _of_commit(what))
            if what.error is not None and what.error.where is not None:
                row.where = where_text(what.error.where, root)
        elif isinstance(what, Call):
            row = TimelineRow(at_ns, host, "", (what.task_id, what.routine_id), "", call=what)
            row.where = where_text(what.where, root)
        elif isinstance(what, tuple):
            row = TimelineRow(at_ns, host, "", what[:2], f"attempt {what[2]} starts")
        else:
            before = entries[index - 1][2] if index else None
            text = _of_crash(what, before, next(points) if what.kind == "crash" else point)
            row = TimelineRow(at_ns, host, "--", None, text, marked=True)
        row.marked = row.marked or index == different
        rows.append(row)
    return rows


def _points_of(point: CrashPoint | None) -> Iterator[CrashPoint | None]:
    """Yield the point of each crash of a run."""
    if point is not None and point.first is not None:
        yield point.first
    yield from repeat(point)


def _first_in_other_order(entries: Sequence[LogEntry], fifo: Iterable[LogEntry]) -> int | None:
    """Return the first entry that comes at another place than in FIFO order."""
    tasks = (what.task_id for _, _, what in _shown(fifo, None) if isinstance(what, Commit))
    for index, (_, _, what) in enumerate(entries):
        if isinstance(what, Commit) and what.task_id != next(tasks, None):
            return index
    return None


def _shown(log: Iterable[LogEntry], point: CrashPoint | None) -> list[LogEntry]:
    # Without the starts of steps whose end follows.
    entries = list(log)
    ended = {
        (host, what.task_id, what.attempt)
        for _, host, what in entries
        if isinstance(what, Commit) and what.kind is not CommitKind.EFFECT
    }
    kept: list[LogEntry] = []
    points = _points_of(point)
    for entry in entries:
        _, host, what = entry
        if isinstance(what, Note) and what.kind == "crash":
            died = next(points)
            # The host died with the write, before the steps that start at the same instant.
            while died and died.kind in _AFTER_WRITE and kept and isinstance(kept[-1][2], tuple):
                kept.pop()
        if isinstance(what, tuple) and (host, what[0], what[2]) in ended:
            continue
        kept.append(entry)
    return kept


def _of_commit(commit: Commit) -> str:
    if commit.kind is not CommitKind.RESUMED:
        return describe(commit)
    count = (commit.detail or {}).get("recoveries")
    return f"resumed from #{commit.seq - 1}" + (f" (recovery {count})" if count else "")


def _of_crash(note: Note, before: object, point: CrashPoint | None) -> str:
    if point is None:
        return note.text
    last, following = f"#{point.commits}", f"#{point.commits + 1}"
    if note.kind == "ends":
        if point.kind == "store refuses":
            return f"CRASH  the store refuses {following}, and its host ends"
        if point.kind == "store does not answer":
            return f"CRASH  the store has {following} but does not answer, and its host ends"
    if note.kind != "crash":
        return note.text
    if point.kind == "in a wait":
        return f"CRASH  the wait is saved in {last}; the host's memory is lost"
    if point.kind == "by document":
        return f"CRASH  the next host gets only a document of {last}"
    if point.kind in _AFTER_WRITE:
        return f"CRASH  {last} is in the store, but the host dies before the store answers"
    if point.kind == "at an await":
        where = point.text.rpartition(": ")[2]
        return f"CRASH  {where}; nothing after it happened"
    if point.name.endswith(".before"):
        return "CRASH  before the effect"
    if isinstance(before, Call):
        return "CRASH  the effect happened, but no commit records it"
    if not point.commits:
        return "CRASH  #1 is not written: the store has no job"
    return f"CRASH  {following} is not written: no commit records how the attempt ended"


def where_text(where: str, root: Path) -> str:
    """Shorten the path of `where` (`file:line`); "" for this plugin's code."""
    file, colon, line = where.rpartition(":")
    path = Path(file)
    if path.is_relative_to(_OURS):
        return ""
    if path.is_relative_to(root):
        path = path.relative_to(root)
    elif len(path.parts) > 2:
        path = Path("…", *path.parts[-2:])
    return shorten(f"{path}{colon}{line}", _LONGEST_PLACE, "end")


# --- the first difference -------------------------------------------------------------------------


def _first_difference(
    entries: Sequence[LogEntry], reference: Reference, finding: Finding, crash: int
) -> int | None:
    # The index of the first entry after the crash that the undisturbed run does not have.
    if finding.path.startswith("effects."):
        again = (i for i, entry in enumerate(entries) if i > crash and entry[2] is finding.call)
        return next(again, None)
    trie = reference.trie
    usual = {_trace(what, trie) for what in reference.run.durable}
    for index, (_, _, what) in enumerate(entries):
        if index <= crash or not isinstance(what, Commit) or what.task_id is None:
            continue
        if what.kind.ends_attempt and _trace(what, trie) not in usual:
            return index
    return None


def _trace(commit: Commit, trie: dict[str, object]) -> tuple[object, ...]:
    view = masked(
        {
            "emissions": {
                f"{commit.routine_id}.{emission.event}": [emission.payload]
                for emission in commit.emissions
            },
            "routines": {commit.routine_id: {"state": _saved(commit.state)}},
            "shared": _saved(commit.shared),
        },
        trie,
    )
    error = None if commit.error is None else commit.error.type
    return commit.task_id, commit.attempt, commit.kind, error, commit.delay_ns, canonical(view)


def _saved(writes: Writes | None) -> object:
    return None if writes is None else codec.loads(writes_text(writes, "$"), untag=False)


# --- as a table -----------------------------------------------------------------------------------


def timeline_table(rows: Sequence[TimelineRow], most: int, cells: int) -> list[str]:
    """Return the timeline as a table of at most `most` lines."""
    chosen = _chosen(rows, most - 1)
    if not chosen:
        return []
    times = _times([rows[i].at_ns for i in chosen], rows[0].at_ns)
    wide = max(5, *map(len, times))
    deep = max(6, *(len(rows[i].commit) for i in chosen))
    tasks = [row.task for row in (rows[i] for i in chosen) if row.task and row.call is None]
    ids = max((min(width(plain(task)), _LONGEST_ID) for task, _ in tasks), default=0)
    names = max((min(width(plain(name)), _LONGEST_NAME) for _, name in tasks), default=0)
    found = [f"    {_HEAD[0]:<{wide}}   {_HEAD[1]:<4} {_HEAD[2]:<{deep}}  {_HEAD[3]}"]
    last = -1
    owner: str | None = None
    for time, index in zip(times, chosen, strict=True):
        row = rows[index]
        if index > last + 1:
            found.append("    …")
        last = index
        mark = ">" if row.marked else " "
        head = f"  {mark} {time:<{wide}}   h{row.host:<3} {row.commit:<{deep}}  "
        found.append(head + _body(row, ids, names, cells - len(head), owner))
        owner = row.task[0] if row.task else None
    if last < len(rows) - 1:
        found.append("    …")
    return found


def _body(row: TimelineRow, ids: int, names: int, cells: int, owner: str | None) -> str:
    if row.task is None:
        text = row.what
    elif row.call is not None:
        same = owner == row.task[0]
        head = "  " if same else f"{padded(shorten(row.task[0], _LONGEST_ID, 'end'), ids)}  "
        call = str(row.call)
        room = cells - width(head) - width(row.where) - 17
        wide = max(8, room - width(plain(call)))
        if row.call.error is None:
            tail = shown(row.call.result, wide)
        else:
            tail = shorten(f"raises {row.call.error}", wide)
        call = shorten(call, max(8, room - width(tail)))
        text = f"{head}effect #{row.call.number}  {call} -> {tail}"
    else:
        task, name = shorten(row.task[0], ids, "end"), shorten(row.task[1], names, "both")
        text = f"{padded(task, ids)}  {padded(name, names)}  {row.what}"
    room = cells - width(row.where) - 2 if row.where else cells
    return shorten(text, room) + (f"  {row.where}" if row.where else "")


def _times(instants: Sequence[int], start: int) -> list[str]:
    lengths = [at - start for at in instants]
    places = next((p for p in (3, 6) if all(n % 10 ** (9 - p) == 0 for n in lengths)), 9)
    return [seconds_text(length, places) for length in lengths]


def _chosen(rows: Sequence[TimelineRow], most: int) -> list[int]:
    # The indexes of the marked rows and of those near them; a gap takes a line, too.
    size = len(rows)
    marks = [i for i, row in enumerate(rows) if row.marked] or [size - 1]
    distances = {i: min(abs(i - mark) for mark in marks) for i in range(size)}
    if rows:
        distances[size - 1] = min(distances[size - 1], 2)  # how the job ended
    chosen: set[int] = set()
    for index in sorted(distances, key=lambda i: (distances[i], i)):
        more = chosen | {index}
        gaps = sum(b - a > 1 for a, b in pairwise([-1, *sorted(more), size]))
        if len(more) + gaps <= most:
            chosen = more
    return sorted(chosen)
