"""The text of a failure: what is wrong, the smallest cause, what differs, when, why, and the fix.

Laws:
- Its parts come in one order, in plain words and the user's names, in at most 25 lines of 100
  cells. Where there is too much, the timeline gives way first; no part is left out.
- Only what differs is marked `>`; what is the same is said in one line.
- How much was tried is always said, and last comes the command that makes it happen again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.cells import cut, cut_middle, padded, plain, width, wrapped
from pytest_routilux.choices import FIFO
from pytest_routilux.crash import recover, undisturbed
from pytest_routilux.evidence import repeated
from pytest_routilux.failures import seconds
from pytest_routilux.isolation import ENDS_PROCESS
from pytest_routilux.oracle import masked, unordered, view_of
from pytest_routilux.reasons import Asked, reason_of
from pytest_routilux.repro import broken_over_lines
from pytest_routilux.story import call_text, short_error, story, table
from routilux.values import same_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.lives import Case, CrashPoint, Disturbed
    from pytest_routilux.results import Examination, Reference
    from pytest_routilux.shrink import Cause
    from pytest_routilux.world import Finding, World

__all__ = ["explain", "explain_cause", "not_compared"]

_LINES: Final = 25
_CELLS: Final = 100
_LABEL: Final = 7  # `why    `
_WIDE_LABEL: Final = 16  # `smallest cause  `
_LONGEST_NAME: Final = 46
_LONGEST_KEY: Final = 18

Row = tuple[str, str, str]

_TITLES: Final = {
    "budget-reset": "RETRY BUDGET RESET ON RESUME",
    "always": "ALWAYS DOES NOT HOLD",
    "nondeterminism": "NOT DETERMINISTIC",
    "hidden-state": "STATE THAT NO SNAPSHOT KEEPS",
    "module-state": "STATE IN A MODULE",
    "hash-order": "ORDER OF A SET",
    "kills-process": "PROCESS KILLED",
    "stuck": "JOB STUCK",
}
_ELSEWHERE: Final = ("module-state",)
"""Kinds that show in another process only; told from the run in this one."""
_OF_VIEWS: Final = (
    "status-differs",
    "state-differs",
    "shared-differs",
    "outputs-differ",
    "emissions-differ",
)
_HEADS: Final = {
    "nondeterminism": ("once", "and once again"),
    "hash-order": ("in one process", "in another"),
    "module-state": ("undisturbed", "in a new process"),
    "hidden-state": ("before", "after"),
}


@dataclass(frozen=True, slots=True)
class _Room:
    """How many lines a part may take at most, where the story can have `story`."""

    cause: int
    rows: int
    why: int
    fix: int
    tried: int
    repro: int
    story: int


_ROOMS: Final = (
    _Room(cause=2, rows=5, why=4, fix=5, tried=2, repro=4, story=8),
    _Room(cause=2, rows=4, why=3, fix=4, tried=2, repro=4, story=7),
    _Room(cause=2, rows=3, why=3, fix=4, tried=1, repro=4, story=6),
    _Room(cause=1, rows=2, why=2, fix=3, tried=1, repro=4, story=5),
    _Room(cause=1, rows=2, why=2, fix=2, tried=1, repro=3, story=0),
)


def explain_cause(
    cause: Cause, case: Case, start_ns: int, *, repro: str | None, root: Path | None = None
) -> str:
    """Return the text for the smallest cause of a failure, which is run once more to be told."""
    faults = tuple(case.faults[number - 1] for number in cause.faults)
    known = cause.examination.reference
    run, disturbed = known.run, None
    if cause.finding.kind == "module-state":
        disturbed = cause.examination.apart
    elif cause.finding.kind not in ENDS_PROCESS:
        run = undisturbed(replace(case, faults=faults), start_ns, FIFO, told=True)
        disturbed = None if cause.point is None else recover(run, cause.point, told=True)
    told = replace(cause.examination, reference=replace(known, run=run))
    shrunk = None if cause.text is None else f"{cause.text}, {cause.runs} runs"
    return explain(
        told,
        cause.point,
        cause.finding,
        disturbed,
        repro=repro,
        shrunk=shrunk,
        faults=faults,
        root=root,
    )


def explain(
    examination: Examination,
    point: CrashPoint | None,
    finding: Finding,
    disturbed: Disturbed | None,
    *,
    repro: str | None,
    shrunk: str | None = None,
    faults: Sequence[object] = (),
    root: Path | None = None,
) -> str:
    """Return the text of a failure.

    Without `point` and `disturbed` it shows in a run that nothing disturbs. `repro` is a command,
    `shrunk` what the cause was before it shrank, and how many runs that took. `faults` are those
    that it needs. Paths are shown as seen from `root`, by default the working directory.
    """
    root = Path.cwd() if root is None else root
    known = examination.reference
    same = [p for p, f in examination.failures if f.signature == finding.signature]
    only = frozenset(p.kind for p in same)
    asked = Asked(finding, known, disturbed, point, root, only)
    world = known.run.world if disturbed is None else disturbed.world
    lines = story(world, root, known=known, finding=finding, point=point)
    if finding.kind in _ELSEWHERE and disturbed is not None:
        # What the other process did after that is in the rows alone.
        crash = next((i for i, line in enumerate(lines) if line.marked), len(lines))
        lines = lines[: crash + 2]
    reason = reason_of(asked)
    for room in _ROOMS:
        body = [
            "",
            *_cause(point, faults, shrunk, room.cause),
            *_compared(known, finding, disturbed, room.rows),
            None,
            *_labelled("why", reason.why, room.why),
            *_labelled("fix", reason.fix, room.fix),
            *_labelled("tried", _tried(examination, finding), room.tried),
            *_repro(repro, room.repro),
        ]
        left = _LINES - len(body)  # the head of the text, and a blank line around the story
        if left - 2 >= min(room.story, len(lines) + 1):
            break
    place = body.index(None)
    body[place : place + 1] = ["", *table(lines, left - 2, _CELLS), ""]
    text = [str(line) for line in body]
    text.insert(0, _headline(known, finding, disturbed, max(map(width, text))))
    return "\n".join(line.rstrip() for line in text)


# --- what is wrong, and by what -------------------------------------------------------------------


def _headline(known: Reference, finding: Finding, disturbed: Disturbed | None, widest: int) -> str:
    title = _TITLES.get(finding.kind, finding.kind.upper().replace("-", " "))
    kind = f"[{cut(finding.kind, 30)}]"
    room = _CELLS - width(kind) - width(title) - 6
    text = f"{title}: {cut(_problem(known, finding, disturbed, room), room)}"
    edge = max(width(text) + 4 + width(kind), min(widest, _CELLS))
    return padded(text, edge - width(kind)) + kind


def _problem(known: Reference, finding: Finding, disturbed: Disturbed | None, cells: int) -> str:
    """Return the finding in one line: what is so with the crash, and how it is undisturbed."""
    what = " ".join(finding.what.split())
    if finding.kind in ("effect-repeated", "key-unstable", "effect-lost"):
        world = known.run.world if disturbed is None else disturbed.world
        call, was, again = repeated(known, world, finding)
        if call is not None:
            tail = f" ran {len(again)}x"
            unstable = finding.kind == "key-unstable"
            tail += " under other keys" if unstable else f", undisturbed run {was}x"
            return f"{call_text(call, cells - len(tail))}{tail}"
    if disturbed is None or disturbed.life.job is None:
        return what
    if finding.kind in ("attempts-differ", "budget-reset") and finding.routine is not None:
        before = _attempts(known.view, finding.routine)
        after = _attempts(view_of(disturbed.life.job, disturbed.world), finding.routine)
        if before != after:
            return f"{finding.routine} attempted {after}x, undisturbed run {before}x"
    if finding.kind == "module-state" and finding.routine is not None:
        name = finding.path.partition(".")[2]
        head = f"{cut_middle(finding.routine, 30)} keeps progress in "
        return head + cut_middle(name, max(10, cells - width(head)))
    if finding.kind in _OF_VIEWS and finding.rows:
        name, before, after = finding.rows[0]
        tail = f" is {cut(after, 20)}, undisturbed run {cut(before, 20)}"
        name = (
            "the job"
            if name == "status"
            else name.removeprefix("outputs ").removeprefix("emissions ").removeprefix("tasks ")
        )
        return cut_middle(name, cells - width(tail)) + tail
    return what


def _attempts(view: dict[str, Any], routine: str) -> object:
    return view["routines"].get(routine, {}).get("attempts") if view else None


def _cause(
    point: CrashPoint | None, faults: Sequence[object], shrunk: str | None, most: int
) -> list[str]:
    if point is None:
        happens = "0 crashes"
    elif point.kind.startswith("store"):
        happens = "1 write that the store fails"
    else:
        happens = "2 crashes" if point.kind == "in a recovery" else "1 crash"
    counted = "".join(f" + {fault!r}" for fault in faults) or ", 0 faults"
    text = cut(f"{happens}{counted}, FIFO order", _CELLS - _WIDE_LABEL)
    lines = [text]
    if shrunk:
        tail = cut(f"(shrunk from {shrunk})", _CELLS - _WIDE_LABEL)
        whole = f"{text}    {tail}"
        lines = [whole] if width(whole) <= _CELLS - _WIDE_LABEL else [text, tail]
    found = [f"{'smallest cause' if i == 0 else '':<16}{line}" for i, line in enumerate(lines)]
    if point is not None:
        told = wrapped(plain(point.text), _CELLS - _WIDE_LABEL, most)
        found += [f"{'crash point' if i == 0 else '':<16}{line}" for i, line in enumerate(told)]
    return [*found, ""]


# --- what differs ---------------------------------------------------------------------------------


def _compared(
    known: Reference, finding: Finding, disturbed: Disturbed | None, most: int
) -> list[str]:
    rows = list(finding.rows)
    equal: list[str] = []
    if disturbed is not None and disturbed.life.job is not None and known.view:
        other = view_of(disturbed.life.job, disturbed.world)
        if finding.path.startswith("effects."):
            rows = _effect_rows(known, finding, disturbed.world)
            more = known.expected.compare(other)
            rows += [] if more is None else more.rows
        rows = [_told(row, known, disturbed) for row in rows]
        equal = [] if finding.kind in _ELSEWHERE else _equal(known, other)
    if not rows and not equal:
        return []
    usual = ("undisturbed", "with this crash") if disturbed is not None else ("first", "then")
    heads = _HEADS.get(finding.kind, usual)
    left = f"{len(rows) - most + 1} more" if len(rows) > most else ""
    if left:
        rows = rows[: most - 1]
    named = [cut_middle(name, _LONGEST_NAME) for name, _, _ in rows]
    names = max([10, *map(width, named)])
    most_of_value = (_CELLS - names - 9) // 2
    firsts = [cut_middle(first, most_of_value) for _, first, _ in rows]
    column = max([width(heads[0]), *map(width, firsts)])
    found = [f"    {'':<{names}}  {padded(heads[0], column)}   {heads[1]}"] if rows else []
    for name, first, (_, _, second) in zip(named, firsts, rows, strict=True):
        head = f"  > {padded(name, names)}  {padded(first, column)}   "
        found.append(head + cut_middle(second, _CELLS - width(head)))
    if left:
        found.append(f"  > … {left}")
    if equal:
        found.append(cut(f"    {padded('equal', names)}  {', '.join(equal)}", _CELLS))
    return found


def _effect_rows(known: Reference, finding: Finding, world: World) -> list[Row]:
    call, was, again = repeated(known, world, finding)
    if call is None:
        return list(finding.rows)
    keys = ", ".join(
        "none" if call.key is None else cut_middle(str(call.key), _LONGEST_KEY) for call in again
    )
    shown = f"   keys: {keys}" if again else ""
    return [(call_text(call, _LONGEST_NAME), f"x{was}", f"x{len(again)}{shown}")]


def _told(row: Row, known: Reference, disturbed: Disturbed) -> Row:
    name, first, second = row
    if name == "error":
        return name, short_error(first), short_error(second)
    routine, _, what = name.rpartition(" ")
    if what != "attempts":
        return row
    was = _waits(known.run.world, routine)
    is_ = _waits(disturbed.world, routine)
    if not was and not is_:
        return row
    return name, f"{first}, waits {was or 'none'}", f"{second}, waits {is_ or 'none'}"


def _waits(world: World, routine: str) -> str:
    # `|` stands where one host ended and another went on.
    told: list[str] = []
    last = None
    for _, host, what in world.log:
        delay = getattr(what, "delay_ns", None)
        if delay is None or getattr(what, "routine_id", None) != routine:
            continue
        told += ["|"] * (last not in (None, host))
        told.append(seconds(delay))
        last = host
    return " ".join(told)


def _equal(known: Reference, other: dict[str, Any]) -> list[str]:
    """Return the parts of two views that are the same, by their names."""
    a, b = masked(known.view, known.trie), masked(other, known.trie)
    a, b = unordered(a), unordered(b)
    parts = [
        ("status", a["status"], b["status"]),
        *([("error", a["error"], b["error"])] if a["error"] else []),
        ("outputs", a["outputs"], b["outputs"]),
        ("shared", a["shared"], b["shared"]),
        ("routine states", _routines(a, "status", "state"), _routines(b, "status", "state")),
        ("attempts", _routines(a, "attempts", "retries"), _routines(b, "attempts", "retries")),
        ("emissions", a["emissions"], b["emissions"]),
        ("effects", a["effects"], b["effects"]),
    ]
    return [name for name, x, y in parts if (x or y) and same_value(x, y)]


def _routines(view: dict[str, Any], *parts: str) -> object:
    return {name: [state[p] for p in parts] for name, state in view["routines"].items()}


# --- why, what was tried, how to see it again -----------------------------------------------------


def _labelled(label: str, sentences: Sequence[str], most: int) -> list[str]:
    found: list[str] = []
    for sentence in sentences:
        if len(found) < most:
            found += wrapped(" ".join(sentence.split()), _CELLS - _LABEL, most - len(found))
    return [f"{label if i == 0 else '':<{_LABEL}}{line}" for i, line in enumerate(found)]


def _tried(examination: Examination, finding: Finding) -> list[str]:
    coverage = examination.coverage
    planned, done = coverage.planned.total(), coverage.executed.total()
    if not planned:
        runs = f"{coverage.runs} runs" if coverage.runs != 1 else "1 run"
        text = (
            f"{runs}, {coverage.seconds:.2f} s; no crash yet: it shows where nothing is disturbed"
        )
        return [text, *coverage.notes]
    failing = [f for _, f in examination.failures]
    same = sum(f.signature == finding.signature for f in failing)
    if len(failing) == 1:
        fail = "1 point fails"
    elif same == len(failing):
        fail = f"{same} points fail, {'both' if same == 2 else 'all'} in this way"
    else:
        fail = f"{len(failing)} points fail, {same} of them in this way"
    text = (
        f"{done} of {planned} crash points x 1 schedule, {coverage.word}, {coverage.seconds:.2f} s;"
        f" {fail}"
    )
    return [text, *not_compared(examination.reference), *coverage.notes]


def not_compared(known: Reference) -> list[str]:
    """Return what no crash could show, since undisturbed runs differ there among themselves."""
    places = dict.fromkeys(
        ".".join(step for step in path[1:] or path if step != "*") for path in sorted(known.mask)
    )
    if not places:
        return []
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    shown = ", ".join(cut_middle(place, 24) for place in [*places][:3])
    return [f"not compared, since it varies without a crash: {shown}{more}"]


def _repro(command: str | None, most: int) -> list[str]:
    if command is None:
        return []
    lines = broken_over_lines(command, _CELLS, most, _LABEL)
    return [f"{'repro':<{_LABEL}}{lines[0]}", *lines[1:]]
