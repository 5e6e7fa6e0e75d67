"""The flows of the showcase, one function each; every call makes a fresh flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from routilux import ErrorHandler, ErrorStrategy, ExecutionStrategy, Flow, StepTimeoutError
from showcase.routines.api import APICallRoutine, DatabaseWriteRoutine, NotificationRoutine
from showcase.routines.fan import (
    AwaitLastRoutine,
    CountPicturesRoutine,
    GatherRoutine,
    ResizeRoutine,
    SplitRoutine,
    TallyRoutine,
)
from showcase.routines.pipeline import (
    DataFetchRoutine,
    DataProcessRoutine,
    DataStorageRoutine,
    DataValidatorRoutine,
)
from showcase.routines.quotes import AskRoutine, QuoteRoutine, ServiceCallRoutine
from showcase.routines.records import CountRoutine, ParseRoutine, ReadRoutine

__all__ = ["api_to_database", "data_pipeline", "fan_out_and_in", "quote", "word_count"]


def data_pipeline(failures: int, execution_strategy: ExecutionStrategy = "sequential") -> Flow:
    """Return fetch → process → validate → store; the first `failures` attempts to process fail."""
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


def api_to_database(
    url: str,
    database: str,
    outbox: str,
    *,
    lost_answers: Sequence[int] = (),
    execution_strategy: ExecutionStrategy = "sequential",
) -> Flow:
    """Return call → write → notify, with a retry budget each for the API and the database."""
    flow = Flow("api_to_database", execution_strategy=execution_strategy)
    call = APICallRoutine(url)
    call.set_error_handler(
        ErrorHandler(
            ErrorStrategy.RETRY,
            max_retries=4,
            retry_delay=0.3,
            retry_backoff=1.5,
            retryable_exceptions=(ConnectionError,),
        )
    )
    write = DatabaseWriteRoutine(database, lost_answers)
    write.set_error_handler(
        ErrorHandler(
            ErrorStrategy.RETRY,
            max_retries=3,
            retry_delay=0.2,
            retry_backoff=2.0,
            retryable_exceptions=(RuntimeError,),
        )
    )
    flow.add_routine(call, "api_call")
    flow.add_routine(write, "database_write")
    flow.add_routine(NotificationRoutine(outbox), "notification")
    flow.connect("api_call", "output", "database_write", "input")
    flow.connect("database_write", "output", "notification", "input")
    return flow


def fan_out_and_in(
    max_workers: int,
    tally_seconds: float = 0.1,
    *,
    collector: Literal["gather", "count", "last"] = "gather",
) -> Flow:
    """Return split → resize → tally → gather; a picture gets 2 retries and is then dropped.

    By hand the `collector` does a `count` of the pictures, or waits for the `last`, which is wrong.
    """
    flow = Flow("fan_out_and_in", execution_strategy="concurrent", max_workers=max_workers)
    collectors = {
        "gather": GatherRoutine,
        "count": CountPicturesRoutine,
        "last": AwaitLastRoutine,
    }
    resize = ResizeRoutine(reports=collector == "count")
    resize.set_error_handler(
        ErrorHandler(
            ErrorStrategy.RETRY,
            max_retries=2,
            retry_delay=0.25,
            retry_backoff=2.0,
            retryable_exceptions=(OSError,),
            on_exhausted=ErrorStrategy.CONTINUE,
        )
    )
    flow.add_routine(SplitRoutine(), "split")
    flow.add_routine(resize, "resize")
    flow.add_routine(TallyRoutine(tally_seconds), "tally")
    flow.add_routine(collectors[collector](), "gather")
    flow.connect("split", "picture", "resize", "input")
    flow.connect("resize", "output", "tally", "input")
    if collector == "count":
        flow.connect("resize", "error", "gather", "dropped")
    flow.connect("tally", "output", "gather", "done")
    return flow


def quote(services: str) -> tuple[Flow, list[ServiceCallRoutine]]:
    """Return ask → price and stock at once → quote, and the routines that call a service."""
    flow = Flow("quote", execution_strategy="concurrent", max_workers=2)
    flow.set_error_handler(
        ErrorHandler(
            ErrorStrategy.RETRY,
            max_retries=3,
            retry_delay=0.5,
            retry_backoff=2.0,
            retryable_exceptions=(ConnectionError, StepTimeoutError),
            timeout=2,
        )
    )
    calls = [ServiceCallRoutine(f"{services}/{part}") for part in ("price", "stock")]
    flow.add_routine(AskRoutine(), "ask")
    flow.add_routine(QuoteRoutine(), "quote")
    for call, part in zip(calls, ("price", "stock"), strict=True):
        flow.add_routine(call, part)
        flow.connect("ask", "article", part, "input")
        flow.connect(part, "output", "quote", "parts")
    return flow, calls


def word_count(handler: ErrorHandler, *, of_flow: bool = False) -> Flow:
    """Return read → parse → count; parsing, or with `of_flow` the whole flow, has that handler."""
    flow = Flow("word_count")
    parse = ParseRoutine()
    (flow if of_flow else parse).set_error_handler(handler)
    flow.add_routine(ReadRoutine(), "read")
    flow.add_routine(parse, "parse")
    flow.add_routine(CountRoutine(), "count")
    flow.connect("read", "record", "parse", "input")
    flow.connect("parse", "word", "count", "input")
    return flow
