"""The flow whose jobs are killed: a charge that fails twice after its effect, then two parcels.

An effect is a line in a file: its key, a token of its own, which `once` records too, and the last
commit that the step knows. So the file shows what was done, and the job what it knows of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from routilux import ErrorHandler, Flow, Routine
from tests.kills.places import EFFECT, HANDLER, Places

__all__ = ["DELAYS_NS", "EFFECTS", "ENDS", "SENT", "around", "asking", "story"]

DELAYS_NS: Final = (2_000_000, 4_000_000)
ENDS: Final = Counter([("0", 1), ("0", 2), ("0", 3), ("0.0", 1), ("0.1", 1)])
"""The attempts of each job, by task."""
EFFECTS: Final = [("0", "charge"), ("0.0", "send"), ("0.1", "send")]
SENT: Final = 2


@dataclass(slots=True)
class Around:
    """What belongs to the process of a handler, and not to the flow."""

    places: Places
    lingers: Callable[[], object] = bool
    listens: Callable[[], object] = bool


around: Final = Around(Places())


class Pays(Routine):
    """Charges once and fails twice after it; then emits two parcels."""

    def __init__(self, effects: str) -> None:
        super().__init__()
        self.effects = effects
        self.define_slot("trigger", handler=self.pays)
        self.define_event("paid", ["parcel"])
        self.set_error_handler(ErrorHandler("retry", max_retries=2, retry_delay=0.002))

    def pays(self) -> None:
        with around.places.at(HANDLER):
            affect(self, "charge")
            around.lingers()
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
        with around.places.at(HANDLER):
            affect(self, "send")
            self.ctx.shared["sent"] = self.ctx.shared.get("sent", 0) + 1  # type: ignore[operator]


def affect(routine: Any, name: str) -> None:
    """Do an effect once."""

    def does() -> str:
        token = os.urandom(6).hex()
        file = os.open(routine.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{routine.ctx.key(name)} {token} {routine.ctx.step.seq}\n".encode())
        os.close(file)
        around.places.enter(EFFECT)
        return token

    with around.places.at(HANDLER):
        routine.ctx.once(name, does)


class Asks(Routine):
    """Waits for a word of the test."""

    def __init__(self, effects: str) -> None:
        super().__init__()
        self.effects = effects
        self.define_slot("trigger", handler=self.asks)
        self.define_event("answered", ["parcel"])

    def asks(self) -> None:
        around.listens()
        self.emit("answered", parcel=0)


def story(effects: str) -> Flow:
    """Return the flow; `effects` is the path of the file of effects."""
    return _flow(Pays(effects), "paid", effects)


def asking(effects: str) -> Flow:
    """Return a flow whose first routine asks; then a parcel is sent."""
    return _flow(Asks(effects), "answered", effects)


def _flow(first: Routine, event: str, effects: str) -> Flow:
    flow = Flow("story", execution_strategy="concurrent", max_workers=2)
    flow.add_routine(first, "first")
    flow.add_routine(Sends(effects), "sends")
    flow.connect("first", event, "sends", "trigger")
    return flow
