"""`Gathered`: what the handler of a gather slot gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from routilux.codec.copying import copy_value

if TYPE_CHECKING:
    from routilux.graph.messages import Collected, DroppedTask


Payloads = Sequence[Mapping[str, Any]]


class Gathered(Sequence[Mapping[str, Any]]):
    """The payloads that a gather slot received in its scope, in the order of lineage.

    It is a sequence of payloads, each a mapping from field name to value, after `param_mapping`.
    Lineage is the order of the emissions, whichever task ended first.

    >>> found = Gathered([{"price": 3}, {"price": 4}], (), (("a", "output"), ("b", "output")))
    >>> sum(payload["price"] for payload in found), len(found), found.dropped
    (7, 2, ())
    >>> found.sources[1]
    ('b', 'output')
    """

    __slots__ = ("_payloads", "dropped", "sources")

    def __init__(
        self,
        payloads: Payloads,
        dropped: tuple[DroppedTask, ...] = (),
        sources: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._payloads = tuple(payloads)
        self.dropped = dropped
        """The dropped tasks of the scope that could have delivered, or led to a delivery."""
        self.sources = sources
        """The routine and the event of each payload."""

    @classmethod
    def of(cls, payloads: Payloads, collected: Collected) -> Gathered:
        """Make a `Gathered` from private payloads."""
        dropped = tuple(
            [replace(task, payload=copy_value(task.payload)) for task in collected.dropped]
        )
        return cls(payloads, dropped, collected.sources)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        return self._payloads[index]

    def __len__(self) -> int:
        return len(self._payloads)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gathered):
            return NotImplemented
        mine = self._payloads, self.dropped, self.sources
        return mine == (other._payloads, other.dropped, other.sources)

    __hash__ = None  # type: ignore[assignment]  # its payloads can't be hashed

    def __repr__(self) -> str:
        more = f", {len(self.dropped)} dropped" if self.dropped else ""
        return f"<Gathered: {len(self)} payloads{more}>"
