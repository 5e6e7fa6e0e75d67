"""Resets objects in a forked child process, or closes them before the fork.

Invariants:
- A child has only the thread that forked. A lock that another thread held stays locked there, and a
  thread that others wait for does not exist.
- Each object is reset before any other code runs in the child.
- An object that can't be reset in the child is closed before the fork. It opens again when it is
  used, in the parent and in the child.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

if TYPE_CHECKING:
    from collections.abc import Callable

    _Method = WeakMethod[Callable[[], None]]

_all: Final[set[_Method]] = set()
_pairs: Final[dict[_Method, _Method]] = {}
_forking: Final = threading.Lock()
_to_end: Final[list[Callable[[], None]]] = []  # of the fork that is going on


def begin_in_children(begins: Callable[[], None]) -> None:
    """Call the method `begins` in each forked child.

    The method makes new locks and forgets threads. Its object is not kept alive.
    """
    _all.add(WeakMethod(begins, _all.discard))


def _begin_all() -> None:
    for method in list(_all):
        begins = method()
        if begins is not None:
            begins()


def around_forks(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call the methods `before` and `after` of an object before and after each fork.

    `after` is called in the parent and in the child. The object is not kept alive.
    """
    _pairs[WeakMethod(before, lambda method: _pairs.pop(method, None))] = WeakMethod(after)


def _before_all() -> None:
    _forking.acquire()
    for first, second in list(_pairs.items()):
        before, after = first(), second()
        if before is not None and after is not None:
            before()
            _to_end.append(after)


def _after_all() -> None:
    while _to_end:
        _to_end.pop()()
    _forking.release()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_all)
    os.register_at_fork(before=_before_all, after_in_parent=_after_all, after_in_child=_after_all)
