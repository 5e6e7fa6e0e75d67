"""Sends SIGINT and SIGTERM to workers at any instant, and judges how they end.

`python -m tests.kills.signals` sends 1,000. The same seed chooses the same instants; the machine
decides where they hit. Ends with 1 if a rule is broken, and keeps the store; with 2 if the time was
too short.

Invariants:
- After one signal a worker ends within a second of its last step, and has given back every job
  clean. After a SIGINT it raises KeyboardInterrupt.
- After a second signal it also ends, and holds no job. Jobs with steps in flight count as unclean.
- Then another worker completes all jobs, and every rule of the kills holds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from routilux import Hold
from tests.kills.host import INTERRUPTED
from tests.kills.program import Program, say
from tests.kills.soak import Host, hosts
from tests.kills.stores import fresh_stores
from tests.kills.verdicts import broken, evidence
from tests.persist.stores import at

_ROUND = 250
_JOBS = 6  # of a new worker, when few are left
_LIFE = 0.12  # seconds in which the first signal comes
_TWICE = 0.1  # of all workers: get a second signal
_SOON = 0.02  # seconds until it comes
_LEASE = 600  # seconds; a lease that was not given back is seen at the end of the round
_HANGS_NS = 20 * 10**9
_MOST_SECONDS = 1.0


@dataclass
class Sent:
    """What happened to one worker."""

    numbers: Sequence[int]
    status: int
    seconds: float  # from the last signal, or from the last step's commit if that was later
    holds: dict[str, Hold] = field(default_factory=dict)

    def broken(self) -> list[str]:
        """Return a line for each broken rule."""
        what = " and ".join(signal.Signals(number).name for number in self.numbers)
        if self.status == -signal.SIGALRM:
            return [f"after {what} a worker did not end"]
        lines = []
        right = {INTERRUPTED if number == signal.SIGINT else 0 for number in self.numbers}
        if len(self.numbers) > 1:
            right |= {INTERRUPTED, -signal.SIGTERM}  # the second may come when the worker has ended
        if self.status not in right:
            lines.append(f"after {what} a worker ended with {self.status}")
        if self.seconds > _MOST_SECONDS:
            lines.append(f"after {what} a worker took {self.seconds:.2f} s after its last step")
        lines += [f"after {what} job {job_id} is {hold}" for job_id, hold in self.leased()]
        if len(self.numbers) == 1:
            lines += [f"after {what} job {i} was given back unclean" for i in self.unclean()]
        return lines

    def leased(self) -> list[tuple[str, Hold]]:
        return [(i, hold) for i, hold in self.holds.items() if hold.is_leased]

    def unclean(self) -> list[str]:
        return [i for i, hold in self.holds.items() if hold.owner is None and not hold.clean]


class Signals:
    """Rounds of signals to the workers of one host, with a new store each."""

    def __init__(self, host: Host, fresh: Callable[[], str], folder: Path, seed: int) -> None:
        self._host, self._fresh, self._folder = host, fresh, folder
        self._chance = random.Random(seed)
        self.until = float("inf")
        self.sent: list[Sent] = []
        self.broken: list[str] = []
        self.rounds = self.jobs = self.commits = 0

    def round(self, count: int) -> None:
        """Signal `count` workers, complete the jobs that are left, and check them all."""
        self.rounds += 1
        about = {"store": self._fresh(), "effects": str(self._folder / f"effects-{self.rounds}")}
        with at(about["store"]) as store:
            for life in range(count):
                if self.broken or time.monotonic() >= self.until:
                    break
                left = sum(hold.free_in_ns is not None for hold in store.holders().values())
                names = [f"{life}-{job}" for job in range(0 if left > _JOBS else _JOBS)]
                before = len(self._host.events)
                sent = self._live({**about, "submit": names}, before)
                sent.holds = store.holders()
                self.sent.append(sent)
                self.broken += sent.broken()
                unclean = {"store": about["store"], "effects": about["effects"]}
                if sent.unclean() and not self.broken:  # so that the next signal is judged alone
                    self._host.live(**unclean, lease=_LEASE)
        if not self.broken:
            status, _ = self._host.live(**about, lease=_LEASE)
            if status:
                self.broken.append(f"the worker that completed the jobs ended with {status}")
        if not self.broken:
            found = evidence(about["store"], Path(about["effects"]), self._host.events)
            self.jobs += len(found.jobs)
            self.commits += len(found.acknowledged)
            self.broken += broken(found)
        self._host.events, self._host.heard = [], []

    def _live(self, order: dict[str, object], before: int) -> Sent:
        chance, host = self._chance, self._host
        order = {**order, "signalled": True, "lease": _LEASE, "timer": _HANGS_NS}
        host.order(order)
        process = host.until("runs")[0]
        count = 2 if chance.random() < _TWICE else 1
        numbers = [chance.choice([signal.SIGINT, signal.SIGTERM]) for _ in range(count)]
        within = _LIFE
        sent_at = 0.0
        for number in numbers:
            host.listen(chance.random() * within)
            if host.events[-1][0] == "end":
                numbers = numbers[:1]  # it ended before the second one
                break
            os.kill(process, number)
            sent_at, within = time.monotonic(), _SOON
        if host.events[-1][0] != "end":
            host.until("end")
        steps = [
            heard
            for event, heard in zip(host.events[before:], host.heard[before:], strict=True)
            if event[0] == "commit"
        ]
        last = max([sent_at, *steps])
        return Sent(numbers, host.events[-1][1], host.heard[-1] - last)

    def table(self) -> list[str]:
        """Return the figures, one line each."""
        singles = [sent for sent in self.sent if len(sent.numbers) == 1]
        doubles = [sent for sent in self.sent if len(sent.numbers) > 1]
        numbers = Counter(signal.Signals(n).name for sent in self.sent for n in sent.numbers)
        seconds = sorted(sent.seconds for sent in self.sent) or [0.0]
        return [
            f"signals                             {numbers.total():8,}  {dict(numbers)}",
            f"workers that got one, and two       {len(singles):8,}{len(doubles):8,}",
            f"hangs                               {self._hangs():8,}",
            f"jobs given back unclean, after one  {_unclean(singles):8,}",
            f"                         after two  {_unclean(doubles):8,}",
            f"seconds from the last step to the end, median {seconds[len(seconds) // 2]:10.3f}",
            f"                                       longest{seconds[-1]:11.3f}",
        ]

    def _hangs(self) -> int:
        return sum(sent.status == -signal.SIGALRM for sent in self.sent)


def _unclean(sent: Sequence[Sent]) -> int:
    return sum(len(one.unclean()) for one in sent)


def main() -> int:
    program = Program("tests.kills.signals", "--count", 1_000, "the number of signalled workers")
    with program as asked, hosts(1) as (host,):
        stores = fresh_stores(asked.store, program.folder)
        signals = Signals(host, stores, program.folder, asked.seed)
        signals.until = program.until
        while (left := asked.count - len(signals.sent)) > 0:
            if program.is_over or signals.broken:
                break
            signals.round(min(_ROUND, left))
            say(f"{len(signals.sent):,} of {asked.count:,} in {program.seconds}")
    return program.verdict(
        [*signals.table(), f"{signals.jobs:,} jobs with {signals.commits:,} commits acknowledged"],
        signals.broken,
        "the time was too short" if len(signals.sent) < asked.count else "",
        "every worker ended, gave its jobs back, and no commit or effect was lost or repeated",
    )


if __name__ == "__main__":
    sys.exit(main())
