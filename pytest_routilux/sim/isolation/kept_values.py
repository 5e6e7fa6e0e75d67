"""Values that code of the user keeps between two jobs of one process.

Invariants:
- The values are found from the routines of a flow: attributes, variables of closures, mutable
  defaults, caches of `functools` and generators.
- Reading them changes nothing and runs no code of the user.
- A value is the cause of a difference if the difference is gone once the value is put back. A
  generator can't be put back: it is named if no other value is the cause.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import length_hint
from types import FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import definition_of, is_users
from pytest_routilux.sim.isolation.hidden_state import digest, own_attributes
from pytest_routilux.sim.oracle import compare_effects, view_of
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.results import Outcome
from pytest_routilux.sim.simulator.model import Finding
from routilux import Flow, Routine
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from pytest_routilux.sim.results import Checks, Reference
    from pytest_routilux.sim.simulator.model import Case, Undisturbed

_MOST: Final = 2_000
KINDS: Final = {
    "attribute": "instance-state",
    "closure variable": "closure-state",
    "default": "default-state",
    "functools cache of": "cache-state",
    "generator": "generator-state",
}
"""The kinds of findings, by the kinds of kept values."""
_CACHE: Final = "functools._lru_cache_wrapper"


@dataclass(frozen=True, slots=True)
class Kept:
    """The name of a kept value; equal for equal places of two flows that `build` makes.

    `name` is such as `self.tries`, `count` or `rates()`. `where` is the file:line of the function
    that keeps the value.
    """

    kind: str  # as in a sentence: "attribute", "closure variable", …
    name: str
    routine: str
    where: str

    @property
    def text(self) -> str:
        return f"the {self.kind} {self.name}"


class _Value:
    """A kept value: how to read it, and how to put it back."""

    def __init__(
        self,
        read: Callable[[], Any],
        write: Callable[[Any], object] | None,
    ) -> None:
        self._read = read
        self._write = write

    def text(self) -> str:
        """Return a text that changes if the value changes."""
        value = self._read()
        hint = length_hint(value, -1) if hasattr(type(value), "__next__") else ""
        return f"{digest(value)} {hint}"

    def saved(self) -> Callable[[], None] | None:
        """Return what puts the value of this moment back; None if it can't be."""
        write = self._write
        if write is None:
            return None
        try:
            # Not deepcopy, which makes half an object of a client or a loop before it fails.
            kept = pickle.loads(pickle.dumps(self._read()))
        except Exception:
            return None

        def put_back() -> None:
            now = self._read()
            if type(now) is type(kept) and isinstance(now, list | deque | dict | set):
                now.clear()  # in place, since others may hold the object too
                getattr(now, "update" if isinstance(now, dict | set) else "extend")(kept)
            else:
                write(kept)

        return put_back


class _Attribute(_Value):
    """An attribute of a routine; one that a job adds is removed to put it back."""

    def __init__(self, routine: Routine, name: str) -> None:
        self._names = vars(routine)
        self._name = name
        super().__init__(lambda: self._names.get(name), partial(setattr, routine, name))

    def remove(self) -> None:
        self._names.pop(self._name, None)


class _Cache(_Value):
    """A cache of `functools`; it is put back by clearing it."""

    def __init__(self, cached: Any) -> None:
        super().__init__(cached.cache_info, None)
        self._clear = cached.cache_clear

    def text(self) -> str:
        return str(self._read())

    def saved(self) -> Callable[[], None]:
        return self._clear  # type: ignore[no-any-return]  # of functools


class _Generator(_Value):
    """A generator, at the line where it waits."""

    def __init__(self, generator: GeneratorType[Any, Any, Any]) -> None:
        super().__init__(lambda: generator, None)

    def text(self) -> str:
        frame = self._read().gi_frame
        return "" if frame is None else f"{frame.f_lasti} {digest(dict(frame.f_locals))}"


def kept_values(flow: Flow, build: object) -> dict[Kept, _Value]:
    """Return the values that the handlers of `flow` can keep, by their names."""
    found: dict[Kept, _Value] = {}
    for routine_id, routine in flow.routines.items():
        seen: set[int] = set()
        handlers = [slot.handler for slot in routine.slots.values()]
        todo: list[tuple[object, str]] = [(each, "") for each in (routine, *handlers, build)]
        while todo and len(seen) < _MOST:
            holder, label = todo.pop()
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            for kind, name, where, value, inner in _parts(holder, label):
                if kind:
                    found.setdefault(Kept(kind, name, routine_id, where), value)
                todo += inner
    return found


_Part = tuple[str, str, str, _Value, list[tuple[object, str]]]


def _parts(holder: Any, label: str) -> Iterator[_Part]:
    """Yield the values in `holder`, each with what it leads to."""
    nothing = _Value(lambda: None, None)
    if isinstance(holder, Routine):
        where = definition_of(next(iter(holder.slots.values())).handler) if holder.slots else ""
        for name, value in own_attributes(holder).items():
            label = f"self.{name}"
            yield "attribute", label, where, _Attribute(holder, name), [(value, label)]
    elif isinstance(holder, MethodType):
        yield "", "", "", nothing, [(holder.__func__, ""), (holder.__self__, "")]
    elif isinstance(holder, partial):
        yield "", "", "", nothing, [(part, "") for part in (holder.func, *holder.args)]
    elif isinstance(holder, FunctionType):
        yield from _parts_of_function(holder)
    elif isinstance(holder, GeneratorType):
        code = holder.gi_code
        where = f"{code.co_filename}:{code.co_firstlineno}"
        yield "generator", label or code.co_name, where, _Generator(holder), []
    elif f"{type(holder).__module__}.{type(holder).__qualname__}" == _CACHE:
        name = f"{holder.__wrapped__.__name__}()"
        inner = [(holder.__wrapped__, "")]
        yield "functools cache of", name, definition_of(holder), _Cache(holder), inner


