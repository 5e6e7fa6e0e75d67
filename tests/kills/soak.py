"""The soak: two hosts that share a store run worker after worker, and nearly each one is killed.

Invariants:
- Nothing sleeps: a worker ends by its kill, or when no job is left.
- A rehearsal finds the places at which to kill, so a store that writes in another way needs no
  change here.
- A kill counts for the place that it hit, whatever its aim was.
- After some hundred kills, all jobs are completed and checked, and a new store is used.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.kills.places import BACKOFF, EFFECT, HANDLER, IDLE
from tests.kills.stores import WRITES
from tests.kills.verdicts import broken, evidence

__all__ = ["Host", "Soak", "hosts", "kill"]

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 120  # seconds that a busy machine may take to report an event
_AT_RANDOM: Final = 0.15  # of all kills: at any place
_WITHIN: Final = 0.2  # of those that are aimed: some time after the place was entered
_RESUMES: Final = 0.1  # of all workers: resumes jobs without a lease
_TAKES_OVER: Final = 0.1  # of all workers: takes over jobs
_WITHIN_NS: Final = 400_000
_LIFE_NS: Final = 80_000_000
_TAKES: Final = 5
_FEW: Final = 4  # jobs at a time, so that they end between the kills


class Host:
    """The process that forks workers; `events` is everything that they reported."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.kills.host import serve; serve()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._rest = b""
        self._handles: list[int] = []

    def order(self, order: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def live(self, **order: Any) -> list[Any]:
        """Run a worker; return its exit code, and the place of its kill."""
        self.order(order)
        while (event := self.hear()) is not None:
            if event[0] == "end":
                return event[1:]
        raise AssertionError(f"a worker neither ended nor was killed: {order}")

    def begin(self, **order: Any) -> int:
        """Start a worker; return a handle for signals, which outlives its process id."""
        self.order({"held": True, **order})
        handle = os.pidfd_open(self.until("ready")[1])
        self._handles.append(handle)
        self.order("go")
        self.until("runs")
        return handle

    def hear(self) -> list[Any] | None:
        """Return the next event; None if there is none for a long time."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
                return None
            data = self._process.stdout.read(65536)
            assert data, "the host has ended"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        event: list[Any] = json.loads(line)
        self.events.append(event)
        return event

    def until(self, *kinds: str) -> list[Any]:
        while (event := self.hear()) is not None:
            if event[0] in kinds:
                return event
            assert event[0] != "end", f"the worker ended ({event[1]}) and reported none of {kinds}"
        raise AssertionError(f"no worker reported any of {kinds}")

    def close(self) -> None:
        for handle in self._handles:
            with suppress(ProcessLookupError):
                kill(handle)
            os.close(handle)
        self._process.kill()
        self._process.communicate()


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    made = [Host() for _ in range(count)]
    try:
        yield made
    finally:
        for host in made:
            host.close()


def kill(handle: int) -> None:
    signal.pidfd_send_signal(handle, signal.SIGKILL)


@dataclass
class Soak:
    """A soak of any number of kills, in rounds with a new store each.

    `fresh` returns the store of a round. `hits` counts kills by place, at the place itself and
    some time after it; `places` are those of the rehearsal.
    """

    pair: list[Host]
    fresh: Callable[[], str]
    folder: Path
    seed: int = 0
    until: float = float("inf")  # monotonic, in seconds
    places: Counter[str] = field(default_factory=Counter)
    hits: dict[str, Counter[str]] = field(
        default_factory=lambda: {"at": Counter(), "after": Counter()}
    )
    aimed: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    lives: int = 0
    jobs: int = 0
    commits: int = 0
    broken: list[str] = field(default_factory=list)

    def kills(self) -> int:
        return sum(map(Counter.total, self.hits.values()))

    def rehearse(self) -> None:
        """Run workers without a kill, through every write, to learn the places."""
        host = self.pair[0]
        store, effects = self.fresh(), str(self.folder / "rehearsal")
        lives: list[dict[str, Any]] = [
            {"submit": ["r1"], "left": True},
            {"submit": ["r8"], "left": True, "take_over": True},
            {"submit": ["r2", "r3", "r4", "r5"], "lingers": True},
            {"submit": ["r6", "r7"], "lingers": True, "sigterm": 1},
            {"resume": "all"},
        ]
        for take in range(_TAKES):  # a few places are passed by chance, but seldom missed
            for order in lives:
                order["submit"] = [f"{take}-{job_id}" for job_id in order.get("submit", ())]
                if order.get("take_over"):
                    order["take_over"] = order["submit"]
                status, place = host.live(store=store, effects=effects, **order)
                assert status == 0, f"the rehearsal ended with {status}, {place}"
                self.places.update(host.events[-2][1])
            if not self.missing():
                break
        events, host.events = host.events, []
        self._look(store, Path(effects), events)

    def round(self, count: int, fewest: int = 0) -> None:
        """Run workers until `count` more are killed or the time is over; then check what is left.

        Goes up to three times as far if a place was hit less than `fewest` times.
        """
        self.rounds += 1
        store, effects = self.fresh(), self.folder / f"effects-{self.rounds}"
        round_ = _Round(self, store, str(effects), f"{self.seed}-{self.rounds}", count, fewest)
        with ThreadPoolExecutor(len(self.pair)) as threads:
            list(threads.map(round_.live, self.pair, "abcdefgh"))
        if not self.broken:
            end = self.pair[0].live(store=store, effects=str(effects), resume="all")
            if end[0]:
                self.broken.append(f"the worker that completed the jobs ended with {end}")
        events = [event for host in self.pair for event in host.events]
        for host in self.pair:
            host.events = []
        self._look(store, effects, events)

    def _look(self, store: str, effects: Path, events: list[list[Any]]) -> None:
        found = evidence(store, effects, events)
        self.jobs += len(found.jobs)
        self.commits += len(found.acknowledged)
        self.broken += broken(found)

    def rare(self, fewest: int) -> dict[str, int]:
        """Return the places with fewer hits, and their number of hits."""
        hits = self.hits["at"] + self.hits["after"]
        return {place: hits[place] for place in self.places if hits[place] < fewest}

    def missing(self) -> list[str]:
        """Return the writes and waits that the rehearsal never passed."""
        needed = [IDLE, BACKOFF, HANDLER, EFFECT]
        needed += [f"{when} {write}" for write in WRITES for when in ("before", "after")]
        missing = [place for place in needed if place not in self.places]
        return missing + [
            f"a statement of {write}"
            for write in WRITES
            if not any(place.startswith(f"{write}: ") for place in self.places)
        ]

    def table(self) -> list[str]:
        """Return how many kills hit each place: at the place itself, or some time after it."""
        at, after = self.hits["at"], self.hits["after"]
        places = sorted(self.places.keys() | at.keys() | after.keys())
        return [
            f"{'place':44}{'at it':>8}{'by timer':>10}",
            *(f"{place:44}{at[place]:8,}{after[place]:10,}" for place in places),
            f"{'all':44}{at.total():8,}{after.total():10,}",
        ]


class _Round:
    """The workers of one round, which several hosts run at once."""

    def __init__(
        self, soak: Soak, store: str, effects: str, name: str, count: int, fewest: int
    ) -> None:
        self._soak = soak
        self._order = {"store": store, "effects": effects}
        self._name = name
        self._begun = soak.kills()
        self._count = count
        self._fewest = fewest
        self._open: set[str] = set()  # jobs that have started and not ended

    def live(self, host: Host, name: str) -> None:
        soak = self._soak
        chance = random.Random(f"{self._name}-{name}")
        life = 0
        while not soak.broken and not self._is_over() and time.monotonic() < soak.until:
            life += 1
            order = self._chosen(chance, f"{name}{life}")
            begun = len(host.events)
            status, place = host.live(**order)
            soak.lives += 1
            self._follow(host.events[begun:])
            if status == -signal.SIGKILL:
                exact = "aim" in order and order["aim"][::2] == [place, 0]
                soak.hits["at" if exact else "after"][place] += 1
            elif status == 0:
                self._open.clear()
            else:
                soak.broken.append(f"a worker ended with {status}: {order}")

    def _is_over(self) -> bool:
        kills = self._soak.kills() - self._begun
        return kills >= self._count and (
            kills >= 3 * self._count or not self._soak.rare(self._fewest)
        )

    def _chosen(self, chance: random.Random, life: str) -> dict[str, Any]:
        order: dict[str, Any] = dict(self._order)
        if chance.random() < _AT_RANDOM:
            order["timer"] = chance.randrange(_LIFE_NS)
            aim = ""
        else:
            aim = self._aim(chance)
            exact = not self._soak.hits["at"][aim] or chance.random() > _WITHIN
            within = 0 if exact else 1 + chance.randrange(_WITHIN_NS)
            nth = 1 + chance.randrange(max(1, self._soak.places[aim] // 3))
            order["aim"] = [aim, nth, within]
            order["lingers"] = "renew" in aim or "append_all" in aim
            order["left"] = aim == IDLE
        if "release" in aim or chance.random() < 0.05:
            order["sigterm"] = 1 + chance.randrange(8)
            order["lingers"] = True  # so that it is stopped before all jobs are done
        resumes = "claim" in aim or chance.random() < _RESUMES
        if len(self._open) < _FEW or "create" in aim or "append_all" in aim or resumes:
            # Enough for some to end while the first of them is committed.
            jobs = 4 if "append_all" in aim else 2
            order["submit"] = [f"{life}-{job}" for job in range(jobs)]
        if resumes:
            begun = sorted(self._open)
            order["resume"] = [*chance.sample(begun, min(2, len(begun))), *order["submit"]]
        if "overrule" in aim or (aim != IDLE and chance.random() < _TAKES_OVER):
            order["left"] = True  # so that there is a job to take over
            order["take_over"] = [*sorted(self._open), *order.get("submit", ())]
        return order

    def _aim(self, chance: random.Random) -> str:
        """Return one of the places with the fewest hits; one that is missed often comes later."""
        at, aimed = self._soak.hits["at"], self._soak.aimed
        scores = {place: 8 * at[place] + aimed[place] for place in self._soak.places}
        least = min(scores.values())
        place = chance.choice([place for place, score in scores.items() if score == least])
        aimed[place] += 1
        return place

    def _follow(self, events: list[list[Any]]) -> None:
        for event in events:
            if event[0] == "commit":
                if event[5] == "completed":
                    self._open.discard(event[1])
                else:
                    self._open.add(event[1])
