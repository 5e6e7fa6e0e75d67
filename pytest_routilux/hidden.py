"""What a handler changes that no commit keeps: attributes of its routine, module globals.

Laws:
- A change is told with the names of the user and the line that most likely made it. It is a hint
  for explanations and no fault by itself: a cache is allowed.
- Looking changes nothing. A value whose `repr` fails is looked at by its identity alone.
"""

from __future__ import annotations

import dis
import inspect
import sys
import sysconfig
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_routilux.choices import FIFO
from pytest_routilux.crash import undisturbed
from pytest_routilux.faults import Fault
from routilux import Routine, Slot
from routilux.policy import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pytest_routilux.simulation import Case, SimClock
    from routilux import StepInput

__all__ = ["HiddenChange", "Watch", "hidden_state", "is_users", "module_of"]

_OWN: Final = frozenset({"_arguments", "_slots", "_events", "_error_handler"})
_OURS: Final = frozenset({"routilux", "pytest_routilux", "pytest", "_pytest", "freezegun"})
_LIBRARY: Final = tuple(
    str(Path(place).resolve())
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (place := sysconfig.get_path(name))
)
_LONGEST: Final = 2_000
_SHOWN: Final = 60
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))
_HOLDERS: Final = (list, dict, set, frozenset, tuple, deque, bytearray)
_CHANGERS: Final = frozenset(
    {"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_ATTR", "next", "add", "append", "appendleft", "clear"}
    | {"discard", "extend", "insert", "pop", "popitem", "popleft", "put", "remove", "setdefault"}
    | {"sort", "update"}
)
_CODE: Final = (type, FunctionType, ModuleType, property, classmethod, staticmethod)


@dataclass(frozen=True, slots=True)
class HiddenChange:
    """Something that a handler changed and no commit keeps.

    `name` is `self.tries`, `shop.charge:_seen` or `shop.charge:Charge.seen`; `where` is file:line,
    `was` and `became` are short texts.
    """

    routine_id: str
    scope: Literal["attribute", "global", "class"]
    name: str
    where: str
    was: str
    became: str


def hidden_state(case: Case, start_ns: int, *, everywhere: bool = False) -> list[HiddenChange]:
    """Run a case undisturbed, and return what its handlers changed of routines and globals.

    Globals are those of the routines' modules, or `everywhere`: of all modules of the user.
    """
    watch = Watch(everywhere=everywhere)
    undisturbed(replace(case, faults=(*case.faults, watch)), start_ns, FIFO)
    return watch.found


