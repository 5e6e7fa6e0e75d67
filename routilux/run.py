"""`Run`: controls a job that runs in the background.

Invariants:
- It shows a copy of the job after its last commit; changing the copy does not change the job.
- An error from outside the flow that ended the run is raised by each `wait`.
- An observer can't wait for a job: all jobs wait for the observer. A handler may wait for another
  job: meanwhile other steps run in another thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routilux.clocks.durations import to_ns
from routilux.engine.waiting import refuse_blocked_loop, waiting_step
from routilux.errors import FlowDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from routilux.core.state import JobState
    from routilux.engine.drive import Drive

    Save = Callable[[JobState, str | Path, bytes | None], None]
    """A function that writes a job and its flow to a file; takes job, path and signing key."""


class Run:
    """Controls a job that runs in the background; see `Flow.start`.

    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["greeting"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> run = flow.start("hello")
    >>> run.wait(timeout=5).status.value
    'completed'
    """

    def __init__(self, drive: Drive, save: Save) -> None:
        self._drive = drive
        self._save = save

    @property
    def job(self) -> JobState:
        """A copy of the job's state after the last commit."""
        return self._drive.snapshot()

    def wait(self, timeout: float | timedelta | None = None) -> JobState:
        """Wait until the job has stopped, and return the job.

        Raises `TimeoutError` after `timeout` seconds of the runtime's clock. Also raises an error
        from outside the flow that ended the run, such as an interrupt or the error of a store.
        """
        drive = self._drive
        drive.environment.observers.refuse("wait for a job")
        refuse_blocked_loop()
        clock = drive.environment.clock
        until = None if timeout is None else clock.monotonic_ns() + to_ns(timeout)
        job = drive.machine.job
        who = f"the caller that waits for job {job.job_id}"
        with waiting_step() as waiting:
            if waiting is drive and until is None:
                raise FlowDefinitionError(
                    f"a handler of job {job.job_id} waits for its own job, which can't end then;"
                    " wait in the code that started the job"
                )
            stopped = clock.wait(drive.stopped, until, who=who)
        if not stopped:
            raise TimeoutError(
                f"job {job.job_id} is still {job.status.value} after {timeout} s;"
                " wait again, or cancel the job"
            )
        if drive.error is not None:
            raise drive.error
        return drive.snapshot()

    def pause(self) -> None:
        """Pause the job, but let the running steps commit.

        Raises `NotResumableError` if the job is not running.
        """
        self._drive.request("pause")

    def cancel(self, reason: str | None = None) -> None:
        """Cancel the job for good, but let the running steps commit.

        Raises `NotResumableError` if the job has already ended.
        """
        self._drive.request("cancel", reason)

    def checkpoint(self, path: str | Path, *, key: bytes | None = None) -> None:
        """Save the job and the flow to a file; see `SavedState.write`."""
        try:
            self._save(self._drive.snapshot(), path, key)
        finally:
            del key
