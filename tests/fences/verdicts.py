"""Judges from recorded effects whether a host that had lost a job ran an effect of the job.

Invariants:
- Each process reports the instants before and after a call that gave it a job, and for each effect
  the instant at which its handler asked for the effect. All processes share one machine's monotonic
  clock.
- An effect breaks the rule if the job was surely another's when it was asked for: another process
  had the answer of its call, and no call of this process can have been later.
- An effect that was asked for before the job was lost is in flight: no store can call it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MILLISECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Took:
    """A call that gave a job to a process, or to an operator; with the instants around it."""

    job_id: str
    who: object
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Done:
    """An effect that a process did, and when the handler asked for it."""

    key: str
    who: object
    asked: int

    @property
    def job_id(self) -> str:
        return self.key.split("/", 1)[0]


def read(events: Iterable[list[Any]]) -> tuple[list[Took], list[Done]]:
    """Return what processes reported: who took which job, and who did which effect."""
    events = list(events)
    return (
        [Took(*event[1:]) for event in events if event[0] == "took"],
        [Done(*event[1:]) for event in events if event[0] == "effect"],
    )


def unfenced(took: list[Took], done: list[Done]) -> Iterator[str]:
    """Yield a line for each effect that its process asked for after it had lost the job."""
    for effect in done:
        calls = [call for call in took if call.job_id == effect.job_id]
        own = max((call.after for call in calls if call.who == effect.who), default=0)
        lost = [
            call
            for call in calls
            if call.who != effect.who and call.after <= effect.asked and call.before > own
        ]
        if lost:
            since = (effect.asked - lost[0].after) / MILLISECOND
            yield (
                f"process {effect.who} did the effect {effect.key}, for which it asked {since:.1f}"
                f" ms after {lost[0].who} had taken the job"
            )


def in_flight(done: list[Done]) -> int:
    """Return how many effects were also done by another process, with the same key."""
    owners: dict[str, set[object]] = {}
    for effect in done:
        owners.setdefault(effect.key, set()).add(effect.who)
    return sum(len(who) - 1 for who in owners.values())
