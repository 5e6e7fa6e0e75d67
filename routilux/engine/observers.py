"""Who hears of commits and of steps that start: the observers of a runtime.

Laws:
- An observer can't break a job: what it raises is logged once and counted.
- All hear of a commit before anybody hears of a later one, also where an observer has caused it.
- No job goes on before an observer returns; so it must not wait for one, and is refused.
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

__all__ = ["Audience", "ObserverFailure"]

_log = logging.getLogger("routilux")


@dataclass(slots=True)
class ObserverFailure:
    """What an observer raised first, and how often it raised."""

    observer: object
    error: Exception
    count: int = 1


class Audience:
    """The observers of a runtime; they are told under its lock."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = tuple(observers)
        self.of_steps = tuple(o for o in self.observers if hasattr(o, "on_step"))
        self.failures: list[ObserverFailure] = []
        self._notices: deque[tuple[JobState, Commit]] = deque()
        self._teller: int | None = None  # the thread that tells them

    def begin(self) -> None:
        """Have no teller: in a forked child its thread is not there."""
        self._teller = None

    def refuse(self, what: str) -> None:
        """Raise where an observer is about to wait for a job."""
        if self._teller == threading.get_ident():
            raise RoutiluxError(
                f"an observer can't {what}, since no job goes on before the observer returns;"
                " use start() and look at the job later"
            )

    def tell(self, job: JobState, commit: Commit) -> None:
        """Tell the observers of a commit, after those that came before it."""
        self._notices.append((job, commit))
        if self._teller is not None:
            return  # an observer has caused this commit; it is told when the others were
        self._teller = threading.get_ident()
        try:
            while self._notices:
                noticed, news = self._notices.popleft()
                for observer in self.observers:
                    try:
                        observer.on_commit(noticed, news)
                    except Exception as error:
                        self._failed(observer, error)
        finally:
            self._teller = None

    def tell_step(self, job: JobState, step: StepInput) -> None:
        """Tell the observers that want it of a step that starts."""
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
            "observer %r raised %s; the job goes on, later errors of it are only counted",
            observer,
            type(error).__name__,
            exc_info=error,
        )
