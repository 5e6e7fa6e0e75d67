"""`Effect`: a test double for an external call.

Invariants:
- A double records each call and does nothing else. Its result depends on its inputs alone, so a
  repeated call shows in the record.
- It works inside a simulated handler only; anywhere else it raises an error.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.simulator.model import Call
from pytest_routilux.text import without_addresses
from pytest_routilux.virtual_time.simulated_step import running
from routilux import RoutiluxError
from routilux.graph.messages import copied_payload

if TYPE_CHECKING:
    from collections.abc import Callable

_OURS: Final = ("pytest_routilux.", "routilux.")


class Effect:
    """A test double for one external call.

    `key` is the name of the parameter that carries an idempotency key. `returns` makes the result
    from the same arguments; without it the result is a text that depends on the inputs.
    """

    def __init__(
        self, name: str, key: str | None = None, returns: Callable[..., object] | None = None
    ) -> None:
        self.name = name
        self.key = key
        self._returns = returns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flight, clock = running.flight, running.clock
        if flight is None or clock is None:
            raise RoutiluxError(
                f"the effect {self.name!r} was called outside a handler that flow_sim runs; call it"
                " only in handlers of simulated jobs"
            )
        inputs = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        key = inputs.pop(self.key, None) if self.key is not None else None
        inputs = copied_payload(inputs, self.name)
        result = (
            self._returns(*args, **kwargs)
            if self._returns is not None
            else f"{self.name.rpartition('.')[2]}-{_digest(inputs)}"
        )
        flight.effects += 1
        step = flight.step
        call = Call(
            self.name,
            flight.effects,
            inputs,
            key,
            result,
            _caller(),
            step.task.routine_id,
            step.task.task_id,
            step.attempt,
            clock.now_ns(),
        )
        flight.events.append((clock.mono, call))
        return result

    def __repr__(self) -> str:
        key = "" if self.key is None else f", key={self.key!r}"
        return f"flow_sim.effect({self.name!r}{key})"


def _digest(inputs: dict[str, object]) -> str:
    text = without_addresses(repr(sorted(inputs.items())))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:6]


def _caller() -> str:
    # The line of the user's code; a call through ctx.once has frames of the engine above it.
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(_OURS) and name not in sys.stdlib_module_names:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
