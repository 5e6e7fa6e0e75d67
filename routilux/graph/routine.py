"""`Routine`: base class of routines, with slots and events.

Invariants:
- A routine holds configuration. The data of one execution is in the job, reached by `self.ctx`.
- The arguments of its constructor are captured, so that a saved flow can build it again.
- Saved flows name its class by `module:qualname`, or by the class attribute `routine_name`, which
  stays the same when the code moves. They find it among the classes that the program has defined.
- `emit` checks a payload against the declaration of the event and copies it at once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from inspect import Parameter
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Final, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

from routilux.codec.copying import copy_value
from routilux.codec.equality import SCALARS
from routilux.codec.registry import class_name
from routilux.errors import FlowDefinitionError, NoActiveStepError
from routilux.graph.context import Context, active
from routilux.graph.messages import Emission, copied_payload
from routilux.retry.error_handler import ErrorHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ERROR_EVENT_FIELDS: Final = ("error_type", "message", "task_id", "slot", "attempt", "payload")
"""What an event named `error` may declare: the engine emits it for dropped and failed tasks."""

_NAMED: Final = 20  # names in a list of a message
_NAME: Final = 100  # characters of a name in such a list
_classes: WeakValueDictionary[str, type[Routine]] = WeakValueDictionary()
_bindings: WeakKeyDictionary[Callable[..., object], Binding] = WeakKeyDictionary()
_async: WeakKeyDictionary[Callable[..., object], bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Binding:
    """The names of the payload fields that a handler takes."""

    names: frozenset[str]
    """The parameters of the handler."""
    required: frozenset[str]
    """Those without a default."""
    takes_rest: bool
    """Whether it has `**kwargs`, which get all other fields."""

    @classmethod
    def of(cls, handler: Callable[..., object]) -> Binding:
        """Read a handler's parameters, or raise `FlowDefinitionError`."""
        function = getattr(handler, "__func__", handler)
        known = _bindings.get(function) if function is not handler else None
        if known is not None:
            return known
        names = set()
        required = set()
        takes_rest = False
        try:
            parameters = inspect.signature(handler).parameters
        except ValueError:
            raise FlowDefinitionError(
                f"the parameters of handler {_name(handler)} are unknown, as for some built-in"
                " functions; pass a method that has named parameters and calls this function"
            ) from None
        for parameter in parameters.values():
            if parameter.kind is Parameter.VAR_KEYWORD:
                takes_rest = True
            elif parameter.kind is Parameter.POSITIONAL_ONLY:
                raise FlowDefinitionError(
                    f"handler {_name(handler)} takes {parameter.name!r} by position only;"
                    " payload fields are passed by name: remove the '/'"
                )
            elif parameter.kind is not Parameter.VAR_POSITIONAL:
                names.add(parameter.name)
                if parameter.default is Parameter.empty:
                    required.add(parameter.name)
        binding = cls(frozenset(names), frozenset(required), takes_rest)
        if function is not handler:
            _bindings[function] = binding
        return binding

    def arguments(self, payload: dict[str, object]) -> dict[str, object]:
        """Return the payload fields that the handler takes."""
        if self.takes_rest or payload.keys() == self.names:
            return payload
        return {name: payload[name] for name in self.names if name in payload}


@dataclass(frozen=True, slots=True)
class Slot:
    """A named input of a routine, with a handler; see `Routine.slots`."""

    name: str
    """The name of the slot."""
    handler: Callable[..., object]
    """The handler, which gets the payload's fields by name."""
    binding: Binding
    """The fields that the handler takes: `names`, `required` and `takes_rest`."""
    gather: bool = False
    """Whether the handler runs once a scope, with all deliveries; see `Routine.define_slot`."""
    is_async: bool = False
    """Whether the handler is an `async def` function, which runs on an event loop."""

    @property
    def parameter(self) -> str:
        """The name of the parameter of a gather's handler."""
        return min(self.binding.names)


