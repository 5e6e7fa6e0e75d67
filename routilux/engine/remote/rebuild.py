"""Routines for other processes: sent as a name and arguments, rebuilt once per process.

Invariants:
- A routine can go to another process exactly if a flow with it can be saved: other processes find
  its class in a module, and its constructor's arguments have a saved form. This is checked before a
  job makes its first commit.
- A process keeps the routines that it has rebuilt: each is built once per flow, id and arguments,
  and again if its module was loaded anew.
- A process refuses a routine whose slots or events differ from those where the job runs.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Final

from routilux import codec
from routilux.clocks.forks import begin_in_children
from routilux.errors import FlowDefinitionError, RoutiluxError, UnserializableError
from routilux.graph.messages import ErrorInfo
from routilux.graph.routine import Routine

if TYPE_CHECKING:
    from routilux.graph.plan import Plan

RoutineForm = tuple[str, ...]
"""Flow id, routine id, module, name of the class in it, arguments as JSON, digest of the shape."""

_MOST_KEPT: Final = 1_000  # routines that a process keeps
_IMPORTABLE: Final = "define the class at the top of a module that other processes can import"


def forms_of(plan: Plan) -> dict[str, RoutineForm]:
    """Return what other processes rebuild the routines of a flow from.

    Raises `FlowDefinitionError` for a routine that can't be rebuilt there.
    """
    if plan.forms is None:
        plan.forms = {
            routine_id: _form(plan.flow_id, routine_id, routine)
            for routine_id, routine in plan.routines.items()
        }
    return plan.forms


def _form(flow_id: str, routine_id: str, routine: Routine) -> RoutineForm:
    kind = type(routine)
    module, name = kind.__module__, kind.__qualname__
    refused = f"routine {routine_id!r} of flow {flow_id!r} can't run in another process:"
    if _found(sys.modules.get(module), name) is not kind:
        raise FlowDefinitionError(
            f"{refused} no other process finds its class {module}:{name}; {_IMPORTABLE}"
        )
    args, kwargs = routine.arguments
    try:
        arguments = codec.dumps(codec.encode([list(args), kwargs], "$"))
    except UnserializableError as error:
        where = error.path.replace("$[0]", "args").replace("$[1]", "kwargs")
        raise FlowDefinitionError(
            f"{refused} argument {where} of {name} has no saved form: {error.reason}"
        ) from None
    return flow_id, routine_id, module, name, arguments, _digest(routine)


def _found(module: object, qualname: str) -> object:
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _shape(routine: Routine) -> list[str]:
    """Return lines for the slots, with their parameters, and for the events."""
    lines = []
    for slot in routine.slots.values():
        names = sorted(slot.binding.names) + ["**"] * slot.binding.takes_rest
        lines.append(f"slot {slot.name}({', '.join(names)}){' gathers' * slot.gather}")
    lines += [f"event {event.name}({', '.join(event.fields)})" for event in routine.events.values()]
    return lines


def _digest(routine: Routine) -> str:
    return hashlib.sha256("\n".join(_shape(routine)).encode()).hexdigest()[:16]


class _Kept:
    """The routines that this process has rebuilt, by form; the last used is the last."""

    def __init__(self) -> None:
        self.begin_process()
        begin_in_children(self.begin_process)

    def begin_process(self) -> None:
        self.lock = RLock()  # a process may run several steps at once
        self.routines: OrderedDict[RoutineForm, Routine] = OrderedDict()


_kept: Final = _Kept()


def rebuilt(form: RoutineForm) -> Routine:
    """Return the routine that `form` describes, which this process keeps.

    Raises `RoutiluxError` if this process can't build it, or builds one of another shape.
    """
    flow_id, routine_id, module, name, arguments, digest = form
    refused = f"this process can't run routine {routine_id!r} of flow {flow_id!r}:"
    try:
        kind = _found(import_module(module), name)
    except Exception as error:
        raise RoutiluxError(
            f"{refused} importing {module} raised {ErrorInfo.of(error)}; install the module on"
            " every host that runs steps"
        ) from None
    with _kept.lock:
        routine = _kept.routines.get(form)
        if routine is not None and type(routine) is kind:
            _kept.routines.move_to_end(form)
            return routine
        if not (isinstance(kind, type) and issubclass(kind, Routine)):
            raise RoutiluxError(
                f"{refused} its module {module} has no routine class {name}; install the same"
                f" program on every host that runs steps, and {_IMPORTABLE}"
            )
        try:
            args, kwargs = codec.loads(arguments)
            routine = kind(*args, **kwargs)
        except Exception as error:
            raise RoutiluxError(
                f"{refused} building {module}:{name} from its arguments raised"
                f" {ErrorInfo.of(error)}; install the same program on every host that runs steps"
            ) from None
        if _digest(routine) != digest:
            raise RoutiluxError(
                f"{refused} {module}:{name} has another shape here than where the job runs; here it"
                f" has {'; '.join(_shape(routine)) or 'no slots'}; install the same program on"
                " every host that runs steps, and define slots and events in the constructor"
            )
        _kept.routines[form] = routine
        if len(_kept.routines) > _MOST_KEPT:
            _kept.routines.popitem(last=False)
        return routine
