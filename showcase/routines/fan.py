"""Fan-out and fan-in: one item becomes many, each with its own retries, and they become one.

Invariants:
- Each item has a task and a retry budget of its own.
- An item that is given up emits the event `error`, so that the routine that waits for all items
  still ends.
- Totals of all items are in `ctx.shared`, read and written in one handler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from routilux import Routine

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GatherRoutine", "ResizeRoutine", "SplitRoutine", "TallyRoutine"]


class SplitRoutine(Routine):
    """Emits each picture of an album as one event."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.split)
        self.define_event("picture", ["name", "seconds", "failures", "of"])

    def split(self, pictures: Sequence[dict[str, object]]) -> None:
        for picture in pictures:
            self.emit("picture", **picture, of=len(pictures))


class ResizeRoutine(Routine):
    """Works on several pictures at once; fails the first `failures` attempts at each."""

    max_concurrency = 8

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.resize)
        self.define_event("output", ["name", "size", "attempt", "of"])
        self.define_event("error", ["payload", "attempt", "message"])

    def resize(self, name: str, seconds: float, failures: int, of: int) -> None:
        self.ctx.sleep(seconds)
        if self.ctx.attempt <= failures:
            raise OSError(f"{name}: no memory at attempt {self.ctx.attempt}")
        size = 100 + 10 * len(name)
        self.emit("output", name=name, size=size, attempt=self.ctx.attempt, of=of)


class TallyRoutine(Routine):
    """Adds to totals that all pictures share, several at once, each taking a while."""

    max_concurrency = 8

    def __init__(self, seconds: float = 0.1) -> None:
        super().__init__()
        self.seconds = seconds
        self.define_slot("input", handler=self.add)
        self.define_event("output", ["name", "size", "attempt", "of"])

    def add(self, name: str, size: int, attempt: int, of: int) -> None:
        shared = self.ctx.shared
        count = cast(int, shared.get("count", 0))
        total = cast(int, shared.get("bytes", 0))
        self.ctx.sleep(self.seconds)  # long enough for others to add theirs meanwhile
        shared["count"], shared["bytes"] = count + 1, total + size
        self.emit("output", name=name, size=size, attempt=attempt, of=of)


class GatherRoutine(Routine):
    """Waits for all pictures, given-up ones included, and then emits once."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("done", handler=self.done)
        self.define_slot("dropped", handler=self.dropped)
        self.define_event("album", ["done", "dropped"])

    def done(self, name: str, of: int) -> None:
        self._arrived("done", name, of)

    def dropped(self, payload: dict[str, object]) -> None:
        self._arrived("dropped", cast(str, payload["name"]), cast(int, payload["of"]))

    def _arrived(self, how: str, name: str, of: int) -> None:
        state = self.ctx.state
        arrived = cast("dict[str, list[str]]", state.setdefault("arrived", {}))
        arrived.setdefault(how, []).append(name)
        done, dropped = (sorted(arrived.get(key, [])) for key in ("done", "dropped"))
        if len(done) + len(dropped) == of:
            self.emit("album", done=done, dropped=dropped)