@dataclass(frozen=True, slots=True)
class Event:
    """A named output of a routine, with the payload's field names; see `Routine.events`."""

    name: str
    """The name of the event."""
    fields: tuple[str, ...]
    """The fields that its payload may have, in the order of their definition."""
    allowed: frozenset[str]
    """The same fields as a set."""


class Routine:
    """Base class of all routines.

    Define slots and events in the constructor. Its arguments are kept: a saved flow builds the
    routine from them again. Attributes are for configuration and caches; what must last belongs
    in `ctx.state`.

    >>> class Greet(Routine):
    ...     def __init__(self, greeting: str = "hello"):
    ...         super().__init__()
    ...         self.greeting = greeting
    ...         self.define_slot("trigger", handler=self.greet)
    ...         self.define_event("output", ["text"])
    ...     def greet(self, name: str) -> None:
    ...         self.emit("output", text=f"{self.greeting} {name}")
    >>> Greet("hi").slots["trigger"].binding.required
    frozenset({'name'})
    """

    routine_name: ClassVar[str | None] = None
    """A name for saved flows, which stays when the code moves; None means `module:qualname`."""
    max_concurrency: ClassVar[int] = 1
    """The most of its steps in flight at once; with more than 1, `ctx.state` is read-only."""

    _slots: dict[str, Slot]
    _events: dict[str, Event]
    _error_handler: ErrorHandler | None
    _arguments: tuple[tuple[object, ...], dict[str, object]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for hiding in cls.__mro__[: cls.__mro__.index(Routine)]:
            for name in _RESERVED & vars(hiding).keys():
                raise FlowDefinitionError(
                    f"{hiding.__qualname__}.{name} hides {name!r} of Routine, which"
                    f" {cls.__qualname__} needs; give the attribute another name"
                )
        limit = cls.max_concurrency
        if type(limit) is not int or limit < 1:
            raise FlowDefinitionError(
                f"{cls.__qualname__}.max_concurrency must be an int of 1 or more, not {limit!r}"
            )
        name = cls.saved_name()
        if not isinstance(name, str) or not name:
            raise FlowDefinitionError(
                f"{cls.__qualname__}.routine_name is {name!r}; set a non-empty string, or None"
                " for module:qualname"
            )
        other = _classes.get(name)
        if other is not None and class_name(other) != class_name(cls):
            raise FlowDefinitionError(
                f"routine_name {name!r} of {class_name(cls)} already belongs to"
                f" {class_name(other)}; give each class its own name"
            )
        _classes[name] = cls

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        self = super().__new__(cls)
        own = tuple(map(_own, args)), {name: _own(value) for name, value in kwargs.items()}
        vars(self).update(_slots={}, _events={}, _error_handler=None, _arguments=own)
        return self

    if not TYPE_CHECKING:  # with __setattr__ mypy would allow any attribute

        def __setattr__(self, name: str, value: object) -> None:
            if name in _RESERVED:
                raise FlowDefinitionError(
                    f"{type(self).__qualname__} sets self.{name}, which hides {name!r} of Routine;"
                    " give the attribute another name"
                )
            object.__setattr__(self, name, value)

    def __init__(self) -> None:  # `__new__` has already set the attributes
        """Accept no arguments."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), *self._arguments, self._error_handler)

    @classmethod
    def saved_name(cls) -> str:
        """Return the name of this class in saved flows."""
        own: str | None = cls.__dict__.get("routine_name")
        return own if own is not None else class_name(cls)

    # --- declaring ------------------------------------------------------------------------------

    def define_slot(
        self, name: str, handler: Callable[..., object], *, gather: bool = False
    ) -> Slot:
        """Add a slot with a handler.

        Each parameter of the handler gets the payload field of the same name. Raises
        `FlowDefinitionError` for a name that exists, or a handler that can't take fields by name.

        With `gather` the handler has one parameter, and gets a `Gathered` with all payloads that
        were delivered to the slot. It runs once for its scope, when no task is left that could
        still deliver, also if nothing was delivered. The scope is the job, or each task of the
        routine that `Flow.add_routine(..., gather_per=...)` names. The task of a gather retries,
        fails and is saved as any other. Under `STOP` a failed job runs no gather.

        >>> class Total(Routine):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.define_slot("done", handler=self.done, gather=True)
        ...         self.define_event("output", ["total"])
        ...     def done(self, prices):
        ...         self.emit("output", total=sum(price["price"] for price in prices))
        >>> Total().slots["done"].gather
        True
        """
        self._check_new("slot", name, self._slots)
        where = f"slot {name!r} of {type(self).__qualname__}"
        if not callable(handler):
            raise FlowDefinitionError(f"{where}: handler {handler!r} can't be called")
        if not isinstance(gather, bool):
            raise FlowDefinitionError(f"{where}: gather must be True or False, not {gather!r}")
        slot = Slot(name, handler, Binding.of(handler), gather, _is_async(handler))
        parameters = inspect.signature(handler).parameters if gather else ()
        if gather and not (len(parameters) == len(slot.binding.names) == 1):
            raise FlowDefinitionError(
                f"{where} is a gather slot, but its handler {_name(handler)} takes"
                f" {names_of(parameters, 'no parameters')}; give it one parameter, which gets a"
                " Gathered with all deliveries"
            )
        self._slots[name] = slot
        return slot

    def define_event(self, name: str, fields: Iterable[str] = ()) -> Event:
        """Add an event whose payload may have `fields`.

        The engine emits the event `error` for each task of this routine that is dropped or fails;
        its fields are among `ERROR_EVENT_FIELDS`. A task that reports a failure,
        or descends from one that does, emits none: a cycle of such events would have no end.
        """
        self._check_new("event", name, self._events)
        where = f"event {name!r} of {type(self).__qualname__}"
        try:
            names = None if isinstance(fields, str) else tuple(fields)
        except TypeError:
            names = None
        if names is None or not all(isinstance(n, str) and n.isidentifier() for n in names):
            raise FlowDefinitionError(
                f"{where}: the fields must be a list of names, not {fields!r}"
            )
        if len(set(names)) != len(names):
            raise FlowDefinitionError(f"{where} names a field twice: {list(names)}")
        if name == "error" and not set(names) <= set(ERROR_EVENT_FIELDS):
            unknown = sorted(set(names) - set(ERROR_EVENT_FIELDS))
            raise FlowDefinitionError(
                f"{where} can't have the fields {names_of(unknown)}; choose from"
                f" {names_of(ERROR_EVENT_FIELDS)}"
            )
        event = self._events[name] = Event(name, names, frozenset(names))
        return event

    def set_error_handler(self, handler: ErrorHandler | None) -> None:
        """Set the routine's error handler; None means the flow's handler."""
        vars(self)["_error_handler"] = checked_handler(handler, type(self).__qualname__)

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The routine's slots by name."""
        return self._slots

    @property
    def events(self) -> Mapping[str, Event]:
        """The routine's events by name."""
        return self._events

    @property
    def error_handler(self) -> ErrorHandler | None:
        """The routine's own error handler; None if there is none."""
        return self._error_handler

    @property
    def arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        """The positional and the keyword arguments that the constructor received."""
        return self._arguments

    def _check_new(self, kind: str, name: str, known: Mapping[str, object]) -> None:
        if not isinstance(name, str) or not name:
            raise FlowDefinitionError(
                f"{kind} {name!r} of {type(self).__qualname__}: a name must be a non-empty string"
            )
        if name in known:
            raise FlowDefinitionError(
                f"{kind} {name!r} of {type(self).__qualname__} is already defined;"
                " choose another name"
            )

    # --- running --------------------------------------------------------------------------------

    @property
    def ctx(self) -> Context:
        """The context of the running step; raises `NoActiveStepError` outside a handler."""
        context = active.get()
        if context is None:
            raise NoActiveStepError(
                f"{type(self).__qualname__}.ctx was read outside a handler; read ctx only while one"
                " of the routine's handlers runs"
            )
        if context.step is None:
            context.over()
        return context

    def emit(self, event: str, /, **payload: object) -> None:
        """Emit an event, which is delivered after the step's commit.

        Raises `FlowDefinitionError` for an event or a field that is not declared, and
        `NoActiveStepError` outside a handler of this routine.
        """
        context = active.get()
        if context is None or context.step is None or context.owner is not self:
            raise self._refused_emit(event, context)
        declared = self._events.get(event)
        if declared is None:
            raise FlowDefinitionError(
                f"{type(self).__qualname__} emits the undeclared event {event!r}; it declares"
                f" {names_of(self._events, 'no events')}; add define_event({event!r}, [...])"
            )
        if not declared.allowed.issuperset(payload):
            unknown = [name for name in payload if name not in declared.allowed]
            raise FlowDefinitionError(
                f"{type(self).__qualname__} emits {event!r} with {names_of(unknown)}, which the"
                f" event does not declare; this event has {names_of(declared.fields, 'no fields')}"
            )
        flat = True
        for value in payload.values():  # a call of is_flat takes twice as long
            if type(value) not in SCALARS:
                flat = False
                payload = copied_payload(payload, f"{type(self).__qualname__}.{event}")
                break
        context.outbox.append(Emission(event, payload, flat))

    def _refused_emit(self, event: str, context: Context | None) -> NoActiveStepError:
        name = type(self).__qualname__
        if context is None:
            return NoActiveStepError(
                f"{name}.emit({event!r}) was called outside a handler; only a running step can emit"
            )
        if context.step is None:
            context.over()
        return NoActiveStepError(
            f"{name}.emit({event!r}) was called while a handler of another routine runs"
            f" ({type(context.owner).__qualname__}); connect the routines by an event instead"
        )


_RESERVED: Final = frozenset(
    name
    for name in (*vars(Routine), *Routine.__annotations__)
    if not name.startswith("__") and name not in ("routine_name", "max_concurrency")
)
"""The names that a subclass of `Routine` can't use for itself."""


def find_class(name: str) -> type[Routine] | None:
    """Return the routine class with the saved name `name`, or None."""
    return _classes.get(name)


def checked_handler(handler: object, whose: str) -> ErrorHandler | None:
    """Check and return `handler`, an `ErrorHandler` or None."""
    if handler is None or isinstance(handler, ErrorHandler):
        return handler
    raise FlowDefinitionError(
        f"the error handler of {whose} must be an ErrorHandler, such as"
        f" ErrorHandler('retry', max_retries=3), or None, not {handler!r}"
    )


def names_of(names: Iterable[str], none: str = "none") -> str:
    """Return names as text for a message; `none` without names.

    A long list and long names are cut: a loaded flow may have thousands of wrong connections.

    >>> names_of(["a", "b"]), names_of(map(str, range(1000)))[-13:]
    ("'a', 'b'", "'19' and more")
    """
    first = [
        name if len(name) <= _NAME else f"{name[:_NAME]}…" for name in islice(names, _NAMED + 1)
    ]
    listed = ", ".join(map(repr, first[:_NAMED])) or none
    return f"{listed} and more" if len(first) > _NAMED else listed


def _is_async(handler: Callable[..., object]) -> bool:
    function = getattr(handler, "__func__", handler)
    known = _async.get(function) if function is not handler else None
    if known is not None:
        return known
    called = getattr(handler, "__call__", None)  # noqa: B004 - of an object, its own function
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)
    if function is not handler:  # of a method, whose function is kept by its class
        _async[function] = is_async
    return is_async


def _rebuild(
    cls: type[Routine],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    handler: ErrorHandler | None,
) -> Routine:
    routine = cls(*args, **kwargs)
    routine.set_error_handler(handler)
    return routine


def _own(value: object) -> object:
    # Plain data is copied, since the caller may change it later. An object that can't be copied (a
    # client, a lock) is kept as it is, and refused when the flow is saved.
    try:
        return copy_value(value)
    except Exception:
        return value


def _name(handler: Callable[..., object]) -> str:
    return getattr(handler, "__qualname__", repr(handler))
