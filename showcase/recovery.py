"""The data pipeline of the cross-host scenario: its fault is outside of the flow.

Processing calls a tax service, which is a file here. The service does not depend on the host or the
job that calls: it refuses as many calls as the file says, and notes the process and the thread of
each call.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from routilux import Flow, SavedState
from showcase.flows import data_pipeline
from showcase.routines.pipeline import DataProcessRoutine, Order

if TYPE_CHECKING:
    from routilux import ExecutionStrategy

__all__ = ["TaxService", "TaxedProcessRoutine", "served_pipeline", "what_was_loaded"]


class TaxService:
    """A service at an address; `refuse_next` is how the outside world changes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._file = Path(address)

    def refuse_next(self, calls: int) -> None:
        """Let the next `calls` fail, and those after them succeed."""
        state = self._read() if self._file.exists() else {"calls": []}
        self._file.write_text(json.dumps({**state, "refuses": calls}))

    def call(self, attempt: int) -> None:
        """Call the service once; raises `ValueError` if it refuses."""
        state = self._read()
        left = state["refuses"]
        on_main = threading.current_thread() is threading.main_thread()
        state["calls"].append([os.getpid(), attempt, "main" if on_main else "pool"])
        self._file.write_text(json.dumps({**state, "refuses": max(left - 1, 0)}))
        if left:
            raise ValueError(f"the tax service refuses, try {attempt}")

    def attempts_of(self, pid: int) -> list[int]:
        """Return the attempts that a process made, as the service saw them."""
        return [attempt for caller, attempt, _ in self._read()["calls"] if caller == pid]

    def threads_of(self, pid: int) -> set[str]:
        """Return the threads of a process that made the calls: the main thread, or a pool's."""
        return {thread for caller, _, thread in self._read()["calls"] if caller == pid}

    def _read(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self._file.read_text("utf-8")))


class TaxedProcessRoutine(DataProcessRoutine):
    """Processes as `DataProcessRoutine` does, but needs the service at `address` for it."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.service = TaxService(address)

    def process(self, data: Order, metadata: dict[str, object]) -> None:
        """Emit the order with tax. An event that is emitted before a refusal is not delivered."""
        super().process(data, metadata)
        self.service.call(self.ctx.attempt)


def served_pipeline(address: str, execution_strategy: ExecutionStrategy = "sequential") -> Flow:
    """Return the data pipeline with a processing that needs the service at `address`."""
    plain = data_pipeline(0, execution_strategy)
    flow = Flow(plain.flow_id, execution_strategy=execution_strategy)
    for routine_id, routine in plain.routines.items():
        if routine_id == "data_process":
            taxed = TaxedProcessRoutine(address)
            taxed.set_error_handler(routine.error_handler)
            flow.add_routine(taxed, routine_id)
        else:
            flow.add_routine(routine, routine_id)
    for edge in plain.connections:
        flow.connect(edge.source, edge.event, edge.target, edge.slot)
    return flow


def what_was_loaded(state: SavedState) -> dict[str, object]:
    """Return the facts that a host reads from a document before it resumes; runs on that host."""
    job = state.job
    [task] = job.pending_tasks
    order = cast(Order, task.payload["data"])
    return {
        "pid": os.getpid(),
        "status": job.status.value,
        "retry_count": state.retry_count,
        "next": f"{task.routine_id} {task.attempt}",
        "history": [record.event for record in job.execution_history],
        "request_id": order["request_id"],
        "items": len(order["items"]),
        "total_items": order["total_items"],
        "payload": dict(task.payload),
        "monitor_summary": state.monitor_summary,
    }
