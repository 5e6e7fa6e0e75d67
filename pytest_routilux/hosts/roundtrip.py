"""Saves, loads and compares an object in one call: `serialize_roundtrip(flow, via="process")`.

Invariants:
- The loaded object is equal in value and in type, with dicts in the same order; else the error
  shows the first path that differs.
- A flow is compared by what loading builds: options, handlers, connections, each routine's class
  and arguments, and its public attributes of plain data. This finds attributes that were set
  after the constructor, which no saved flow holds.
- "memory", "file" and "process" use the same bytes; they differ in where these are loaded.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from pytest_routilux.factory import PlainFunction
from pytest_routilux.hosts.flow_hosts import FlowHosts
from pytest_routilux.monitor.snapshot import view
from routilux import ErrorHandler, Flow, JobState, SavedState, codec
from routilux.codec.equality import first_difference, path_step, same_value
from routilux.codec.registry import form_tagged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_T = TypeVar("_T")
Via = Literal["memory", "file", "process"]

_FEW: Final = 8  # keys that are shown
_KINDS: Final[dict[str, Any]] = {
    "flow": Flow,
    "job": JobState,
    "handler": ErrorHandler,
    "state": SavedState,
}


class SerializeRoundtrip:
    """Checks that an object survives saving and loading.

    Takes flows, jobs, error handlers, `SavedState`, and any value that a payload may hold.
    `via="memory"` goes through bytes, "file" through a file, "process" through a file to a fresh
    interpreter, which loads the object, saves it again and sends it back. That interpreter imports
    the modules that define the object's classes or register their saved forms; `imports` are
    further modules, or their names.

    Raises `AssertionError` with the first path that differs, `UnserializableError` if the object
    can't be saved, and `HostError` if the fresh interpreter can't load it.

    >>> SerializeRoundtrip(Path("unused"))({"at": (1, 2.5)})
    {'at': (1, 2.5)}
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(
        self, obj: _T, via: Via = "memory", *, imports: Iterable[str | ModuleType] = ()
    ) -> _T:
        """Save, load and compare `obj`, and return the loaded object."""
        __tracebackhide__ = True
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
            data = self._through_a_process(kind, data, obj, imports)
        elif via != "memory":
            raise ValueError(f"via={via!r}; choose 'memory', 'file' or 'process'")
        found = restored(kind, data)
        was, became = view(obj), view(found)
        difference = first_difference(was, became) or first_reordered(was, became, "$")
        if difference is not None:
            raise AssertionError(f"{difference} (saved and loaded via {via})")
        return cast(_T, found)

    def _next_path(self, kind: str) -> Path:
        self._count += 1
        return self._folder / f"roundtrip-{self._count}-{kind}.json"

    def _through_a_process(
        self, kind: str, data: bytes, obj: object, imports: Iterable[str | ModuleType]
    ) -> bytes:
        path = self._next_path(kind)
        path.write_bytes(data)
        request = {"task": "roundtrip", "kind": kind, "document": str(path.resolve())}
        with FlowHosts(path.with_suffix("")) as hosts:
            named = [name.__name__ if isinstance(name, ModuleType) else name for name in imports]
            host = hosts.launch(request, [*named, *sorted(_modules(obj) - {*named})])
            return (host.folder / "end.json").read_bytes()


def kind_of(obj: object) -> str:
    """Return the kind of an object: flow, job, handler, state or value."""
    return next((kind for kind, cls in _KINDS.items() if isinstance(obj, cls)), "value")


def saved(obj: object) -> bytes:
    """Convert `obj` to the bytes of its saved form."""
    if isinstance(obj, SavedState):
        return obj.to_bytes()
    if isinstance(obj, Flow | JobState | ErrorHandler):
        return (obj.dumps() if isinstance(obj, JobState) else codec.dumps(obj.serialize())).encode()
    return codec.dumps(codec.encode(obj)).encode()


def restored(kind: str, data: bytes) -> object:
    """Load an object of this `kind` from the saved bytes `data`."""
    if kind == "state":
        return SavedState.from_bytes(data)
    if kind == "value":
        return codec.loads(data)
    found: object = _KINDS[kind].deserialize(json.loads(data))
    return found


def first_reordered(was: object, became: object, path: str) -> str | None:
    """Describe the first dict with reordered keys; None if there is none."""
    if isinstance(was, dict) and isinstance(became, dict):
        keys = list(was), list(became)
        if any(not same_value(a, b) for a, b in zip(*keys, strict=True)):
            first, second = (", ".join(map(repr, order[:_FEW])) for order in keys)
            return f"{path}: keys saved in the order {first} were loaded as {second}"
        pairs = (
            (path + path_step(key), was[key], became[twin]) for key, twin in zip(*keys, strict=True)
        )
    elif isinstance(was, list | tuple) and isinstance(became, list | tuple):
        both = zip(was, became, strict=True)
        pairs = ((f"{path}[{i}]", a, b) for i, (a, b) in enumerate(both))
    elif is_dataclass(was) and not isinstance(was, type):
        names = [field.name for field in fields(was)]
        pairs = ((f"{path}.{n}", getattr(was, n, None), getattr(became, n, None)) for n in names)
    else:
        return None
    return next(filter(None, (first_reordered(a, b, place) for place, a, b in pairs)), None)


# --- which modules the other process needs ------------------------------------------------------


def _modules(obj: object) -> set[str]:
    """Return the names of the modules that an object needs."""
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
            yield getattr(form.write, "__module__", form.kind.__module__)  # which registers it
            if form.kind is PlainFunction:
                yield data["value"].partition(":")[0]
        for item in data.values():
            yield from _tagged_modules(item)
