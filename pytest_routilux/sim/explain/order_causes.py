"""Finds why a result depends on the order of concurrent work, and suggests a fix.

Invariants:
- The lines of code are those that the run with the finding has executed.
- A race names the line that read and the line that wrote; a result that depends on order names the
  routine in which the tasks meet.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_routilux.sim.orders.accesses import recorded_accesses
from pytest_routilux.sim.recovery import run_in_order, run_undisturbed
from pytest_routilux.sim.simulator.scheduler import FIFO, FIFO_ORDER
from pytest_routilux.text import listed
from routilux import CommitKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.orders.accesses import Access
    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import Call, Disturbed, Finding
    from routilux import Commit

    At = Callable[[str | None], str]


class _Meeting(NamedTuple):
    """A key that several tasks use, and the lines that read and change it."""

    key: str
    reads: Access | None
    """The read of the same task, or of one that it comes from."""
    writes: Access
    other: Access | None
    """The use by another task."""


def order_reason(
    finding: Finding, reference: Reference, disturbed: Disturbed | None, at: At
) -> tuple[str, str]:
    """Return the cause of a finding, and the fix; `at` makes a code line of a file:line."""
    if finding.kind == "raises-in-order":
        failed = None if disturbed is None else _failed(disturbed.world.commits)
        # What the failed task misses is written in FIFO order alone.
        accesses = [*_accesses(reference, disturbed), *_accesses(reference, None)]
        return _raises(failed, accesses, at)
    meeting = _meeting(finding, _accesses(reference, disturbed))
    between = None if meeting is not None or disturbed is None else _between(disturbed.world.calls)
    if between is not None:
        return _check_then_act(*between, at)
    if finding.kind == "depends-on-order":
        return _depends(finding, meeting, disturbed, at)
    values = [value for row in finding.rows[:1] for value in row[1:]]
    number = finding.path.count(".") == 1 and all(_is_number(value or "") for value in values)
    return _race(meeting, at, number=number)


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "").isdigit()


def _failed(commits: Sequence[Commit]) -> Commit | None:
    """Return the last commit of a task that failed for good."""
    ends = [one for one in commits if one.kind is CommitKind.FAILED and one.error is not None]
    return ends[-1] if ends else None


def _raises(failed: Commit | None, accesses: Sequence[Access], at: At) -> tuple[str, str]:
    why = "the job fails only in this order: a handler meets a state that FIFO order never shows"
    fix = (
        "make the handler ready for each order of its inputs, or wait for all with a\n"
        "gather slot: define_slot(..., gather=True)"
    )
    if failed is None or failed.error is None or failed.routine_id is None:
        return why, fix
    who = failed.routine_id
    used = [one for one in accesses if one.task_id == failed.task_id and one.key is not None]
    for read in reversed(used):
        for write in accesses:
            same = (write.shared, write.key) == (read.shared, read.key)
            if same and write.how != "reads" and write.routine_id != who:
                key, writer = _key(write), write.routine_id
                why = (
                    f"{who} uses {key}{at(read.where)} and raises {failed.error.type};"
                    f" {writer} writes it{at(write.where)}, and no connection makes one of them"
                    " wait for the other"
                )
                fix = (
                    f"let {who} come after {writer}: connect them, or give {who} a gather slot"
                    f" (gather=True);\nor let {who} do without: {key[: key.index('[')]}"
                    f".get({write.key!r}, ...)"
                )
                return why, fix
    return f"{who} raises {failed.error.type}{at(failed.error.where)} only in this order", fix


def _depends(
    finding: Finding, meeting: _Meeting | None, disturbed: Disturbed | None, at: At
) -> tuple[str, str]:
    fix = (
        "wait for all with a gather slot (gather=True), which has the results in a fixed order;\n"
        "or decide by the values, not by arrival: min, max, sorted, math.fsum for floats.\n"
        "If each of these results is right, compare the rest: view=lambda outcome: ..."
    )
    if meeting is None:
        who = finding.routine or "a routine"
        why = f"one task at a time the result is another one, too: {who} takes what comes first"
        calls = [] if disturbed is None else disturbed.world.calls
        call = next((call for call in calls if call.routine_id == who), None)
        if call is not None:
            why += f", such as the answer of {call.effect}{at(call.where)}"
        return why, fix
    writes, reads, other, key = meeting.writes, meeting.reads, meeting.other, meeting.key
    who = writes.routine_id
    if writes.sums_floats and reads is None:
        why = (
            f"{who} adds floats to {key}{at(writes.where)}: each sum is rounded, so the total"
            " depends on the order"
        )
        return why, (
            "add up integers (cents) or Decimal; or collect the numbers with a gather slot\n"
            "(gather=True), and add them by math.fsum"
        )
    if other is not None and other.routine_id != who:
        why = (
            f"{other.routine_id} {other.how} {key}{at(other.where)}, and {who} {writes.how} it"
            f"{at(writes.where)}: the result depends on which of them comes first"
        )
        fix = (
            f"connect {other.routine_id} and {who}, so that one comes after the other; or let a"
            " gather slot\n(gather=True) wait for both; or decide by the values:"
            " ctx.shared.maximum, .minimum, .add.\n"
            "If each of these results is right, compare the rest: view=lambda outcome: ..."
        )
        return why, fix
    why = f"{who} makes {key} of a task and of those before it{at(writes.where)}"
    if reads is not None and reads.where != writes.where:
        why = f"{who} reads {key}{at(reads.where)} and {writes.how} it{at(writes.where)}"
    return f"{why}: its tasks come in another order, and so does the result", fix


def _race(meeting: _Meeting | None, at: At, *, number: bool) -> tuple[str, str]:
    if meeting is None:
        why = (
            "tasks that run at the same time change each other's result, through something that"
            " the job does not keep: an effect, an attribute, a global, a file"
        )
        return why, (
            "let one call both check and change, under a key that both share; or let one routine\n"
            "do it: its steps run one at a time"
        )
    key, writes, reads, other = meeting.key, meeting.writes, meeting.reads, meeting.other
    name = key.partition("[")[2].rstrip("]")
    between = ""
    if other is not None and other.how != "reads":
        between = f"; {other.routine_id} (task {other.task_id}) {other.how} it in between"
        between += "" if other.where == writes.where else at(other.where)
    if reads is None:
        why = f"{writes.routine_id} writes {key}{at(writes.where)} whatever another task wrote"
    elif reads.task_id == writes.task_id:
        why = (
            f"{reads.routine_id} reads {key}{at(reads.where)} and writes it{at(writes.where)}"
            f"{between or '; the tasks of other routines run in between'}"
        )
    else:
        why = (
            f"{reads.routine_id} reads {key}{at(reads.where)}, and {writes.routine_id} writes it"
            f"{at(writes.where)}, a step later{between}. The conflict check compares what one step"
            " reads and writes"
        )
    view = key[: key.index("[")]
    if number:
        fix = (
            f"read and write in one handler: self.{view}[{name}] += ...; a conflict then runs it\n"
            f"again, at no retry. Or use an accumulator: self.{view}.add({name}, amount)"
        )
    else:
        fix = (
            f"read and write in one handler: self.{view}[{name}] = f(self.{view}[{name}]);\n"
            "a conflict then runs it again, at no retry"
        )
    return why, fix


def _between(calls: Sequence[Call]) -> tuple[Call, Call, Call] | None:
    """Return two calls of one task, and a call of another task between them: the second one."""
    latest: dict[str, int] = {}
    found = None
    for number, call in enumerate(calls):
        first = latest.get(call.task_id)
        if first is not None and first + 1 < number:
            between = calls[first + 1 : number]
            changes = [other for other in between if not other.reads]
            found = calls[first], (changes or between)[-1], call
            if changes:
                return found
        latest[call.task_id] = number
    return found


def _check_then_act(check: Call, other: Call, act: Call, at: At) -> tuple[str, str]:
    why = (
        f"{check.routine_id} calls {check.effect}{at(check.where)} and then {act.effect}"
        f"{at(act.where)}; between the two, {other.routine_id} (task {other.task_id}) calls"
        f" {other.effect}{at(other.where)}: what the first call saw has changed"
    )
    fix = (
        f"let one call of the service both check and change, such as a conditional {act.effect};\n"
        "or run these calls one task at a time: in one routine with max_concurrency = 1"
    )
    return why, fix


def _accesses(reference: Reference, disturbed: Disturbed | None) -> Sequence[Access]:
    """Return the accesses of the run with the finding; without it of the run in FIFO order."""
    case, start_ns = reference.run.case, reference.run.world.log[0][0]
    order = FIFO_ORDER if disturbed is None else disturbed.order
    scheduler = order.scheduler()
    with suppress(Exception), recorded_accesses() as found:
        if scheduler is FIFO:
            run_undisturbed(case, start_ns)
        else:
            run_in_order(case, start_ns, scheduler, serial=order.serial)
    return found


def _meeting(finding: Finding, accesses: Sequence[Access]) -> _Meeting | None:
    """Return the use of a key by several tasks that explains a finding best."""
    shared = finding.path.startswith("shared")
    wanted = finding.path.partition(".")[2].partition(".")[0].partition("[")[0] if shared else None
    found: list[tuple[tuple[bool, bool, bool], _Meeting]] = []
    for number, access in enumerate(accesses):
        if access.how == "reads" or access.key is None:
            continue
        uses = [one for one in accesses if _same(one, access)]
        others = [
            one for one in uses if not _is_before(one, access) and not _is_before(access, one)
        ]
        if not others:
            continue
        reads = [
            one
            for place, one in enumerate(accesses)
            if one.how == "reads" and one.key is not None and _same(one, access)
            # What is added is read later, if at all.
            if _is_before(one, access)
            and (place < number or (access.how == "adds to" and one.task_id == access.task_id))
        ]
        if finding.kind in ("race", "lost-update"):  # a read of the step itself is checked
            reads.sort(key=lambda one: one.task_id != access.task_id)
        mine, theirs = access.routine_id, finding.routine
        other = max(
            others,
            key=lambda one: (
                one.routine_id == theirs != mine,
                one.routine_id != mine,
                one.how != "reads",
            ),
        )
        meeting = _Meeting(_key(access), reads[-1] if reads else None, access, other)
        fits = access.key == wanted or (not shared and theirs in (mine, other.routine_id))
        found.append(((fits, bool(reads), other.routine_id != access.routine_id), meeting))
    return max(reversed(found), key=lambda one: one[0])[1] if found else None


def _same(one: Access, access: Access) -> bool:
    """Return whether a use may be of the key of `access`."""
    mine = access.shared or one.routine_id == access.routine_id
    return one.shared == access.shared and one.key in (access.key, None) and mine


def _key(access: Access) -> str:
    return f'ctx.{"shared" if access.shared else "state"}["{access.key}"]'


def _is_before(read: Access, write: Access) -> bool:
    """Return whether a read is of the task of a write, or of one that the task comes from."""
    return write.task_id == read.task_id or write.task_id.startswith(f"{read.task_id}.")


def order_text(changes: Sequence[tuple[str, str]], routines: dict[str, str]) -> str:
    """Return the deviations of an order from FIFO as a text.

    >>> order_text([("0.1", "0.0")], {"0.0": "fee", "0.1": "bonus"})
    'bonus (0.1) before fee (0.0)'
    """
    names = [
        f"{_named(first, routines)} before {_named(then, routines)}" for first, then in changes
    ]
    return listed(names, 3)


def _named(task: str, routines: dict[str, str]) -> str:
    if task == "time":
        return "a wait ends"
    return f"{routines[task]} ({task})" if task in routines else f"task {task}"
