"""Detects changes of state that no commit saves, such as module globals.

Invariants:
- A change names the attribute or global, and the handler that ran while it changed. It is a hint
  for explanations and no fault by itself: a cache is allowed.
- Reading the state changes nothing and runs no code of the user. An object of any other type than
  the built-in ones is read by its attributes; a large or deep value is read in part.
"""

from __future__ import annotations

import inspect
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_routilux.faults.faults import Fault
from pytest_routilux.frames import definition_of, users_modules
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.text import shorten
from routilux import Routine, Slot
from routilux.retry.error_handler import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_routilux.sim.simulator.model import Case
    from routilux import Clock, StepInput

Variable = tuple[str, str, str]
"""The scope of a variable (`attribute`, `global` or `class`), its module, and its name there."""
Values = dict[Variable, str]
"""The values of variables, as texts."""

_OWN: Final = frozenset({"_arguments", "_slots", "_events", "_error_handler"})
_LONGEST: Final = 200
_LEVELS: Final = 4
_NODES: Final = 200
_MANY: Final = 20
_PLAIN: Final = frozenset({bool, int, float, complex, str, bytes, type(None)})
_CODE: Final = (type, FunctionType, ModuleType, property, classmethod, staticmethod)


@dataclass(frozen=True, slots=True)
class HiddenChange:
    """A handler's change of an attribute or global.

    `name` is `self.tries`, `shop.charge:_seen` or `shop.charge:Charge.seen`; `where` is file:line
    of the handler's definition, `was` and `became` are short texts.
    """

    routine_id: str
    scope: Literal["attribute", "global", "class"]
    name: str
    where: str
    was: str
    became: str


def hidden_state(case: Case, start_ns: int, *, everywhere: bool = False) -> list[HiddenChange]:
    """Return the changes that a case's handlers make to attributes and globals.

    Checks the globals of the routines' modules; with `everywhere`, of all modules of the user.
    """
    watch = _Watch(everywhere=everywhere)
    # First, so that it wraps the handler itself.
    run_undisturbed(replace(case, faults=(watch, *case.faults)), start_ns)
    return watch.found


class _Watch(Fault):
    """Finds the attributes and globals that each handler call changes.

    `everywhere`: the globals of all modules of the user.
    """

    def __init__(self, *, everywhere: bool) -> None:
        self.found: list[HiddenChange] = []
        self._everywhere = everywhere
        self._known: set[tuple[str, str]] = set()

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        handler = slot.handler
        routine = getattr(handler, "__self__", None)
        if not isinstance(routine, Routine):
            return slot
        routine_id, where = step.task.routine_id, definition_of(handler)

        def watched(**payload: object) -> object:
            before = self._read(routine)
            result: object = None
            try:
                result = handler(**payload)
            finally:
                if not inspect.iscoroutine(result):
                    self._record(routine_id, where, before, self._read(routine))
            return awaited(result, before) if inspect.iscoroutine(result) else result

        async def awaited(coroutine: Any, before: Values) -> object:
            try:
                return await coroutine
            finally:
                self._record(routine_id, where, before, self._read(routine))

        return replace(slot, handler=watched)

    def _read(self, routine: Routine) -> Values:
        seen: Values = {
            ("attribute", type(routine).__module__, name): digest(value)
            for name, value in own_attributes(routine).items()
        }
        own = sys.modules.get(type(routine).__module__)
        seen |= globals_of(users_modules() if self._everywhere else [own] if own else [])
        return seen

    def _record(self, routine_id: str, where: str, before: Values, after: Values) -> None:
        for variable in {**before, **after}:
            was, became = before.get(variable, "nothing"), after.get(variable, "nothing")
            scope, module, name = variable
            if was == became or (routine_id, f"{scope}:{name}") in self._known:
                continue
            self._known.add((routine_id, f"{scope}:{name}"))
            self.found.append(
                HiddenChange(
                    routine_id,
                    scope,  # type: ignore[arg-type]  # one of the three
                    f"self.{name}" if scope == "attribute" else f"{module}:{name}",
                    where,
                    shorten(was, 60),
                    shorten(became, 60),
                )
            )


def own_attributes(routine: Routine) -> dict[str, Any]:
    """Return the attributes of a routine that are not those of its base class."""
    return {name: value for name, value in vars(routine).items() if name not in _OWN}


def globals_of(modules: Iterable[ModuleType]) -> Values:
    """Return the values of all globals and class attributes that `modules` define."""
    seen: Values = {}
    for module in modules:
        own = module.__name__
        # Not vars(), which makes a lazy module load itself.
        for name, value in list(module.__dict__.items()):
            if name.startswith("__") or isinstance(value, _CODE):
                if isinstance(value, type) and value.__module__ == own:
                    for part, held in list(vars(value).items()):
                        if not part.startswith("__") and not isinstance(held, _CODE):
                            seen["class", own, f"{value.__qualname__}.{part}"] = digest(held)
            else:
                seen["global", own, name] = digest(value)
    return seen


def digest(value: object, levels: int = _LEVELS, left: list[int] | None = None) -> str:
    """Return a text that changes if `value` changes.

    Runs no code of the user. Only the next `levels` levels and `left[0]` nodes count.
    """
    left = [_NODES] if left is None else left
    kind = type(value)
    if kind in _PLAIN:
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} {hash(value)}"
    if kind.__module__ == "itertools":
        return repr(value) if kind.__name__ == "count" else object.__repr__(value)
    left[0] -= 1
    if not levels or left[0] < 0 or isinstance(value, _CODE):
        return str(id(value))
    if isinstance(value, dict):
        items = [
            f"{digest(key, levels - 1, left)}: {digest(item, levels - 1, left)}"
            for key, item in _ends(dict.items(value), dict.__len__(value))
        ]
        return f"{{{', '.join(items)}}}{_length(value)}"
    if isinstance(value, list | tuple | deque | set | frozenset):
        items = [digest(item, levels - 1, left) for item in _ends(value, len(value))]
        return f"[{', '.join(items)}]{_length(value)}"
    inner = getattr(value, "__dict__", None)
    if isinstance(inner, dict) and not isinstance(value, ErrorHandler | Routine):
        return f"{kind.__name__} {id(value)} {digest(inner, levels - 1, left)}"
    return f"{kind.__name__} {id(value)}"


def _ends(items: Any, length: int) -> list[Any]:
    if length <= 2 * _MANY:
        return list(items)
    found = list(islice(items, _MANY))
    with suppress(TypeError):  # a set has no end
        found += islice(reversed(items), _MANY)
    return found


def _length(value: Any) -> str:
    return f" of {len(value)}" if len(value) > 2 * _MANY else ""
