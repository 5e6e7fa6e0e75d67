"""Error classes of routilux, grouped by cause: flow, job, saved data, environment, wrong call.

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
    """The program defines a flow, a routine or a handler wrongly, so a retry can't help."""


# --- a job that runs ----------------------------------------------------------------------------


class JobFailedError(RoutiluxError):
    """The job ended with status `failed`; only `JobState.raise_for_status()` raises this error."""


class StepTimeoutError(RoutiluxError):
    """An attempt of a task took longer than the `timeout` of its error handler."""


class StepLimitError(RoutiluxError):
    """The job made more attempts than the runtime's `max_steps` allows."""


class PoisonJobError(RoutiluxError):
    """The job was resumed too often without progress; a handler may crash the process."""


class ClockStalledError(RoutiluxError):
    """A job waits for an instant that its fake clock will never reach."""


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
    """The saved data is damaged, or routilux did not write the data."""


class UnsupportedVersionError(SavedStateError):
    """The saved data has a format that this version of routilux does not know."""


class UnknownRoutineError(SavedStateError):
    """A saved flow names a routine class that this program has not imported."""


class FlowMismatchError(SavedStateError):
    """A saved job or flow does not match the graph of the flow in this program."""


class UnserializableError(SavedStateError):
    """A value can't be saved in a form that loads as an equal value of the same type."""


# --- the environment ----------------------------------------------------------------------------


class LeaseLostError(RoutiluxError):
    """Another host owns the job now, so the store accepts no commit from this host."""


class DuplicateJobError(RoutiluxError):
    """The store already holds a job with this id."""


class NotResumableError(RoutiluxError):
    """The job can't be resumed, paused or cancelled in its present status."""


# --- wrong calls, and our own bugs --------------------------------------------------------------


class NoActiveStepError(RoutiluxError):
    """`ctx` or `emit` was used outside a handler, or by a handler whose step has ended."""


class IllegalTransitionError(RoutiluxError):
    """The engine broke one of its own rules and changed nothing; please report this bug."""


# --- messages -----------------------------------------------------------------------------------


def nearest(name: object, known: Iterable[str]) -> str:
    """Return "; did you mean X?" if a name X in `known` is similar to `name`; else "".

    >>> nearest("chrage", ["fetch", "charge"]), nearest("ship", ["fetch", "charge"])
    ("; did you mean 'charge'?", '')
    """
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


# Saved jobs name these classes by their public module, which stays when this module moves.
for _name in __all__:
    globals()[_name].__module__ = "routilux"
