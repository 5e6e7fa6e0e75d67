"""Checks the options of an error handler.

Invariants:
- A check returns the effective value, or raises with the option, the value and the cure.
- An exception class is saved by name. It is found only in modules that are already imported, and
  no code of a module runs during the search.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeVar, cast

from routilux.errors import CorruptStateError, FlowDefinitionError, short_repr
from routilux.retry.backoff import nanoseconds, plain_number

_MOST_RETRIES: Final = 1 << 53
_CLASS_OPTIONS: Final = ("retryable_exceptions", "non_retryable_exceptions")
_STRATEGY_OPTIONS: Final = ("strategy", "on_exhausted")


class ErrorStrategy(Enum):
    """The ways to handle a failed task.

    >>> ErrorStrategy("retry")
    <ErrorStrategy.RETRY: 'retry'>
    """

    STOP = "stop"
    """The job fails; its other tasks stay pending."""
    CONTINUE = "continue"
    """The task is dropped and its error recorded; the job continues."""
    RETRY = "retry"
    """The task runs again after a delay; then `on_exhausted` decides."""
    SKIP = "skip"
    """The task is dropped and recorded as skipped; the job continues."""


# --- the checks ---------------------------------------------------------------------------------


def bad_option(name: str, value: object, cure: str) -> FlowDefinitionError:
    return FlowDefinitionError(f"ErrorHandler: {name}={short_repr(value)} is refused; {cure}")


def _strategy(name: str, value: object) -> ErrorStrategy:
    if isinstance(value, ErrorStrategy):
        return value
    if isinstance(value, str) and value in ErrorStrategy._value2member_map_:
        return ErrorStrategy(value)
    names = ", ".join(repr(strategy.value) for strategy in ErrorStrategy)
    raise bad_option(name, value, f"give an ErrorStrategy or one of {names}")


def _final_strategy(name: str, value: object) -> ErrorStrategy:
    strategy = _strategy(name, value)
    if strategy is ErrorStrategy.RETRY:
        raise bad_option(
            name, value, "give STOP, CONTINUE or SKIP; for endless retries, set max_retries=None"
        )
    return strategy


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_RETRIES:
        raise bad_option(name, value, "give an int of 0 or more, or None for endless retries")
    return int(value)


def _number(
    accepts: Callable[[float], bool], cure: str, *, optional: bool = False
) -> Callable[[str, object], float | None]:
    def check(name: str, value: object) -> float | None:
        number = plain_number(value)
        if (number is None or not accepts(number)) and not (optional and value is None):
            raise bad_option(name, value, f"give a finite number{cure}")
        return number

    return check


def _classes(name: str, value: object) -> tuple[type[Exception], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, Exception)):
            raise bad_option(
                name,
                value,
                f"{short_repr(item)} is not a class derived from Exception; "
                "give such a class or a tuple of such classes",
            )
    return classes


_LIMIT: Final = _number(
    lambda n: n > 0 and nanoseconds(n) >= 1,
    " of seconds, at least 1e-9, or None for no limit",
    optional=True,
)
CHECKS: Final[Mapping[str, Callable[[str, object], Any]]] = MappingProxyType(
    {
        "strategy": _strategy,
        "max_retries": _count,
        "retry_delay": _number(lambda n: n >= 0, " of seconds, 0 or more"),
        "retry_backoff": _number(lambda n: n >= 1, ", 1 (equal delays) or more"),
        "retryable_exceptions": _classes,
        "non_retryable_exceptions": _classes,
        "max_delay": _number(
            lambda n: n >= 0, " of seconds, 0 or more, or None for no limit", optional=True
        ),
        "jitter": _number(lambda n: 0 <= n <= 1, " from 0 to 1, such as 0.1 for ±10 %"),
        "timeout": _LIMIT,
        "deadline": _LIMIT,
        "on_exhausted": _final_strategy,
    }
)
WITH_ANY_STRATEGY: Final = ("strategy", "timeout")

_T = TypeVar("_T")


class Default:
    """Marker for an option that the caller omitted."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def default(value: _T) -> _T:
    return cast("_T", Default(value))


# --- saved forms --------------------------------------------------------------------------------


def find_exception_class(name: str) -> type[Exception] | None:
    """Find an exception class by name in the imported modules.

    `getattr` and `isinstance` would run code of a lazy module, of a module's `__getattr__` or of a
    proxy object. So namespaces are read directly, and types are taken from `type()` only.
    """
    module_name, _, qualname = name.partition(":")
    found: object = sys.modules.get(module_name)
    if not issubclass(type(found), ModuleType):
        return None
    namespace = object.__getattribute__(found, "__dict__")
    for part in qualname.split("."):
        found = namespace.get(part)
        if not issubclass(type(found), type):
            return None
        namespace = type.__getattribute__(cast("type", found), "__dict__")
    cls = cast("type", found)
    return cls if issubclass(cls, Exception) else None


def load_option(name: str, value: object, path: str) -> Any:
    """Check the saved option `name`, and return the loaded value."""
    place = f"{path}.{name}"
    if name in _CLASS_OPTIONS:
        if not isinstance(value, list):
            raise CorruptStateError(
                place, f"must be a list of exception classes, not {short_repr(value)}"
            )
        return tuple(_loaded_class(item, f"{place}[{i}]") for i, item in enumerate(value))
    if name in _STRATEGY_OPTIONS and not isinstance(value, str):
        raise CorruptStateError(place, f"must be the name of a strategy, not {short_repr(value)}")
    try:
        return CHECKS[name](name, value)
    except FlowDefinitionError as refused:
        raise CorruptStateError(place, str(refused)) from None


def _loaded_class(name: object, place: str) -> type[Exception]:
    if not isinstance(name, str):
        raise CorruptStateError(
            place, f"must be the name of an exception class, not {short_repr(name)}"
        )
    cls = find_exception_class(name)
    if cls is None:
        raise CorruptStateError(
            place,
            f"{name!r} is not an exception class in an imported module; "
            "import the module that defines the class before loading",
        )
    return cls
