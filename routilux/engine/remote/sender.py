"""`Sender`: runs steps on an executor of other processes.

Invariants:
- A step is sent as data, after everything was checked that can be checked here: each routine of the
  flow has a saved form, the step can be pickled, and the store says that this host owns the job. If
  this host loses the job afterwards, the step learns it when it asks before an effect.
- The first step waits until the executor has run a call of ours. So an executor that can't start
  its processes is never taken for a step that ended its process.
- A step whose call the executor drops is sent again, as after a restart of Dask's scheduler, with
  the same attempt and idempotency keys; after `_MOST_SENDS` calls this is trouble of the host.
- An executor that reports the death of a process has run the step. Any other error of an executor
  is trouble of the host.
- No call is kept once it has ended, not even by a cycle: Dask keeps the result of a call that
  somebody holds, and runs the call again if the worker that has the result dies.
- The end of each step is reported once. The outcome of a step that is sent twice is known by its
  number.
"""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import BrokenExecutor, CancelledError
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from routilux.engine.driver import StepNotRunError
from routilux.engine.remote.channel import Channel, reachable_host
from routilux.engine.remote.errors import SentError, pickled, text_of
from routilux.engine.remote.rebuild import forms_of
from routilux.engine.remote.run import CURE, culprit, run_remote
from routilux.engine.step import failure
from routilux.errors import RoutiluxError, UnserializableError
from routilux.graph.context import active
from routilux.persist.versions import PACKAGE

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from routilux.engine.driver import Driven
    from routilux.engine.remote.run import Reply, Variables
    from routilux.graph.messages import StepInput, StepOutcome
    from routilux.graph.plan import Plan

    Report = Callable[[Driven, StepInput, StepOutcome | BaseException], None]

_MOST_SENDS: Final = 4
_MOST_PLACES: Final = 4  # modules that name the same context variable


class _Flight:
    """A step that is in flight."""

    __slots__ = ("call", "driven", "report", "sent", "step", "withdrawn")

    def __init__(self, driven: Driven, step: StepInput, report: Report) -> None:
        self.driven = driven
        self.step = step
        self.report = report
        self.call: Future[Reply] | None = None  # the last one
        self.sent = 0
        self.withdrawn = False


class Sender:
    """Sends the steps of one runtime to an executor, and reports how they end."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = Lock()
        self._channel: Channel | None = None
        self._closing = False
        self._first_call: Future[None] | None = None  # of the executor's processes; until it ends
        self._begun = False  # whether it has ended well
        self._flights: dict[int, _Flight] = {}  # by the number of the step

    def check(self, plan: Plan) -> None:
        """Raise `FlowDefinitionError` if other processes can't rebuild a routine of a flow."""
        forms_of(plan)

    def send(self, driven: Driven, step: StepInput, report: Report) -> None:
        """Send a step, and call `report` when it has ended, in any thread."""
        driven.check(step)
        try:
            data = pickle.dumps(step)
        except BaseException as error:
            report(driven, step, failure(step.number, _unsendable(step, error)))
            return
        form = forms_of(driven.plan)[step.task.routine_id]
        variables = _variables(driven.context)
        flight = _Flight(driven, step, report)
        with self._lock:
            if self._channel is None:
                self._channel = Channel(reachable_host(self._executor))
            first_call = self._first_call
            if first_call is None and not self._begun:
                first_call = self._first_call = self._executor.submit(_do_nothing)
            self._flights[step.number] = flight
            self._channel.add(driven, step)
            address = self._channel.address
        call = partial(run_remote, PACKAGE, step.number, form, data, variables, address)
        if first_call is None:
            self._submit(flight, call)
        else:
            first_call.add_done_callback(partial(self._begin, flight, call))

    def withdraw(self, step: StepInput) -> None:
        """Cancel the call of a step, if the executor can."""
        flight = self._flights.get(step.number)
        if flight is not None:
            flight.withdrawn = True
            if flight.call is None:
                self._end(flight, StepNotRunError(CancelledError("the step was withdrawn")))
            else:
                flight.call.cancel()

    def close(self) -> None:
        """Stop answering questions when the last step has ended."""
        with self._lock:
            self._closing = True
            self._close_idle()

    def _close_idle(self) -> None:
        if self._closing and not self._flights and self._channel is not None:
            self._channel.close()
            self._channel = None

    def _begin(self, flight: _Flight, call: partial[Reply], first_call: Future[None]) -> None:
        error = _refusal(first_call)
        with self._lock:
            self._begun = error is None
            if self._first_call is first_call:
                self._first_call = None
        if error is None:
            self._submit(flight, call)
        else:
            self._end(flight, StepNotRunError(error))

    def _submit(self, flight: _Flight, call: partial[Reply]) -> None:
        if flight.withdrawn:
            return
        flight.sent += 1
        try:
            _refuse_closed(self._executor)
            future = self._executor.submit(call.func, *call.args, flight.sent)
        except Exception as refused:
            self._end(flight, StepNotRunError(refused))
        else:
            flight.call = future  # which `_end` forgets
            future.add_done_callback(partial(self._take, flight, call))

    def _take(self, flight: _Flight, call: partial[Reply], future: Future[Reply]) -> None:
        if future.cancelled() and not flight.withdrawn and flight.sent < _MOST_SENDS:
            self._submit(flight, call)
        else:
            self._end(flight, _outcome(flight.driven, flight.step, future))

    def _end(self, flight: _Flight, outcome: StepOutcome | BaseException) -> None:
        step = flight.step
        flight.call = None
        with self._lock:
            if self._flights.pop(step.number, None) is None:
                return
            if self._channel is not None:
                self._channel.remove(step)
            self._close_idle()
        flight.report(flight.driven, step, outcome)


