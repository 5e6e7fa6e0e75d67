"""Saving and loading in one call: `serialize_roundtrip(flow, via="process")`.

Laws:
- What comes back is equal in value and in type, or the first path that differs is shown.
- A flow is compared by what loading builds: options, handlers, connections, each routine's class
  and arguments, and its public attributes of plain data. So what was set after the constructor,
  which no saved flow holds, is found.
- "memory", "file" and "process" go through the same bytes; they differ in how far those travel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from pytest_routilux.factory import PlainFunction
from pytest_routilux.views import view
from routilux import (
    ErrorHandler,
    Flow,
    JobState,
    SavedState,
    codec,
)
from routilux.tags import form_tagged
from routilux.values import first_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SerializeRoundtrip", "kind_of", "restored", "saved"]

_T = TypeVar("_T")
Via = Literal["memory", "file", "process"]

_KINDS: Final = {"flow": Flow, "job": JobState, "handler": ErrorHandler, "state": SavedState}


class SerializeRoundtrip:
    """Saves an object, loads it again and returns what was loaded; the fixture's type.

    Takes flows, jobs, error handlers, `SavedState`, and any value that a payload may hold.
    `via="memory"` goes through bytes, "file" through a file, "process" through a file to a fresh
    interpreter, which loads the object, saves it again and sends it back.

    Raises `AssertionError` naming the first path that came back different, and
    `UnserializableError` for what can't be saved.

    >>> SerializeRoundtrip(Path("unused"))({"at": (1, 2.5)})
    {'at': (1, 2.5)}
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, obj: _T, via: Via = "memory") -> _T:
        """Return the restored object; see the class."""
        kind = kind_of(obj)
        data = saved(obj)
        if via == "file":
            path = self._next_path(kind)
            if isinstance(obj, SavedState):
                obj.write(path)
            else:
                path.write_bytes(data)
            data = path.read_bytes()
        elif via == "process":
            data = self._through_a_process(kind, data, obj)
        elif via != "memory":
            raise ValueError(f"via={via!r}; choose 'memory', 'file' or 'process'")
        found = restored(kind, data)
        difference = first_difference(view(obj), view(found))
        if difference is not None:
            raise AssertionError(f"{difference} (saved and loaded via {via})")
        return cast(_T, found)

    def _next_path(self, kind: str) -> Path:
        self._count += 1
        return self._folder / f"roundtrip-{self._count}-{kind}.json"

    def _through_a_process(self, kind: str, data: bytes, obj: object) -> bytes:
        from pytest_routilux.hosts import FlowHosts

        path = self._next_path(kind)
        path.write_bytes(data)
        request = {"task": "roundtrip", "kind": kind, "document": str(path.resolve())}
        with FlowHosts(path.with_suffix("")) as hosts:
            host = hosts.launch(request, sorted(_modules(obj)))
            return (host.folder / "end.json").read_bytes()


def kind_of(obj: object) -> str:
    """Return how an object is saved: as a flow, job, handler, state, or value."""
    return next((kind for kind, cls in _KINDS.items() if isinstance(obj, cls)), "value")


def saved(obj: object) -> bytes:
    """Return an object's saved form as bytes."""
    if isinstance(obj, SavedState):
        return obj.to_bytes()
    if isinstance(obj, Flow | JobState | ErrorHandler):
        return codec.dumps(obj.serialize()).encode()
    return codec.dumps(codec.encode(obj)).encode()


def restored(kind: str, data: bytes) -> object:
    """Return the object that `saved` made the bytes of."""
    if kind == "state":
        return SavedState.from_bytes(data)
    if kind == "value":
        return codec.loads(data)
    loaders: dict[str, Any] = {"flow": Flow, "job": JobState, "handler": ErrorHandler}
    return loaders[kind].deserialize(json.loads(data))


# --- which modules the other process needs ------------------------------------------------------


def _modules(obj: object) -> set[str]:
    """Return the modules that define the routines, exceptions, types and functions of an object."""
    if isinstance(obj, SavedState):
        return _modules(obj.flow) | _modules(obj.job)
    if isinstance(obj, ErrorHandler):
        classes = (*obj.retryable_exceptions, *obj.non_retryable_exceptions)
        return {cls.__module__ for cls in classes}
    if isinstance(obj, Flow):
        handlers = [obj.error_handler, *(r.error_handler for r in obj.routines.values())]
        return {
            *(type(routine).__module__ for routine in obj.routines.values()),
            *_tagged_modules(obj.serialize()),
            *(module for handler in handlers if handler for module in _modules(handler)),
        }
    return set(_tagged_modules(json.loads(saved(obj))))


def _tagged_modules(data: object) -> Iterator[str]:
    if isinstance(data, list):
        for item in data:
            yield from _tagged_modules(item)
    elif isinstance(data, dict):
        form = form_tagged(data.get("$type", ""))
        if form is not None:
            yield form.kind.__module__
            if form.kind is PlainFunction:
                yield data["value"].partition(":")[0]
        for item in data.values():
            yield from _tagged_modules(item)
