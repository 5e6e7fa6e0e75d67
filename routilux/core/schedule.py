"""Schedule of a job's tasks: decides which task may start next.

Invariants:
- The order is (due time, sequence number of the creating commit, position in it).
- A routine has at most `max_concurrency` steps in flight; tasks that wait for it delay no others.
- Nothing is polled: a task that can't run is set aside until a step of its routine ends.
- Tasks that arrive in order join the queue, without an entry that the garbage collector visits;
  only tasks out of order go through the heap (measured: 5 % of a step each).
- The queue is a list and the place of its first task: an empty deque takes 760 bytes.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from routilux.core.parts import PendingTask
    from routilux.graph.routine import Routine

_Entry = tuple[int, int, int, "PendingTask"]
_FEW: Final = 64  # so many tasks that have started may stay in the queue


class _Lane:
    __slots__ = ("aside", "busy", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.aside: list[_Entry] = []


class _Lanes(dict[str, _Lane]):
    # Lanes are made on first use: a job may reach few routines of a large flow.
    def __init__(self, routines: Mapping[str, Routine]) -> None:
        self._routines = routines

    def __missing__(self, routine_id: str) -> _Lane:
        lane = self[routine_id] = _Lane(self._routines[routine_id].max_concurrency)
        return lane


class Schedule:
    """The tasks of one job that wait to start, in start order.

    `routines` is None if at most one step is in flight; then no routine is ever busy.
    """

    __slots__ = ("_heap", "_lanes", "_last", "_queue", "_queued")

    def __init__(
        self, routines: Mapping[str, Routine] | None, tasks: Iterable[PendingTask] = ()
    ) -> None:
        self._lanes = None if routines is None else _Lanes(routines)
        self._queue: list[PendingTask] = []  # always sorted; from `_queued` on they wait
        self._queued = 0
        self._last = (0, 0, 0)  # the order of the last task in the queue
        self._heap: list[_Entry] = []
        for task in tasks:
            self.add(task)

    def add(self, pending: PendingTask) -> None:
        """Add a task that may start once it is due."""
        order = (pending.due_ns, pending.seq, pending.position)
        queue = self._queue
        if not queue or self._last < order:
            self._last = order
            queue.append(pending)
        else:
            heappush(self._heap, (*order, pending))

    def first(self) -> PendingTask | None:
        """Return the first task whose routine is not busy, due or not."""
        queue, heap, lanes = self._queue, self._heap, self._lanes
        if lanes is None and not heap:
            return queue[self._queued] if queue else None
        while queue or heap:
            queued = not heap or (queue and queue[self._queued].order < heap[0][:3])
            pending = queue[self._queued] if queued else heap[0][3]
            if lanes is None:
                return pending
            lane = lanes[pending.task.routine_id]
            if lane.busy < lane.limit:
                return pending
            if queued:
                self._leave_queue()
            else:
                heappop(heap)
            heappush(lane.aside, (*pending.order, pending))
        return None

    def _leave_queue(self) -> None:
        """Remove the first task from the queue."""
        queue = self._queue
        self._queued = queued = self._queued + 1
        if queued == len(queue):
            queue.clear()
            self._queued = 0
        elif queued >= _FEW and 2 * queued >= len(queue):
            del queue[:queued]
            self._queued = 0

    def ready(self, now: int) -> list[PendingTask]:
        """Return the tasks that may start at time `now`, in start order."""
        lanes = self._lanes
        entries = self._heap.copy()
        if lanes is not None:
            entries += [entry for lane in lanes.values() for entry in lane.aside]
        waiting = [*self._queue[self._queued :], *(entry[3] for entry in entries)]
        found = []
        for pending in sorted(waiting, key=lambda pending: pending.order):
            lane = None if lanes is None else lanes[pending.task.routine_id]
            if pending.due_ns <= now and (lane is None or lane.busy < lane.limit):
                found.append(pending)
        return found

    def start(self, pending: PendingTask) -> None:
        """Remove a task that starts now."""
        queue, lanes = self._queue, self._lanes
        if queue and queue[self._queued] is pending:
            if len(queue) == 1:
                queue.clear()
            else:
                self._leave_queue()
        elif self._heap and self._heap[0][3] is pending:
            heappop(self._heap)
        else:
            self._queue = [other for other in queue[self._queued :] if other is not pending]
            self._queued = 0
            self._heap = _without(pending, self._heap)
            if lanes is not None:
                lane = lanes[pending.task.routine_id]
                lane.aside = _without(pending, lane.aside)
        if lanes is not None:
            lanes[pending.task.routine_id].busy += 1

    def occupy(self, routine_id: str) -> None:
        """Record that a step of a routine has started."""
        if self._lanes is not None:
            self._lanes[routine_id].busy += 1

    def end(self, routine_id: str) -> None:
        """Record that a step of a routine has ended."""
        if self._lanes is None:
            return
        lane = self._lanes[routine_id]
        lane.busy -= 1
        if lane.aside:
            heappush(self._heap, heappop(lane.aside))


def _without(pending: PendingTask, entries: list[_Entry]) -> list[_Entry]:
    rest = [entry for entry in entries if entry[3] is not pending]
    heapify(rest)
    return rest
