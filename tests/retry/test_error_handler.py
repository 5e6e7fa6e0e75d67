"""Error handlers: exact backoff, refused options, retryable errors, and the saved form."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from datetime import timedelta
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux.errors import (
    CorruptStateError,
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    UnserializableError,
)
from routilux.retry.backoff import backoff_ns
from routilux.retry.error_handler import MAX_DELAY_NS, ErrorHandler, ErrorStrategy, RetryAfter
from routilux.retry.options import CHECKS, WITH_ANY_STRATEGY
from tests.routines import refused_at, retrying

MS = 1_000_000
SECOND = 1_000 * MS


class GatewayError(OSError):
    """An exception class of a user."""

    class Busy(Exception):
        """A nested one."""


delays = st.one_of(st.integers(0, 10**6), st.floats(0, 1e6))
growths = st.one_of(st.integers(1, 10), st.floats(1, 10))
jitters = st.floats(0, 1)
draws = st.integers(0, 2**53 - 1)
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
        non_retryable_exceptions=classes,
        max_delay=spans,
        jitter=jitters,
        timeout=spans,
        deadline=spans,
        on_exhausted=st.sampled_from(["stop", "continue", "skip"]),
    ),
)


# --- backoff ------------------------------------------------------------------------------------


def exact(delay: float, growth: float, retry: int) -> int:
    """The delay before a retry, from the decimal meaning of the arguments."""
    return round(Fraction(repr(delay)) * Fraction(repr(growth)) ** (retry - 1) * SECOND)


def test_three_tenths_and_one_and_a_half_give_the_decimal_delays_to_the_nanosecond():
    handler = retrying(retry_delay=0.3, retry_backoff=1.5)
    assert [300 * MS, 450 * MS, 675 * MS, 1_012_500_000] == [
        handler.delay_ns(retry) for retry in (1, 2, 3, 4)
    ]
    assert timedelta(milliseconds=1012.5) == handler.delay_before(4)


@given(
    st.one_of(
        st.tuples(delays, growths, st.integers(1, 120)),
        st.tuples(
            st.floats(0, 1e-6),
            st.sampled_from([1.0000001, 1 + 2**-52, 1.001]),
            st.integers(100, 1500),
        ),
    )
)
def test_a_delay_is_the_exact_fraction_rounded_half_even_and_capped(drawn):
    delay, growth, retry = drawn
    handler = retrying(retry_delay=delay, retry_backoff=growth)
    assert min(exact(delay, growth, retry), MAX_DELAY_NS) == handler.delay_ns(retry)


@given(
    delay=st.one_of(delays, st.sampled_from([2**22 * 1e-9, 5e-10, 2.5])),
    growth=st.one_of(growths, st.sampled_from([1.5, 1.25, 1.0000000000000002])),
    retry=st.integers(1, 60),
    digits=st.integers(7, 20),
)
def test_the_result_does_not_depend_on_the_precision_it_is_sought_with(
    delay, growth, retry, digits
):
    expected = min(exact(delay, growth, retry), MAX_DELAY_NS)
    assert expected == backoff_ns(delay, growth, retry, digits)


@pytest.mark.parametrize(
    ("delay", "growth", "retry", "expected"),
    [
        (1e-9, 1.5, 2, 2),  # 1.5 ns
        (1e-9, 2.5, 2, 2),  # 2.5 ns
        (3e-9, 1.5, 2, 4),  # 4.5 ns
        (5e-10, 3, 2, 2),  # 1.5 ns
        (2e9, 1.5, 2, 3 * 10**18),  # 95 years, just below the cap
        (0.004194304, 1.5, 24, 47_071_589_414),  # 47 071 589 413.5 ns, of 24 digits in the power
    ],
)
def test_a_tie_goes_to_the_even_nanosecond_and_the_cap_starts_at_a_hundred_years(
    delay, growth, retry, expected
):
    assert expected == exact(delay, growth, retry)
    assert expected == retrying(retry_delay=delay, retry_backoff=growth).delay_ns(retry)


@given(delay=delays, growth=growths, retry=st.integers(1, 10**9), further=st.integers(1, 10**9))
def test_delays_never_shrink(delay, growth, retry, further):
    handler = retrying(max_retries=None, retry_delay=delay, retry_backoff=growth)
    assert handler.delay_ns(retry) <= handler.delay_ns(retry + further) <= MAX_DELAY_NS


@pytest.mark.parametrize("growth", [1.0000001, 1.5, 2.0, 1e308])
def test_a_huge_retry_is_capped_at_a_hundred_years(growth):
    handler = retrying(max_retries=None, retry_backoff=growth)
    assert MAX_DELAY_NS == handler.delay_ns(10**9) == handler.delay_ns(10**18)
    assert timedelta(days=36_525) == handler.delay_before(10**9)


def test_slow_growth_at_a_huge_retry_equals_the_closed_form():
    # (1 + 2**-52)^n is 1 + n·2.2e-16 here, and the repr of the argument ends at 1e-16.
    handler = retrying(max_retries=None, retry_delay=1, retry_backoff=1.0000000000000002)
    assert round(math.exp(10**9 * 2e-16) * SECOND) == handler.delay_ns(10**9 + 1)


@given(delay=delays, growth=growths, jitter=jitters, retry=st.integers(1, 60), draw=draws)
def test_jitter_is_the_exact_share_of_the_delay_and_stays_within_its_bounds(
    delay, growth, jitter, retry, draw
):
    plain = retrying(retry_delay=delay, retry_backoff=growth).delay_ns(retry)
    share = Fraction(repr(jitter))
    factor = 1 + share * (Fraction(2 * draw, 2**53) - 1)
    jittered = retrying(retry_delay=delay, retry_backoff=growth, jitter=jitter).delay_ns(
        retry, draw if jitter else None
    )
    assert min(round(plain * factor), MAX_DELAY_NS) == jittered
    assert math.floor(plain * (1 - share)) <= jittered <= math.ceil(plain * (1 + share))


@given(delay=delays, growth=growths, jitter=jitters, cap=delays, retry=st.integers(1), draw=draws)
def test_max_delay_comes_after_jitter_and_caps(delay, growth, jitter, cap, retry, draw):
    options = {"retry_delay": delay, "retry_backoff": growth, "jitter": jitter}
    free = retrying(**options).delay_ns(retry, draw)
    assert min(free, round(Fraction(repr(cap)) * SECOND)) == retrying(
        **options, max_delay=cap
    ).delay_ns(retry, draw)


def test_a_draw_changes_nothing_without_jitter_and_no_draw_means_no_jitter():
    assert SECOND == retrying().delay_ns(1, draw=0)
    assert SECOND == retrying(jitter=0.5).delay_ns(1)
    assert timedelta(seconds=1) == retrying(jitter=0.5).delay_before(1)
    assert timedelta(microseconds=2) == retrying(retry_delay=1.5e-6).delay_before(1)


def test_a_delay_stays_the_same_when_asked_in_any_order_and_past_the_cache():
    handler = retrying(max_retries=None, retry_delay=0.001, retry_backoff=1.001)
    backwards = {retry: handler.delay_ns(retry) for retry in range(2000, 0, -1)}
    fresh = retrying(max_retries=None, retry_delay=0.001, retry_backoff=1.001)
    assert backwards == {retry: fresh.delay_ns(retry) for retry in range(2000, 0, -1)}
    assert backwards == {retry: handler.delay_ns(retry) for retry in backwards}


@pytest.mark.parametrize(
    ("retry", "draw", "message"),
    [
        (0, None, "retry=0 does not exist; the first retry is 1"),
        (-1, None, "retry=-1 does not exist; the first retry is 1"),
        (1, -1, "draw=-1 is not a 53-bit integer"),
        (1, 2**53, f"draw={2**53} is not a 53-bit integer"),
    ],
)
def test_a_retry_or_a_draw_out_of_range_is_refused(retry, draw, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        retrying(jitter=0.1).delay_ns(retry, draw)
    if draw is None:
        with pytest.raises(ValueError, match=f"^{message}$"):
            retrying().delay_before(retry)


def test_timeout_and_deadline_are_known_in_nanoseconds():
    assert 2_500 * MS == ErrorHandler(timeout=2.5).timeout_ns
    assert 100 * MS == retrying(deadline=0.1).deadline_ns
    assert ErrorHandler().timeout_ns is None
    assert ErrorHandler().deadline_ns is None
    assert MAX_DELAY_NS == ErrorHandler(timeout=1e300).timeout_ns


# --- options ------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_signature():
    assert ErrorHandler("stop", timeout=None) == ErrorHandler()
    options = {"max_retries": 3, "retry_delay": 1.0, "retry_backoff": 2.0, "jitter": 0.0}
    options |= {"retryable_exceptions": (Exception,), "non_retryable_exceptions": ()}
    options |= {"max_delay": None, "deadline": None, "on_exhausted": ErrorStrategy.STOP}
    for handler in (ErrorHandler(), retrying(), retrying(**options)):
        assert options == {name: getattr(handler, name) for name in options}
        assert handler.timeout is None
        assert 0 == handler.retry_count


def test_a_strategy_goes_by_its_lower_case_name_and_one_class_needs_no_tuple():
    for strategy in ErrorStrategy:
        assert ErrorHandler(strategy) == ErrorHandler(strategy.name.lower())
    assert retrying(retryable_exceptions=(OSError,)) == retrying(retryable_exceptions=OSError)


class Numeral(float):
    """A float whose repr is no numeral, as numpy's are."""

    def __repr__(self) -> str:
        return f"Numeral({float(self)})"


