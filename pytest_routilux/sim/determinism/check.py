"""Checks that a flow is deterministic: the same decisions give the same records.

Invariants:
- The runs that are compared begin alike and share nothing: each is a process of its own, with
  another heap, other random numbers and another real time.
- With another start instant or another job id only values may differ, not the shape. A flow that
  asks `ctx` for the time, its id or a random number may depend on it.
- The order of a set depends on the hash seed. Two fresh interpreters compare it, where they can
  import `build` and no double replaces an effect.
- A finding names the first record that differs, and the line of a call that was observed to differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import users_modules
from pytest_routilux.sim.determinism.sources import Culprit, caught
from pytest_routilux.sim.explore import check_undisturbed
from pytest_routilux.sim.isolation.forked import hidden_changes, pickled_value, restore_value
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.isolation.hidden_state import globals_of
from pytest_routilux.sim.isolation.host_task import importable, rows_by_seed
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.results import Coverage
from pytest_routilux.sim.simulator.execution import OTHER_START
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import shown, without_addresses
from routilux import RoutiluxError, codec
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.model import Case

    Row = dict[str, Any]

__all__ = ["check_determinism"]

_SEEDS: Final = (1, 2)


def check_determinism(
    case: Case, start_ns: int, *, fresh: bool = True, coverage: Coverage | None = None
) -> Finding | None:
    """Return the first difference between runs that should be the same.

    `fresh`: also compare runs in fresh interpreters, where no patch of the test applies. What
    can't be compared is noted in `coverage`. A run that does not finish proves nothing: it is a
    finding in this process, and an error in another one.
    """
    coverage = Coverage() if coverage is None else coverage
    with ForkedHosts(case, start_ns, coverage) as hosts:
        killed = hosts.canary()
        if killed is not None:
            return killed.finding
        here = run_undisturbed(case, start_ns)
        first = _asked(hosts, _trace, start_ns)
        second = _asked(hosts, _trace, start_ns, True)
        finding = (
            _repeated(hosts, start_ns, first, second)
            or _with_another_start(hosts, start_ns, first)
            or _with_another_id(hosts, start_ns, first)
            or _in_one_process(hosts, start_ns, first)
            or check_undisturbed(here)
        )
    if finding is not None:
        return finding
    if not fresh:
        why: Finding | str | None = "the test patches code that a fresh interpreter would call"
    elif first.doubles:
        why = "an effect's double exists in this process alone"
    elif not importable(case):
        why = "needs a build that can be imported by its name, and no faults"
    else:
        why = _in_fresh_interpreters(case, start_ns)
    if isinstance(why, str):
        coverage.notes.append(f"another hash seed (the order of sets): not tried, {why}")
        return None
    return why


def _asked(hosts: ForkedHosts, work: Callable[..., object], *args: object) -> Any:
    reply = hosts.ask(work, *args)
    if reply.ended is not None:
        raise RoutiluxError(
            "the flow could not be checked for determinism: a run in another process ended by"
            f" {reply.ended}"
        )
    return reply.result


@dataclass(slots=True)
class _Trace:
    """A run: its commits as rows, and the calls in it that do not repeat, if it was profiled.

    `doubles`: whether it called a double of an effect.
    """

    rows: list[Row]
    culprits: list[Culprit]
    doubles: bool


def _repeated(hosts: ForkedHosts, start_ns: int, first: _Trace, second: _Trace) -> Finding | None:
    at = _first(first.rows, second.rows, _everything)
    if at is None:
        return None
    looked = hosts.ask(_trace, start_ns, True, None, True).result
    culprits = [] if looked is None else [c for c in looked.culprits if not c.repeats]
    culprit = _blamed(culprits, first.rows, at)
    said = "the same decisions gave something else"
    return _finding("nondeterminism", said, first.rows, second.rows, at, culprit)


def _with_another_start(hosts: ForkedHosts, start_ns: int, first: _Trace) -> Finding | None:
    other = _asked(hosts, _trace, start_ns + OTHER_START)
    at = _first(first.rows, other.rows, _shape)
    if at is None:
        return None
    looked = hosts.ask(_trace, start_ns, False, None, True).result
    culprits = [] if looked is None else [c for c in looked.culprits if c.of_time]
    culprit = _blamed(culprits, first.rows, at)
    if culprit is None or any(c.call == "ctx.now()" for c in culprits):
        return None
    said = "started at another instant it did something else"
    return _finding("nondeterminism", said, first.rows, other.rows, at, culprit, _shape)


def _with_another_id(hosts: ForkedHosts, start_ns: int, first: _Trace) -> Finding | None:
    other = _asked(hosts, _trace, start_ns, False, "another job")
    at = _first(first.rows, other.rows, _shape)
    if at is None:
        return None
    looked = hosts.ask(_trace, start_ns, False, None, True).result
    if looked is None or any(c.repeats for c in looked.culprits):
        return None
    said = "under another job id it did something else"
    return _finding("nondeterminism", said, first.rows, other.rows, at, None, _shape)


def _in_one_process(hosts: ForkedHosts, start_ns: int, first: _Trace) -> Finding | None:
    """Find a global by which one run makes the next one in the same process differ."""
    places, again = _asked(hosts, _twice, start_ns)
    at = _first(first.rows, again.rows, _everything)
    if at is None:
        return None
    for place in places:
        _, other = hosts.ask(_twice, start_ns, place).result or ((), again)
        if _first(first.rows, other.rows, _everything) is not None:
            continue
        name = f"{place[1]}:{place[2]}"
        changes = [c for c in hosts.ask(hidden_changes, start_ns).result or () if c.name == name]
        said = f"a second run in one process finds {name} as the first one left it"
        finding = _finding("module-state", said, first.rows, again.rows, at, None)
        if changes:
            finding.routine, finding.hint = changes[0].routine_id, changes[0].where
        finding.path = f"{place[0]}.{name}"
        return finding
    return None


def _in_fresh_interpreters(case: Case, start_ns: int) -> Finding | str | None:
    """Compare two hash seeds; return the finding, or why they could not be compared."""
    found = rows_by_seed(case, start_ns, _SEEDS)
    if isinstance(found, str):
        return found
    rows, other = ([_loaded(row) for row in each] for each in found)
    at = _first(rows, other, _everything)
    if at is None:
        return None
    again = rows_by_seed(case, start_ns, _SEEDS[:1])
    if isinstance(again, str) or [_loaded(row) for row in again[0]] != rows:
        return None  # it does not repeat by itself, so the seed is not to blame
    said = "with another PYTHONHASHSEED (the order of sets) it did something else"
    return _finding("hash-order", said, rows, other, at, None)


# --- comparing ------------------------------------------------------------------------------------


def _everything(row: Row) -> object:
    return row


def _shape(row: Row) -> object:
    return {
        **{name: row.get(name) for name in ("kind", "task_id", "routine_id", "attempt", "status")},
        "emissions": [emission["event"] for emission in row.get("emissions", ())],
        "tasks": [(task["task_id"], task["routine_id"]) for task in row.get("tasks", ())],
    }


def _first(a: Sequence[Row], b: Sequence[Row], look: Callable[[Row], object]) -> int | None:
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if look(one) != look(other):
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def _blamed(culprits: Sequence[Culprit], rows: Sequence[Row], at: int) -> Culprit | None:
    """Return a call of the first step that differs, else the last call before it."""
    steps = [(row.get("task_id"), row.get("attempt", 0)) for row in rows[: at + 1]]
    here = [c for c in culprits if (c.task_id, c.attempt) == steps[-1]] if steps else []
    before = [c for c in culprits if (c.task_id, c.attempt) in steps]
    for calls in (here, before[::-1]):
        # Most calls of id() do not matter.
        for culprit in sorted(calls, key=lambda c: c.call == "id()"):
            return culprit
    return None


def _finding(
    kind: str,
    said: str,
    rows: Sequence[Row],
    others: Sequence[Row],
    at: int,
    culprit: Culprit | None,
    look: Callable[[Row], object] = _everything,
) -> Finding:
    one, other = (each[at] if at < len(each) else None for each in (rows, others))
    row: Row = one or other or {}
    routine = row.get("routine_id")
    who = f"commit {at + 1}, {row.get('kind')}"
    if row.get("task_id") is not None:
        who = f"{routine} (task {row['task_id']}, attempt {row.get('attempt', 0)})"
    if one is None or other is None:
        path, was, became = "record", *("there" if each else "not there" for each in (one, other))
    else:
        difference = first_difference(look(one), look(other))
        path = "record" if difference is None else difference.path.removeprefix("$.")
        was, became = (
            ("?", "?")
            if difference is None
            else (shown(difference.expected), shown(difference.actual))
        )
    blame = "" if culprit is None else f"{culprit.routine_id} calls {culprit.call}: "
    what = f"{blame}{said}, first at {who}: {path} {was}, then {became}"
    return Finding(
        kind,
        what,
        f"{kind}.{routine or 'job'}.{path}",
        routine if culprit is None else culprit.routine_id,
        [(path, was, became)],
        row.get("at_ns"),
        "" if culprit is None else culprit.where,
    )


# --- in the other process -------------------------------------------------------------------------


def _trace(
    case: Case,
    send: object,
    start_ns: int,
    moved: bool = False,
    job_id: str | None = None,
    look: bool = False,
) -> _Trace:
    kept = _ballast() if moved else []
    if job_id is not None:
        case = replace(case, job_id=job_id)
    if look:
        with caught() as culprits:
            run = run_undisturbed(case, start_ns)
    else:
        culprits = []
        run = run_undisturbed(case, start_ns)
    rows = [_loaded(commit.dumps()) for commit in run.world.commits]
    del kept
    return _Trace(rows, culprits, bool(run.world.calls))


def _ballast() -> list[object]:
    """Return objects of each small size: `id()` differs then, and the order of a set of objects."""
    return [bytes(n % 480) if n % 3 else object() for n in range(5_003)] + [
        n / 7 for n in range(501)
    ]


def _loaded(row: str) -> Row:
    data: Any = codec.loads(row)
    error = data.get("error")
    if error is not None:
        error.pop("traceback", None)
        error["message"] = without_addresses(error.get("message") or "")
    return data  # type: ignore[no-any-return]  # JSON


def _twice(
    case: Case, send: object, start_ns: int, place: tuple[str, str, str] | None = None
) -> tuple[list[tuple[str, str, str]], _Trace]:
    """Run a case twice; the value at a place is put back between the runs."""
    before = globals_of(users_modules())
    kept = None if place is None else pickled_value(place)
    _trace(case, send, start_ns)
    after = globals_of(users_modules())
    if place is not None and kept is not None:
        restore_value(place, kept)
    changed = [where for where, held in before.items() if held != after.get(where)]
    return changed, _trace(case, send, start_ns)
