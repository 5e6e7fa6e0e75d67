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

    def first(self) -> PendingTask | None:
        """Return the first task whose routine has room; it may not be due yet."""
        queue, heap = self._queue, self._heap
        while queue or heap:
            queued = not heap or (queue and queue[0] < heap[0])
            pending = queue[0][3] if queued else heap[0][3]
            lane = self._lanes[pending.task.routine_id]
            if lane.busy < lane.limit:
                return pending
            heappush(lane.aside, queue.popleft() if queued else heappop(heap))
        return None

    def ready(self, now: int) -> list[PendingTask]:
        """Return every task that may start now, the first choice first."""
        lanes = self._lanes
        found = []
        aside = [entry for lane in lanes.values() for entry in lane.aside]
        for due, _, _, pending in sorted([*self._queue, *self._heap, *aside]):
            lane = lanes[pending.task.routine_id]
            if due <= now and lane.busy < lane.limit:
                found.append(pending)
        return found

    def start(self, pending: PendingTask) -> None:
        """Take a task out, into flight."""
        queue, heap = self._queue, self._heap
        lane = self._lanes[pending.task.routine_id]
        if queue and queue[0][3] is pending:
            queue.popleft()
        elif heap and heap[0][3] is pending:
            heappop(heap)
        else:
            self._queue = deque(entry for entry in queue if entry[3] is not pending)
            self._heap = [entry for entry in heap if entry[3] is not pending]
            heapify(self._heap)
            lane.aside = [entry for entry in lane.aside if entry[3] is not pending]
            heapify(lane.aside)
        lane.busy += 1

    def end(self, routine_id: str) -> None:
        """Note that a step of a routine is over."""
        lane = self._lanes[routine_id]
        lane.busy -= 1
        if lane.aside:
            heappush(self._heap, heappop(lane.aside))
