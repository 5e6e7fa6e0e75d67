"""`Context`: the interface between a running handler and the engine.

Invariants:
- A context belongs to one step. When the step has ended or was given up, every use of its context
  raises `NoActiveStepError`.
- A handler reads private copies. The values that differ at the end are its writes; other steps
  see them after the commit.
- Before an effect (`once`, `key`, `idempotency_key`) the engine asks the store which host owns the
  job. Only an effect that was asked for before the job was lost can run on two hosts. In an
  executor of processes the question is asked once, before the step is sent to its process.
- Random numbers and ids are derived from the task's id, so that they are the same in every attempt
  and on every host.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, MutableMapping
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

from routilux import codec
from routilux.clocks.durations import SECOND, from_ns, to_ns
from routilux.codec.copying import copy_value
from routilux.errors import FlowDefinitionError, NoActiveStepError, StepTimeoutError
from routilux.graph.growing import private_copy
from routilux.graph.messages import Emission, RecordedEffect, StepInput, Writes, uncopied
from routilux.graph.patches import (
    ABSENT,
    Patch,
    accumulated,
    changes,
    merge,
    misfit,
    operand_problem,
    patched,
    same,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from decimal import Decimal

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MISSING: Final = object()

active: ContextVar[Context | None] = ContextVar("routilux_step", default=None)


class StepHost(Protocol):
    """The methods of the engine that a context calls."""

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, or this host runs the job no longer."""

    def now_ns(self) -> int:
        """Return the job's current time in UTC nanoseconds."""

    def sleep(self, step: StepInput, length: int) -> None:
        """Wait for `length` nanoseconds, but at most until the attempt's timeout."""

    def check(self, step: StepInput) -> None:
        """Raise if the step can no longer record an effect."""

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        """Commit the result of an effect, or raise."""

    def opened(self, context: Context) -> None:
        """Keep a context for the engine to close after a timeout."""


