"""A host that can be killed: a process that forks one worker after another and reports events.

It reads orders from its standard input, one JSON object a line, and writes events to its standard
output, one JSON list a line. A worker is a fork, so that it starts within milliseconds.

    store, effects   the store, and the file of the effects
    submit           ids of jobs that are submitted first
    resume           ids of jobs that are then resumed in this process without a lease, or "all"
    aim              where the worker is killed: a place, at which entry, and up to how long after
                     it; or `timer`, when it is killed at any place. Both in nanoseconds
    stops_at         the place at which it is suspended instead; if it asks, from then on
    lingers          handlers run until a lease was renewed
    sigterm          the number of the worker's commit that is followed by a SIGTERM
    execute          id of a job that is then executed without a worker
    most             how many recoveries without progress a job may have; without it, any number
    asks             use the flow that asks
    late             ids of jobs to which it tries to append a row at its end
    take_over        ids of jobs that an operator takes over
    left             a host acquires a job and dies, for half a lease
    signalled        the worker runs until a signal ends it; its handlers take some milliseconds
    plant            a fault of `plants`
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Any

import routilux.engine.drive
import routilux.persist.journal
from routilux import (
    Commit,
    LeaseLostError,
    NotResumableError,
    Runtime,
    Worker,
)
from routilux.clocks.clock import real_sleep
from routilux.persist import admin
from tests.kills.places import BACKOFF, IDLE, Places, kill_in
from tests.kills.plants import PLANTS
from tests.kills.stores import opened
from tests.kills.story import around, asking, story

Order = dict[str, Any]
LEASE = 0.1
LONGEST_LIFE_NS = 60 * 10**9
INTERRUPTED = 130  # the exit code after a KeyboardInterrupt


def tell(*what: object) -> None:
    """Report an event, in one write, so that the lines of threads do not mix."""
    os.write(1, json.dumps(what).encode() + b"\n")


def hear() -> Any:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)  # the test has ended
        line += byte
    return json.loads(line)


def digest(commit: Commit) -> str:
    return sha256(commit.dumps().encode()).hexdigest()[:16]


class _Reports(logging.Handler):
    """Reports each commit when it is durable, and each line of the log."""

    sigterm = 0  # after so many commits

    def on_commit(self, job: Any, commit: Commit) -> None:
        tell("commit", job.job_id, commit.seq, digest(commit), commit.kind, job.status)
        self.sigterm -= 1
        if not self.sigterm:
            os.kill(os.getpid(), signal.SIGTERM)

    def emit(self, record: logging.LogRecord) -> None:
        tell("log", record.getMessage())


def _watch_waits(clock: Any, places: Places, worker: Worker) -> None:
    """Make places of the waits of the system's clock."""
    wait = clock.wait

    def waits(signal: Any, until: int | None, key: Any = (), who: str = "") -> Any:
        if who.endswith("(next retry)"):
            place = BACKOFF
        elif who == "a worker" and not worker._drives:
            place = IDLE
        else:
            return wait(signal, until, key, who)
        with places.at(place):
            return wait(signal, until, key, who)

    clock.wait = waits


def live(order: Order, places: Places) -> None:
    """Run a worker until all jobs are done or it is killed."""
    around.places = places
    kill_in(order.get("timer", LONGEST_LIFE_NS))
    if "aim" in order:
        places.aim(*order["aim"])
    elif "stops_at" in order and "asks" not in order:
        places.aim(order["stops_at"], 1, stops=True)
    reports = _Reports()
    logging.getLogger("routilux").addHandler(reports)
    logging.getLogger("routilux").setLevel(logging.INFO)
    store: Any = opened(order["store"], places)
    if "plant" in order:
        PLANTS[order["plant"]](store)
    runtime = Runtime(store=store, observers=[reports], max_recoveries=order.get("most"))
    flow = asking(order["effects"]) if "asks" in order else story(order["effects"])
    around.listens = partial(_asks, order, places)
    for job_id in order.get("submit", ()):
        runtime.submit(flow, "first", job_id=job_id)
    lease = order.get("lease", LEASE)
    if order.get("left"):
        store.acquire("a host that died", [flow.flow_id], int(lease * 10**9 / 2))
    for job_id in order.get("take_over", ()):
        with _refusals():
            admin.retry(store, job_id, runtime.clock.now_ns(), take_over=True)
    if "execute" in order:
        runtime.execute(flow, "first", job_id=order["execute"])
    for job_id in store.job_ids() if order.get("resume") == "all" else order.get("resume", ()):
        with _refusals():
            runtime.resume(flow, runtime.load(job_id))
    if order.get("lingers"):
        around.lingers = _until_renewed(store)
    reports.sigterm = order.get("sigterm", 0)
    worker = Worker(store, [flow], runtime=runtime, lease=lease)
    _watch_waits(runtime.clock, places, worker)
    if order.get("signalled"):
        around.lingers = partial(real_sleep, 0.01)
        _reports_when_it_runs(worker)
        worker.run()
        return
    worker.run(until_idle=True)
    for job_id in order.get("late", ()):
        with _refusals():
            store.append(
                job_id, len(store.rows(job_id)) + 1, b"late", runtime.owner, status="running"
            )
    tell("passed", places.passed)


def _reports_when_it_runs(worker: Worker) -> None:
    run = worker._run

    def runs(until_idle: bool) -> None:
        tell("runs", os.getpid())
        run(until_idle)

    vars(worker)["_run"] = runs


@contextmanager
def _refusals() -> Iterator[None]:
    """Report that a job belongs to another host, is over, or does not exist."""
    try:
        yield
    except (LeaseLostError, NotResumableError, KeyError) as error:
        tell("refused", type(error).__name__, str(error))


def _asks(order: Order, places: Places) -> None:
    tell("begun", os.getpid())
    if "stops_at" in order:
        places.aim(order["stops_at"], 1, stops=True)
    hear()


def _until_renewed(store: Any) -> Any:
    """Return a function that waits for the next renewal of a lease, in any number of threads."""
    renew, renewed = store.renew, threading.Condition()

    def renews(owner: str, lease_ns: int) -> Any:
        held = renew(owner, lease_ns)
        with renewed:
            renewed.notify_all()
        return held

    def lingers() -> None:
        with renewed:
            renewed.wait()

    store.renew = renews
    return lingers


def serve() -> None:
    """Run one worker after the other, each in a process of its own."""
    for module in (routilux.engine.drive, routilux.persist.journal):
        vars(module)["SNAPSHOT_EVERY"] = 4  # so that short jobs have snapshots too
    places = Places()
    while True:
        order = hear()
        places.clear()
        child = os.fork()
        if not child:
            try:
                live(order, places)
                os._exit(0)
            except KeyboardInterrupt:
                os._exit(INTERRUPTED)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        _, status = os.waitpid(child, os.WUNTRACED)
        while os.WIFSTOPPED(status):
            tell("stopped", child)
            _, status = os.waitpid(child, os.WUNTRACED)
        tell("end", os.waitstatus_to_exitcode(status), places.last())
