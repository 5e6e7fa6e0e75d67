"""Checks that a flow writes the same records in each run.

Invariants:
- The runs that are compared begin alike and share nothing: each is a process of its own, with
  another heap, other random numbers and another real time.
- With another start instant only values may differ, not the shape. A flow that asks `ctx` for the
  time may depend on it.
- The order of a set and `hash()` depend on the hash seed. Fresh interpreters run the same test up
  to this call with two seeds.
- A finding names the first record that differs, and the line of a call that was observed to differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import users_modules
from pytest_routilux.sim.checks import check_undisturbed
from pytest_routilux.sim.determinism.sources import Source, recorded_sources
from pytest_routilux.sim.isolation.forked import hidden_changes, pickled_value, restore_value
from pytest_routilux.sim.isolation.forked_hosts import ForkedHosts
from pytest_routilux.sim.isolation.hidden_state import Variable, globals_of
from pytest_routilux.sim.isolation.kept_values import Kept, cause_of, named, second_job
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.repeats import REPEAT
from pytest_routilux.sim.results import Coverage
from pytest_routilux.sim.simulator.execution import OTHER_START
from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import shown, without_addresses
from routilux import RoutiluxError, codec
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_routilux.sim.simulator.model import Case, Undisturbed

    Row = dict[str, Any]
    RowsBySeed = Callable[[Sequence[int]], list[list[str]] | str]

_SEEDS: Final = (1, 2)
UNTRIED: Final = "untried"
"""The kind of a finding that says why another hash seed could not be tried."""


def check_determinism(
    case: Case,
    start_ns: int,
    *,
    rows_by_seed: RowsBySeed | None = None,
    coverage: Coverage | None = None,
) -> Finding | None:
    """Return a finding on the first difference between runs of a case.

    `rows_by_seed` returns the commits of a run for each hash seed, or why there are none, which is
    a finding of the kind "untried". A run that does not finish proves nothing: it is a finding in
    this process, and an error in another one.
    """
    coverage = Coverage() if coverage is None else coverage
    with ForkedHosts(case, start_ns, coverage) as hosts:
        killed = hosts.canary()
        if killed is not None:
            return killed.finding
        here = run_undisturbed(case, start_ns)
        runs = _Runs(hosts, start_ns, fresh=case.fresh is not None)
        finding = (
            runs.repeated()
            or runs.started_later()
            or runs.in_one_process()
            or runs.of_one_flow()
            or runs.compared_with(here)
            or check_undisturbed(here)
        )
        if finding is None and rows_by_seed is not None:
            finding = runs.by_seed(rows_by_seed)
    return finding


@dataclass(slots=True)
class _Trace:
    """The commits and the `Source` calls of a run."""

    rows: list[Row]
    sources: list[Source]
    doubles: bool  # whether the run called effects


class _Runs:
    """Runs a case in new processes and compares the runs."""

    def __init__(self, hosts: ForkedHosts, start_ns: int, *, fresh: bool) -> None:
        self._hosts = hosts
        self._start_ns = start_ns
        self._fresh = fresh
        self.first: _Trace = self._result(_trace, start_ns)

    def repeated(self) -> Finding | None:
        second = self._result(_trace, self._start_ns, True)
        at = _first_difference(self.first.rows, second.rows)
        if at is None:
            return None
        sources = [source for source in self._sources(True) or () if not source.repeats]
        source = _source_of(sources, self.first.rows, at)
        what = "a second run that starts alike differs"
        return _finding("nondeterminism", what, self.first.rows, second.rows, at, source)

    def started_later(self) -> Finding | None:
        other = self._result(_trace, self._start_ns + OTHER_START)
        at = _first_difference(self.first.rows, other.rows, _shape)
        if at is None:
            return None
        sources = [source for source in self._sources() or () if source.of_time]
        source = _source_of(sources, self.first.rows, at)
        if any(source.call == "ctx.now()" for source in sources):
            return None
        what = "a run that starts at another instant differs"
        return _finding("nondeterminism", what, self.first.rows, other.rows, at, source, _shape)

    def in_one_process(self) -> Finding | None:
        """Return a finding if a changed global makes the next run differ."""
        rows = self.first.rows
        variables, second = self._result(_run_twice, self._start_ns)
        at = _first_difference(rows, second.rows)
        if at is None:
            return None
        for variable in variables:
            _, other = self._hosts.ask(_run_twice, self._start_ns, variable).result or ((), second)
            if _first_difference(rows, other.rows) is not None:
                continue
            scope, module, name = variable
            name = f"{module}:{name}"
            changes = self._hosts.ask(hidden_changes, self._start_ns).result or ()
            what = f"a second run in the same process starts with {name} as the first run left it"
            finding = _finding("module-state", what, rows, second.rows, at, None)
            for change in [change for change in changes if change.name == name][:1]:
                finding.routine, finding.hint = change.routine_id, change.where
            finding.path = f"{scope}.{name}"
            return finding
        found = self._kept(one_flow=False)
        if found is not None and found.kind != "next-job":
            return found
        what = (
            "a second run in the same process, of a flow that build() makes anew, differs; no"
            " module global, class attribute or variable of a handler that a run changes makes the"
            " difference"
        )
        return _finding(REPEAT, what, rows, second.rows, at, None)

    def of_one_flow(self) -> Finding | None:
        """Return a finding if a job of one flow object makes the next one differ."""
        return self._kept(one_flow=True)

    def _kept(self, *, one_flow: bool) -> Finding | None:
        rows = self.first.rows

        def second(restored: Kept | None = None) -> tuple[list[Kept], list[Row]]:
            found: tuple[list[Kept], list[Row]] = self._result(
                _second_rows, self._start_ns, one_flow, restored
            )
            return found

        changed, others = second()
        at = _first_difference(rows, others)
        if at is None:
            return None
        kept = cause_of(changed, lambda kept: _first_difference(rows, second(kept)[1]) is not None)
        if one_flow and self._fresh and (kept is None or kept.kind == "generator"):
            return None  # `fresh` may have removed what the flow object has opened
        finding = _finding("next-job", "the second job differs", rows, others, at, None)
        return named(finding, kept, one_flow=one_flow)

    def compared_with(self, here: Undisturbed) -> Finding | None:
        """Return a finding if a run in this process differs from the first one in a fork."""
        rows = [_loaded(commit.dumps()) for commit in here.world.commits]
        at = _first_difference(self.first.rows, rows)
        if at is None:
            return None
        what = (
            "a run in the process of the test and a run in a fork of it, which begin alike, differ"
        )
        return _finding(REPEAT, what, self.first.rows, rows, at, None)

    def by_seed(self, rows_by_seed: RowsBySeed) -> Finding | None:
        """Return a finding if runs with two hash seeds differ."""
        found = rows_by_seed(_SEEDS)
        if isinstance(found, str):
            return Finding(UNTRIED, found, "hash-seed")
        rows, others = ([_loaded(row) for row in each] for each in found)
        at = _first_difference(rows, others)
        if at is None:
            return None
        again = rows_by_seed(_SEEDS[:1])
        if isinstance(again, str) or [_loaded(row) for row in again[0]] != rows:
            return None  # it does not repeat with one seed either, so the seed is not the cause
        source = _source_of(
            [source for source in self._sources() or () if source.call == "hash()"], rows, at
        )
        if source is None:
            what = "a run with another PYTHONHASHSEED (the order of sets) differs"
            return _finding("hash-order", what, rows, others, at, None)
        what = "a run with another PYTHONHASHSEED differs"
        return _finding("hash-value", what, rows, others, at, source)

    def _result(self, function: Callable[..., object], *args: object) -> Any:
        reply = self._hosts.ask(function, *args)
        if reply.ended is not None:
            raise RoutiluxError(
                f"the determinism check failed: a child process ended early ({reply.ended});"
                " find out what ended the process"
            )
        return reply.result

    def _sources(self, moved: bool = False) -> list[Source] | None:
        """Profile one more run, and return the run's `Source` calls."""
        trace = self._hosts.ask(_trace, self._start_ns, moved, True).result
        return None if trace is None else trace.sources


