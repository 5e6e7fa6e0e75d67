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
    """The program defines a flow, a routine or a handler wrongly.

    Correct what the message names: a routine, an event, a slot, a field or an option. In a handler
    this error fails the task at once, without a retry.
    """


# --- a job that runs ----------------------------------------------------------------------------


class JobFailedError(RoutiluxError):
    """The job has status `failed`; see `JobState.raise_for_status`.

    Its cause is the exception of the handler, if it was raised in this process. Correct the handler
    or what it calls; then `Flow.resume` with `retry_failed=True`, or `retry_job` for a stored job,
    gives the failed tasks a fresh budget.
    """


class StepTimeoutError(RoutiluxError, TimeoutError):
    """An attempt took longer than the `timeout` of the error handler.

    It counts as a failed attempt. It is a `TimeoutError`, so a handler that retries `OSError` or
    `TimeoutError` retries it. Set a longer `timeout`, or let the handler do less in one attempt.
    """


class StepLimitError(RoutiluxError):
    """The job made more attempts than the runtime's `max_steps` allows.

    Look for a cycle of connections or for retries without an end, or allow more.
    """


class PoisonJobError(RoutiluxError):
    """The job was resumed too often without progress.

    A handler probably ends every process that runs it; the message names the tasks, and what ended
    each run. Correct the handler, and resume the job with `retry_failed=True`. `max_recoveries` of
    the `Runtime` is the limit.
    """


class ClockStalledError(RoutiluxError):
    """A job waits for an instant that the fake clock will never reach.

    Call `FakeClock.advance` in the test, or make the clock with `autojump=True`. In a handler, wait
    by `ctx.sleep`.
    """


# --- saved data ---------------------------------------------------------------------------------


class SavedStateError(RoutiluxError):
    """Saved data can't be written or read; base class of the next five.

    >>> SavedStateError("$.flow", "is missing").path
    '$.flow'
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = _shortened(path, 500)
        """A JSON path such as `$.job_state.commits[2]`, or the path of a file; shortened."""
        self.reason = _shortened(reason, 4_000)
        """What is wrong there and what to do; shortened."""
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
    """The saved data is damaged, or this program can't read it.

    The message says which. If it names a type that is not registered, import the module that calls
    `register_type`. If it names a field that is not known, a newer program wrote it: upgrade this
    one. If the data is damaged, restore the file or the store from a copy. `SavedState.read` with
    `verify=False` reads a document that was edited by hand; `routilux check` lists all damage of a
    store.
    """


class UnsupportedVersionError(SavedStateError):
    """This version of routilux does not know the data's format.

    Install the version that wrote it, or a later one.
    """


class UnknownRoutineError(SavedStateError):
    """A saved flow names a routine class that this program has not imported.

    Import the module that defines it before loading. A class that moved needs a `routine_name`.
    """


class FlowMismatchError(SavedStateError):
    """A saved job or flow does not match the program's flow.

    The message shows what differs. Run the job with the flow of its shape, or resume it with
    `allow_changed_flow=True` if each pending task still has its slot.
    """


class UnserializableError(SavedStateError):
    """A value can't be saved and loaded without a change.

    The path names the value. Save plain data, or register its type with `register_type`. In a
    handler this error fails the task at once, without a retry.
    """


# --- the environment ----------------------------------------------------------------------------


class LeaseLostError(RoutiluxError):
    """This host does not own the job.

    Another host, or an operator, has taken the job over. There is nothing to do on this host: let
    the handler end. If it happens often, a `lease` is too short or a host hangs.
    """


class DuplicateJobError(RoutiluxError):
    """The store or the runtime already has a job with this id.

    A job id from your data, such as the number of an order, makes a second submit of the same work
    raise this error: nothing is to be done then. For other work choose another `job_id`.
    """


class NotResumableError(RoutiluxError):
    """The job can't be resumed, paused or cancelled in its present status.

    The message names the status. A completed or cancelled job is final; a failed one needs
    `retry_failed=True`. A job that a store keeps is resumed only by a runtime with this store.
    """


# --- wrong calls, and our own bugs --------------------------------------------------------------


class NoActiveStepError(RoutiluxError):
    """`ctx` or `emit` was used outside a running step.

    Use it in a handler, in the thread that runs it, and before the handler returns. In a handler
    that was given up at its timeout, let the error end it.
    """


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
