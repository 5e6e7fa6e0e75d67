"""A host that can be killed: a process that forks one worker after another and reports events.

It reads orders from its standard input, one JSON object a line, and writes events to its standard
output, one JSON list a line. A worker is a fork, so that it starts within milliseconds.

    store, effects   the store, and the file of the effects
    submit           ids of jobs that are submitted first
    resume           ids of jobs that are then resumed in this process without a lease, or "all"
    aim              where the worker is killed: a place, at which entry, and up to how long after
                     it; or `timer`, when it is killed at any place. Both in nanoseconds
    stops_at         the place at which it is suspended instead; if it asks, from then on
    nth              at which entry of this place
    lingers          handlers run until a lease was renewed
    sigterm          the number of the worker's commit that is followed by a SIGTERM
    execute          id of a job that is then executed without a worker
    most             how many recoveries without progress a job may have; without it, any number
    asks             use the flow that asks
    gate             use the flow of effects behind gates; a job waits at its gate, which this seed
                     chooses, until the next line is read
    watched          report who takes a job and who does an effect, with the time
    clock            a file with the seconds by which the clock of the store is set wrong
    starts           ids of jobs that are started without a worker, and waited for
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
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Any

import routilux.engine.drive
import routilux.persist.journal
from routilux import Commit, LeaseLostError, NotResumableError, Runtime, Worker, retry_job
from routilux.clocks.clock import real_sleep
from tests.kills.places import BACKOFF, IDLE, Places, kill_in
from tests.kills.plants import PLANTS
from tests.kills.stores import SetClock, opened
from tests.kills.story import CHARGES, around, asking, charging, story

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
        places.aim(order["stops_at"], order.get("nth", 1), stops=True)
    reports = _Reports()
    logging.getLogger("routilux").addHandler(reports)
    logging.getLogger("routilux").setLevel(logging.INFO)
    clock = SetClock(order["clock"]) if "clock" in order else None
    store: Any = opened(order["store"], places, clock)
    if "watched" in order:
        watch(store)
    if "plant" in order:
        PLANTS[order["plant"]](store)
    runtime = Runtime(store=store, observers=[reports], max_recoveries=order.get("most"))
    kind = asking if "asks" in order else charging if "gate" in order else story
    flow = kind(order["effects"])
    around.listens = partial(_asks, order, places)
    if "gate" in order and order["gate"] is not None:
        around.gates = gates(order["gate"])
    for job_id in order.get("submit", ()):
        runtime.submit(flow, "first", job_id=job_id)
    lease = order.get("lease", LEASE)
    if order.get("left"):
        store.acquire("a host that died", [flow.flow_id], int(lease * 10**9 / 2))
    for job_id in order.get("take_over", ()):
        with _refusals():
            retry_job(store, job_id, take_over=True, clock=runtime.clock)
    if "execute" in order:
        runtime.execute(flow, "first", job_id=order["execute"])
    runs = [runtime.start(flow, "first", job_id=job_id) for job_id in order.get("starts", ())]
    for run in runs:
        with _refusals():
            run.wait()
    if runs:
        return
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


def watch(store: Any) -> None:
    """Report each call that gives a job to this process, and each effect of this process."""

    def reports(call: Callable[..., Any], jobs: Callable[[Any, Any], list[str]]) -> Any:
        def calls(*arguments: Any, **named: Any) -> Any:
            before = time.monotonic_ns()
            answer = call(*arguments, **named)
            for job_id in jobs(arguments, answer):
                tell("took", job_id, os.getpid(), before, time.monotonic_ns())
            return answer

        return calls

    store.create = reports(store.create, lambda arguments, _: [arguments[0]])
    store.claim = reports(store.claim, lambda arguments, _: [arguments[0]])
    store.acquire = reports(store.acquire, lambda _, got: [taken.job_id for taken in got])
    around.reports = lambda key, asked: tell("effect", key, os.getpid(), asked)


def gates(seed: str) -> Callable[[str, str], None]:
    """Return the gate of a process: each job waits before one of its effects for the next line."""
    opens = threading.Event()
    threading.Thread(target=lambda: (hear(), opens.set()), daemon=True).start()

    def gate(job_id: str, name: str) -> None:
        if name == random.Random(f"{seed} {job_id}").choice(CHARGES):
            tell("reached", job_id)
            opens.wait()

    return gate


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
        if not isinstance(order, dict):
            continue  # a word for a worker that has ended meanwhile
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