def test_a_number_of_a_subclass_counts_as_its_plain_value():
    handler = retrying(retry_delay=Numeral(0.3))
    assert float is type(handler.retry_delay)
    assert 300 * MS == handler.delay_ns(1)


RETRY_OPTIONS = [name for name in CHECKS if name not in WITH_ANY_STRATEGY]


@pytest.mark.parametrize("strategy", ["stop", "continue", "skip"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_retries", None), *((name, getattr(retrying(), name)) for name in RETRY_OPTIONS)],
)
def test_a_retry_option_without_retry_is_refused_even_at_its_default(strategy, name, value):
    with pytest.raises(FlowDefinitionError) as caught:
        ErrorHandler(strategy, **{name: value})
    assert (
        f"ErrorHandler: {name}={value!r} is refused; strategy {strategy.upper()} never retries: "
        "leave it out, or use ErrorStrategy.RETRY"
    ) == str(caught.value)


COUNT = "give an int, 0 or more, or None to never give up"
DELAY = "give a finite number of seconds, 0 or more"
GROWTH = "give a finite number, 1 (equal delays) or more"
SHARE = "give a finite number from 0 to 1, such as 0.1 for ±10 %"
BOUND = "give a finite number of seconds, at least 1e-9, or None for no limit"
STRATEGY = "give an ErrorStrategy or one of 'stop', 'continue', 'retry', 'skip'"
CLASSES = "is not a class derived from Exception; give such a class or a tuple of them"
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "bad", "cure"),
    [
        *[("max_retries", bad, COUNT) for bad in (-1, True, 1.0, "3")],
        *[("retry_delay", bad, DELAY) for bad in (-0.1, NAN, INF, "1", None, False)],
        *[("max_delay", bad, f"{DELAY}, or None for no limit") for bad in (-1, NAN, INF, "1")],
        *[("retry_backoff", bad, GROWTH) for bad in (0.99, 0, -2, NAN, INF, None, True)],
        *[("jitter", bad, SHARE) for bad in (-0.1, 1.1, NAN, INF, None, True)],
        *[(n, bad, BOUND) for n in ("timeout", "deadline") for bad in (0, -1, NAN, INF, 1e-10)],
        *[("strategy", bad, STRATEGY) for bad in ("RETRY", "again", "", None, 1, [])],
        ("on_exhausted", "retry", "give STOP, CONTINUE or SKIP, or max_retries=None to never"),
        ("on_exhausted", "Stop", STRATEGY),
        *[("retryable_exceptions", bad, CLASSES) for bad in (KeyboardInterrupt, ValueError())],
        *[("retryable_exceptions", bad, CLASSES) for bad in ([OSError], (OSError, "x"), None)],
        ("non_retryable_exceptions", (BaseException,), CLASSES),
    ],
)
def test_a_bad_option_is_refused_by_name_value_and_cure(name, bad, cure):
    with pytest.raises(FlowDefinitionError) as caught:
        ErrorHandler(**{"strategy": "retry", name: bad})
    assert str(caught.value).startswith(f"ErrorHandler: {name}={bad!r} is refused; ")
    assert cure in str(caught.value)


