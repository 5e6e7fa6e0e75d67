"""Routines and a flow with a gather, shared by the tests: split -> work -> join."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from routilux import ErrorHandler, Flow, Gathered, Routine


class Split(Routine):
    """Emits the items 0 to `n` - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.split)
        self.define_event("item", ["n"])

    def split(self, n: int = 3) -> None:
        if n < 0:
            raise ValueError("less than nothing")
        for i in range(n):
            self.emit("item", n=i)


class Work(Routine):
    """Squares an item; `fails` holds how many attempts fail for an item."""

    max_concurrency = 4

    def __init__(self, fails: Mapping[int, int] | None = None, slow: float = 0.0) -> None:
        super().__init__()
        self.fails = dict(fails or {})
        self.slow = slow
        self.define_slot("trigger", handler=self.work)
        self.define_event("done", ["n", "square"])

    def work(self, n: int) -> None:
        if self.slow:  # the last item ends first
            self.ctx.sleep(self.slow / (n + 1))
        if self.ctx.attempt <= self.fails.get(n, 0):
            raise ValueError(f"item {n}, attempt {self.ctx.attempt}")
        self.emit("done", n=n, square=[n * n])


class AsyncWork(Work):
    """The same, as a coroutine."""

    async def work(self, n: int) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().work(n)


class Join(Routine):
    """Emits what it has gathered; its first attempts fail."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.fails = fails
        self.define_slot("done", handler=self.join, gather=True)
        self.define_event("output", ["squares", "sources", "dropped"])

    def join(self, found: Gathered) -> None:
        squares = [row["square"] for row in found]
        for row in found:
            row["square"].append("changed")
        if self.ctx.attempt <= self.fails:
            raise OSError(f"attempt {self.ctx.attempt}")
        squares = [square[:1] for square in squares]
        dropped = [task.task_id for task in found.dropped]
        self.emit("output", squares=squares, sources=list(found.sources), dropped=dropped)


def gathering(
    *,
    work: Routine | None = None,
    join: Routine | None = None,
    per: str | None = None,
    workers: int | None = None,
    handler: ErrorHandler | None = None,
) -> Flow:
    strategy: Any = "sequential" if workers is None else "concurrent"
    flow = Flow("gathering", execution_strategy=strategy, max_workers=workers or 1)
    flow.add_routine(Split(), "split")
    flow.add_routine(Work() if work is None else work, "work")
    flow.add_routine(Join() if join is None else join, "join", gather_per=per)
    flow.connect("split", "item", "work", "trigger")
    flow.connect("work", "done", "join", "done")
    flow.set_error_handler(handler)
    return flow
