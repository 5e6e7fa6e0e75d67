"""`Context`: the interface between a running handler and the engine.

Invariants:
- A context belongs to one step. When the step has ended or was given up, every use of its context
  raises `NoActiveStepError`.
- What a handler changes in `state` and `shared` is seen by other steps after the commit.
- Before an effect (`once`, `key`, `idempotency_key`) the engine asks the store which host owns the
  job. Only an effect that was asked for before the job was lost can run on two hosts. A step in
  another process asks the process that runs the job.
- Random numbers and ids are derived from the task's id, so that they are the same in every attempt
  and on every host.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

from routilux import codec
from routilux.clocks.durations import SECOND, from_ns, to_ns
from routilux.codec.copying import copy_value
from routilux.errors import FlowDefinitionError, NoActiveStepError, StepTimeoutError
from routilux.graph.messages import Emission, RecordedEffect, StepInput, Writes
from routilux.graph.view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime, timedelta

_P = ParamSpec("_P")
_T = TypeVar("_T")

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

    async def asleep(self, step: StepInput, length: int) -> None:
        """Wait for `length` nanoseconds without blocking the event loop."""

    def run_coroutine(self, step: StepInput, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run a coroutine on an event loop, wait for its end, and return its result."""

    async def acall(self, function: Callable[..., None], *args: object) -> None:
        """Call `check` or `record`, which may wait for a store, without blocking the event loop."""

    def check(self, step: StepInput) -> None:
        """Raise if the step can no longer record an effect.

        Adds to the step the effects that another run of the same step has recorded: an executor of
        other processes may run a step twice.
        """

    def record(self, step: StepInput, name: str, effect: RecordedEffect) -> None:
        """Commit the result of an effect, or raise.

        If another run of the same step was first, `effect` gets the result of that run.
        """

    def opened(self, context: Context) -> None:
        """Keep a context for the engine to close after a timeout."""


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
        "charged",
        "named",
        "on_loop",
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
        self.charged: str | None = None
        """In a test, where the handler waited in real time for longer than its timeout."""
        self.on_loop = False
        """Whether the handler runs on an event loop."""
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
            self._state = View(
                "ctx.state", self._open_step().kept_state, self._open_step, exclusive=True
            )
            self.touched = True
        return self._state

    @property
    def shared(self) -> View:
        """The data that all steps of the job share.

        A step runs again if another step has meanwhile changed a key that the first one read.
        """
        if self._shared is None:
            self._shared = View(
                "ctx.shared", self._open_step().kept_shared, self._open_step, exclusive=False
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

        What the handler still emits and writes is recorded only if the host still owns the job.
        After its timeout, a step that asks gets a `NoActiveStepError`, in another process True.
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
        own the job any more.
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
        """Wait for `seconds`, or raise `StepTimeoutError` at the attempt's timeout.

        Raises `FlowDefinitionError` where it would block an event loop: see `asleep`.
        """
        step = self._open_step()
        length = to_ns(seconds)
        if self.blocks_loop():
            raise FlowDefinitionError(
                f"ctx.sleep({seconds!r}) of {step.task.routine_id} would block the event loop of"
                f" all async handlers; use 'await self.ctx.asleep({seconds!r})'"
            )
        self.block(length)

    def block(self, length: int) -> None:
        """Wait for `length` nanoseconds in this thread, whatever else runs in it."""
        step = self._open_step()
        self._host.sleep(step, length)
        self._end_sleep(step)

    async def asleep(self, seconds: float | timedelta) -> None:
        """Wait for `seconds` in an async handler; other handlers of the event loop run on.

        >>> from routilux import Flow, Routine
        >>> class Poll(Routine):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.define_slot("trigger", handler=self.poll)
        ...     async def poll(self):
        ...         await self.ctx.asleep(0.01)
        ...         self.ctx.state["polled"] = True
        >>> flow = Flow("inbox")
        >>> _ = flow.add_routine(Poll(), "poll")
        >>> flow.execute("poll").status.value
        'completed'
        """
        step = self._open_step()
        await self._host.asleep(step, to_ns(seconds))
        self._end_sleep(step)

    def _end_sleep(self, step: StepInput) -> None:
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
        job any more; `FlowDefinitionError` for an async `fn`, a name used twice in an attempt, or
        other arguments than those recorded; `UnserializableError` for arguments or a result that
        can't be saved.
        """
        step = self._open_step()
        digest = self._named(step, "once", name, args, kwargs)
        found = self._recorded(step, "once", name, digest)
        if found is None:
            self._host.check(step)
            found = self._recorded(step, "once", name, digest)
        if found is not None:
            return cast(_T, copy_value(found.result))
        result = fn(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise FlowDefinitionError(
                f"once({name!r}) of {step.task.routine_id} calls an async function, whose result"
                f" would have to be awaited; use 'await self.ctx.aonce({name!r}, ...)' in an async"
                " handler"
            )
        effect = self._effect("once", name, digest, result)
        own = effect.result
        self._host.record(step, name, effect)
        return result if effect.result is own else cast(_T, copy_value(effect.result))

    async def aonce(
        self, name: str, fn: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Await `fn` and record the result for later attempts, as `once` does.

        A name is used once in an attempt, by `once` or by `aonce`. If the handler is cancelled
        while `fn` runs, nothing is recorded.

        >>> from routilux import Flow, Routine
        >>> async def send(text):
        ...     return len(text)
        >>> class Mail(Routine):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.define_slot("trigger", handler=self.mail)
        ...     async def mail(self, text):
        ...         self.ctx.state["sent"] = await self.ctx.aonce("mail", send, text)
        >>> flow = Flow("mail")
        >>> _ = flow.add_routine(Mail(), "mail")
        >>> flow.execute("mail", {"text": "hello"}).routine_states["mail"].state
        {'sent': 5}
        """
        step = self._open_step()
        digest = self._named(step, "aonce", name, args, kwargs)
        found = self._recorded(step, "aonce", name, digest)
        if found is None:
            await self._host.acall(self._host.check, step)
            found = self._recorded(step, "aonce", name, digest)
        if found is not None:
            return cast(_T, copy_value(found.result))
        awaitable = fn(*args, **kwargs)
        if not inspect.isawaitable(awaitable):
            raise FlowDefinitionError(
                f"aonce({name!r}) of {step.task.routine_id} calls a function that is not async;"
                f" use self.ctx.once({name!r}, ...)"
            )
        result = await awaitable
        effect = self._effect("aonce", name, digest, result)
        own = effect.result
        await self._host.acall(self._host.record, step, name, effect)
        return result if effect.result is own else cast(_T, copy_value(effect.result))

    def _named(
        self,
        step: StepInput,
        method: str,
        name: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> str:
        """Note the name of an effect, and return the digest of its arguments."""
        if self.named is None:
            self.named = set()
        if name in self.named:
            raise FlowDefinitionError(
                f"{method}({name!r}) is called twice in one attempt of {step.task.routine_id};"
                " give each effect a different name"
            )
        self.named.add(name)
        encoded = codec.encode([list(args), dict(kwargs)], f"$.{method}[{name!r}].arguments")
        return hashlib.sha256(codec.dumps(encoded).encode()).hexdigest()

    def _recorded(
        self, step: StepInput, method: str, name: str, digest: str
    ) -> RecordedEffect | None:
        """Return the effect `name` of an earlier attempt, or of another run of this one."""
        recorded = (step.effects or {}).get(name)
        if recorded is not None and recorded.arguments != digest:
            raise FlowDefinitionError(
                f"{method}({name!r}) of {step.task.routine_id} had other arguments in an"
                " earlier attempt; pass the same arguments in every attempt"
            )
        return recorded

    def _effect(self, method: str, name: str, digest: str, result: object) -> RecordedEffect:
        self._open_step()
        codec.encode(result, f"$.{method}[{name!r}].result")
        return RecordedEffect(digest, copy_value(result))

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

    def blocks_loop(self) -> bool:
        """Return whether a wait in this thread would block the event loop of the handler."""
        return self.on_loop and sys.modules["asyncio"]._get_running_loop() is not None

    def close(self) -> None:
        """End the context: every later use raises `NoActiveStepError`."""
        self.step = None
        self._state = self._shared = None  # they refer to this context: a cycle