def test_an_int_too_long_to_print_is_refused_as_an_option_is():
    for name in ("max_retries", "retry_delay", "timeout"):
        with pytest.raises(FlowDefinitionError, match=f"{name}=<int> is refused; give"):
            retrying(**{name: 10**5000})


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


# --- RetryAfter ---------------------------------------------------------------------------------


def test_retry_after_keeps_its_seconds_its_message_and_its_exact_delay():
    asked = pickle.loads(pickle.dumps(RetryAfter(0.3, "429")))
    assert (0.3, 300 * MS, "429") == (asked.seconds, asked.delay_ns, str(asked))
    assert "try again after 2 s" == str(RetryAfter(2))
    assert MAX_DELAY_NS == RetryAfter(1e300).delay_ns


@pytest.mark.parametrize("bad", [-1, NAN, INF, "1", None, True])
def test_retry_after_refuses_an_invalid_delay(bad):
    with pytest.raises(ValueError, match="is not a delay; give a finite number") as caught:
        RetryAfter(bad)
    assert str(caught.value).startswith(f"RetryAfter: seconds={bad!r} ")


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


SAVED = retrying(retryable_exceptions=OSError).serialize()


@pytest.mark.parametrize("field", [name for name in SAVED if name != "strategy"])
def test_a_missing_field_is_corrupt(field):
    data = {name: value for name, value in SAVED.items() if name != field}
    with pytest.raises(CorruptStateError, match=rf"^\$\.h\.{field}: is missing$"):
        ErrorHandler.deserialize(data, "$.h")


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"strategy": "again"}, "$.strategy", "give an ErrorStrategy or one of"),
        ({"strategy": 1}, "$.strategy", "is the name of a strategy, not 1"),
        ({"strategy": "stop"}, "$.max_retries", "is not a field of an error handler of strategy"),
        ({"extra": 1}, "$.extra", "is not a field of an error handler"),
        ({"max_retries": -1}, "$.max_retries", "give an int, 0 or more"),
        ({"max_retries": True}, "$.max_retries", "give an int, 0 or more"),
        ({"retry_delay": "1"}, "$.retry_delay", DELAY),
        ({"retry_delay": NAN}, "$.retry_delay", DELAY),
        ({"jitter": 2}, "$.jitter", SHARE),
        ({"deadline": 0}, "$.deadline", BOUND),
        ({"on_exhausted": "retry"}, "$.on_exhausted", "give STOP, CONTINUE or SKIP"),
        ({"on_exhausted": None}, "$.on_exhausted", "is the name of a strategy, not None"),
        ({"retry_count": -1}, "$.retry_count", "is an int, 0 or more, not -1"),
        ({"retry_count": True}, "$.retry_count", "is an int, 0 or more, not True"),
        ({"retryable_exceptions": "builtins:OSError"}, "$.retryable_exceptions", "is a list of"),
        ({"retryable_exceptions": [3]}, "$.retryable_exceptions[0]", "is the name of an exception"),
    ],
)
def test_a_damaged_field_is_corrupt_and_named(change, path, reason):
    with refused_at(path, reason):
        ErrorHandler.deserialize({**SAVED, **change})


