"""The flows of the showcase, one function each; a function that is called again makes a fresh flow."""

from __future__ import annotations

from routilux import ErrorHandler, ErrorStrategy, Flow
from routilux.flow import ExecutionStrategy
from showcase.routines.pipeline import (
    DataFetchRoutine,
    DataProcessRoutine,
    DataStorageRoutine,
    DataValidatorRoutine,
)

__all__ = ["data_pipeline"]


def data_pipeline(failures: int, execution_strategy: ExecutionStrategy = "sequential") -> Flow:
    """Return fetch → process → validate → store; the first `failures` tries to process fail."""
    flow = Flow("data_pipeline", execution_strategy=execution_strategy)
    flow.add_routine(DataFetchRoutine(), "data_fetch")
    process = DataProcessRoutine(failures)
    process.set_error_handler(
        ErrorHandler(
            ErrorStrategy.RETRY,
            max_retries=4,
            retry_delay=0.3,
            retry_backoff=1.5,
            retryable_exceptions=(ValueError,),
        )
    )
    flow.add_routine(process, "data_process")
    flow.add_routine(DataValidatorRoutine(), "data_validator")
    flow.add_routine(DataStorageRoutine(), "data_storage")
    flow.connect("data_fetch", "output", "data_process", "input")
    flow.connect("data_process", "output", "data_validator", "input")
    flow.connect("data_validator", "output", "data_storage", "input")
    return flow
