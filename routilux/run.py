"""`Run`: the handle of a job that is driven in the background.

Laws:
- What it shows is a copy of the job as of its last commit; nothing done to it changes the job.
- Whatever ended the job from outside is raised by whoever waits for it, each time.
- An observer can't wait for a job: all jobs wait for the observer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux.instants import to_ns
from routilux.persist.document import SavedState

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from routilux.core.state import JobState
    from routilux.drive import Drive
    from routilux.flow import Flow

__all__ = ["Run"]


class Run:
    """A job in the background, made by `start`.

    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["said"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> run = flow.start("hello")
    >>> run.wait(timeout=5).status.value
    'completed'
    """

    def __init__(self, flow: Flow, drive: Drive) -> None:
        self._flow = flow
        self._drive = drive

    @property
    def job(self) -> JobState:
        """A copy of the job as of its last commit."""
        return self._drive.snapshot()

    def wait(self, timeout: float | timedelta | None = None) -> JobState:
        """Wait until the job rests, and return it; `timeout` is in seconds of the runtime's clock.

        Raises `TimeoutError`, and whatever ended the job from outside (a broken store, an
        interrupt of its handler).
        """
        drive = self._drive
        drive.runtime.audience.refuse("wait for a job")
        clock = drive.runtime.clock
        until = None if timeout is None else clock.monotonic_ns() + to_ns(timeout)
        job = drive.machine.job
        if not clock.wait(drive.rested, until, who=f"whoever waits for job {job.job_id}"):
            raise TimeoutError(f"job {job.job_id} is {job.status.value} after {timeout} s")
        if drive.error is not None:
            raise drive.error
        return drive.snapshot()

    def pause(self) -> None:
        """Start no more steps; those in flight still commit. Raises `NotResumableError`."""
        self._drive.request("pause")

    def cancel(self, reason: str | None = None) -> None:
        """End the job for good; steps in flight still commit. Raises `NotResumableError`."""
        self._drive.request("cancel", reason)

    def checkpoint(self, path: str | Path, *, key: bytes | None = None) -> None:
        """Write the job, as of its last commit, to a file; see `SavedState.write`."""
        try:
            saved = SavedState.capture(self._flow, self._drive.snapshot())
            saved.write(path, key=key)
        finally:
            del key