@pytest.mark.parametrize("data", [None, [], "retry", 3])
def test_anything_but_an_object_is_corrupt(data):
    with pytest.raises(CorruptStateError, match=r"^\$: an error handler is an object, not"):
        ErrorHandler.deserialize(data)
    with pytest.raises(CorruptStateError, match=r"^\$\.strategy: is missing$"):
        ErrorHandler.deserialize({})


NO_CLASS = (
    *(":OSError", "", "builtins", "this_module_is_not_there:Error", "antigravity:Error"),
    *("os.path:join", "builtins:", "builtins:print", "builtins:int", "builtins:KeyboardInterrupt"),
    *("builtins:no_such_name", "builtins:OSError.__class__", "builtins:OSError:x"),
)


@pytest.mark.parametrize("name", NO_CLASS)
def test_a_name_of_no_imported_exception_class_is_corrupt_and_imports_nothing(name):
    loaded = set(sys.modules)
    with pytest.raises(CorruptStateError) as caught:
        ErrorHandler.deserialize({**SAVED, "non_retryable_exceptions": ["builtins:OSError", name]})
    assert "$.non_retryable_exceptions[1]" == caught.value.path
    assert (
        f"{name!r} is no exception class of an imported module; "
        "import the module that defines it before loading"
    ) == caught.value.reason
    assert loaded == set(sys.modules)


@pytest.mark.parametrize("name", ["Error", "trap", "trap.Error", "door", "door.Error"])
def test_looking_up_a_class_runs_no_code_of_the_module(monkeypatch, name):
    asked: list[str] = []

    class Trap:
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            raise AttributeError(name)

    class Trapdoor(type):
        def __getattribute__(cls, name: str) -> Any:
            asked.append(name)
            raise AttributeError(name)

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise AttributeError(name)

    module = Lazy("lazy")
    vars(module).update(trap=Trap(), door=Trapdoor("Door", (), {}))
    asked.clear()
    # The module is gone again before pytest or Hypothesis look through sys.modules.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lazy", module)
        with pytest.raises(CorruptStateError, match="is no exception class") as caught:
            ErrorHandler.deserialize({**SAVED, "retryable_exceptions": [f"lazy:{name}"]})
    assert "$.retryable_exceptions[0]" == caught.value.path
    assert [] == asked
