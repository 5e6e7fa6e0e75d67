"""Resets objects in a forked child process.

Invariants:
- A child has only the thread that forked. A lock that another thread held stays locked there, and a
  thread that others wait for does not exist.
- Each object is reset before any other code runs in the child.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

if TYPE_CHECKING:
    from collections.abc import Callable

_all: Final[set[WeakMethod[Callable[[], None]]]] = set()


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


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_all)
