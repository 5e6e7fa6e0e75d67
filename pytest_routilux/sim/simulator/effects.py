"""`Effect`: a test double for an external call.

Invariants:
- A double records each call and does nothing else. Its result depends on its inputs alone, so a
  repeated call shows in the record. A call whose `returns` raises an error is recorded, too: the
  service may have done its work before the answer was lost.
- It works inside a handler only; anywhere else it raises an error. A call of a simulated handler is
  in the record of its run, any other in the record of the double.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.simulator.model import Call
from pytest_routilux.text import error_text, without_addresses
from pytest_routilux.virtual_time.simulated_step import running
from routilux import RoutiluxError
from routilux.graph.context import active
from routilux.graph.messages import copied_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routilux import Context, StepInput

_OURS: Final = ("pytest_routilux.", "routilux.")


class Effect:
    """A test double for one external call, made by `FlowSim.effect`.

    `key` is the name of the parameter that carries an idempotency key. `returns` makes the result
    from the same arguments, or raises an error; without it the result is a text that depends on the
    inputs. `reads` marks a call that may be repeated or left out, such as a query. A call outside a
    handler raises `RoutiluxError`.

    A test with it::

        def test_an_order_is_paid_once(flow_factory, flow_runtime, flow_sim):
            pay = flow_sim.effect("pay", returns=lambda order: f"{order} is paid")

            def charge(order):
                return {"receipt": pay(order)}

            job = flow_factory(chain=[charge]).execute("charge", {"order": "A7"})

            assert job.outputs[0].data == {"receipt": "A7 is paid"}
            assert [call.arguments for call in pay.calls] == [{"0": "A7"}]
    """

    def __init__(
        self,
        name: str,
        key: str | None = None,
        returns: Callable[..., object] | None = None,
        numbers: Counter[int] | None = None,
        *,
        reads: bool = False,
    ) -> None:
        self.name: str = name
        """The name in failures and records."""
        self.key: str | None = key
        """The name of the parameter that carries the idempotency key; None without one."""
        self.reads: bool = reads
        """Whether a call changes nothing, so that it may be repeated."""
        self._returns = returns
        self._numbers: Counter[int] = Counter() if numbers is None else numbers
        self._calls: list[Call] = []

    @property
    def calls(self) -> Sequence[Call]:
        """The calls by handlers that no simulation ran, such as those of `flow_runtime`.

        The `Outcome` of a simulation has the calls of simulated handlers.
        """
        return tuple(self._calls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record a call with these arguments, and return its result."""
        context = active.get()
        step = None if context is None else context.step
        if context is None or step is None:
            raise RoutiluxError(
                f"the effect {self.name!r} was called outside a handler; call it only in the"
                " handlers of a job, and in the thread that runs the handler"
            )
        inputs = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        key = inputs.pop(self.key, None) if self.key is not None else None
        inputs = copied_payload(inputs, self.name)
        result: object = None
        error: Exception | None = None
        if self._returns is None:
            result = f"{self.name.rpartition('.')[2]}-{_digest(inputs)}"
        else:
            if running.flight is not None:
                running.flight.call_double()
            try:
                result = self._returns(*args, **kwargs)
            except Exception as raised:
                error = raised
        self._record(context, step, inputs, key, result, error)
        if error is not None:
            try:
                raise error
            finally:
                del error  # so that no frame keeps the exception
        return result

    def _record(
        self,
        context: Context,
        step: StepInput,
        inputs: dict[str, object],
        key: object,
        result: object,
        error: Exception | None,
    ) -> None:
        flight, clock = running.flight, running.clock
        if flight is None and clock is not None:  # a callback of an event loop
            flight = getattr(context._host, "flight", None)
        if flight is None or clock is None:
            self._numbers[step.number] += 1
            number, now = self._numbers[step.number], context._host.now_ns()
        else:
            flight.effects += 1
            number, now = flight.effects, clock.now_ns()
        task = step.task
        call = Call(
            self.name,
            number,
            inputs,
            key,
            result,
            _caller(),
            task.routine_id,
            task.task_id,
            step.attempt,
            now,
            self.key,
            None if error is None else error_text(error),
            self.reads,
        )
        if flight is None or clock is None:
            self._calls.append(call)
        else:
            flight.add_call(clock.mono, call)

    def __repr__(self) -> str:
        key = "" if self.key is None else f", key={self.key!r}"
        return f"flow_sim.effect({self.name!r}{key}{', reads=True' * self.reads})"


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
