"""What a host does, as a flow with one routine; each action is chosen by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from routilux import Flow, Routine
from tests.routines import Body, Importable, chain


def prints(self: Routine, n: int) -> None:
    """Print lines on both streams."""
    for number in range(n):
        os.write(1 + number % 2, f"line {number}\n".encode())


def hangs(self: Routine, n: str) -> None:
    """Send the id of the process through a fifo, and wait for ever."""
    Path(n).write_text(str(os.getpid()))
    os.read(os.pipe()[0], 1)


def has_a_child(self: Routine, n: str) -> None:
    """Start a child that would live for ever and holds the fifo open, and send its id."""
    end = os.open(n, os.O_WRONLY)
    if (child := os.fork()) == 0:
        os.read(os.pipe()[0], 1)
    os.write(end, str(child).encode())
    os.close(end)


def acts(action: str) -> Flow:
    return chain(act=Importable(f"{__name__}:{action}"))


def args(action: Body, n: object) -> dict[str, Any]:
    """Return the arguments of `FlowHosts.start` for an action."""
    build_args = {"action": action.__name__}
    return {"build": acts, "entry": "act", "params": {"n": n}, "build_args": build_args}
