"""`Growing`: a saved list or set that grows without being copied.

Invariants:
- It is a value: its items never change. A longer one shares the items of the one that it extends.
- The longest version is extended in place; extending a shorter one copies its items.
- `plain` is the list or set that a user reads. `private` is a copy that a handler may change.
"""

from __future__ import annotations

import marshal
import os
from itertools import chain
from threading import Lock
from typing import Any, Final

from routilux.codec.copying import are_flat_rows, copy_value
from routilux.codec.equality import SCALARS, same_value

_HEAD: Final = 5  # bytes before the items in the image of a list: its type and its length
_lock = Lock()  # held while shared items are extended


def _renew_lock() -> None:
    global _lock
    _lock = Lock()  # another thread may hold that of the process that was forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
_UNREAD: Final[Any] = object()


class _Items:
    """The items that a `Growing` shares with longer and shorter ones."""

    __slots__ = ("flat", "image", "imaged", "items", "seen")

    def __init__(self, items: list[Any], *, unique: bool) -> None:
        self.items = items
        self.seen: set[Any] | None = set(items) if unique else None
        # The items as bytes, made when two lists are first compared; None if they have no such
        # form. Images are compared as fast as memory, and are equal for lists that are the same.
        self.image: bytearray | None = bytearray()
        self.imaged = 0  # how many items the image has
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
        self._plain: Any = _UNREAD

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
        with _lock:
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
        if self._plain is _UNREAD:
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
        image = self._image()
        if image is None or len(new) < self._length:
            return None
        try:
            same = marshal.dumps(new, 2).startswith(image, _HEAD)
        except ValueError:  # it holds a value that has no image
            return None
        return new[self._length :] if same else None

    def _image(self) -> bytearray | None:
        shared = self._shared
        with _lock:
            if shared.image is None or shared.imaged > self._length:
                return None
            try:
                more = shared.items[shared.imaged : self._length]
                if not is_imageable(more):
                    raise ValueError
                shared.image += marshal.dumps(more, 2)[_HEAD:]
            except ValueError:
                shared.image = None
            shared.imaged = self._length
            return shared.image

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


def is_imageable(items: list[Any], depth: int = 0) -> bool:
    """Return whether equal images of the items mean the same items.

    Not those of bytes, since the image of a `bytearray` or of an array is the same.
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
    return is_imageable(keys_and_items, depth + 1) and is_imageable(values, depth + 1)


_EXACT: Final = SCALARS & {type(None), bool, int, float, complex, str}
_DEEPEST: Final = 20  # levels; a value that contains itself has no end
_EXACT_CONTAINERS: Final = _EXACT | {dict, list, tuple}
