"""Which task comes next: a queue, a heap, and a place aside for those whose routine is busy.

Laws:
- The order is (due time, sequence number of the creating commit, position in it).
- A routine has at most `max_concurrency` steps in flight; what must wait for it holds nobody back.
- Nothing is polled: a task that can't run is put aside until a step of its routine ends.
- Fresh tasks come in order, so they queue; only what comes out of order goes through the heap
  (measured: 5 % of a step).
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from routilux.core.parts import PendingTask

__all__ = ["Limited", "Schedule"]

_Entry = tuple[int, int, int, "PendingTask"]


class Limited(Protocol):
    """What a schedule must know of a routine."""

    @property
    def max_concurrency(self) -> int:
        """How many steps of it may be in flight at once."""


class _Lane:
    __slots__ = ("aside", "busy", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.aside: list[_Entry] = []


class _Lanes(dict[str, _Lane]):
    # Made when first asked for: a flow may have far more routines than a job ever reaches.
    def __init__(self, routines: Mapping[str, Limited]) -> None:
        self._routines = routines

    def __missing__(self, routine_id: str) -> _Lane:
        lane = self[routine_id] = _Lane(self._routines[routine_id].max_concurrency)
        return lane


class Schedule:
    """The tasks of one job that are not in flight, in the order in which they may start."""

    __slots__ = ("_heap", "_lanes", "_queue")

    def __init__(self, routines: Mapping[str, Limited], tasks: Iterable[PendingTask] = ()) -> None:
        self._lanes = _Lanes(routines)
        self._queue: deque[_Entry] = deque()  # always sorted
        self._heap: list[_Entry] = []
        for task in tasks:
            self.add(task)

    def add(self, pending: PendingTask) -> None:
        """Offer a task from its due time on."""
        entry = (pending.due_ns, pending.seq, pending.position, pending)
        queue = self._queue
        if not queue or queue[-1] < entry:
            queue.append(entry)
        else:
            heappush(self._heap, entry)

    def first(self, now: int) -> PendingTask | None:
        """Return the first task that may start now."""
        queue, heap = self._queue, self._heap
        while queue or heap:
            queued = not heap or (queue and queue[0] < heap[0])
            entry = queue[0] if queued else heap[0]
            if entry[0] > now:
                return None
            pending = entry[3]
            lane = self._lanes[pending.task.routine_id]
            if lane.busy < lane.limit:
                return pending
            heappush(lane.aside, queue.popleft() if queued else heappop(heap))
        return None

    def ready(self, now: int) -> list[PendingTask]:
        """Return every task that may start now, the first choice first."""
        lanes = self._lanes
        found = []
        for due, _, _, pending in sorted([*self._queue, *self._heap]):
            lane = lanes[pending.task.routine_id]
            if due <= now and lane.busy < lane.limit:
                found.append(pending)
        return found

    def due(self) -> int | None:
        """Return the next instant at which a task may start; past ones included."""
        entry = self._head()
        return None if entry is None else entry[0]

    def head(self) -> tuple[int, int]:
        """Return where the first task was created: commit and position."""
        entry = self._head()
        return (0, 0) if entry is None else entry[1:3]

    def start(self, pending: PendingTask) -> None:
        """Take a task out, into flight."""
        queue, heap = self._queue, self._heap
        if queue and queue[0][3] is pending:
            queue.popleft()
        elif heap and heap[0][3] is pending:
            heappop(heap)
        else:
            self._queue = deque(entry for entry in queue if entry[3] is not pending)
            self._heap = [entry for entry in heap if entry[3] is not pending]
            heapify(self._heap)
        self._lanes[pending.task.routine_id].busy += 1

    def end(self, routine_id: str) -> None:
        """Note that a step of a routine is over."""
        lane = self._lanes[routine_id]
        lane.busy -= 1
        if lane.aside:
            heappush(self._heap, heappop(lane.aside))

    def _head(self) -> _Entry | None:
        queue, heap = self._queue, self._heap
        if heap and (not queue or heap[0] < queue[0]):
            return heap[0]
        return queue[0] if queue else None
