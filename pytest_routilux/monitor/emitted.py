"""Emissions, and how far each is what was expected of it.

Laws:
- Expected data is a part of the payload: fields that it does not name may be anything, in nested
  dicts too; whatever else it holds has to be equal.
- The first field that differs is told by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pytest_routilux.text import seconds

if TYPE_CHECKING:
    from pytest_routilux.monitor.known_jobs import Seen
    from routilux import Commit, Emission

__all__ = ["Emitted", "mismatch"]


class Emitted(NamedTuple):
    """One emission, the commit that it came with, and how its payload differs from expected."""

    seen: Seen
    commit: Commit
    emission: Emission
    difference: str | None

    def told(self) -> str:
        """Return it in words, with its virtual time."""
        start = self.seen.commits[0].at_ns
        data = ", ".join(f"{name}={value!r}" for name, value in self.emission.payload.items())
        return f"at {seconds(self.commit.at_ns - start)} s  {self.emission.event}({data})"


def mismatch(expected: object, actual: object, path: str = "data") -> str | None:
    """Return the first part of what was expected that is not there; None where all of it is.

    >>> mismatch({"order": {"id": 1}}, {"order": {"id": 2, "total": 3}})
    "data['order']['id']: expected 1, is 2"
    """
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key, value in expected.items():
            place = f"{path}[{key!r}]"
            if key not in actual:
                return f"{place}: expected {value!r}, is missing"
            found = mismatch(value, actual[key], place)
            if found is not None:
                return found
        return None
    return None if expected == actual else f"{path}: expected {expected!r}, is {actual!r}"
