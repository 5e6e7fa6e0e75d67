"""Error handlers as values: equality, copies, retryable errors, and the saved form."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux.errors import (
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    UnserializableError,
)
from routilux.retry.error_handler import ErrorHandler, ErrorStrategy, RetryAfter
from tests.routines import retrying


class GatewayError(OSError):
    """An exception class of a user."""

    class Busy(Exception):
        """A nested one."""


delays = st.one_of(st.integers(0, 10**6), st.floats(0, 1e6))
growths = st.one_of(st.integers(1, 10), st.floats(1, 10))
jitters = st.floats(0, 1)
spans = st.one_of(st.none(), st.integers(1, 10**9), st.floats(1e-6, 1e9))
classes = st.lists(
    st.sampled_from([ValueError, OSError, GatewayError, GatewayError.Busy]), max_size=3
).map(tuple)


handlers = st.one_of(
    st.builds(
        ErrorHandler,
        st.sampled_from([ErrorStrategy.STOP, ErrorStrategy.CONTINUE, ErrorStrategy.SKIP]),
        timeout=spans,
    ),
    st.builds(
        retrying,
        max_retries=st.one_of(st.none(), st.integers(0, 2**53 - 1)),
        retry_delay=delays,
        retry_backoff=growths,
        retryable_exceptions=classes,
        non_retryable_exceptions=st.lists(
            st.sampled_from([KeyError, UnicodeError, TimeoutError]), max_size=3
        ).map(tuple),
        max_delay=spans,
        jitter=jitters,
        timeout=spans,
        deadline=spans,
        on_exhausted=st.sampled_from(["stop", "continue", "skip"]),
    ),
)


def test_a_handler_can_not_be_changed():
    handler = retrying(max_retries=2)
    for name in ("max_retries", "retry_count", "max_retrys"):
        with pytest.raises(AttributeError, match=f"{name} can't be changed; make a new handler"):
            setattr(handler, name, 5)
    with pytest.raises(AttributeError, match="max_retries can't be deleted"):
        del handler.max_retries
    assert (2, 0) == (handler.max_retries, handler.retry_count)


def loaded(handler: ErrorHandler, retry_count: int) -> ErrorHandler:
    """Return the handler as it is loaded with a job that has spent retries."""
    saved = {**handler.serialize(), "retry_count": retry_count}
    return ErrorHandler.deserialize(json.loads(json.dumps(saved)))


@given(handlers)
def test_handlers_are_equal_by_their_options_and_not_by_the_retry_count(handler):
    other = loaded(handler, 7)
    assert handler == other
    assert hash(handler) == hash(other)
    assert handler != retrying(retry_delay=123.456)
    assert handler != "retry"


def test_a_handler_can_be_pickled_and_copied_after_it_has_seen_a_local_class():
    class Local(Exception):
        pass

    handler = loaded(retrying(retryable_exceptions=OSError), 2)
    assert not handler.is_retryable(Local)
    for restored in (pickle.loads(pickle.dumps(handler)), copy.deepcopy(handler)):
        assert (handler, 2) == (restored, restored.retry_count)


def test_the_repr_shows_what_differs_from_the_default():
    assert "ErrorHandler(ErrorStrategy.STOP)" == repr(ErrorHandler())
    assert "ErrorHandler(ErrorStrategy.SKIP, timeout=2)" == repr(ErrorHandler("skip", timeout=2))
    assert (
        "ErrorHandler(ErrorStrategy.RETRY, max_retries=None, retryable_exceptions=(OSError,), "
        "non_retryable_exceptions=(ValueError, KeyError), on_exhausted=ErrorStrategy.SKIP)"
    ) == repr(
        retrying(
            max_retries=None,
            retry_delay=1,
            retryable_exceptions=OSError,
            non_retryable_exceptions=(ValueError, KeyError),
            on_exhausted="skip",
        )
    )


# --- verdicts -----------------------------------------------------------------------------------


def test_a_subclass_of_a_retryable_exception_is_retryable_unless_taken_out():
    handler = retrying(retryable_exceptions=OSError, non_retryable_exceptions=FileNotFoundError)
    for _ in range(2):
        assert handler.is_retryable(OSError)
        assert handler.is_retryable(GatewayError)
        assert not handler.is_retryable(FileNotFoundError)
        assert not handler.is_retryable(ValueError)


@pytest.mark.parametrize(
    "error",
    [
        *(FlowDefinitionError, UnserializableError, NoActiveStepError, IllegalTransitionError),
        *(KeyboardInterrupt, SystemExit, GeneratorExit),
    ],
)
def test_a_mistake_in_a_flow_and_anything_but_an_exception_are_never_retried(error):
    handlers = [retrying()]
    if issubclass(error, Exception):
        handlers.append(retrying(retryable_exceptions=(Exception, error)))
    assert not any(handler.is_retryable(error) for handler in handlers)


def test_retry_after_is_always_retryable():
    handler = retrying(retryable_exceptions=(), non_retryable_exceptions=Exception)
    assert handler.is_retryable(RetryAfter)
    assert handler.is_retryable(type("Throttled", (RetryAfter,), {}))


def test_verdicts_on_ever_new_classes_stay_right_and_bounded():
    handler = retrying(retryable_exceptions=OSError)
    for _ in range(3000):
        assert handler.is_retryable(type("Fresh", (OSError,), {}))
    assert 1024 == len(handler._verdicts)


# --- the saved form -----------------------------------------------------------------------------


@given(handler=handlers, count=st.integers(0, 100))
def test_a_saved_handler_comes_back_equal_through_json(handler, count):
    restored = loaded(handler, count)
    assert handler == restored
    assert {**handler.serialize(), "retry_count": count} == restored.serialize()
    assert count == restored.retry_count


def test_the_saved_form_is_plain():
    handler = retrying(max_retries=2, retry_delay=0.3, retryable_exceptions=GatewayError.Busy)
    assert {
        "strategy": "retry",
        "max_retries": 2,
        "retry_delay": 0.3,
        "retry_backoff": 2.0,
        "retryable_exceptions": [f"{__name__}:GatewayError.Busy"],
        "non_retryable_exceptions": [],
        "max_delay": None,
        "jitter": 0.0,
        "timeout": None,
        "deadline": None,
        "on_exhausted": "stop",
        "retry_count": 0,
    } == handler.serialize()


def test_a_class_that_can_not_be_found_by_its_name_can_not_be_saved():
    class Local(Exception):
        pass

    impostor = type("ValueError", (Exception,), {"__module__": "builtins"})
    for cls, name in ((Local, r"<locals>\.Local"), (impostor, "builtins:ValueError")):
        handler = retrying(retryable_exceptions=(OSError, cls))
        with pytest.raises(UnserializableError, match=f"{name} can't be found") as caught:
            handler.serialize("$.flow.error_handler")
        assert "$.flow.error_handler.retryable_exceptions[1]" == caught.value.path
