"""A host that can be killed: a process that forks one worker after the other and says what happens.

It reads orders, one JSON a line, from its standard input, and writes what happens, one JSON list a
line, to its standard output. A worker is a fork of it, so that a life costs milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import routilux.drive
import routilux.persist.store
from routilux import (
    Commit,
    ErrorHandler,
    Flow,
    JobState,
    RoutiluxError,
    Routine,
    Runtime,
    SqliteStore,
    StepInput,
    Worker,
    codec,
)

__all__ = ["DELAYS_NS", "LEASE", "digest", "story"]

LEASE = 0.1
DELAYS_NS = (2_000_000, 4_000_000)


def tell(*what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")  # one write, so that threads don't mix


def hear() -> Any:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)  # whoever gave orders is gone
        line += byte
    return json.loads(line)


def digest(commit: Commit) -> str:
    return sha256(codec.dumps(commit.serialize()).encode()).hexdigest()[:16]


# --- the flow -------------------------------------------------------------------------------------


class Pays(Routine):
    """Charges once, and fails twice after it; then lets two parcels be sent."""

    def __init__(self, effects: str) -> None:
        super().__init__()
        self.effects = effects
        self.define_slot("trigger", handler=self.pays)
        self.define_event("paid", ["parcel"])
        self.set_error_handler(ErrorHandler("retry", max_retries=2, retry_delay=0.002))

    def pays(self) -> None:
        affect(self, "charge")
        if self.ctx.attempt < 3:
            raise ConnectionError(f"attempt {self.ctx.attempt}")
        self.emit("paid", parcel=0)
        self.emit("paid", parcel=1)


class Sends(Routine):
    """Sends a parcel, once, and counts it."""

    def __init__(self, effects: str) -> None:
        super().__init__()
        self.effects = effects
        self.define_slot("trigger", handler=self.sends)

    def sends(self, parcel: int) -> None:
        affect(self, "send")
        self.ctx.shared["sent"] = self.ctx.shared.get("sent", 0) + 1  # type: ignore[operator]


def affect(routine: Any, name: str) -> None:
    """Have an effect on the world, once: it is written to a file before and after it is kept."""

    def note(what: str) -> None:
        file = os.open(routine.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{what} {routine.ctx.key(name)}\n".encode())
        os.close(file)

    routine.ctx.once(name, lambda: note("does"))
    note("has")


class Asks(Routine):
    """Says that it has begun, and waits for a word of whoever gives the orders."""

    def __init__(self, effects: str) -> None:
        super().__init__()
        self.effects = effects
        self.define_slot("trigger", handler=self.asks)
        self.define_event("answered", ["parcel"])

    def asks(self) -> None:
        tell("begun", os.getpid())
        hear()
        self.emit("answered", parcel=0)


def story(effects: str, *, asks: bool = False) -> Flow:
    flow = Flow("story", execution_strategy="concurrent", max_workers=2)
    flow.add_routine(Asks(effects) if asks else Pays(effects), "first")
    flow.add_routine(Sends(effects), "sends")
    flow.connect("first", "answered" if asks else "paid", "sends", "trigger")
    return flow


# --- the store ------------------------------------------------------------------------------------

_WRITES = ("create", "append", "claim", "keep_snapshot", "acquire", "renew", "release")


class KillingStore(SqliteStore):
    """Kills its process at its n-th point: before, in each statement of, or after a write."""

    def __init__(self, path: str, kill_at: int) -> None:
        self._left = kill_at
        self._doing = ""
        super().__init__(path)
        for name in _WRITES:
            setattr(self, name, self._watched(name, getattr(self, name)))

    def _opened(self) -> Any:
        db = super()._opened()
        db.set_trace_callback(self._statement)
        return db

    def _statement(self, text: str) -> None:
        verb = text.split()[0]
        if self._doing and verb != "SELECT":
            self._point(f"{verb} of {self._doing}")

    def _watched(self, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._point(f"before {name}")
            self._doing = name
            try:
                return write(*arguments, **named)
            finally:
                self._doing = ""
                self._point(f"after {name}")

        return call

    def _point(self, what: str) -> None:
        self._left -= 1
        if not self._left:
            tell("killed", what)
            os.kill(os.getpid(), signal.SIGKILL)


# --- the host -------------------------------------------------------------------------------------


class _Tells(logging.Handler):
    """Says of each step that it starts, of each commit that it is durable, and what is logged."""

    def on_step(self, job: JobState, step: StepInput) -> None:
        tell("step", step.job_id, step.task.task_id, step.attempt)

    def on_commit(self, job: JobState, commit: Commit) -> None:
        tell("commit", job.job_id, commit.seq, digest(commit), commit.kind)

    def emit(self, record: logging.LogRecord) -> None:
        tell("log", record.getMessage())


def live(order: Mapping[str, Any]) -> None:
    """Be a worker until all is done, or the worker is killed."""
    told = _Tells()
    logging.getLogger("routilux").addHandler(told)
    logging.getLogger("routilux").setLevel(logging.INFO)
    store = KillingStore(order["store"], order.get("kill_at", 0))
    runtime = Runtime(store=store, observers=[told], max_recoveries=order.get("most"))
    flow = story(order["effects"], asks=order.get("asks", False))
    for job_id in order.get("submit", ()):
        runtime.submit(flow, "first", job_id=job_id)
    if "execute" in order:
        runtime.execute(flow, "first", job_id=order["execute"])
    tell("ready", os.getpid())
    hear()
    tell("runs")  # a kill before this might leave half a line to whoever reads next
    Worker(store, [flow], runtime=runtime, lease=order.get("lease", LEASE)).run(until_idle=True)
    for job_id in order.get("late", ()):
        try:
            store.append(job_id, len(store.rows(job_id)) + 1, b"late", runtime.owner, rests=False)
        except RoutiluxError as error:
            tell("refused", type(error).__name__, str(error))


def serve() -> None:
    """Live one life after the other, each as a process of its own."""
    routilux.drive.SNAPSHOT_EVERY = 4  # type: ignore[misc]
    routilux.persist.store.SNAPSHOT_EVERY = 4  # type: ignore[misc]
    while True:
        order = hear()
        child = os.fork()
        if not child:
            try:
                live(order)
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        tell("end", os.waitstatus_to_exitcode(status))
