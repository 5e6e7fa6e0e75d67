"""`Growing`: a saved list or set that grows without being copied.

Invariants:
- It is a value: its items never change. A longer one shares the items of the one that it extends.
- The longest version is extended in place; extending a shorter one copies its items.
- `plain` is the list or set that a user reads. `private` is a copy that a handler may change.
"""

from __future__ import annotations

import marshal
from itertools import chain
from threading import Lock
from typing import Any, Final

from routilux.clocks.forks import begin_in_children
from routilux.codec.copying import are_flat_rows, copy_value
from routilux.codec.equality import SCALARS, same_value

_HEAD: Final = 5  # bytes before the items of an encoded list: its type and its length
_NOT_MADE: Final[Any] = object()


class _Guard:
    """The lock under which shared items are extended."""

    def __init__(self) -> None:
        self.renew()
        begin_in_children(self.renew)

    def renew(self) -> None:
        """Make a new lock, since another thread may have held the old one at a fork."""
        self.lock = Lock()


_guard: Final = _Guard()


class _Items:
    """The items that a `Growing` shares with longer and shorter ones."""

    __slots__ = ("encoded", "flat", "items", "known", "seen")

    def __init__(self, items: list[Any], *, unique: bool) -> None:
        self.items = items
        self.seen: set[Any] | None = set(items) if unique else None
        # The first items as bytes, made when two lists are first compared; None if the items can't
        # be encoded. Bytes are compared as fast as memory, and equal bytes mean the same items.
        self.encoded: bytearray | None = bytearray()
        self.known = 0  # how many items are encoded
        self.flat = 0  # how many items are known to be dicts of scalars; -1 if others are found


class Growing:
    """A list, or the items of a set, of which later versions have more.

    >>> rows = Growing.of([1, 2])
    >>> longer = rows.extended([3])
    >>> rows.plain, longer.plain
    ([1, 2], [1, 2, 3])
    >>> Growing.of({1}).extended([1, 2]).plain
    {1, 2}
    """

    __slots__ = ("_length", "_plain", "_shared")

    def __init__(self, shared: _Items, length: int) -> None:
        self._shared = shared
        self._length = length
        self._plain: Any = _NOT_MADE

    @classmethod
    def of(cls, value: list[Any] | set[Any]) -> Growing:
        """Return a growing form of a value that is not changed any more."""
        return cls(_Items([*value], unique=type(value) is set), len(value))

    @property
    def kind(self) -> type:
        """`list` or `set`."""
        return list if self._shared.seen is None else set

    def __len__(self) -> int:
        return self._length

    def extended(self, items: list[Any]) -> Growing:
        """Return this value with more items behind; a set ignores those that it has."""
        with _guard.lock:
            shared = self._shared
            if len(shared.items) != self._length:
                shared = _Items(shared.items[: self._length], unique=shared.seen is not None)
            if shared.seen is None:
                shared.items += items
            else:
                for item in items:
                    if item not in shared.seen:
                        shared.seen.add(item)
                        shared.items.append(item)
            return Growing(shared, len(shared.items))

    @property
    def plain(self) -> Any:
        """The list or set; not to be changed."""
        if self._plain is _NOT_MADE:
            items = self._shared.items[: self._length]
            self._plain = items if self._shared.seen is None else set(items)
        return self._plain

    def private(self) -> Any:
        """Return a copy that shares no mutable object with this value."""
        shared = self._shared
        items = shared.items[: self._length]
        if shared.seen is not None:
            return set(copy_value(items))
        if shared.flat >= 0 and are_flat_rows(items[shared.flat :]):
            shared.flat = max(shared.flat, self._length)
            return list(map(dict.copy, items))
        shared.flat = -1
        return copy_value(items)

    def extension(self, new: list[Any]) -> list[Any] | None:
        """Return what a list has behind the items of this one; None if it begins otherwise."""
        encoded = self._encoded()
        if encoded is None or len(new) < self._length:
            return None
        try:
            same = marshal.dumps(new, 2).startswith(encoded, _HEAD)
        except ValueError:  # it holds a value that can't be encoded
            return None
        return new[self._length :] if same else None

    def _encoded(self) -> bytearray | None:
        """Return the bytes of the items, or None if they have none of exactly this length."""
        shared = self._shared
        with _guard.lock:
            if shared.encoded is None or shared.known > self._length:
                return None
            more = shared.items[shared.known : self._length]
            if is_encodable(more):
                shared.encoded += marshal.dumps(more, 2)[_HEAD:]
                shared.known = self._length
            else:
                shared.encoded = None
            return shared.encoded

    def __eq__(self, other: object) -> bool:
        other = plain(other)
        return type(other) is self.kind and same_value(self.plain, other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(self.plain)

    def __reduce__(self) -> tuple[object, ...]:
        return Growing.of, (self.plain,)


def plain(value: object) -> Any:
    """Return a value as a user reads it."""
    return value.plain if type(value) is Growing else value


def plain_values(values: dict[str, object]) -> dict[str, object]:
    """Return saved data as a user reads it, by key."""
    if Growing in map(type, values.values()):
        return {key: plain(value) for key, value in values.items()}
    return values


def private_copy(value: object) -> Any:
    """Return a copy of a saved value that a handler may change."""
    return value.private() if type(value) is Growing else copy_value(value)


def is_encodable(items: list[Any], depth: int = 0) -> bool:
    """Return whether `marshal` encodes the items so that equal bytes mean the same items.

    It does not do so with `bytes`: those of a `bytearray` or of an array are the same.
    """
    kinds = set(map(type, items))
    if kinds <= _EXACT:
        return True
    if not kinds <= _EXACT_CONTAINERS or depth > _DEEPEST:
        return False
    inner = [item for item in items if type(item) not in _EXACT]
    dicts = [item for item in inner if type(item) is dict]
    lists = [item for item in inner if type(item) is not dict]
    keys_and_items = [*chain.from_iterable(lists), *chain.from_iterable(dicts)]
    values = [*chain.from_iterable(map(dict.values, dicts))]
    return is_encodable(keys_and_items, depth + 1) and is_encodable(values, depth + 1)


_EXACT: Final = SCALARS & {type(None), bool, int, float, complex, str}
_DEEPEST: Final = 20  # levels; a value that contains itself has no end
_EXACT_CONTAINERS: Final = _EXACT | {dict, list, tuple}
