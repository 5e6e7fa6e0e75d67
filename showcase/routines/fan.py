"""Fan-out and fan-in: one item becomes many, each with its own retries, and they become one.

Invariants:
- Each item has a task and a retry budget of its own.
- A gather slot gets the items that are done, in the order of the album, and the dropped ones.
- By hand the same takes a count, and the event `error` of each item that is given up. To wait for
  the last item is wrong: the last one that was emitted need not be the last one that arrives.
- What a step only adds to is kept by accumulators: steps that run at once never conflict there.
- Totals that a handler reads and writes are in `ctx.shared`: there a step may have to run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from routilux import Gathered, Routine

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AwaitLastRoutine",
    "CountPicturesRoutine",
    "GatherRoutine",
    "ResizeRoutine",
    "SplitRoutine",
    "TallyRoutine",
]


class SplitRoutine(Routine):
    """Emits each picture of an album as one event."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.split)
        self.define_event("picture", ["name", "seconds", "failures", "number", "of"])

    def split(self, pictures: Sequence[dict[str, object]]) -> None:
        for number, picture in enumerate(pictures, 1):
            self.emit("picture", **picture, number=number, of=len(pictures))


class ResizeRoutine(Routine):
    """Works on several pictures at once; fails the first `failures` attempts at each.

    With `reports` it emits the event `error` for each picture that it gives up.
    """

    max_concurrency = 8

    def __init__(self, *, reports: bool = False) -> None:
        super().__init__()
        self.define_slot("input", handler=self.resize)
        self.define_event("output", ["name", "size", "attempt", "number", "of"])
        if reports:
            self.define_event("error", ["payload", "attempt", "message"])

    def resize(self, name: str, seconds: float, failures: int, number: int, of: int) -> None:
        self.ctx.sleep(seconds)
        if self.ctx.attempt <= failures:
            raise OSError(f"{name}: no memory at attempt {self.ctx.attempt}")
        size = 100 + 10 * len(name)
        self.ctx.state.add("pictures", 1)
        self.ctx.state.maximum("largest", size)
        self.emit("output", name=name, size=size, attempt=self.ctx.attempt, number=number, of=of)


class TallyRoutine(Routine):
    """Adds to totals that all pictures share, several at once, each taking a while."""

    max_concurrency = 8

    def __init__(self, seconds: float = 0.1) -> None:
        super().__init__()
        self.seconds = seconds
        self.define_slot("input", handler=self.add)
        self.define_event("output", ["name", "size", "attempt", "number", "of"])

    def add(self, name: str, size: int, **picture: int) -> None:
        shared = self.ctx.shared
        count = cast(int, shared.get("count", 0))
        total = cast(int, shared.get("bytes", 0))
        self.ctx.sleep(self.seconds)  # long enough for others to add theirs meanwhile
        shared["count"], shared["bytes"] = count + 1, total + size
        self.emit("output", name=name, size=size, **picture)


class GatherRoutine(Routine):
    """Gets all pictures at once, and emits one album."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("done", handler=self.done, gather=True)
        self.define_event("album", ["done", "dropped"])

    def done(self, found: Gathered) -> None:
        dropped = [task.payload["name"] for task in found.dropped]
        self.emit("album", done=[picture["name"] for picture in found], dropped=dropped)


class CountPicturesRoutine(Routine):
    """Does the same by hand: counts the pictures, given-up ones included, and emits at the last."""

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


class AwaitLastRoutine(Routine):
    """Does the same wrong: emits the album when the picture with the last number arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("done", handler=self.done)
        self.define_event("album", ["done"])

    def done(self, name: str, number: int, of: int) -> None:
        self.ctx.state.append("names", name)
        if number == of:
            self.emit("album", done=sorted(cast("list[str]", self.ctx.state["names"])))