class Watch(Fault):
    """Looks at a routine and the globals of its module before and after each of its handlers.

    `everywhere`: at the globals of all modules that are the user's.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        self.found: list[HiddenChange] = []
        self._everywhere = everywhere
        self._known: set[tuple[str, str]] = set()

    def affect(self, step: StepInput, slot: Slot, clock: SimClock) -> Slot:
        handler = slot.handler
        routine = getattr(handler, "__self__", None)
        if not isinstance(routine, Routine):
            return slot
        routine_id = step.task.routine_id

        def watched(**payload: object) -> object:
            before = self._look(routine)
            result: object = None
            try:
                result = handler(**payload)
            finally:
                if not inspect.iscoroutine(result):
                    self._compare(routine_id, routine, before, self._look(routine))
            return awaited(result, before) if inspect.iscoroutine(result) else result

        async def awaited(coroutine: Any, before: Mapping[tuple[str, str, str], str]) -> object:
            try:
                return await coroutine
            finally:
                self._compare(routine_id, routine, before, self._look(routine))

        return Slot(slot.name, watched, slot.binding)

    def _look(self, routine: Routine) -> dict[tuple[str, str, str], str]:
        seen = {
            ("attribute", type(routine).__module__, name): _digest(value)
            for name, value in vars(routine).items()
            if name not in _OWN
        }
        for module in _modules(routine, everywhere=self._everywhere):
            for name, value in list(vars(module).items()):
                if name.startswith("__") or isinstance(value, ModuleType):
                    continue
                if isinstance(value, type):
                    if value.__module__ == module.__name__:
                        seen.update(_of_class(module, value))
                elif not isinstance(value, _CODE):
                    seen["global", module.__name__, name] = _digest(value)
        for kind in type(routine).__mro__:
            if kind is Routine:
                break
            owner = sys.modules.get(kind.__module__)
            if owner is not None:
                seen.update(_of_class(owner, kind))
        return seen

    def _compare(
        self,
        routine_id: str,
        routine: Routine,
        before: Mapping[tuple[str, str, str], str],
        after: Mapping[tuple[str, str, str], str],
    ) -> None:
        for place in {**before, **after}:
            was, became = before.get(place, "nothing"), after.get(place, "nothing")
            scope, module, name = place
            if was == became or (routine_id, f"{scope}:{name}") in self._known:
                continue
            self._known.add((routine_id, f"{scope}:{name}"))
            last = name.rpartition(".")[2]
            self.found.append(
                HiddenChange(
                    routine_id,
                    scope,  # type: ignore[arg-type]  # one of the three
                    f"self.{name}" if scope == "attribute" else f"{module}:{name}",
                    _line_of(last, scope, routine, module),
                    _shown(was),
                    _shown(became),
                )
            )


def _of_class(module: ModuleType, kind: type) -> Iterator[tuple[tuple[str, str, str], str]]:
    for name, value in list(vars(kind).items()):
        if not name.startswith("__") and not isinstance(value, _CODE) and not callable(value):
            yield ("class", module.__name__, f"{kind.__qualname__}.{name}"), _digest(value)


def _digest(value: object) -> str:
    """Return a text that changes when the value does, as far as can be seen."""
    if isinstance(value, _PLAIN):
        return repr(value)
    try:
        if isinstance(value, _HOLDERS):
            return f"{id(value)} {len(value)} {repr(value)[:_LONGEST]}"
        if isinstance(value, ErrorHandler):
            return repr(id(value))
        inner = getattr(value, "__dict__", None)
        kept = "" if not isinstance(inner, dict) else f" {repr(inner)[:_LONGEST]}"
        # That of an iterator or a counter tells how far it is.
        own = repr(value)[:_LONGEST] if type(value).__repr__ is not object.__repr__ else ""
        return f"{id(value)} {own}{kept}"
    except Exception:
        return str(id(value))


def _shown(digest: str) -> str:
    head, _, rest = digest.partition(" ")
    if head.isdigit() and rest:
        digest = rest.partition(" ")[2] if rest[:1].isdigit() else rest
    return digest if len(digest) <= _SHOWN else f"{digest[: _SHOWN - 1]}…"


# --- whose code -----------------------------------------------------------------------------------


def is_users(module: str, file: str | None) -> bool:
    """Return whether a module is the user's: not ours, not of a library."""
    if file is None or module.partition(".")[0] in _OURS or file.startswith("<"):
        return False
    return not str(Path(file).resolve()).startswith(_LIBRARY)


def module_of(routine: Routine) -> ModuleType | None:
    """Return the module that defines a routine's class."""
    return sys.modules.get(type(routine).__module__)


def _modules(routine: Routine, *, everywhere: bool) -> Iterable[ModuleType]:
    if everywhere:
        # Not vars(): a lazy module would load itself.
        return [
            module
            for name, module in list(sys.modules.items())
            if isinstance(module, ModuleType) and is_users(name, module.__dict__.get("__file__"))
        ]
    module = module_of(routine)
    return [] if module is None else [module]


def _line_of(name: str, scope: str, routine: Routine, module: str) -> str:
    """Return the line that most likely changed a name: one that stores it, else that uses it."""
    best: tuple[int, str] = (9, "?")
    for code in _codes(routine, module, scope):
        line = code.co_firstlineno
        used: dict[int, set[object]] = {}
        for instruction in dis.get_instructions(code):
            position = instruction.positions
            if position is not None and position.lineno is not None:
                line = position.lineno
            kind = instruction.opname.partition("_")[0]
            if kind in ("STORE", "DELETE"):
                used.setdefault(line, set()).add((kind, instruction.argval))
            used.setdefault(line, set()).update((instruction.opname, instruction.argval))
        for number, seen in used.items():
            if ("STORE", name) in seen or ("DELETE", name) in seen:
                rank = 0
            elif name in seen:
                rank = 2 - bool(seen & _CHANGERS)
            else:
                continue
            if rank < best[0]:
                best = (rank, f"{code.co_filename}:{number}")
    return best[1]


def _codes(routine: Routine, module: str, scope: str) -> Iterator[CodeType]:
    kinds = [kind for kind in type(routine).__mro__ if kind not in (Routine, object)]
    functions = [f for kind in kinds for f in vars(kind).values() if isinstance(f, FunctionType)]
    if scope != "attribute" and (owner := sys.modules.get(module)) is not None:
        for value in vars(owner).values():
            if isinstance(value, FunctionType) and value.__module__ == module:
                functions.append(value)
            elif isinstance(value, type) and value.__module__ == module:
                functions += [f for f in vars(value).values() if isinstance(f, FunctionType)]
    pending = [f.__code__ for f in functions if f.__name__ != "__init__"]
    while pending:
        code = pending.pop(0)
        yield code
        pending += [const for const in code.co_consts if isinstance(const, CodeType)]
