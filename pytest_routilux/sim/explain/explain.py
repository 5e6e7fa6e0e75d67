"""Writes the report on a failure of a simulation.

Invariants:
- The parts have one order and one layout, by the width of the terminal, 80 to 100 columns. The
  finding, its smallest cause, what differs, why, and the fix come before the timeline.
- The limits below keep a text at about 25 lines. The timeline gets the lines that are left.
- Only lines that differ are marked `>`; equal parts share one line.
- The text always says how much was tried. The command that repeats the failure comes last and is
  never wrapped or shortened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.explain.causes import Failure, Reason, reason_of
from pytest_routilux.sim.explain.order_causes import order_reason, order_text
from pytest_routilux.sim.explain.timeline import rows_of, timeline_table
from pytest_routilux.sim.isolation.kept_values import KINDS
from pytest_routilux.sim.oracle import masked, unordered, view_of
from pytest_routilux.sim.orders.races import ORDER_KINDS
from pytest_routilux.sim.other_hosts import OF_HOSTS
from pytest_routilux.sim.simulator.scheduler import Tape
from pytest_routilux.text import count, listed, padded, shorten, width, wrapped
from routilux import Commit
from routilux.codec.equality import same_value
from routilux.timeline import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.results import Exploration, Reference
    from pytest_routilux.sim.shrink import Cause
    from pytest_routilux.sim.simulator.model import Case, Disturbed, Finding

_COLUMNS: Final = (80, 100)

_LINES: Final = 25  # or a few more where every part is long
_LEAST_TIMELINE: Final = 6
_MOST_ROWS: Final = 4
_LABEL: Final = 7  # `why    `

_TITLES: Final = {
    "budget-reset": "RETRY BUDGET RESET ON RESUME",
    "always": "ALWAYS DOES NOT HOLD",
    "nondeterminism": "NOT DETERMINISTIC",
    "hidden-state": "STATE THAT NO SNAPSHOT KEEPS",
    "module-state": "STATE IN A MODULE",
    "hash-order": "ORDER OF A SET",
    "hash-value": "HASH OF A VALUE",
    "instance-state": "STATE ON THE INSTANCE",
    "closure-state": "STATE IN A CLOSURE",
    "default-state": "STATE IN A DEFAULT",
    "cache-state": "STATE IN A CACHE",
    "generator-state": "STATE IN A GENERATOR",
    "next-job": "THE NEXT JOB DIFFERS",
    "zone": "DEPENDS ON THE TIME ZONE",
    "host-name": "DEPENDS ON THE HOST NAME",
    "process-id": "DEPENDS ON THE PROCESS ID",
    "environment": "DEPENDS ON THE ENVIRONMENT",
    "other-host": "DEPENDS ON THE HOST",
    "repeat-differs": "A SECOND RUN DIFFERS",
    "kills-process": "PROCESS KILLED",
    "raises-in-order": "FAILS IN SOME ORDERS",
    "stuck": "JOB STUCK",
}
_ELSEWHERE: Final = ("module-state",)
"""Kinds that show only in another process, which is compared with the run in this one."""
_HEADS: Final = {
    **dict.fromkeys(OF_HOSTS, ("on the first host", "on another host")),
    "nondeterminism": ("once", "and once again"),
    **dict.fromkeys([*KINDS.values(), "next-job"], ("the first job", "the next one")),
    "hash-order": ("in one process", "in another"),
    "hash-value": ("in one process", "in another"),
    "repeat-differs": ("first run", "second run"),
    "module-state": ("undisturbed", "in a new process"),
    "key-reused": ("one call", "another call"),
    "hidden-state": ("before", "after"),
    "lost-update": ("one at a time", "in this order"),
    "race": ("one at a time", "in this order"),
    "depends-on-order": ("in FIFO order", "in this order"),
    "raises-in-order": ("in FIFO order", "in this order"),
}


def explain_cause(
    cause: Cause, case: Case, columns: int, *, repro: str | None, root: Path | None = None
) -> str:
    """Return the report on the smallest cause of a failure.

    `columns` is the terminal's width; `repro` is a command. Files are shown relative to `root`.
    """
    least, most = _COLUMNS
    columns = min(max(columns, least), most)
    root = Path.cwd() if root is None else root
    exploration, finding = cause.exploration, cause.finding
    reference, disturbed = exploration.reference, exploration.disturbed.get(finding.signature)
    disturbed = disturbed or reference.disturbed
    point = None if disturbed is None else disturbed.point
    failure = Failure(finding, reference, disturbed, root)
    if finding.kind in ORDER_KINDS:
        reason = Reason(*order_reason(finding, reference, disturbed, failure.at))
    else:
        reason = reason_of(failure)
    above = [
        "",
        *_cause(cause, case, disturbed, columns),
        *_compared(reference, finding, disturbed, columns),
        "",
        *_labelled("why", reason.why.split("\n"), 4, columns),
        *_labelled("fix", reason.fix.split("\n"), 6, columns),
        "",
    ]
    below = [
        *_labelled("tried", _tried(exploration, finding), 2, columns),
    ]
    if repro is not None:
        below.append(f"{'repro':<{_LABEL}}{plain(repro)}")
    world = reference.run.world if disturbed is None else disturbed.world
    rows = rows_of(world, root, reference=reference, finding=finding, point=point)
    if finding.kind in _ELSEWHERE and disturbed is not None:
        # What the other process did later is in the rows above alone.
        crash = next((i for i, row in enumerate(rows) if row.marked), len(rows))
        rows = rows[: crash + 2]
    left = max(_LEAST_TIMELINE, _LINES - 1 - len(above) - len(below))
    body = [*above, *timeline_table(rows, left, columns), *below]
    text = [_headline(finding, disturbed, max(map(width, body)), columns), *body]
    return "\n".join(line.rstrip() for line in text)


# --- the problem and its smallest cause -----------------------------------------------------------


def _headline(finding: Finding, disturbed: Disturbed | None, widest: int, columns: int) -> str:
    title = _TITLES.get(finding.kind, finding.kind.upper().replace("-", " "))
    kind = f"[{shorten(finding.kind, 30)}]"
    room = columns - width(kind) - width(title) - 6
    problem = _problem(finding, disturbed)
    if finding.call is not None:
        tail = problem.removeprefix(str(finding.call))
        problem = shorten(str(finding.call), max(8, room - width(tail))) + tail
    text = f"{title}: {shorten(problem, room, 'both')}"
    edge = max(width(text) + 4 + width(kind), min(widest, columns))
    return padded(text, edge - width(kind)) + kind


def _problem(finding: Finding, disturbed: Disturbed | None) -> str:
    # The finding in one line, with the crash and undisturbed.
    if finding.kind in OF_HOSTS:
        return finding.what.partition(": ")[0]
    if disturbed is not None and disturbed.host.job is not None:
        if finding.kind == "module-state" and finding.routine is not None:
            return f"{finding.routine} keeps progress in {finding.path.partition('.')[2]}"
        if finding.kind.endswith(("-differ", "-differs")) and finding.rows:
            name, before, after = finding.rows[0]
            return f"{name}: {shorten(after, 20)}, undisturbed run {shorten(before, 20)}"
    return " ".join(finding.what.split())


def _cause(cause: Cause, case: Case, disturbed: Disturbed | None, columns: int) -> list[str]:
    room = columns - 16
    point = None if disturbed is None else disturbed.point
    if disturbed is None:
        happens = "0 crashes (the undisturbed run shows it)"
    elif point is None:
        happens = "0 crashes"
    elif point.kind.startswith("store"):
        happens = "1 failed write of the store"
    else:
        happens = count(point.crashes, "crash", "crashes")
    counted = "".join(f" + {case.faults[n - 1]!r}" for n in cause.faults) or ", 0 faults"
    lines = wrapped(f"{happens}{counted}, {_order(cause, disturbed)}", room, 2)
    if cause.text is not None:
        tail = shorten(f"(shrunk from {cause.text}, {count(cause.runs, 'run')})", room)
        whole = f"{lines[-1]}    {tail}"
        lines = [*lines[:-1], whole] if width(whole) <= room else [*lines, tail]
    found = [f"{'smallest cause' if i == 0 else '':<16}{line}" for i, line in enumerate(lines)]
    if point is not None and point.first is not None:
        found += _crash_line("crash points", point.first.text, room)
        found += _crash_line("", f"then {point.text}", room)
    elif point is not None:
        found += _crash_line("crash point", point.text, room)
    return [*found, ""]


def _crash_line(label: str, text: str, room: int) -> list[str]:
    lines = wrapped(plain(text), room, 2)
    return [f"{label if i == 0 else '':<16}{line}" for i, line in enumerate(lines)]


def _order(cause: Cause, disturbed: Disturbed | None) -> str:
    order = cause.order
    if not isinstance(order, Tape) or disturbed is None:
        return "FIFO order"
    entries = [what for _, _, what in disturbed.world.log if isinstance(what, Commit)]
    routines = {task.task_id: task.routine_id for one in entries for task in one.tasks}
    text = order_text(order.changes, routines) or "FIFO order"
    return f"one task at a time: {text}" if order.serial else text


# --- what differs ---------------------------------------------------------------------------------


def _compared(
    reference: Reference, finding: Finding, disturbed: Disturbed | None, columns: int
) -> list[str]:
    longest_name = columns * 46 // 100
    rows = list(finding.rows)
    equal: list[str] = []
    if disturbed is not None and disturbed.host.job is not None and reference.view:
        other = view_of(disturbed.host.job, disturbed.world)
        if finding.path.startswith("effects."):
            more = reference.expected.compare(other)
            rows += [] if more is None else more.rows
        apart = (*_ELSEWHERE, *ORDER_KINDS)
        equal = [] if finding.kind in apart else _equal(reference, other)
    if not rows and not equal:
        return []
    usual = ("undisturbed", "with this crash") if disturbed is not None else ("first", "then")
    heads = _HEADS.get(finding.kind, usual)
    left = len(rows) - _MOST_ROWS + 1
    if left > 1:
        rows = rows[: _MOST_ROWS - 1]
    named = [shorten(name, longest_name, "both") for name, _, _ in rows]
    names = max([10, *map(width, named)])
    most_of_value = (columns - names - 9) // 2
    firsts = [shorten(first, most_of_value, "both") for _, first, _ in rows]
    column = max([width(heads[0]), *map(width, firsts)])
    found = [f"    {'':<{names}}  {padded(heads[0], column)}   {heads[1]}"] if rows else []
    for name, first, (_, _, second) in zip(named, firsts, rows, strict=True):
        head = f"  > {padded(name, names)}  {padded(first, column)}   "
        found.append(head + shorten(second, columns - width(head), "both"))
    if left > 1:
        found.append(f"  > … {left} more")
    if equal:
        found.append(shorten(f"    {padded('equal', names)}  {', '.join(equal)}", columns))
    return found


def _equal(reference: Reference, other: dict[str, Any]) -> list[str]:
    # The names of the parts that are the same in both views.
    a, b = masked(reference.view, reference.trie), masked(other, reference.trie)
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


# --- labelled lines -------------------------------------------------------------------------------


def _labelled(label: str, texts: Sequence[str], most: int, columns: int) -> list[str]:
    found: list[str] = []
    for text in texts:
        if len(found) < most:
            found += wrapped(" ".join(text.split()), columns - _LABEL, most - len(found))
    return [f"{label if i == 0 else '':<{_LABEL}}{line}" for i, line in enumerate(found)]


def _tried(exploration: Exploration, finding: Finding) -> list[str]:
    coverage = exploration.coverage
    planned, done = coverage.planned.total(), coverage.executed.total()
    if not planned and finding.kind in ORDER_KINDS:
        text = (
            f"{count(coverage.orders, 'order')}, {count(coverage.runs, 'run')},"
            f" {coverage.seconds:.2f} s; no crash is needed"
        )
        return [text, "not seen: what handlers do to globals and files, between their effects"]
    if not planned:
        text = (
            f"{count(coverage.runs, 'run')}, {coverage.seconds:.2f} s, no crash: the undisturbed"
            " run already fails"
        )
        return [text, *coverage.notes]
    failing = [f for _, f in exploration.failures]
    same = sum(f.signature == finding.signature for f in failing)
    many = "all" if same == len(failing) else str(same)
    fail = f"{count(len(failing), 'failure')}, {many} of this kind"
    text = (
        f"{done} of {planned} crash points x {_schedules(exploration)}, {coverage.word},"
        f" {coverage.seconds:.2f} s; {fail}"
    )
    return [text, *not_compared(exploration.reference), *coverage.notes]


def _schedules(exploration: Exploration) -> str:
    orders = exploration.coverage.orders
    crashed = 1 if exploration.reference.other is None else 2
    text = count(crashed, "schedule")
    return text if orders <= crashed else f"{text}, {orders} schedules without a crash"


def not_compared(reference: Reference) -> list[str]:
    """Return a line about the parts that vary without a crash."""
    places = dict.fromkeys(
        ".".join(step for step in path[1:] or path if step != "*")
        for path in sorted(reference.mask)
    )
    if not places:
        return []
    shown = listed([shorten(place, 24, "both") for place in places], 3)
    return [f"not compared, since it varies without a crash: {shown}"]