def _unsendable(step: StepInput, error: BaseException) -> UnserializableError:
    effects = {name: effect.result for name, effect in (step.effects or {}).items()}
    places: list[tuple[str, dict[str, object]]] = [
        ("", step.task.payload),
        ("state.", step.state),
        ("shared.", step.shared),
        ("effects.", effects),
    ]
    reason = f"can't be sent to the executor's process: {text_of(error)}; {CURE}"
    return UnserializableError(culprit(places), reason)


def _refuse_closed(executor: Executor) -> None:
    """Raise if a client of Dask is closed, or closes: its calls would never end."""
    status = getattr(getattr(executor, "_client", None), "status", None)
    if status in ("closing", "closed"):
        raise RoutiluxError(
            "the Dask client of the runtime's executor is closed, perhaps because its scheduler was"
            " away for too long; make a new client, and a runtime with its executor"
        )


def _do_nothing() -> None:
    """Show that a process of the executor has begun."""


def _outcome(driven: Driven, step: StepInput, future: Future[Reply]) -> StepOutcome | BaseException:
    """Return the outcome of a step in another process, or what broke off the step."""
    error = _refusal(future)
    if error is None:
        try:
            return _opened(driven, step, future.result())
        except Exception as broken:  # else the step would never end
            return broken
    if type(error).__name__ == "KilledWorker":  # Dask has tried it on several workers
        return BrokenExecutor(f"each worker that ran the step died: {error}")
    if isinstance(error, BrokenExecutor) or not isinstance(error, Exception):
        return error  # the step was running
    return StepNotRunError(error)  # it could not be sent


def _refusal(future: Future[Any]) -> BaseException | None:
    if future.cancelled():
        return CancelledError("the executor cancelled the step before the step ended")
    return future.exception()


def _opened(driven: Driven, step: StepInput, reply: Reply) -> StepOutcome | BaseException:
    kind, data, types = reply
    if kind == "refused":
        return StepNotRunError(RoutiluxError(data))
    if kind == "raised":
        sent: SentError = pickle.loads(data)
        return sent.open()
    try:
        outcome: StepOutcome = pickle.loads(data)
    except BaseException as error:
        reason = f"the outcome can't be loaded in this process: {text_of(error)}; {CURE}"
        return failure(step.number, UnserializableError("$", reason))
    if types is not None:
        outcome.error_type, *leaves = (each.open() for each in pickle.loads(types))
        outcome.leaf_types = tuple(leaves)
        handler = driven.plan.handlers[step.task.routine_id]
        is_final = step.final or not handler.is_retryable(outcome.error_type, outcome.leaf_types)
        if outcome.error is not None and not is_final:
            outcome.error.traceback = None
    return outcome


# --- context variables ----------------------------------------------------------------------------

_places: Final[dict[ContextVar[Any], tuple[tuple[str, str], ...]]] = {}


def _variables(context: contextvars.Context) -> Variables:
    """Return the context variables that modules hold and whose values can be pickled."""
    found = []
    for variable, value in context.items():
        if variable is not active:
            if variable not in _places:
                _places[variable] = _places_of(variable)
            places = _places[variable]
            data = pickled(value) if places else None
            if data is not None:
                found.append((places, data))
    return tuple(found)


def _places_of(variable: ContextVar[Any]) -> tuple[tuple[str, str], ...]:
    """Return the modules that hold a context variable, each with its name there."""
    places = []
    for module_name, module in list(sys.modules.items()):
        members = getattr(module, "__dict__", None)
        if isinstance(members, dict):
            places += [(module_name, name) for name, v in list(members.items()) if v is variable]
    return tuple(places[:_MOST_PLACES])
