"""Records which handler reads and changes which key of `ctx.state` and `ctx.shared`, and where.

Invariants:
- The accesses are those of one run, in its order. Recording changes no result.
- A line is one of the user's code.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_routilux.frames import outwards, users_frame
from routilux.graph.context import active
from routilux.graph.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_READS: Final = ("__getitem__", "__contains__")
_WRITES: Final = ("__setitem__", "__delitem__")
_ADDS: Final = "_accumulate"
_ALL: Final = ("__iter__", "__len__")


class Access(NamedTuple):
    """One use of a key; `key` is None for all keys, as by an iteration."""

    routine_id: str
    task_id: str
    shared: bool
    key: str | None
    how: str
    """`reads`, `writes` or `adds to`."""
    where: str
    """The line of the user's code, as file:line."""
    sums_floats: bool = False
    """Whether it adds a float to a number, so that the order of such steps changes the sum."""


def _key_of(how: str, args: Sequence[Any]) -> str | None:
    # An accumulator's kind comes before its key; an iteration has no key.
    return args[1 if how == "adds to" else 0] if args else None


@contextmanager
def recorded_accesses() -> Iterator[list[Access]]:
    """Record the accesses of handlers in the `with` block."""
    found: list[Access] = []
    originals = {name: getattr(View, name) for name in (*_READS, *_WRITES, _ADDS, *_ALL)}

    def note(view: View, how: str, args: Sequence[Any]) -> None:
        context = active.get()
        frame = users_frame(outwards(inspect.currentframe()))
        if context is not None and context.step is not None and frame is not None:
            task = context.step.task
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            shared = view._name == "ctx.shared"
            key, sums = _key_of(how, args), args[:1] == ("add",) and type(args[-1]) is float
            found.append(Access(task.routine_id, task.task_id, shared, key, how, where, sums))

    def recorded(original: Callable[..., Any], how: str) -> Callable[..., Any]:
        def method(view: View, *args: Any, **kwargs: Any) -> Any:
            note(view, how, args)
            return original(view, *args, **kwargs)

        return method

    for name, original in originals.items():
        how = "writes" if name in _WRITES else "adds to" if name == _ADDS else "reads"
        setattr(View, name, recorded(original, how))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(View, name, original)