# --- comparing ------------------------------------------------------------------------------------


def _whole(row: Row) -> Row:
    return row


def _shape(row: Row) -> Row:
    return {
        **{name: row.get(name) for name in ("kind", "task_id", "routine_id", "attempt", "status")},
        "emissions": [
            (emission["event"], len(emission.get("payloads", (1,))))
            for emission in row.get("emissions", ())
        ],
        "tasks": [_task_shape(task) for task in row.get("tasks", ())],
    }


def _task_shape(task: Row) -> object:
    if "times" in task:
        return task["times"], [_task_shape(one) for one in task["tasks"]]
    return task["task_id"], task["routine_id"]


def _first_difference(
    a: Sequence[Row], b: Sequence[Row], part: Callable[[Row], Row] = _whole
) -> int | None:
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if part(one) != part(other):
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def _source_of(sources: Iterable[Source], rows: Sequence[Row], at: int) -> Source | None:
    """Return the `Source` call that most likely explains row `at`."""
    steps = [(row.get("task_id"), row.get("attempt", 0)) for row in rows[: at + 1]]
    before = [source for source in sources if (source.task_id, source.attempt) in steps]
    here = [source for source in before if (source.task_id, source.attempt) == steps[-1]]
    # Without a call in this step, the last one before it. Most calls of id() do not matter.
    ordered = sorted(here or before[::-1], key=lambda source: source.call == "id()")
    return ordered[0] if ordered else None