def _parts_of_function(function: FunctionType) -> Iterator[_Part]:
    code = function.__code__
    if not is_users(function.__module__ or "", code.co_filename):
        return
    where = f"{code.co_filename}:{code.co_firstlineno}"
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is empty
            value = _Value(partial(getattr, cell, "cell_contents"), partial(_fill, cell))
            yield "closure variable", name, where, value, [(cell.cell_contents, name)]
    for index, default in enumerate(function.__defaults__ or ()):
        name = code.co_varnames[code.co_argcount - len(function.__defaults__ or ()) + index]
        value = _Value(partial(_same, default), partial(_same, None))
        yield "default", name, where, value, [(default, name)]
    names = [name for name in code.co_names if name in function.__globals__]
    yield "", "", "", _Value(lambda: None, None), [(function.__globals__[n], n) for n in names]


def _same(value: object, *_: object) -> object:
    return value


def _fill(cell: Any, value: object) -> None:
    cell.cell_contents = value


# --- two jobs in one process ----------------------------------------------------------------------


class _OneFlow:
    """Builds one flow, and returns it to every job."""

    def __init__(self, build: Callable[[], Flow]) -> None:
        self._build = build
        self._flow: Flow | None = None

    def __call__(self) -> Flow:
        if self._flow is None:
            self._flow = self._build()
        return self._flow


def second_job(
    case: Case, start_ns: int, *, one_flow: bool, restored: Kept | None = None
) -> tuple[list[Kept], Undisturbed]:
    """Run another job and then the job of `case`; return the kept values that the first changed.

    With `one_flow` both have the same flow object. `restored` is put back in between.
    """
    case.reset()
    build = case.build
    if one_flow:
        case = replace(case, build=_OneFlow(build))
    values = kept_values(case.build(), build)
    before = {name: value.text() for name, value in values.items()}
    put_back = values[restored].saved() if restored in values else None
    another = replace(case, job_id="another job", faults=(), always=None, store=None, fresh=None)
    run_undisturbed(another, start_ns)
    changed = [name for name, value in values.items() if value.text() != before[name]]
    if one_flow:
        added = kept_values(case.build(), build)
        changed += [name for name in added if name not in values and name.kind == "attribute"]
        if restored is not None and restored not in values:
            new = added.get(restored)
            put_back = new.remove if isinstance(new, _Attribute) else None
    if put_back is not None:
        put_back()
    return changed, run_undisturbed(replace(case, store=None), start_ns)


def cause_of(changed: list[Kept], differs: Callable[[Kept], bool]) -> Kept | None:
    """Return the kept value that makes the difference; None if none of `changed` does.

    `differs(kept)` says whether there is still a difference once `kept` was put back.
    """
    for kept in changed:
        if kept.kind != "generator" and not differs(kept):
            return kept
    return next((kept for kept in changed if kept.kind == "generator"), None)


def named(finding: Finding, kept: Kept | None, *, one_flow: bool) -> Finding:
    """Return a finding on a difference between two jobs that names the kept value."""
    which = "of the same flow object" if one_flow else "in the same process"
    if kept is None:
        what = f"a second job {which} differs: {finding.what}"
        return replace(finding, kind="next-job", what=what)
    what = f"{kept.routine} keeps something for the next job {which} in {kept.text}: {finding.what}"
    return replace(
        finding,
        kind=KINDS[kept.kind],
        what=what,
        routine=kept.routine,
        hint=kept.where,
        path=f"kept.{kept.name}",
    )


def _errors(run: Undisturbed) -> set[str]:
    return {commit.error.type for commit in run.world.commits if commit.error is not None}


def check_next_job(reference: Reference, start_ns: int, checks: Checks) -> Finding | None:
    """Return a finding if a job depends on an earlier one that the same flow object ran."""
    case = reference.run.case
    # The event loop of a simulated host ends with the host, and the clients that it served with it.
    loop_ends = reference.run.host.flow.plan().has_async

    def difference(
        *, one_flow: bool, restored: Kept | None = None
    ) -> tuple[list[Kept], Finding | None]:
        changed, run = second_job(case, start_ns, one_flow=one_flow, restored=restored)
        if run.host.job is None or (loop_ends and not _errors(run) <= _errors(reference.run)):
            return changed, None
        if checks.view is not None:
            other = checks.view(Outcome(run.job, run.world.calls))
            differs = first_difference(reference.custom, other)
            if differs is None:
                return changed, None
            what = f"view(outcome) differs: {differs}"
            return changed, Finding("view-differs", what, differs.path)
        finding = compare_effects(reference.run.world, run.world, reference.trie)
        return changed, finding or reference.expected.compare(view_of(run.job, run.world))

    changed, finding = difference(one_flow=True)
    if finding is None:
        return None
    if difference(one_flow=False)[1] is not None:
        return None  # something outside of the flow makes the difference, such as a service
    kept = cause_of(changed, lambda kept: difference(one_flow=True, restored=kept)[1] is not None)
    if case.fresh is not None and (kept is None or kept.kind == "generator"):
        return None  # `fresh` may have removed what the flow object has opened
    finding.what = finding.what.replace("without a crash", "in the first job")
    finding.what = finding.what.replace("with this crash", "in the next one")
    return named(finding, kept, one_flow=True)
