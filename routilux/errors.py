"""Error classes of routilux, grouped by cause.

Invariants:
- `RoutiluxError` is the root of one tree. The class says who has to act; the message says what
  happened, where, and what to do.
- An error of saved data carries the path of the value, so that a person finds it with an editor.
- An operation that raises one of these leaves the object that it was to change as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ClockStalledError",
    "CorruptStateError",
    "DuplicateJobError",
    "FlowDefinitionError",
    "FlowMismatchError",
    "IllegalTransitionError",
    "JobFailedError",
    "LeaseLostError",
    "NoActiveStepError",
    "NotResumableError",
    "PoisonJobError",
    "RoutiluxError",
    "SavedStateError",
    "StepLimitError",
    "StepTimeoutError",
    "UnknownRoutineError",
    "UnserializableError",
    "UnsupportedVersionError",
]


class RoutiluxError(Exception):
    """Base class of all error classes of routilux."""


# --- the author of the flow ---------------------------------------------------------------------


class FlowDefinitionError(RoutiluxError):
    """The program defines a flow, a routine or a handler wrongly."""


# --- a job that runs ----------------------------------------------------------------------------


class JobFailedError(RoutiluxError):
    """The job has status `failed`; see `JobState.raise_for_status`."""


class StepTimeoutError(RoutiluxError, TimeoutError):
    """An attempt took longer than the `timeout` of the error handler.

    It is a `TimeoutError`, so a handler that retries `OSError` or `TimeoutError` retries it.
    """


class StepLimitError(RoutiluxError):
    """The job made more attempts than the runtime's `max_steps` allows."""


class PoisonJobError(RoutiluxError):
    """The job was resumed too often without progress."""


class ClockStalledError(RoutiluxError):
    """A job waits for an instant that the fake clock will never reach."""


# --- saved data ---------------------------------------------------------------------------------


class SavedStateError(RoutiluxError):
    """Saved data can't be written or read.

    `path` is a JSON path such as `$.job_state.commits[2]`, or the path of a file that is wrong as
    a whole. `reason` says what is wrong there and what to do. Long texts are shortened in the
    middle.

    >>> SavedStateError("$.flow", "is missing").path
    '$.flow'
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = _shortened(path, 500)
        self.reason = _shortened(reason, 4_000)
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    left_out = f"… {len(text):,} characters …"
    end = most // 4  # where a reason says what to do
    return f"{text[: most - end - len(left_out)]}{left_out}{text[-end:]}"


class CorruptStateError(SavedStateError):
    """The saved data is damaged or was not written by routilux."""


class UnsupportedVersionError(SavedStateError):
    """This version of routilux does not know the data's format."""


class UnknownRoutineError(SavedStateError):
    """A saved flow names a routine class that this program has not imported."""


class FlowMismatchError(SavedStateError):
    """A saved job or flow does not match the program's flow."""


class UnserializableError(SavedStateError):
    """A value can't be saved and loaded without a change."""


# --- the environment ----------------------------------------------------------------------------


class LeaseLostError(RoutiluxError):
    """This host does not own the job."""


class DuplicateJobError(RoutiluxError):
    """The store or the runtime already has a job with this id."""


class NotResumableError(RoutiluxError):
    """The job can't be resumed, paused or cancelled in its present status."""


# --- wrong calls, and our own bugs --------------------------------------------------------------


class NoActiveStepError(RoutiluxError):
    """`ctx` or `emit` was used outside a running step."""


class IllegalTransitionError(RoutiluxError):
    """The engine broke an internal rule; please report this bug."""


# --- messages -----------------------------------------------------------------------------------


def short_repr(value: object) -> str:
    """Return the repr of a value for a message, at most 100 characters."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:97]}..."


def nearest(name: object, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for a known name X similar to `name`.

    >>> nearest("chrage", ["fetch", "charge"]), nearest("ship", ["fetch", "charge"])
    ("; did you mean 'charge'?", '')
    """
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


# Saved jobs name these classes by their public module, which stays when this module moves.
for _name in __all__:
    globals()[_name].__module__ = "routilux"
