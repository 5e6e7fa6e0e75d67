"""Every error that routilux raises, grouped by whose mistake it is.

Laws:
- One tree, `RoutiluxError` at the root; the class says who has to act, the message says what,
  where and how.
- An error of saved data carries the path of the value in it, so that a person can
  find it with an editor.
- Raising one of these leaves the thing that was asked to change as it was.
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
    """The root of all errors that routilux raises on its own account."""


# --- the author of the flow ---------------------------------------------------------------------


class FlowDefinitionError(RoutiluxError):
    """The flow, a routine or a handler is put together wrongly; trying again can't help."""


# --- a job that runs ----------------------------------------------------------------------------


class JobFailedError(RoutiluxError):
    """The job ended as `failed`; raised only by `JobState.raise_for_status()`."""


class StepTimeoutError(RoutiluxError):
    """One attempt took longer than its error handler's `timeout`."""


class StepLimitError(RoutiluxError):
    """The job made more attempts than the runtime's `max_steps` allows."""


class PoisonJobError(RoutiluxError):
    """The job was recovered too often without getting on; its handler probably ends the process."""


class ClockStalledError(RoutiluxError):
    """A job on a fake clock waits for an instant to which nobody will move the clock."""


# --- saved data ---------------------------------------------------------------------------------


class SavedStateError(RoutiluxError):
    """Saved data can't be written or read.

    `path` is the place: a JSON path such as `$.job_state.commits[2]`, or a file's path where the
    file itself is the trouble. `reason` says what is wrong there and what to do. Of what the data
    itself holds without end, the middle is left out.

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
    """The data is damaged, or was not written by routilux."""


class UnsupportedVersionError(SavedStateError):
    """The data was written in a format that this version does not know."""


class UnknownRoutineError(SavedStateError):
    """A saved flow names a routine class that this program has not imported."""


class FlowMismatchError(SavedStateError):
    """The job was started on a flow of another shape than the one that is to continue it."""


class UnserializableError(SavedStateError):
    """A value has no form in which it could be saved and come back equal and of the same type."""


# --- the environment ----------------------------------------------------------------------------


class LeaseLostError(RoutiluxError):
    """Another host owns the job now; what this host tried to commit was refused."""


class DuplicateJobError(RoutiluxError):
    """The store already holds a job of this id."""


class NotResumableError(RoutiluxError):
    """The job is in a status from which it can't go on."""


# --- use, and ourselves -------------------------------------------------------------------------


class NoActiveStepError(RoutiluxError):
    """`ctx` or `emit` was used outside a handler, or by a step that was given up."""


class IllegalTransitionError(RoutiluxError):
    """The engine broke one of its own rules. Please report it; nothing was changed."""


# --- what they say --------------------------------------------------------------------------------


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about a name that is not known: which one was perhaps meant.

    >>> nearest("chrage", ["fetch", "charge"]), nearest("ship", ["fetch", "charge"])
    ("; did you mean 'charge'?", '')
    """
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


# Saved jobs name these classes by their public place, which stays when this module moves.
for _name in __all__:
    globals()[_name].__module__ = "routilux"
