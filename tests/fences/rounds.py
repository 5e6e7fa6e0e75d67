"""Rounds in which a living host loses its jobs to another host, to a clock or to an operator.

Invariants:
- Each round has a new store and two real processes. The first one loses its jobs while it is
  between two effects. Then it continues.
- A round ends when all jobs have stopped; then its effects and commits are judged.
- Nothing sleeps: a round waits for reports of the processes.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from routilux import JobStatus, cli
from tests.fences.verdicts import Took, in_flight, read, unfenced
from tests.kills.places import BACKOFF, EFFECT, HANDLER
from tests.kills.soak import Host
from tests.kills.verdicts import evidence, lost, repeated
from tests.persist import postgres_server

Order = dict[str, Any]
KINDS = ("stopped", "forward", "back", "operator")
_PLACES = (
    *(HANDLER, EFFECT, BACKOFF, "before holders", "after holders"),
    *("before append", "after append", "before renew", "after renew"),
)
_STEPS = {"forward": 60.0, "back": -3600.0}
JOBS = 40  # more than a worker runs at once
AT_ONCE = 32  # as many as a worker has threads


class Rounds:
    """Rounds of some kinds on one kind of store; `fresh` returns the place of a new store.

    `counts` holds, for each kind, the rounds and what happened in them. `plant` is a fault that
    each first process gets.
    """

    def __init__(
        self,
        pair: list[Host],
        fresh: Callable[[], str],
        folder: Path,
        seed: int = 0,
        plant: str | None = None,
    ) -> None:
        self.first, self.second = pair
        self.fresh, self.folder, self.seed = fresh, folder, seed
        self.plant = {} if plant is None else {"plant": plant}
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.broken: list[str] = []
        self._number = 0
        self._operator: list[Took] = []

    def run(self, kind: str) -> None:
        """Run one round and judge it."""
        self._number += 1
        chance = random.Random(f"{self.seed} {self._number} {kind}")
        about = {
            "store": self.fresh(),
            "effects": str(self.folder / f"effects-{self._number}"),
            "watched": True,
        }
        self._operator = []
        for host in (self.first, self.second):
            host.events = []
        does = {"stopped": self._stopped, "operator": self._overruled}.get(kind, self._stepped)
        with ThreadPoolExecutor(2) as threads:
            does(kind, about, chance, threads)
        self._judge(kind, about)

    # --- the kinds of rounds ----------------------------------------------------------------------

    def _stopped(self, kind: str, about: Order, chance: random.Random, threads: Any) -> None:
        """The first process is stopped for longer than its lease, at any place."""
        jobs = [f"j{number}" for number in range(4)]
        place = {"stops_at": chance.choice(_PLACES), "nth": chance.randint(1, 6)}
        self.first.order({**about, **place, **self.plant, "submit": jobs, "lease": 0.1})
        stopped = self._next(self.first, "stopped")
        lease = chance.choice([0.1, 60])
        wakes_after = chance.randrange(24)
        self.second.order({**about, "lease": lease})
        for _ in range(wakes_after):
            if self._next(self.second, "commit") is None:
                break
        if stopped is not None:
            os.kill(stopped[0], signal.SIGCONT)
        self._finish(threads)

    def _stepped(self, kind: str, about: Order, chance: random.Random, threads: Any) -> None:
        """The clock of the store is set while the first process is between two effects."""
        clock = self.folder / f"clock-{self._number}"
        self._set(clock, 0)
        about["clock"] = str(clock)
        # A server's clock may be set, so PostgreSQL frees a queued job all the same, and takes no
        # job from an owner before it has seen the lease last. A file's clock is never set.
        server = about["store"].startswith("host=")
        count = JOBS if server or kind == "forward" else AT_ONCE
        jobs = [f"j{number}" for number in range(count)]
        gate = {"gate": f"{self.seed} {self._number}"}
        self.first.order({**about, **gate, **self.plant, "submit": jobs, "lease": 30})
        for _ in range(AT_ONCE):
            assert self._next(self.first, "reached"), "the worker ended before the step"
        self._set(clock, _STEPS[kind])
        self.second.order({**about, "gate": None, "lease": 30})
        if kind == "forward":
            taken = 0 if server else chance.randint(1, AT_ONCE)
            for _ in range(JOBS - AT_ONCE + taken):  # first those queued
                assert self._next(self.second, "took"), "the other worker took no job"
        self.first.order("go on")
        self._finish(threads)

    def _overruled(self, kind: str, about: Order, chance: random.Random, threads: Any) -> None:
        """An operator takes jobs over, or cancels them, while their process lives."""
        gate = {"gate": f"{self.seed} {self._number}"}
        jobs = [f"j{number}" for number in range(4)]
        how = chance.choice(["starts", "submit"])
        self.first.order({**about, **gate, **self.plant, how: jobs, "lease": 30})
        for _ in jobs:
            assert self._next(self.first, "reached"), "the process ended before its gate"
        where = about["store"]
        where = postgres_server.url(where) if where.startswith("host=") else where
        for job_id in jobs:
            before = time.monotonic_ns()
            command = ["cancel"] if chance.random() < 0.3 else ["retry", "--take-over"]
            with redirect_stdout(StringIO()):
                assert 0 == cli.main([*command, where, job_id])
            took = Took(job_id, "an operator", before, time.monotonic_ns())
            self._operator.append(took)
        self.second.order({**about, "gate": None, "lease": 30})
        if how == "starts" and chance.random() < 0.5:  # a worker may take its jobs again
            self._next(self.second, "end")
        self.first.order("go on")
        self._finish(threads)

    def _set(self, clock: Path, seconds: float) -> None:
        new = clock.with_suffix(".new")
        new.write_text(str(seconds), "ascii")
        new.replace(clock)  # so that no process reads half a number

    # --- their ends -------------------------------------------------------------------------------

    def _next(self, host: Host, kind: str) -> list[Any] | None:
        """Wait for an event of this kind and return its values; None if the process has ended."""
        if host.events and host.events[-1][0] == "end":
            return None
        while (event := host.hear())[0] != kind:
            if event[0] == "end":
                return None
        return event[1:]

    def _finish(self, threads: ThreadPoolExecutor) -> None:
        """Wait for the end of both processes, and read all that they report meanwhile."""
        list(threads.map(lambda host: self._next(host, "end"), (self.first, self.second)))

    def _judge(self, kind: str, about: Order) -> None:
        events = self.first.events + self.second.events
        self.broken += [
            f"a process ended with {event[1]}" for event in events if event[0] == "end" and event[1]
        ]
        took, done = read(events)
        took += self._operator
        found = evidence(about["store"], Path(about["effects"]), events)
        problems = [*found.unread, *unfenced(took, done), *lost(found), *repeated(found)]
        ends = {JobStatus.COMPLETED, *([JobStatus.CANCELLED] if kind == "operator" else [])}
        problems += [
            f"job {job.job_id} is {job.status.value}"
            for job in found.jobs.values()
            if job.status not in ends
        ]
        self.broken += [f"round {self._number}, {kind}: {problem}" for problem in problems]
        taken = {(call.job_id, call.who) for call in took}
        texts = [event[-1] for event in events if event[0] in ("log", "refused")]
        self.counts[kind].update(
            {
                "rounds": 1,
                "jobs": len(found.jobs),
                "changed owner": len(taken) - len({job_id for job_id, _ in taken}),
                "effects": len(done),
                "fenced": sum("runs no further effect" in text for text in texts),
                "in flight": in_flight(done),
            }
        )

    def table(self) -> list[str]:
        """Return what happened in the rounds of each kind."""
        heads = ("rounds", "jobs", "changed owner", "effects", "fenced", "in flight")
        lines = ["".join([f"{'':10}", *(f"{head:>15}" for head in heads)])]
        for kind, counts in self.counts.items():
            lines.append("".join([f"{kind:10}", *(f"{counts[head]:15,}" for head in heads)]))
        return lines