def _finding(
    kind: str,
    what: str,
    rows: Sequence[Row],
    others: Sequence[Row],
    at: int,
    source: Source | None,
    part: Callable[[Row], Row] = _whole,
) -> Finding:
    one, other = (each[at] if at < len(each) else None for each in (rows, others))
    row: Row = one or other or {}
    routine = row.get("routine_id")
    where = f"commit {at + 1}, {row.get('kind')}"
    if row.get("task_id") is not None:
        where = f"{routine} (task {row['task_id']}, attempt {row.get('attempt', 0)})"
    path, was, became = "record", *("there" if each else "not there" for each in (one, other))
    if one is not None and other is not None:
        difference = first_difference(part(one), part(other))
        assert difference is not None
        path = difference.path.removeprefix("$.")
        was, became = shown(difference.expected), shown(difference.actual)
    calls = "" if source is None else f"{source.routine_id} calls {source.call}: "
    return Finding(
        kind,
        f"{calls}{what}, first at {where}: {path} {was}, then {became}",
        f"{kind}.{routine or 'job'}.{path}",
        routine if source is None else source.routine_id,
        [(path, was, became)],
        "" if source is None else source.where,
    )


# --- in the other process -------------------------------------------------------------------------


def _trace(
    case: Case,
    send: object,
    start_ns: int,
    moved: bool = False,
    profiled: bool = False,
) -> _Trace:
    """Run a case, and return the trace of the run."""
    ballast = _ballast() if moved else []  # moves later objects in memory
    sources: list[Source] = []
    if profiled:
        with recorded_sources() as sources:
            run = run_undisturbed(case, start_ns)
    else:
        run = run_undisturbed(case, start_ns)
    del ballast
    rows = [_loaded(commit.dumps()) for commit in run.world.commits]
    return _Trace(rows, sources, bool(run.world.calls))


def _second_rows(
    case: Case, send: object, start_ns: int, one_flow: bool, restored: Kept | None
) -> tuple[list[Kept], list[Row]]:
    """Run another job and then this one; return the changed values and the rows of this one."""
    changed, run = second_job(case, start_ns, one_flow=one_flow, restored=restored)
    return changed, [_loaded(commit.dumps()) for commit in run.world.commits]


def _ballast() -> list[object]:
    """Fill memory with objects, which changes the `id()` of later objects."""
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


def _run_twice(
    case: Case, send: object, start_ns: int, variable: Variable | None = None
) -> tuple[list[Variable], _Trace]:
    """Run a case twice in this process.

    Restores `variable` in between. Returns the variables that run 1 changed, and run 2's trace.
    """
    before = globals_of(users_modules())
    kept = None if variable is None else pickled_value(variable)
    _trace(case, send, start_ns)
    after = globals_of(users_modules())
    if variable is not None and kept is not None:
        restore_value(variable, kept)
    changed = [name for name, value in before.items() if value != after.get(name)]
    return changed, _trace(case, send, start_ns)
