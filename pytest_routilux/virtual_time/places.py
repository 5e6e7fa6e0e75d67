"""Finds the places in which definitions keep certain functions.

Invariants:
- The search runs no code of a user: no `__getattr__`, no property, no `__eq__`.
- It goes from a module to its own classes and functions, and to the objects that these hold. It
  enters no other module, no class of another module, and no object of pytest or of the standard
  library, except those that definitions are made of.
- An object that keeps a function where Python code can't replace it is reported by its path.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from functools import lru_cache, partial
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Packages of objects that definitions are made of.
_DEFINITIONS: Final = frozenset(
    {"builtins", "collections", "dataclasses", "enum", "functools", "hypothesis", "types"}
    | {"unittest"}  # its mocks
)
_CACHE: Final = type(lru_cache(lambda: None))
_IMMUTABLE: Final = 1 << 8  # a flag of classes that are made in C
_MODULE: Final = vars(type)["__module__"]  # reads it without the code of a metaclass
_NO_HOLDERS: Final = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice),
    *(BuiltinFunctionType, CodeType, GetSetDescriptorType, MemberDescriptorType),
    *(MethodDescriptorType, ModuleType, WrapperDescriptorType),
)


class _Access(NamedTuple):
    """How a part of a holder is read and replaced."""

    get: Callable[[Any, Any], Any]
    put: Callable[[Any, Any, Any], Any]


class Place(NamedTuple):
    """A part of an object that holds a function, or a tuple of functions."""

    holder: Any
    key: Any
    access: _Access
    found: Any

    def get(self) -> Any:
        """Return what the place holds now."""
        return self.access.get(self.holder, self.key)

    def put(self, value: Any) -> None:
        """Let the place hold `value`."""
        self.access.put(self.holder, self.key, value)


Part = tuple[Any, _Access | None, Any, Any]  # its holder, how it is replaced, its key, its value


def item(names: dict[str, Any], key: str, found: object) -> Place:
    """Return the place of a dict's item."""
    return Place(names, key, _ITEM, found)


def names_in(module: object) -> dict[str, Any] | None:
    """Return the names of a module; None if it has none in a dict."""
    try:
        names = object.__getattribute__(module, "__dict__")  # vars() makes a lazy module load
    except AttributeError:
        return None
    return names if type(names) is dict else None


class Search:
    """Searches definitions for the values that `wanted` accepts."""

    def __init__(self, wanted: Callable[[Any], bool], real_callers: frozenset[str]) -> None:
        self.stuck: list[tuple[str, Any]] = []  # paths, and functions that can't be replaced there
        self._wanted = wanted
        self._closed = (sys.stdlib_module_names | real_callers) - _DEFINITIONS
        self._library = sys.stdlib_module_names - real_callers - _DEFINITIONS
        self._kinds: dict[int, tuple[Any, list[Any]]] = {}

    def places(self, path: str, root: Any, module: str | None, deepest: int) -> Iterator[Place]:
        """Yield the places below `root`, a part of `module`, at most `deepest` steps away.

        Without a module `root` is a patch of a test, which may be of any package.
        """
        seen, queue = {id(root)}, deque([(path, root, 0)])
        rebuilt = set()  # tuples and static methods that are replaced with their functions
        while queue:
            path, outer, depth = queue.popleft()
            replaced = set()
            for holder, access, key, value in self._parts(outer):
                if self._wanted(value):
                    if access is not None:
                        yield Place(holder, key, access, value)
                        replaced.add(id(value))
                    if not issubclass(type(value), (tuple, staticmethod)):
                        continue  # nothing else is in it
                    if access is not None:
                        rebuilt.add(id(value))
                if (
                    depth < deepest
                    and not issubclass(type(value), _NO_HOLDERS)
                    and id(value) not in seen
                ):
                    seen.add(id(value))
                    if self._enters(value, module):
                        queue.append((_step(path, key), value, depth + 1))
                    elif _package(type(value)) in self._library:
                        names = _attributes_of(value, _dict_of(type(value)))
                        hidden = [*gc.get_referents(value), *names.values()]
                        self._add_stuck(_step(path, key), hidden)
            if id(outer) not in rebuilt:
                self._add_stuck(path, [v for v in gc.get_referents(outer) if id(v) not in replaced])
        self._kinds.clear()

    def _enters(self, value: Any, module: str | None) -> bool:
        kind = type(value)
        if issubclass(kind, type):
            return module is not None and bool(vars(value).get("__module__") == module)
        if kind is FunctionType:
            if module is None or value.__module__ == module:
                return True
            origin = value.__globals__.get("__name__") or ""
            return origin.partition(".")[0] not in self._closed
        return _package(kind) not in self._closed

    def _add_stuck(self, path: str, values: list[Any]) -> None:
        for value in values:
            if type(value) is BuiltinFunctionType and self._wanted(value):
                steps = path.split(".")
                while steps[-1].startswith("__"):
                    steps.pop()
                self.stuck.append((".".join(steps), value))

    def _parts(self, holder: Any) -> Iterator[Part]:
        kind = type(holder)
        if kind is FunctionType:
            yield from _parts_of_function(holder)
        elif issubclass(kind, type):
            access = None if holder.__flags__ & _IMMUTABLE else _CLASS
            for name, value in list(vars(holder).items()):
                yield holder, access, name, value
        elif kind is staticmethod or kind is classmethod:
            yield holder, None, "__func__", holder.__func__
        elif kind is MethodType:
            yield holder, None, "__func__", holder.__func__
            yield holder, None, "__self__", holder.__self__
        elif kind is _CACHE:
            for value in gc.get_referents(holder):  # `__wrapped__` is only a copy
                yield holder, None, "__wrapped__", value
        elif kind is property:
            for name in ("fget", "fset", "fdel"):
                yield holder, None, name, getattr(holder, name)
        elif issubclass(kind, partial):
            yield holder, _PARTIAL, "func", holder.func
            yield holder, _PARTIAL, "args", holder.args
            yield from _items(holder.keywords)
        else:
            if issubclass(kind, dict):
                yield from _items(holder)
            elif issubclass(kind, list):
                for at, value in enumerate(list.copy(holder)):
                    yield holder, _INDEX, at, value
            elif issubclass(kind, tuple):
                for at, value in enumerate(tuple.__iter__(holder)):
                    yield holder, None, at, value
            yield from self._attributes(holder, kind)

    def _attributes(self, holder: Any, kind: type) -> Iterator[Part]:
        if id(kind) not in self._kinds:  # a metaclass may forbid to hash or compare the class
            self._kinds[id(kind)] = _dict_of(kind), _slots_of(kind)
        attributes, slots = self._kinds[id(kind)]
        yield from _items(_attributes_of(holder, attributes))
        for slot in slots:
            yield holder, _SLOT, slot, _get_slot(holder, slot)


