"""`Threads`: the threads in which a runtime's jobs run.

Invariants:
- Background jobs share one loop in one thread, which ends when no job is left.
- If no thread can be started, the call that needed it raises; later jobs try again.
- An idle pool of threads is kept for the next job of its size, until `close`.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, finalize

from routilux.engine.driver import InlineDriver
from routilux.engine.loop import Loop
from routilux.engine.pool import AsyncDriver, PoolDriver, steps_at_once
from routilux.engine.waiting import refuse_blocked_loop, running_drive
from routilux.errors import FlowDefinitionError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Executor

    from routilux.clocks.clock import Party
    from routilux.core.state import JobState
    from routilux.engine.async_steps import EventLoopQueue
    from routilux.engine.drive import Drive
    from routilux.engine.driver import Driver
    from routilux.engine.environment import Environment
    from routilux.engine.remote.sender import Sender
    from routilux.graph.plan import Plan

_log = logging.getLogger("routilux")
_BACKGROUND_WORKERS: Final = 32


class Threads:
    """The threads for a runtime's jobs and steps."""

    async_driver: type[AsyncDriver] = AsyncDriver
    """Runs the jobs that an event loop awaits."""

    def __init__(self, environment: Environment, executor: Executor | None) -> None:
        self._environment = environment
        self._clock = environment.clock
        self._executor = executor
        self._process = os.getpid()
        self._sender: Sender | None = None
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            # Sockets are slow to import, and only an executor of other processes needs them.
            from routilux.engine.remote.sender import Sender

            self._sender = Sender(executor)
        self._closed = False  # then no pool is kept
        self._size = getattr(executor, "_max_workers", _BACKGROUND_WORKERS)
        self.begin_process()

    def begin_process(self) -> None:
        """Forget all threads, and in a forked child the executor: its threads are not there."""
        if os.getpid() != self._process:
            self._executor = self._sender = None
        self._spare: list[PoolDriver] = []
        self.background: Loop | None = None
        self._thread: threading.Thread | None = None  # of that loop
        self._pool: PoolDriver | None = None  # of that loop
        self._on_event_loops: WeakKeyDictionary[AbstractEventLoop, AsyncDriver] = (
            WeakKeyDictionary()
        )

    def reserve(self, steps: int | None) -> int:
        """Return how many background steps can run at once.

        Makes room for `steps` in the runtime's own threads, also in those that run now, and on an
        executor of any number of workers; returns `steps`. Raises `FlowDefinitionError` if the
        runtime's executor has fewer workers.
        """
        if steps is None:
            return self._size
        if self._executor is None or not hasattr(self._executor, "_max_workers"):
            with self._environment.lock:
                self._size = max(self._size, steps)
                if self.background is not None and self._pool is not None:
                    self._pool.widen(self._size)
        elif steps > self._size:
            raise FlowDefinitionError(
                f"concurrency is {steps}, but the runtime's {type(self._executor).__name__} runs"
                f" {self._size} step{'s' * (self._size != 1)} at once; give the executor {steps}"
                " workers, or leave out concurrency"
            )
        return steps

    def close(self) -> None:
        """Let all idle threads end."""
        with self._environment.lock:
            self._closed = True
            while self._spare:
                self._spare.pop().close()
            for driver in self._on_event_loops.values():
                if driver.idle:
                    driver.close()
            if self.background is None:
                self._environment.close_event_loop()
            if self._sender is not None:
                self._sender.close()

    def check(self, plan: Plan) -> None:
        """Raise `FlowDefinitionError` if a routine of a flow can't run on the executor."""
        if self._sender is not None:
            self._sender.check(plan)

    def end(self, error: BaseException) -> None:
        """Fail all background jobs with `error`, and end their loop.

        Waits a second at most. A handler that blocks keeps its thread: no code can stop it.
        """
        with self._environment.lock:
            loop, thread = self.background, self._thread
            loops = [driver.loop for driver in self._on_event_loops.values()]
            for each in loops if loop is None else [loop, *loops]:
                for drive in list(each.drives):
                    drive.on_stop = None  # nobody needs the error
                    each.fail(drive, error)
        if loop is not None and thread is not None:
            thread.join(1)
        self.close()

    def drive(self, drive: Drive) -> JobState:
        """Run a job in this thread until the job stops."""
        refuse_blocked_loop()
        driver = self.driver_for(drive)
        loop = Loop(self._environment, driver)
        who = f"job {drive.machine.job.job_id}"
        party = self._clock.party(who, (drive.ordinal,), result=True)
        try:
            try:
                party.start()
                with self._environment.lock:
                    loop.add(drive)
                loop.run()
                drive.wait_for_cleanup()
            finally:
                party.stop()
        except BaseException as error:  # an interrupt, perhaps of the line above
            with self._environment.lock:
                loop.fail(drive, error)
            party.stop()
            raise
        finally:
            if isinstance(driver, PoolDriver):
                self._give_pool(driver, broken=_is_interrupt(drive.error))
        if drive.error is not None:
            raise drive.error
        return drive.machine.job

    def drive_in_background(self, drive: Drive) -> None:
        """Add a job to the background loop, and return at once.

        An error from outside the flow that ends the run is logged, unless `drive.on_stop` is set.
        """
        if drive.on_stop is None:
            drive.on_stop = _log_error
        with self._environment.lock:
            loop = self.background
            if loop is None:
                pool = self._take_pool(self._size, self._executor)
                loop = Loop(self._environment, pool)
                party = self._clock.party("the loop of background jobs")
                try:
                    thread = threading.Thread(
                        target=self._run_background,
                        args=(loop, pool, party),
                        name="routilux-loop",
                        daemon=True,
                    )
                    loop.add(drive)
                    # Before the thread starts: if the job has stopped already, the thread ends.
                    self.background, self._thread, self._pool = loop, thread, pool
                    thread.start()
                except BaseException as error:  # the system has no thread left, or an interrupt
                    self.background = self._thread = None
                    drive.on_stop = None  # the caller gets the error
                    if isinstance(error, Exception):
                        loop.interrupt(drive, error)
                    loop.fail(drive, error)
                    party.cancel()
                    raise
            else:
                try:
                    loop.add(drive)
                    loop.look(drive)
                except BaseException as error:
                    loop.fail(drive, error)
                    raise

    def drive_on_event_loop(self, drive: Drive, queue: EventLoopQueue) -> None:
        """Add a job to the loop that runs in the thread of an event loop, and return at once."""
        environment, event_loop = self._environment, queue.event_loop()
        with environment.lock:
            driver = self._on_event_loops.get(event_loop)
            if driver is None:
                driver = self.async_driver(
                    self._clock, queue, self._size, self._executor, self._sender
                )
                driver.loop = Loop(environment, driver)
                self._on_event_loops[event_loop] = driver
                finalize(event_loop, driver.closing)
            driver.loop.add(drive)
            driver.poke()

    def _run_background(self, loop: Loop, pool: PoolDriver, party: Party) -> None:
        party.start()
        try:
            while self.background is loop or loop.drives:
                loop.run()
                with self._environment.lock:
                    # A job that was added meanwhile keeps the loop; a later one gets a new loop.
                    if not loop.drives and self.background is loop:
                        self.background = None
                        if self._closed:
                            self._environment.close_event_loop()
        finally:
            party.stop()
            self._give_pool(pool)

    def driver_for(self, drive: Drive) -> Driver:
        """Return a driver for the steps of the job `drive`."""
        width, executor = drive.plan.width, self._executor
        outer = running_drive()
        if outer is not None and outer.environment is self._environment:
            executor = None  # a step that executes a job may hold the last thread of the executor
        if width > 1 or executor is not None:
            return self._take_pool(width, executor)
        return InlineDriver(self._clock)

    def _take_pool(self, size: int, executor: Executor | None) -> PoolDriver:
        size = steps_at_once(executor, size)
        with self._environment.lock:
            for pool in self._spare:
                if pool.executor is executor and pool.size == size:
                    self._spare.remove(pool)
                    return pool
        return PoolDriver(self._clock, size, executor, None if executor is None else self._sender)

    def _give_pool(self, pool: PoolDriver, *, broken: bool = False) -> None:
        with self._environment.lock:
            if pool.idle and not self._closed and not broken:
                self._spare.append(pool)
            else:
                pool.close()


def _is_interrupt(error: BaseException | None) -> bool:
    return error is not None and not isinstance(error, Exception)


def _log_error(drive: Drive) -> None:
    error = drive.error
    if error is not None:
        job_id = drive.machine.job.job_id
        _log.error("an error outside the flow ended the run of job %s: %r", job_id, error)
