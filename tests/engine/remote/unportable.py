"""Errors and values that can't travel between two processes, each in its own way.

The child process imports this module, so everything that a handler needs is defined at its top.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from routilux import Routine, register_type

PARENT = int(os.environ.setdefault("ROUTILUX_TESTS_PARENT", str(os.getpid())))


def is_child() -> bool:
    return os.getpid() != PARENT


def _refuse(*_: object) -> Any:
    raise TypeError("no way out")


def _end(*_: object) -> Any:
    raise SystemExit("no way out")


def _opens_in_the_child(text: str) -> str:
    return text if is_child() else _refuse()


def _ends_the_parent(text: str) -> str:
    return text if is_child() else _end()


def _opens_in_the_parent(text: str) -> str:
    return _refuse() if is_child() else text


class _OtherArguments:
    def __init__(self, code: int, *, host: str) -> None:
        super().__init__(f"{host} answered {code}")


class _Wraps:
    """Its constructor makes another message of its own arguments."""

    def __init__(self, text: str) -> None:
        super().__init__(f"wrapped {text}")


class _HoldsALock:
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class _ReduceRaises:
    def __reduce__(self) -> Any:
        _refuse()


class _ReduceEnds:
    def __reduce__(self) -> Any:
        _end()


class _ReducesToText:
    def __reduce__(self) -> Any:
        return str, ("a text",)


class _NotInTheParent:
    def __reduce__(self) -> Any:
        return _opens_in_the_child, ("gone",)


class _EndsTheParent:
    def __reduce__(self) -> Any:
        return _ends_the_parent, ("gone",)


class _MetaRefuses(type):
    def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> Any:
        if not is_child() and members.get("__qualname__", "").endswith("Named"):
            raise TypeError("one class only")
        return super().__new__(cls, name, bases, members)


WAYS: dict[str, tuple[type, tuple[Any, ...], dict[str, Any]]] = {
    "other arguments": (_OtherArguments, (503,), {"host": "h"}),
    "a wrapped message": (_Wraps, ("x",), {}),
    "a lock": (_HoldsALock, ("locked",), {}),
    "its __reduce__ raises": (_ReduceRaises, ("refused",), {}),
    "its __reduce__ ends the process": (_ReduceEnds, ("refused",), {}),
    "it becomes another value": (_ReducesToText, ("text",), {}),
    "the parent can't unpickle it": (_NotInTheParent, ("gone",), {}),
    "unpickling ends the parent": (_EndsTheParent, ("gone",), {}),
    "a local class": (object, ("local",), {}),
    "a class of a module that only the child has": (object, ("only here",), {}),
}
ERRORS: dict[tuple[str, type], type] = {}
for _way, (_mixin, _, _) in WAYS.items():
    if _mixin is not object:
        for _base in (ConnectionError, SystemExit, BaseException):
            _name = f"{_mixin.__name__}{_base.__name__}"
            _made = type(_name, (_mixin, _base), {"__module__": __name__})
            globals()[_name] = ERRORS[_way, _base] = _made


def error_of_kind(way: str, base: type) -> BaseException:
    """Return an error that can't travel in this way; its bases include `base`."""
    _, args, named = WAYS[way]
    if way == "a local class":
        kind: Any = type("Local", (base,), {"__module__": __name__, "__qualname__": "f.Local"})
    elif way == "a class of a module that only the child has":
        module = types.ModuleType("only_in_the_child")
        kind = type("OnlyHere", (base,), {"__module__": module.__name__})
        module.OnlyHere = kind  # type: ignore[attr-defined]
        if multiprocessing.parent_process() is not None:  # the test makes one to compare with
            sys.modules[module.__name__] = module
    else:
        kind = ERRORS[way, base]
    error: BaseException = kind(*args, **named)
    error.add_note("the note")
    return error


def raise_it(self: Routine, way: str, base: str, group: bool) -> None:
    """Record an effect, and fail in the first attempt."""
    self.ctx.once("pid", os.getpid)
    if self.ctx.attempt == 1:
        error = error_of_kind(way, getattr(sys.modules["builtins"], base))
        if group:
            raise BaseExceptionGroup("2 calls", [ValueError("v"), error])
        raise error
    self.emit("out", n=self.ctx.attempt, pid=0)


class Value:
    """A value that can be copied, and pickled and unpickled only as `ways` says."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __deepcopy__(self, _: object) -> Value:
        return self

    def __reduce__(self) -> Any:
        return VALUES[self.way]()


VALUES: dict[str, Callable[[], Any]] = {
    "can't be pickled": _refuse,
    "ends who pickles it": _end,
    "can't be unpickled in the parent": lambda: (_opens_in_the_child, ("v",)),
    "ends the parent": lambda: (_ends_the_parent, ("v",)),
    "can't be unpickled in the child": lambda: (_opens_in_the_parent, ("v",)),
}


class Result(Value):
    """Such a value that a store can keep."""


register_type(Result, encode=lambda value: value.way, decode=Result)


def send_it(self: Routine, way: str, where: str) -> None:
    """Put such a value where the text says; the effect is recorded all the same."""
    self.ctx.once("pid", os.getpid)
    value = Value(way)
    if where == "emission":
        self.emit("out", n=value, pid=0)
    elif where == "effect":
        self.ctx.once("value", Result, way)
        self.emit("out", n=1, pid=0)
    elif where == "added":
        self.ctx.state.append("value", value)
    else:
        getattr(self.ctx, where)["value"] = value
