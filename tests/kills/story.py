"""The flow whose jobs are killed: a charge that fails twice after its effect, then two parcels.

An effect is a line in a file: its key, a token of its own, which `once` records too, and the last
commit that the step knows. So the file shows what was done, and the job what it knows of it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from routilux import Flow
from tests.kills.places import EFFECT, HANDLER, Places
from tests.routines import Body, Works, chain, retrying

DELAYS_NS = (2_000_000, 4_000_000)
# The attempts of each job, by task.
ENDS = Counter([("0", 1), ("0", 2), ("0", 3), ("0.0", 1), ("0.1", 1)])
EFFECTS = [("0", "charge"), ("0.0", "send"), ("0.1", "send")]
SENT = 2
CHARGES = ("reserve", "charge", "confirm")


def _passes(*_: object) -> None:
    pass


@dataclass(slots=True)
class Around:
    """What belongs to the process of a handler, and not to the flow."""

    places: Places
    lingers: Any = bool
    listens: Any = bool
    gates: Any = _passes  # is given the job, and the name of its next effect
    reports: Any = _passes  # is given the key of an effect, and when its handler asked for it


around = Around(Places())


def story(effects: str) -> Flow:
    """Return the flow; `effects` is the path of the file of effects."""

    def pays(self, n=0):
        with around.places.at(HANDLER):
            affect(self, "charge", effects)
            around.lingers()
            if self.ctx.attempt < 3:
                raise ConnectionError(f"attempt {self.ctx.attempt}")
            self.emit("out", n=0)
            self.emit("out", n=1)

    return _flow(Works(pays, retrying(max_retries=2, retry_delay=0.002)), effects)


def asking(effects: str) -> Flow:
    """Return a flow whose first routine waits for a word of the test; then a parcel is sent."""

    def asks(self, n=0):
        around.listens()
        self.emit("out", n=0)

    return _flow(asks, effects)


def charging(effects: str) -> Flow:
    """Return a flow whose first routine has several effects, each behind a gate."""

    def charges(self, n=0):
        for name in CHARGES:
            around.gates(self.ctx.job_id, name)
            affect(self, name, effects)
        self.emit("out", n=0)

    return _flow(charges, effects)


def _flow(first: Body | Works, effects: str) -> Flow:
    def sends(self, n=0):
        with around.places.at(HANDLER):
            affect(self, "send", effects)
            self.ctx.shared["sent"] = self.ctx.shared.get("sent", 0) + 1

    return chain(workers=2, first=first, sends=sends)


def affect(routine: Any, name: str, effects: str) -> None:
    """Do an effect once."""
    # Not `ctx.key`, which would ask for the owner a second time.
    key = f"{routine.ctx.job_id}/{routine.ctx.task_id}/{name}"
    asked = time.monotonic_ns()

    def does() -> str:
        token = os.urandom(6).hex()
        file = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{key} {token} {routine.ctx.step.seq}\n".encode())
        os.close(file)
        around.reports(key, asked)
        around.places.enter(EFFECT)
        return token

    with around.places.at(HANDLER):
        routine.ctx.once(name, does)