def _step(path: str, key: object) -> str:
    if isinstance(key, MemberDescriptorType):
        key = key.__name__
    return f"{path}.{key}" if type(key) is str else f"{path}[…]"


def _package(kind: type) -> str:
    return str(_MODULE.__get__(kind)).partition(".")[0]


def _dict_of(kind: type) -> Any:
    """Return the descriptor of an object's attributes, None if there is none or a user's own."""
    found = next(
        (vars(base)["__dict__"] for base in kind.__mro__ if "__dict__" in vars(base)), None
    )
    return found if type(found) in (GetSetDescriptorType, MemberDescriptorType) else None


def _attributes_of(holder: Any, attributes: Any) -> dict[str, Any]:
    if attributes is None:
        return {}
    try:
        names = attributes.__get__(holder)
    except AttributeError:  # the object is not complete
        return {}
    return names if type(names) is dict else {}


def _slots_of(kind: type) -> list[Any]:
    return [
        value
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for value in vars(base).values()
        if type(value) is MemberDescriptorType
    ]


def _items(names: dict[Any, Any]) -> Iterator[Part]:
    for key, value in list(dict.items(names)):
        yield names, _ITEM, key, value


def _parts_of_function(function: FunctionType) -> Iterator[Part]:
    yield function, _ATTRIBUTE, "__defaults__", function.__defaults__
    yield from _items(function.__kwdefaults__ or {})
    yield from _items(function.__dict__)
    for cell in function.__closure__ or ():
        yield cell, _CELL, "closure", _get_cell(cell, "")
    names = function.__globals__
    if names_in(sys.modules.get(names.get("__name__", ""))) is not names:
        yield from _items(names)  # they were made for the function alone


def _get_cell(cell: CellType, _: str) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _get_slot(holder: Any, member: Any) -> Any:
    try:
        return member.__get__(holder)
    except AttributeError:  # it is empty
        return None


def _put_part(holder: Any, name: str, value: Any) -> None:
    parts = {"func": holder.func, "args": holder.args, name: value}
    holder.__setstate__((parts["func"], parts["args"], holder.keywords, vars(holder) or None))


_ITEM: Final = _Access(dict.get, dict.__setitem__)
_INDEX: Final = _Access(
    lambda holder, at: holder[at] if at < len(holder) else None, list.__setitem__
)
_CLASS: Final = _Access(lambda kind, name: vars(kind).get(name), type.__setattr__)
_ATTRIBUTE: Final = _Access(getattr, setattr)
_CELL: Final = _Access(_get_cell, lambda cell, _, value: setattr(cell, "cell_contents", value))
_SLOT: Final = _Access(_get_slot, lambda holder, member, value: member.__set__(holder, value))
_PARTIAL: Final = _Access(getattr, _put_part)