class View(MutableMapping[str, object]):
    """The mapping `ctx.state` or `ctx.shared`: saved data, with private copies of the values.

    Keys are strings. What differs when the handler returns is committed, also a value that was
    changed in place; other steps see it after the commit.

    The methods `add`, `append`, `extend`, `union`, `maximum` and `minimum` change a value without
    reading it. So they never conflict with other steps, cost only what they add, and are allowed
    for `ctx.state` in a routine with `max_concurrency` above 1. A key that does not exist begins
    with the argument. They raise `FlowDefinitionError` for a value of another type.

    >>> from routilux import Flow, Routine
    >>> class Collect(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.collect)
    ...     def collect(self, rows):
    ...         for row in rows:
    ...             self.ctx.state.append("rows", row)
    ...             self.ctx.shared.add("total", row)
    >>> flow = Flow("sums")
    >>> _ = flow.add_routine(Collect(), "collect")
    >>> job = flow.execute("collect", {"rows": [3, 4]})
    >>> job.routine_states["collect"].state, job.shared_data
    ({'rows': [3, 4]}, {'total': 7})
    """

    # `read_all` is set by operations that depend on all keys: iteration, `len`, comparison.
    __slots__ = (
        "_added",
        "_copies",
        "_given",
        "_name",
        "_open",
        "_own",
        "_removed",
        "_snapshot",
        "assigned",
        "read",
        "read_all",
    )

    def __init__(
        self, name: str, snapshot: dict[str, object], open_: Callable[[], object], *, own: bool
    ) -> None:
        self._name = name
        self._own = own  # no other step changes it meanwhile
        self._snapshot = snapshot
        self._copies: dict[str, object] = {}
        self._given: set[str] = set()  # keys whose copy is that of the saved value
        self._added: dict[str, list[Patch]] | None = None  # accumulators, by key
        self._removed: set[str] = set()
        self._open = open_
        self.read: set[str] = set()
        """The keys that the handler has read."""
        self.read_all = False
        """Whether it has read what depends on all keys: an iteration, `len`, a comparison."""
        self.assigned: list[str] = []

    def __getitem__(self, key: str) -> object:
        self._open()
        found = self._copies.get(key, _MISSING)
        if found is not _MISSING:
            return found
        self.read.add(key)
        if key in self._removed:
            raise KeyError(key)
        value = self._current(key)
        if value is ABSENT:
            raise KeyError(key)
        self._copies[key] = value
        self._given.add(key)
        return value

    def _current(self, key: str) -> Any:
        """Return a private copy of a value with what was added to it, or `ABSENT`."""
        value = self._snapshot.get(key, ABSENT)
        if self._added and key in self._added:
            return _grown(value, self._added[key])
        return value if value is ABSENT else private_copy(value)

    def __setitem__(self, key: str, value: object) -> None:
        self._open()
        if type(key) is not str:
            raise TypeError(f"a key of state or shared data must be a str, not {key!r}")
        if self._added:
            self._added.pop(key, None)
        self._given.discard(key)
        self._removed.discard(key)
        self._copies[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        if self._added:
            self._added.pop(key, None)
        self._copies.pop(key, None)
        self._given.discard(key)
        self.read.add(key)  # a value that another step has meanwhile set is to be removed, too
        self._removed.add(key)

    def __contains__(self, key: object) -> bool:
        self._open()
        if key in self._copies or (self._added and key in self._added):
            return True
        if isinstance(key, str):
            self.read.add(key)
        return key not in self._removed and key in self._snapshot

    def __iter__(self) -> Iterator[str]:
        self._open()
        self.read_all = True
        return iter([key for key in self._keys() if key not in self._removed])

    def __len__(self) -> int:
        self._open()
        self.read_all = True
        return sum(key not in self._removed for key in self._keys())

    def __repr__(self) -> str:
        return repr(dict(self))

    def _keys(self) -> dict[str, object]:
        return {**self._snapshot, **self._copies, **(self._added or {})}

    # --- accumulators ---------------------------------------------------------------------------

    def add(self, key: str, n: int | float | complex | Decimal | timedelta) -> None:
        """Add a number to a number, or a length of time to another."""
        self._accumulate("add", key, n)

    def append(self, key: str, value: object) -> None:
        """Add an item to the end of a list."""
        self._accumulate("extend", key, [value], "append")

    def extend(self, key: str, values: Iterable[object]) -> None:
        """Add items to the end of a list."""
        self._accumulate("extend", key, self._items("extend", key, list, values))

    def union(self, key: str, values: Iterable[object]) -> None:
        """Add items to a set."""
        self._accumulate("union", key, self._items("union", key, set, values))

    def maximum(self, key: str, value: object) -> None:
        """Replace a smaller value: a number, text, bytes, an instant or a length of time."""
        self._accumulate("maximum", key, value)

    def minimum(self, key: str, value: object) -> None:
        """Replace a greater value: a number, text, bytes, an instant or a length of time."""
        self._accumulate("minimum", key, value)

    def _items(self, kind: str, key: object, form: type, values: Iterable[object]) -> Any:
        try:
            return form(values)
        except TypeError as error:  # they are no iterable, or can't be in a set
            raise self._refusal(kind, key, str(error)) from None

    def _accumulate(self, kind: str, key: str, operand: Any, method: str | None = None) -> None:
        self._open()
        if type(key) is not str:
            raise self._refusal(method or kind, key, f"a key must be a str, not {key!r}")
        if self._added is None:
            self._added = {}
        added = self._added.get(key, [])
        new = Patch(kind, operand)
        problem = operand_problem(kind, operand)
        if problem is None and key in self._copies:
            problem = misfit(self._copies[key], [new])
        elif problem is None and key not in self._removed:
            problem = misfit(self._snapshot.get(key, ABSENT), [*added, new])
        if problem is not None:
            raise self._refusal(method or kind, key, problem)
        try:
            new.operand = copy_value(operand)
        except Exception as error:
            raise uncopied(f"{self._name}[{key!r}]", operand, error) from None
        if key in self._removed:
            self._removed.discard(key)
            self._copies[key] = new.operand
            return
        if key not in self._copies or key in self._given:
            merge(added, new)
            self._added[key] = added
        if key in self._copies:
            # The handler may hold the list or set that it has read, and sees what is added to it.
            copy: Any = self._copies[key]
            if kind == "extend":
                copy += copy_value(operand)
            elif kind == "union":
                copy |= copy_value(operand)
            elif key in self._given:  # as it will be committed, to the last bit of a sum
                copy = _grown(self._snapshot.get(key, ABSENT), added)
            else:
                copy = accumulated(copy, new)
            self._copies[key] = copy

    def _refusal(self, kind: str, key: object, problem: str) -> FlowDefinitionError:
        return FlowDefinitionError(f"{self._name}: can't {kind} to {key!r}: {problem}")

    # --- what the handler changed ---------------------------------------------------------------

    def writes(self) -> Writes | None:
        """Return copies of the handler's changes; None if nothing changed.

        Then `assigned` has the keys whose change depends on the value that the step has seen.
        """
        snapshot, added = self._snapshot, self._added or {}
        values: dict[str, object] = {}
        patches: dict[str, list[Patch]] = {}
        for key, value in self._copies.items():
            old, more = snapshot.get(key, ABSENT), added.get(key)
            try:
                found = None if old is ABSENT else changes(old, value)
                if more and not misfit(old, more) and same(value, _grown(old, more)):
                    patches[key] = more  # the handler has added to it, and read it
                elif found == []:
                    # Setting an equal value is no write, so it counts as a read: it must not
                    # change meanwhile.
                    self.read.add(key)
                elif found is not None and (self._own or key in self.read):
                    patches[key] = found
                else:
                    values[key] = copy_value(value)
            except Exception as error:
                raise uncopied(f"{self._name}.{key}", value, error) from None
        patches |= {key: added[key] for key in added if key not in self._copies}
        removed = tuple(sorted(key for key in self._removed if key in snapshot))
        self.assigned = [*values, *removed, *(k for k in patches if patches[k] is not added.get(k))]
        return Writes(values, removed, patches) if values or removed or patches else None


def _grown(value: Any, added: list[Patch]) -> Any:
    """Return a private copy of a value with what was added to it."""
    if value is not ABSENT:
        value = private_copy(value)  # a step that fails must not grow what other steps share
    return private_copy(patched(value, added))


class Context:
    """The data and methods that a running handler reaches as `self.ctx`.

    Outside a running step, and after the step's end, all of it raises `NoActiveStepError`.

    >>> from routilux import Flow, Routine
    >>> class Charge(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.charge)
    ...         self.define_event("output", ["key", "count"])
    ...     def charge(self, order):
    ...         self.ctx.state["count"] = self.ctx.state.get("count", 0) + 1
    ...         self.emit("output", key=self.ctx.key("charge"), count=self.ctx.state["count"])
    >>> flow = Flow("payment")
    >>> _ = flow.add_routine(Charge(), "charge")
    >>> flow.execute("charge", {"order": 7}, job_id="A7").outputs[0].data
    {'key': 'A7/0/charge', 'count': 1}
    """

    __slots__ = (
        "_host",
        "_shared",
        "_state",
        "_streams",
        "named",
        "outbox",
        "owner",
        "step",
        "touched",
    )

    def __init__(self, step: StepInput, owner: object, host: StepHost) -> None:
        self.step: StepInput | None = step
        """The running step; None after its end."""
        self.owner = owner
        """The routine."""
        self.outbox: list[Emission] = []
        """The events that the handler has emitted so far."""
        self.named: set[str] | None = None
        """The names of `once` in this attempt; None before the first."""
        self.touched = False
        """Whether the handler has used state or shared data."""
        self._host = host
        self._state: View | None = None
        self._shared: View | None = None
        self._streams: dict[str, Random] | None = None

    def _open_step(self) -> StepInput:
        return self.step or self.over()

    def over(self) -> NoReturn:
        """Raise `NoActiveStepError`, because the step of this context has ended."""
        raise NoActiveStepError(
            "this step has ended: its handler has returned, or the engine no longer waits for it;"
            " nothing more is recorded, so do not use ctx after the end of the step"
        )

    @property
    def state(self) -> View:
        """The routine's own saved data, committed when the handler returns."""
        if self._state is None:
            self._state = View("ctx.state", self._open_step().kept_state, self._open_step, own=True)
            self.touched = True
        return self._state

    @property
    def shared(self) -> View:
        """The data that all steps of the job share.

        A step runs again if another step has meanwhile changed a key that the first one read.
        """
        if self._shared is None:
            self._shared = View(
                "ctx.shared", self._open_step().kept_shared, self._open_step, own=False
            )
            self.touched = True
        return self._shared

    @property
    def attempt(self) -> int:
        """The number of this attempt, counted from 1 across resumptions."""
        return (self.step or self.over()).attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, or this host has lost it: a long handler should return.

        What the handler still emits and writes is recorded only if the host still owns the job. In
        an executor of processes it is always False. After its timeout, a step that asks gets a
        `NoActiveStepError`.
        """
        self._open_step()
        return self._host.cancelled

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return self._open_step().job_id

    @property
    def task_id(self) -> str:
        """The task's id, the same for every attempt and host."""
        return self._open_step().task.task_id

    @property
    def idempotency_key(self) -> str:
        """A key by which an external service recognizes a repeated call.

        Each use asks the store of the runtime, and raises `LeaseLostError` if this host does not
        own the job any more. (A step in another process does not ask.)
        """
        step = self._open_step()
        self._host.check(step)
        return f"{step.job_id}/{step.task.task_id}"

    def key(self, name: str) -> str:
        """Return the idempotency key of the task's effect `name`.

        Asks the store, as `idempotency_key` does.
        """
        return f"{self.idempotency_key}/{name}"

    def now(self) -> datetime:
        """Return the time of the job's clock as an aware UTC datetime."""
        self._open_step()
        return from_ns(self._host.now_ns())

    def sleep(self, seconds: float | timedelta) -> None:
        """Wait for `seconds`, or raise `StepTimeoutError` at the attempt's timeout."""
        step = self._open_step()
        length = to_ns(seconds)
        self._host.sleep(step, length)
        self._open_step()
        limit = step.timeout_ns
        if limit is not None and self._host.now_ns() - step.started_ns >= limit:
            raise StepTimeoutError(
                f"{step.task.routine_id} slept until its timeout of {limit / SECOND:g} s passed"
            )

    @property
    def random(self) -> Random:
        """A generator that gives every attempt the same random numbers."""
        return self._stream("random")

    def uuid(self) -> UUID:
        """Return the next UUID of a sequence that every attempt repeats."""
        return UUID(int=self._stream("uuid").getrandbits(128), version=4)

    def _stream(self, use: str) -> Random:
        streams = self._streams
        if streams is None:
            streams = self._streams = {}
        if use not in streams:
            step = self._open_step()
            seed = f"{step.job_id}/{step.task.task_id}/{use}".encode()
            streams[use] = Random(hashlib.sha256(seed).digest())
        return streams[use]

    def once(self, name: str, fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call `fn` and record the result for later attempts.

        The result is committed before this returns. An error of `fn` is not recorded. Raises
        `LeaseLostError`, without running `fn`, if the store says that this host does not own the
        job any more (a step in another process does not ask); `FlowDefinitionError` for an
        async `fn`, a name used twice in an attempt, or other arguments than those recorded;
        `UnserializableError` for arguments or a result that can't be saved.
        """
        step = self._open_step()
        if self.named is None:
            self.named = set()
        if name in self.named:
            raise FlowDefinitionError(
                f"once({name!r}) is called twice in one attempt of {step.task.routine_id};"
                " give each effect a different name"
            )
        self.named.add(name)
        place = f"$.once[{name!r}]"
        encoded = codec.encode([list(args), dict(kwargs)], f"{place}.arguments")
        digest = hashlib.sha256(codec.dumps(encoded).encode()).hexdigest()
        recorded = (step.effects or {}).get(name)
        if recorded is not None:
            if recorded.arguments != digest:
                raise FlowDefinitionError(
                    f"once({name!r}) of {step.task.routine_id} had other arguments in an"
                    " earlier attempt; pass the same arguments in every attempt"
                )
            return cast(_T, copy_value(recorded.result))
        self._host.check(step)
        result = fn(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise FlowDefinitionError(
                f"once({name!r}) of {step.task.routine_id} calls an async function, whose result"
                " would have to be awaited; pass a function that is not async"
            )
        self._open_step()
        codec.encode(result, f"{place}.result")
        self._host.record(step, name, RecordedEffect(digest, copy_value(result)))
        return result

    def writes(self, *, state_allowed: bool) -> tuple[Writes | None, Writes | None]:
        """Return the handler's changes to state and to shared data."""
        own, common = self._state, self._shared  # another thread may close it meanwhile
        state = own.writes() if own is not None else None
        if own is not None and own.assigned and not state_allowed:
            raise FlowDefinitionError(
                f"{type(self.owner).__name__} changed ctx.state[{', '.join(own.assigned)}], but its"
                " max_concurrency is more than 1, so updates could be lost;"
                " use an accumulator such as ctx.state.add, ctx.shared, or max_concurrency = 1"
            )
        return state, common.writes() if common is not None else None

    def shared_reads(self) -> frozenset[str] | None:
        """Return the keys of `shared` that the handler read; None means all keys."""
        common = self._shared
        if common is None:
            return frozenset()
        return None if common.read_all else frozenset(common.read)

    def close(self) -> None:
        """End the context: every later use raises `NoActiveStepError`."""
        self.step = None
        self._state = self._shared = None  # they refer to this context: a cycle
