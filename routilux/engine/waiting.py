"""What a handler may do that waits for another job.

Invariants:
- A step that waits for a job takes up no room: meanwhile other steps run in another thread.
- An async handler does not wait in the thread of its event loop: it awaits `aexecute`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from routilux.engine.drive import Drive
from routilux.errors import FlowDefinitionError
from routilux.graph.context import active

if TYPE_CHECKING:
    from collections.abc import Iterator


def running_drive() -> Drive | None:
    """Return the job whose handler runs the calling code; None outside a handler."""
    context = active.get()
    host = None if context is None or context.step is None else context._host
    return host if isinstance(host, Drive) else None


def refuse_blocked_loop() -> None:
    """Raise `FlowDefinitionError` if a wait of the calling code blocks the loop of its handler."""
    context = active.get()
    if context is not None and context.step is not None and context.blocks_loop():
        raise FlowDefinitionError(
            f"an async handler of {context.step.task.routine_id} waits for a job, which blocks the"
            " event loop of all async handlers; use 'await flow.aexecute(...)'"
        )


@contextmanager
def waiting_step() -> Iterator[Drive | None]:
    """Let other steps run while the step of the calling code, if any, waits for another job.

    Yields the job of that step.
    """
    context, drive = active.get(), running_drive()
    if drive is None or context is None or context.step is None:
        yield None
        return
    number, waits = context.step.number, drive._waits
    if context.on_loop:  # it holds no thread of the runtime
        yield drive
        return
    with drive.environment.lock:
        loop = drive.loop
        if loop is not None:
            waits[number] = waits.get(number, 0) + 1
            # A handler may wait for many jobs at once, in threads of its own.
            if waits[number] == 1 and loop.block(1):
                drive.warn_of_wait(context.step.task.routine_id)
    try:
        yield drive
    finally:
        if loop is not None:
            with drive.environment.lock:
                waits[number] -= 1
                if not waits[number]:
                    del waits[number]
                    loop.block(-1)
