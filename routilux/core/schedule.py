"""Which task comes next: one heap, and a queue for each routine that is busy.

Laws:
- The order is (due time, sequence number of the creating commit, position in it).
- A routine has at most `max_concurrency` steps in flight; what must wait for it holds nobody back.
- Nothing is polled: a task that can't run is put aside until a step of its routine ends.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from routilux.core.parts import PendingTask

__all__ = ["Schedule"]

_Entry = tuple[int, int, int, "PendingTask"]


class _Lane:
    __slots__ = ("aside", "busy", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.aside: list[_Entry] = []


class Schedule:
    """The tasks of one job that are not in flight, in the order in which they may start."""

    __slots__ = ("_heap", "_lanes")

    def __init__(self, limits: Mapping[str, int], tasks: Iterable[PendingTask] = ()) -> None:
        self._lanes = {routine_id: _Lane(limit) for routine_id, limit in limits.items()}
        self._heap: list[_Entry] = []
        for task in tasks:
            self.add(task)

    def add(self, pending: PendingTask) -> None:
        """Offer a task from its due time on."""
        heappush(self._heap, (pending.due_ns, pending.seq, pending.position, pending))

    def first(self, now: int) -> PendingTask | None:
        """Return the first task that may start now."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            pending = heap[0][3]
            lane = self._lanes[pending.task.routine_id]
            if lane.busy < lane.limit:
                return pending
            heappush(lane.aside, heappop(heap))
        return None

    def ready(self, now: int) -> list[PendingTask]:
        """Return every task that may start now, the first choice first."""
        lanes = self._lanes
        return [
            entry[3]
            for entry in sorted(self._heap, key=lambda entry: entry[:3])
            if entry[0] <= now
            and lanes[entry[3].task.routine_id].busy < lanes[entry[3].task.routine_id].limit
        ]

    def due(self) -> int | None:
        """Return the next instant at which a task may start; past ones included."""
        return self._heap[0][0] if self._heap else None

    def head(self) -> tuple[int, int]:
        """Return where the first task was created: commit and position."""
        return self._heap[0][1:3] if self._heap else (0, 0)

    def start(self, pending: PendingTask) -> None:
        """Take a task out, into flight."""
        heap = self._heap
        if heap[0][3] is pending:
            heappop(heap)
        else:
            kept = [entry for entry in heap if entry[3] is not pending]
            heap.clear()
            for entry in kept:
                heappush(heap, entry)
        self._lanes[pending.task.routine_id].busy += 1

    def end(self, routine_id: str) -> None:
        """Note that a step of a routine is over."""
        lane = self._lanes[routine_id]
        lane.busy -= 1
        if lane.aside:
            heappush(self._heap, heappop(lane.aside))
