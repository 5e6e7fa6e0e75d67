"""What is known about why a run went otherwise: from its world, its flow and the user's source.

Laws:
- It is what was seen, never what is likely: where nothing was seen there is nothing.
- It reads; it runs no handler.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_routilux.world import Call
from routilux import Commit, Routine
from routilux.values import same_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_routilux.examine import Reference
    from pytest_routilux.world import World

__all__ = ["Kept", "calls_of", "handler_place", "kept_on", "key_part", "recorded_by"]

_PLAIN: Final = (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, type(None))
_CHANGING: Final = frozenset(
    {"add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"}
    | {"remove", "setdefault", "update"}
)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?|\d{9,}(?:\.\d+)?"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """An attribute of a routine that a run has changed: from what, to what, and on which line."""

    name: str
    before: object
    after: object
    where: str | None


def kept_on(known: Reference, routine_id: str | None) -> list[Kept]:
    """Return what the undisturbed run has changed on a routine, though no snapshot keeps it."""
    run = known.run
    with suppress(Exception):
        after = run.life.flow.routines[routine_id or ""]
        before = run.case.build().routines[routine_id or ""]
        if type(after) is not type(before):
            return []
        own = vars(Routine())
        return [
            Kept(name, vars(before).get(name), value, _changed_at(type(after), name))
            for name, value in vars(after).items()
            if name not in own
            and isinstance(value, _PLAIN)
            and not same_value(vars(before).get(name), value)
        ]
    return []


def _changed_at(cls: type, name: str) -> str | None:
    for base in cls.__mro__:
        if base is Routine:
            break
        with suppress(OSError, TypeError, SyntaxError):
            lines, first = inspect.getsourcelines(base)
            tree = ast.parse(textwrap.dedent("".join(lines)))
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    line = _changing_line(function, name)
                    if line is not None:
                        return f"{inspect.getsourcefile(base)}:{first + line - 1}"
    return None


def _changing_line(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> int | None:
    if function.name == "__init__" or not function.args.args:
        return None
    me = function.args.args[0].arg
    for node in ast.walk(function):
        targets: Sequence[ast.expr] = ()
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value] if node.func.attr in _CHANGING else ()
        if any(_is_attribute(target, me, name) for target in targets):
            return int(node.lineno)
    return None


def _is_attribute(node: ast.expr, me: str, name: str) -> bool:
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Tuple):
        return any(_is_attribute(part, me, name) for part in node.elts)
    return (
        isinstance(node, ast.Attribute)
        and node.attr == name
        and isinstance(node.value, ast.Name)
        and node.value.id == me
    )


def handler_place(known: Reference, routine_id: str | None) -> str | None:
    """Return file:line of a routine's first handler."""
    with suppress(Exception):
        routine = known.run.life.flow.routines[routine_id or ""]
        slot = next(iter(routine.slots.values()))
        code = inspect.unwrap(slot.handler).__code__  # type: ignore[attr-defined]
        return f"{code.co_filename}:{code.co_firstlineno}"
    return None


def calls_of(world: World, effect: str) -> list[Call]:
    """Return the calls of an effect in their order."""
    return [call for call in world.calls if call.effect == effect]


def recorded_by(world: World, call: Call) -> str | None:
    """Return the name of the `once` that recorded a call's result, where one did."""
    for _, _, what in _after(world, call):
        if isinstance(what, Commit) and what.task_id == call.task_id:
            recorded = what.effect
            if recorded is None or not same_value(recorded.result, call.result):
                return None
            return str((what.detail or {})["name"])
        if isinstance(what, Call) and what.task_id == call.task_id:
            return None
    return None


def _after(world: World, call: Call) -> Iterator[tuple[int, int, object]]:
    entries = iter(world.log)
    for entry in entries:
        if entry[2] is call:
            yield from entries


def key_part(keys: Sequence[object], attempts: Sequence[int]) -> str | None:
    """Return what of two keys has changed, where that can be told.

    >>> key_part(["A7-1", "A7-2"], [1, 2])
    'the number of the attempt'
    """
    first, last = str(keys[0]), str(keys[-1])
    if None in (keys[0], keys[-1]) or first == last:
        return None
    for pattern, name in ((_UUID, "what looks like a UUID"), (_TIME, "what looks like a time")):
        if pattern.sub("#", first) == pattern.sub("#", last):
            return name
    numbers = [
        re.sub(rf"(?<!\d){n}(?!\d)", "#", k)
        for n, k in ((attempts[0], first), (attempts[-1], last))
    ]
    if attempts[0] != attempts[-1] and numbers[0] == numbers[-1]:
        return "the number of the attempt"
    return None
