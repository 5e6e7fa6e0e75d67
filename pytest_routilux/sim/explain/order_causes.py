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
from pytest_routilux.sim.simulator.scheduler import FIFO
from pytest_routilux.text import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.orders.accesses import Access
    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import Call, Disturbed, Finding

    At = Callable[[str], str]


class _Meeting(NamedTuple):
    """A key that several tasks use, and the lines that read and change it."""

    key: str
    reads: Access | None
    writes: Access


def order_reason(
    finding: Finding, reference: Reference, disturbed: Disturbed | None, at: At
) -> tuple[str, str]:
    """Return the cause of a finding, and the fix; `at` makes a code line of a file:line."""
    if finding.kind == "raises-in-order":
        return (
            (
                "the flow fails only in this order of its tasks: a handler meets a state that FIFO"
                " order never shows it"
            ),
            (
                "make the handler ready for each order of its inputs, or wait for all with a\n"
                "gather slot: define_slot(..., gather=True)"
            ),
        )
    meeting = _meeting(finding, _accesses(reference, disturbed))
    between = None if meeting is not None or disturbed is None else _between(disturbed.world.calls)
    if between is not None:
        return _check_then_act(*between, at)
    if finding.kind == "depends-on-order":
        return _depends(finding, meeting, at)
    return _race(finding, meeting, at)


def _depends(finding: Finding, meeting: _Meeting | None, at: At) -> tuple[str, str]:
    who = finding.routine or "a routine"
    why = "also one task at a time the tasks give another result in another order"
    if meeting is not None:
        who = meeting.writes.routine_id
        why += f": {who} makes {meeting.key} of what came before{at(meeting.writes.where)}"
        if meeting.reads is not None and meeting.reads.where != meeting.writes.where:
            why += f", read{at(meeting.reads.where)}"
    else:
        why += f": look at what {who} takes from the first or the last that arrives"
    fix = (
        "wait for all with a gather slot (gather=True), which has the results in a fixed order;\n"
        "or decide by the values, not by arrival: min, max, sorted, math.fsum for floats.\n"
        "If each of these results is right, compare the rest: view=lambda outcome: ..."
    )
    return why, fix


def _race(finding: Finding, meeting: _Meeting | None, at: At) -> tuple[str, str]:
    if meeting is None:
        why = (
            "tasks that run at the same time change each other's result, through something that"
            " the job does not keep: an effect, an attribute, a global, a file"
        )
        return why, (
            "let one call both check and change, under a key that both share; or let one routine\n"
            "do it: its steps run one at a time"
        )
    key, writes, reads = meeting.key, meeting.writes, meeting.reads
    name = key.partition("[")[2].rstrip("]")
    if reads is None:
        why = f"{writes.routine_id} writes {key}{at(writes.where)} whatever another task wrote"
    elif reads.routine_id == writes.routine_id:
        why = (
            f"{reads.routine_id} reads {key}{at(reads.where)} and writes it{at(writes.where)}; the"
            " tasks of other routines run in between"
        )
    else:
        why = (
            f"{reads.routine_id} reads {key}{at(reads.where)}, and {writes.routine_id} writes it"
            f"{at(writes.where)}, a step later: what other tasks wrote between is overwritten. The"
            " conflict check compares what one step reads and writes"
        )
    fix = (
        f"read and write in one handler: self.ctx.shared[{name}] = self.ctx.shared[{name}] + ...\n"
        f"(a conflict then runs it again, at no retry); or self.ctx.shared.add({name}, amount)"
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
    if disturbed is None:
        return ()
    case, start_ns = reference.run.case, reference.run.world.log[0][0]
    scheduler = disturbed.order.scheduler()
    with suppress(Exception), recorded_accesses() as found:
        if scheduler is FIFO:
            run_undisturbed(case, start_ns)
        else:
            run_in_order(case, start_ns, scheduler, serial=disturbed.order.serial)
    return found


def _meeting(finding: Finding, accesses: Sequence[Access]) -> _Meeting | None:
    """Return the use of a key by several tasks that explains a finding best."""
    shared = finding.path.startswith("shared")
    wanted = finding.path.partition(".")[2].partition(".")[0].partition("[")[0] if shared else None
    tasks: dict[tuple[str, str], set[str]] = {}
    for access in accesses:
        if access.key is not None:
            owner = "" if access.shared else access.routine_id
            tasks.setdefault((owner, access.key), set()).add(access.task_id)
    several = {name for name, users in tasks.items() if len(users) > 1}
    found: list[tuple[bool, bool, _Meeting]] = []
    for number, access in enumerate(accesses):
        owner = "" if access.shared else access.routine_id
        if access.how == "reads" or access.key is None or (owner, access.key) not in several:
            continue
        reads = [
            other
            for other in accesses[:number]
            if other.how == "reads"
            and (other.shared, other.key) == (access.shared, access.key)
            and (access.shared or other.routine_id == access.routine_id)
            and _is_before(other, access)
        ]
        key = f'ctx.{"shared" if access.shared else "state"}["{access.key}"]'
        meeting = _Meeting(key, reads[-1] if reads else None, access)
        fits = access.key == wanted or (not shared and access.routine_id == finding.routine)
        found.append((fits, bool(reads), meeting))
    return max(found, key=lambda one: one[:2])[2] if found else None


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
