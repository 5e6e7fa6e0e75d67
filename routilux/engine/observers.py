"""Notifies a runtime's observers of commits and starting steps.

Invariants:
- An observer can't break a job: what it raises is logged once and counted.
- All observers see a commit before any of them sees a later one, also if an observer caused it.
- All jobs wait while an observer runs. So an observer that waits for a job gets an error.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from routilux.errors import RoutiluxError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from routilux.core.commits import Commit
    from routilux.core.state import JobState
    from routilux.graph.messages import StepInput
    from routilux.monitor import Observer

_log = logging.getLogger("routilux")


@dataclass(slots=True)
class ObserverFailure:
    """The first error and the error count of an observer; see `Runtime.observer_failures`."""

    observer: object
    """The observer."""
    error: Exception
    """Its first error."""
    count: int = 1
    """How many errors it has raised."""


class Observers:
    """Calls one runtime's observers, under the runtime's lock."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.registered = tuple(observers)
        self.of_steps = tuple(o for o in self.registered if hasattr(o, "on_step"))
        self.failures: list[ObserverFailure] = []
        self._notices: deque[tuple[JobState, Commit]] = deque()
        self._notifier: int | None = None  # the thread that notifies them

    def begin_process(self) -> None:
        """Forget the state of the parent process."""
        self._notices.clear()
        self._notifier = None

    def refuse(self, what: str) -> None:
        """Raise `RoutiluxError` if an observer makes the call `what`."""
        if self._notifier == threading.get_ident():
            raise RoutiluxError(
                f"an observer can't {what}: all jobs wait until the observer returns;"
                " call start() in the observer, and wait for the job in another thread"
            )

    def notify(self, notices: Iterable[tuple[JobState, Commit]]) -> None:
        """Notify all observers of commits, earlier commits first."""
        self._notices.extend(notices)
        if self._notifier is not None:
            return  # an observer caused these commits; the loop below takes them next
        self._notifier = threading.get_ident()
        try:
            while self._notices:
                job, commit = self._notices.popleft()
                for observer in self.registered:
                    try:
                        observer.on_commit(job, commit)
                    except Exception as error:
                        self._failed(observer, error)
        finally:
            self._notifier = None

    def notify_step(self, job: JobState, step: StepInput) -> None:
        """Call `on_step` of each observer that has this method."""
        before, self._notifier = self._notifier, threading.get_ident()
        try:
            for observer in self.of_steps:
                try:
                    observer.on_step(job, step)
                except Exception as error:
                    self._failed(observer, error)
        finally:
            self._notifier = before
        self.notify(())  # of the commits that the observers caused

    def _failed(self, observer: object, error: Exception) -> None:
        for failure in self.failures:
            if failure.observer is observer:
                failure.count += 1
                return
        self.failures.append(ObserverFailure(observer, error))
        _log.error(
            "observer %r raised %s; the job continues, and later errors of the observer are only"
            " counted",
            observer,
            type(error).__name__,
            exc_info=error,
        )
