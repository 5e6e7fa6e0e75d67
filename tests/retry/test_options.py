"""Options of an error handler: defaults, refused values, damaged saved forms, `RetryAfter`."""

from __future__ import annotations

import math
import pickle
import sys
from types import ModuleType

import pytest

from routilux.codec.registry import class_name
from routilux.errors import CorruptStateError, FlowDefinitionError, UnserializableError
from routilux.retry.error_handler import MAX_DELAY_NS, ErrorHandler, ErrorStrategy, RetryAfter
from routilux.retry.options import CHECKS, WITH_ANY_STRATEGY
from tests.routines import refused_at, retrying

MS = 1_000_000


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
        "leave this option out, or use ErrorStrategy.RETRY"
    ) == str(caught.value)


COUNT = "give an int of 0 or more, or None for endless retries"
DELAY = "give a finite number of seconds, 0 or more"
GROWTH = "give a finite number, 1 (equal delays) or more"
SHARE = "give a finite number from 0 to 1, such as 0.1 for ±10 %"
BOUND = "give a finite number of seconds, at least 1e-9, or None for no limit"
STRATEGY = "give an ErrorStrategy or one of 'stop', 'continue', 'retry', 'skip'"
CLASSES = "is not a class derived from Exception; give such a class or a tuple of such"
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
        ("on_exhausted", "retry", "give STOP, CONTINUE or SKIP; for endless retries, set"),
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


@pytest.mark.parametrize(
    ("retryable", "refused"),
    [
        (ConnectionError, OSError),
        (OSError, OSError),
        ((ConnectionError, KeyError), (OSError, LookupError)),
        ((Exception,), (ValueError, Exception)),
        (FlowDefinitionError, ()),
        ((FlowDefinitionError, UnserializableError, ConnectionError), OSError),
    ],
)
def test_retryable_types_that_all_fall_under_non_retryable_ones_are_refused(retryable, refused):
    with pytest.raises(FlowDefinitionError, match=r"no error would be retried: .* falls under"):
        retrying(retryable_exceptions=retryable, non_retryable_exceptions=refused)
    saved = retrying().serialize()
    for name, kinds in (("retryable_exceptions", retryable), ("non_retryable_exceptions", refused)):
        saved[name] = [class_name(kind) for kind in (kinds if type(kinds) is tuple else (kinds,))]
    with pytest.raises(CorruptStateError, match="no error would be retried"):
        ErrorHandler.deserialize(saved)


@pytest.mark.parametrize(
    ("retryable", "refused"),
    [
        (OSError, ConnectionError),
        ((ConnectionError, ValueError), OSError),
        (RetryAfter, Exception),
        ((), OSError),
        (Exception, ()),
    ],
)
def test_retryable_types_of_which_some_may_be_retried_are_accepted(retryable, refused):
    handler = retrying(retryable_exceptions=retryable, non_retryable_exceptions=refused)
    assert handler.is_retryable(RetryAfter)


def test_an_int_too_long_to_print_is_refused_as_an_option_is():
    for name in ("max_retries", "retry_delay", "timeout"):
        with pytest.raises(FlowDefinitionError, match=f"{name}=<int> is refused; give"):
            retrying(**{name: 10**5000})


def test_retry_after_keeps_its_seconds_its_message_and_its_exact_delay():
    asked = pickle.loads(pickle.dumps(RetryAfter(0.3, "429")))
    assert (0.3, 300 * MS, "429") == (asked.seconds, asked.delay_ns, str(asked))
    assert "try again after 2 s" == str(RetryAfter(2))
    assert [True, False] == [
        pickle.loads(pickle.dumps(RetryAfter(2, spends=spends))).spends for spends in (True, False)
    ]
    with pytest.raises(ValueError, match="spends must be True or False, not 0"):
        RetryAfter(2, spends=0)
    assert MAX_DELAY_NS == RetryAfter(1e300).delay_ns


@pytest.mark.parametrize("bad", [-1, NAN, INF, "1", None, True])
def test_retry_after_refuses_an_invalid_delay(bad):
    with pytest.raises(ValueError) as caught:
        RetryAfter(bad)
    message = f"RetryAfter: seconds must be a finite number of 0 or more, not {bad!r}"
    assert message == str(caught.value)


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
        ({"strategy": 1}, "$.strategy", "must be the name of a strategy, not 1"),
        ({"strategy": "stop"}, "$.max_retries", "is not a field of an error handler with strategy"),
        ({"extra": 1}, "$.extra", "is not a field of an error handler"),
        ({"max_retries": -1}, "$.max_retries", "give an int of 0 or more"),
        ({"retry_delay": "1"}, "$.retry_delay", DELAY),
        ({"on_exhausted": "retry"}, "$.on_exhausted", "give STOP, CONTINUE or SKIP"),
        ({"on_exhausted": None}, "$.on_exhausted", "must be the name of a strategy, not None"),
        ({"retry_count": -1}, "$.retry_count", "must be an int of 0 or more, not -1"),
        ({"retry_count": True}, "$.retry_count", "must be an int of 0 or more, not True"),
        (
            {"retryable_exceptions": "builtins:OSError"},
            "$.retryable_exceptions",
            "must be a list of",
        ),
        (
            {"retryable_exceptions": [3]},
            "$.retryable_exceptions[0]",
            "must be the name of an exception",
        ),
    ],
)
def test_a_damaged_field_is_corrupt_and_named(change, path, reason):
    with refused_at(path, reason):
        ErrorHandler.deserialize({**SAVED, **change})


@pytest.mark.parametrize("data", [None, [], "retry", 3])
def test_anything_but_an_object_is_corrupt(data):
    with pytest.raises(CorruptStateError, match=r"^\$: must be a JSON object, not"):
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
        f"{name!r} is not an exception class in an imported module; "
        "import the module that defines the class before loading"
    ) == caught.value.reason
    assert loaded == set(sys.modules)


@pytest.mark.parametrize("name", ["Error", "trap", "trap.Error", "door", "door.Error"])
def test_looking_up_a_class_runs_no_code_of_the_module(monkeypatch, name):
    asked: list[str] = []

    class Trap:
        def __getattribute__(self, name):
            asked.append(name)
            raise AttributeError(name)

    class Trapdoor(type):
        def __getattribute__(cls, name):
            asked.append(name)
            raise AttributeError(name)

    class Lazy(ModuleType):
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    module = Lazy("lazy")
    vars(module).update(trap=Trap(), door=Trapdoor("Door", (), {}))
    asked.clear()
    # The module is gone again before pytest or Hypothesis look through sys.modules.
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lazy", module)
        with pytest.raises(CorruptStateError, match="is not an exception class") as caught:
            ErrorHandler.deserialize({**SAVED, "retryable_exceptions": [f"lazy:{name}"]})
    assert "$.retryable_exceptions[0]" == caught.value.path
    assert [] == asked
