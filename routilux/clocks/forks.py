"""Resets objects in a forked child process, or closes them before the fork.

Invariants:
- A child has only the thread that forked. A lock that another thread held stays locked there, and a
  thread that others wait for does not exist.
- Each object is reset before any other code runs in the child.
- An object that can't be reset in the child is closed before the fork. It opens again when it is
  used, in the parent and in the child.
- No object is kept alive. No `WeakMethod` is used: when an interpreter ends, its callback may fail.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Final, cast
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable


class _Weak(ref[object]):
    """A weak reference to an object, with functions to call with the object."""

    __slots__ = ("functions",)

    functions: tuple[Callable[[object], None], ...]

    # By identity: the object may be unhashable.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


_to_begin: Final[set[_Weak]] = set()
_to_close: Final[set[_Weak]] = set()
_forking: Final = threading.Lock()
_to_end: Final[list[Callable[[], None]]] = []  # of the fork that is going on


def begin_in_children(begins: Callable[[], None]) -> None:
    """Call the method `begins` in each forked child.

    The method makes new locks and forgets threads. Its object is not kept alive.
    """
    _keep(_to_begin, begins)


def _keep(found: set[_Weak], *methods: Callable[[], None]) -> None:
    bound = [cast(MethodType, method) for method in methods]
    weak = _Weak(bound[0].__self__, found.discard)
    weak.functions = tuple(method.__func__ for method in bound)
    found.add(weak)


def _begin_all() -> None:
    for weak in list(_to_begin):
        kept = weak()
        if kept is not None:
            (begins,) = weak.functions
            begins(kept)


def around_forks(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call the methods `before` and `after` of an object before and after each fork.

    `after` is called in the parent and in the child. The object is not kept alive.
    """
    _keep(_to_close, before, after)


def _before_all() -> None:
    _forking.acquire()
    for weak in list(_to_close):
        kept = weak()
        if kept is not None:
            before, after = weak.functions
            before(kept)
            _to_end.append(partial(after, kept))


def _after_all() -> None:
    while _to_end:
        _to_end.pop()()
    _forking.release()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_all)
    os.register_at_fork(before=_before_all, after_in_parent=_after_all, after_in_child=_after_all)
