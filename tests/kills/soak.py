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
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kills.places import BACKOFF, EFFECT, HANDLER, IDLE
from tests.kills.stores import WRITES
from tests.kills.verdicts import broken, evidence

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that a busy machine may take to report an event
_AT_RANDOM = 0.15  # of all kills: at any place
_WITHIN = 0.2  # of those that are aimed: some time after the place was entered
_RESUMES = 0.1  # of all workers: resumes jobs without a lease
_TAKES_OVER = 0.1  # of all workers: takes over jobs
_WITHIN_NS = 400_000
_LIFE_NS = 80_000_000
_TAKES = 5
_FEW = 4  # jobs at a time, so that they end between the kills


class Host:
    """The process that forks workers; `events` is everything that they reported, `heard` when."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []
        self.heard: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.kills.host import serve; serve()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._rest = b""

    def order(self, order: object) -> None:
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def live(self, **order: Any) -> list[Any]:
        """Run a worker; return its exit code, and the place of its kill."""
        self.order(order)
        return self.until("end")

    def begun(self, **order: Any) -> int:
        """Start a worker whose flow asks; return its process id when it does."""
        self.order(order)
        return self.until("begun")[0]

    def until(self, kind: str) -> list[Any]:
        """Wait for an event of this kind, and return its values."""
        while (event := self.hear())[0] != kind:
            assert event[0] != "end", f"the worker ended ({event[1]}) and reported no {kind}"
        return event[1:]

    def listen(self, seconds: float) -> None:
        """Hear the events of the next seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if b"\n" in self._rest or select.select([self._process.stdout], [], [], left)[0]:
                self.hear()

    def hear(self) -> list[Any]:
        """Wait for the next event."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
            assert ready, f"no worker reported anything for {PATIENCE} s"
            data = self._process.stdout.read(65536)
            assert data, "the host has ended"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        self.events.append(json.loads(line))
        self.heard.append(time.monotonic())
        return self.events[-1]

    def close(self) -> None:
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


class Soak:
    """A soak of any number of kills, in rounds with a new store each.

    `fresh` returns the store of a round. `hits` counts kills by place, at the place itself and
    some time after it; `places` are those of the rehearsal.
    """

    def __init__(
        self, pair: list[Host], fresh: Callable[[], str], folder: Path, seed: int = 0
    ) -> None:
        self.pair, self.fresh, self.folder, self.seed = pair, fresh, folder, seed
        self.until = float("inf")  # monotonic, in seconds
        self.places: Counter[str] = Counter()
        self.hits: dict[str, Counter[str]] = {"at": Counter(), "after": Counter()}
        self.broken: list[str] = []
        self.rounds = self.lives = self.jobs = self.commits = 0
        self._aimed: Counter[str] = Counter()
        self._open: set[str] = set()  # jobs that have started and not ended

    def kills(self) -> int:
        return sum(map(Counter.total, self.hits.values()))

    def rehearse(self) -> None:
        """Run workers without a kill, through every write, to learn the places."""
        about = {"store": self.fresh(), "effects": str(self.folder / "rehearsal")}
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
                status, place = self.pair[0].live(**about, **order)
                assert status == 0, f"the rehearsal ended with {status}, {place}"
                self.places.update(self.pair[0].events[-2][1])
            if not self.missing():
                break
        self._judge(**about)

    def round(self, count: int, fewest: int = 0) -> None:
        """Run workers until `count` more are killed or the time is over; then check what is left.

        Goes up to three times as far if a place was hit less than `fewest` times.
        """
        self.rounds += 1
        self._open.clear()
        about = {"store": self.fresh(), "effects": str(self.folder / f"effects-{self.rounds}")}
        wanted, most = self.kills() + count, self.kills() + 3 * count

        def is_over() -> bool:
            kills = self.kills()
            enough = kills >= wanted and (kills >= most or not self.rare(fewest))
            return bool(self.broken) or enough or time.monotonic() >= self.until

        def run(host: Host, name: str) -> None:
            chance = random.Random(f"{self.seed}-{self.rounds}-{name}")
            life = 0
            while not is_over():
                life += 1
                self._live(host, {**about, **self._chosen(chance, f"{name}{life}")})

        with ThreadPoolExecutor(len(self.pair)) as threads:
            list(threads.map(run, self.pair, "abcdefgh"))
        if not self.broken:
            end = self.pair[0].live(**about, resume="all")
            if end[0]:
                self.broken.append(f"the worker that completed the jobs ended with {end}")
        self._judge(**about)

    def _judge(self, store: str, effects: str) -> None:
        events = [event for host in self.pair for event in host.events]
        for host in self.pair:
            host.events, host.heard = [], []
        found = evidence(store, Path(effects), events)
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

    # --- one worker -------------------------------------------------------------------------------

    def _live(self, host: Host, order: dict[str, Any]) -> None:
        begun = len(host.events)
        status, place = host.live(**order)
        self.lives += 1
        for event in host.events[begun:]:
            if event[0] == "commit" and event[5] == "completed":
                self._open.discard(event[1])
            elif event[0] == "commit":
                self._open.add(event[1])
        if status in (-signal.SIGKILL, -signal.SIGALRM):
            exact = "aim" in order and order["aim"][::2] == [place, 0]
            self.hits["at" if exact else "after"][place] += 1
        elif status == 0:
            self._open.clear()
        else:
            self.broken.append(f"a worker ended with {status}: {order}")

    def _chosen(self, chance: random.Random, life: str) -> dict[str, Any]:
        """Return an order: where to kill, and work during which a worker comes to that place."""
        order: dict[str, Any] = {}
        aim = ""
        if chance.random() < _AT_RANDOM:
            order["timer"] = chance.randrange(_LIFE_NS)
        else:
            aim = self._aim(chance)
            exact = not self.hits["at"][aim] or chance.random() > _WITHIN
            within = 0 if exact else 1 + chance.randrange(_WITHIN_NS)
            nth = 1 + chance.randrange(max(1, self.places[aim] // 3))
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
        at = self.hits["at"]
        scores = {place: 8 * at[place] + self._aimed[place] for place in self.places}
        least = min(scores.values())
        place = chance.choice([place for place, score in scores.items() if score == least])
        self._aimed[place] += 1
        return place
