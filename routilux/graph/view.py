"""`View`: the mapping `ctx.state` or `ctx.shared` of one handler.

Invariants:
- A handler reads private copies. The values that differ at the end are its writes, and a value that
  it has set to an equal one counts as read.
- An accumulator reads nothing. What it has added is a patch of its own, unless the handler has
  assigned the key or changed the value that it read.
- Nothing is written into the snapshot, which other steps share: a step that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from routilux.codec.copying import copy_value
from routilux.errors import FlowDefinitionError
from routilux.graph.growing import private_copy
from routilux.graph.messages import Writes, uncopied
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
    from datetime import timedelta
    from decimal import Decimal

_MISSING: Final = object()


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
        "_exclusive",
        "_given",
        "_name",
        "_open",
        "_removed",
        "_snapshot",
        "assigned",
        "read",
        "read_all",
    )

    def __init__(
        self,
        name: str,
        snapshot: dict[str, object],
        open_: Callable[[], object],
        *,
        exclusive: bool,
    ) -> None:
        self._name = name
        self._exclusive = exclusive  # an assignment is refused where other steps run meanwhile
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
        """The keys that `writes` has found changed otherwise than by accumulators."""

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
        """Return copies of the handler's changes; None if nothing changed. Sets `assigned`."""
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
                elif found is not None and (self._exclusive or key in self.read):
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
