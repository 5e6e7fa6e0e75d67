"""The observers of a runtime; they are notified of commits and of steps that start.

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
    """The first error of an observer, and the number of errors that it raised."""

    observer: object
    error: Exception
    count: int = 1


class Observers:
    """The observers of a runtime; they are notified under the runtime's lock."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.registered = tuple(observers)
        self.of_steps = tuple(o for o in self.registered if hasattr(o, "on_step"))
        self.failures: list[ObserverFailure] = []
        self._notices: deque[tuple[JobState, Commit]] = deque()
        self._notifier: int | None = None  # the thread that notifies them

    def begin_process(self) -> None:
        """Forget the thread that notifies: a forked child does not have it."""
        self._notifier = None

    def refuse(self, what: str) -> None:
        """Raise if an observer makes a call that waits for a job."""
        if self._notifier == threading.get_ident():
            raise RoutiluxError(
                f"an observer can't {what}: all jobs wait until the observer returns;"
                " use start() there and wait for the job elsewhere"
            )

    def notify(self, job: JobState, commit: Commit) -> None:
        """Notify the observers of a commit, after all earlier commits."""
        self._notices.append((job, commit))
        if self._notifier is not None:
            return  # an observer caused this commit; the loop below takes it next
        self._notifier = threading.get_ident()
        try:
            while self._notices:
                changed, committed = self._notices.popleft()
                for observer in self.registered:
                    try:
                        observer.on_commit(changed, committed)
                    except Exception as error:
                        self._failed(observer, error)
        finally:
            self._notifier = None

    def notify_step(self, job: JobState, step: StepInput) -> None:
        """Notify the observers with a method `on_step` that a step starts."""
        for observer in self.of_steps:
            try:
                observer.on_step(job, step)
            except Exception as error:
                self._failed(observer, error)

    def _failed(self, observer: object, error: Exception) -> None:
        for failure in self.failures:
            if failure.observer is observer:
                failure.count += 1
                return
        self.failures.append(ObserverFailure(observer, error))
        _log.error(
            "observer %r raised %s; the job continues, and its later errors are only counted",
            observer,
            type(error).__name__,
            exc_info=error,
        )
