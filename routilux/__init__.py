"""Event-driven flows with retries, exact backoff, and state that survives a crash.

>>> from routilux import Flow, Routine
>>> class Hello(Routine):
...     def __init__(self):
...         super().__init__()
...         self.define_slot("trigger", handler=self.hello)
...         self.define_event("output", ["text"])
...     def hello(self, name: str) -> None:
...         self.emit("output", text=f"hello {name}")
>>> flow = Flow("greeting")
>>> _ = flow.add_routine(Hello(), "hello")
>>> flow.execute("hello", {"name": "world"}).outputs[0].data
{'text': 'hello world'}

PYTEST_DONT_REWRITE: pytest must not compile this module again, nor warn that it can't.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from routilux.clocks.clock import Clock, Signal, SystemClock
from routilux.clocks.fake_clock import FakeClock, Wait
from routilux.codec import register_type
from routilux.core.commits import Commit, CommitKind, HistoryRecord, JobStatus
from routilux.core.parts import Output, PendingTask, RoutineState, RoutineStatus
from routilux.core.state import JobState
from routilux.errors import (
    ClockStalledError,
    CorruptStateError,
    DuplicateJobError,
    FlowDefinitionError,
    FlowMismatchError,
    IllegalTransitionError,
    JobFailedError,
    LeaseLostError,
    NoActiveStepError,
    NotResumableError,
    PoisonJobError,
    RoutiluxError,
    SavedStateError,
    StepLimitError,
    StepTimeoutError,
    UnknownRoutineError,
    UnserializableError,
    UnsupportedVersionError,
)
from routilux.flow import Flow
from routilux.graph.context import Context
from routilux.graph.gathered import Gathered
from routilux.graph.messages import DroppedTask, Emission, ErrorInfo, StepInput, StepOutcome
from routilux.graph.plan import Connection, ExecutionStrategy
from routilux.graph.routine import Event, Routine, Slot
from routilux.monitor import DataFlow, ExecutionMonitor, Observer, Retry, StateChange
from routilux.persist.admin import cancel_job, retry_job
from routilux.persist.memory import MemoryStore
from routilux.persist.store import Acquired, Append, Hold, JobStore
from routilux.persist.versions import PACKAGE
from routilux.retry.error_handler import ErrorHandler, ErrorStrategy, RetryAfter
from routilux.run import Run
from routilux.runtime import Runtime, use_runtime
from routilux.saved_state import SavedState
from routilux.worker.worker import Worker

if TYPE_CHECKING:
    from routilux.persist.postgres import PostgresStore
    from routilux.persist.sqlite import SqliteStore

__version__ = PACKAGE

__all__ = [
    "Acquired",
    "Append",
    "Clock",
    "ClockStalledError",
    "Commit",
    "CommitKind",
    "Connection",
    "Context",
    "CorruptStateError",
    "DataFlow",
    "DroppedTask",
    "DuplicateJobError",
    "Emission",
    "ErrorHandler",
    "ErrorInfo",
    "ErrorStrategy",
    "Event",
    "ExecutionMonitor",
    "ExecutionStrategy",
    "FakeClock",
    "Flow",
    "FlowDefinitionError",
    "FlowMismatchError",
    "Gathered",
    "HistoryRecord",
    "Hold",
    "IllegalTransitionError",
    "JobFailedError",
    "JobState",
    "JobStatus",
    "JobStore",
    "LeaseLostError",
    "MemoryStore",
    "NoActiveStepError",
    "NotResumableError",
    "Observer",
    "Output",
    "PendingTask",
    "PoisonJobError",
    "PostgresStore",
    "Retry",
    "RetryAfter",
    "RoutiluxError",
    "Routine",
    "RoutineState",
    "RoutineStatus",
    "Run",
    "Runtime",
    "SavedState",
    "SavedStateError",
    "Signal",
    "Slot",
    "SqliteStore",
    "StateChange",
    "StepInput",
    "StepLimitError",
    "StepOutcome",
    "StepTimeoutError",
    "SystemClock",
    "UnknownRoutineError",
    "UnserializableError",
    "UnsupportedVersionError",
    "Wait",
    "Worker",
    "cancel_job",
    "register_type",
    "retry_job",
    "use_runtime",
]

_LATE = {
    "PostgresStore": "routilux.persist.postgres",
    "SqliteStore": "routilux.persist.sqlite",
}
"""Names that are imported at their first use, because their modules import a database."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
