"""Describes the changes between two shapes of a flow in lines that a person can read.

Invariants:
- Lines about the same part of the graph follow each other, the old line first.
- A routine that was added or removed is one line, which counts its parts.
- A message stays short, however much has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from typing import Final

_INLINE: Final = 3  # changes that fit into a sentence
_LISTED: Final = 20
_NAMED: Final = 5  # of a kind, in a sentence
_WIDTH: Final = 120


def shape_changes(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return the differences between two shapes, one line for each change.

    >>> shape_changes(["slot a.x", "slot b.x"], ["slot a.y", "slot b.x"])
    ['- slot a.x', '+ slot a.y']
    >>> shape_changes(["routine a: shop:Tea", "slot a.x", "slot a.y", "event a.out(n)"], [])
    ['- routine a: shop:Tea, with 1 event and 2 slots']
    """
    old, new = set(before), set(after)
    removed = _summed(old - new, _routines(old) - _routines(new))
    added = _summed(new - old, _routines(new) - _routines(old))
    changes = [(line, "-") for line in removed] + [(line, "+") for line in added]
    return [f"{sign} {line}" for line, sign in sorted(changes, key=_order)]


def mismatch(problem: str, cure: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Return a message: the problem, the changes and the cure; many changes as a list.

    >>> mismatch("it is another flow", "go back", ["slot a.x"], ["slot a.y"])
    'it is another flow (- slot a.x; + slot a.y); go back'
    """
    changes = [
        line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…"
        for line in shape_changes(before, after)
    ]
    if not changes:
        return f"{problem}; {cure}"
    if len(changes) <= _INLINE:
        return f"{problem} ({'; '.join(changes)}); {cure}"
    listed = changes[:_LISTED]
    if len(changes) > _LISTED:
        listed.append(f"… and {len(changes) - _LISTED:,} more")
    return "\n  ".join([f"{problem} ({len(changes):,} changes, listed below); {cure}", *listed])


def tasks_without_slot(tasks: Mapping[str, Sequence[str]]) -> str:
    """Return the tasks that wait for each missing slot, in words; `tasks` is {slot: ids}.

    >>> tasks_without_slot({"a.old": ["0.0", "0.1"], "b.old": ["0.2"]})
    'tasks 0.0, 0.1 wait for a.old, task 0.2 waits for b.old'
    """
    parts: list[str] = []
    for slot, ids in islice(tasks.items(), _NAMED):
        more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
        names = f"{', '.join(ids[:_NAMED])}{more}"
        waits = f"tasks {names} wait for" if ids[1:] else f"task {names} waits for"
        parts.append(f"{waits} {slot}")
    if len(tasks) > _NAMED:
        parts.append(f"others for {len(tasks) - _NAMED:,} more slots")
    return ", ".join(parts)


def _order(change: tuple[str, str]) -> tuple[bool, str, bool, str]:
    line, sign = change
    if line.startswith("routine "):
        return False, line.rpartition(": ")[0], sign == "+", line
    return True, line.partition("(")[0], sign == "+", line


def _routines(lines: Set[str]) -> set[str]:
    return {_owners(line)[0] for line in lines if line.startswith("routine ")}


def _owners(line: str) -> list[str]:
    """Return the ids of the routines that a line is about; an id may hold any character."""
    kind, _, rest = line.partition(" ")
    if kind == "routine":
        return [rest.rpartition(": ")[0]]
    ends = rest.partition(" (")[0].split(" -> ") if kind == "connection" else [rest]
    return [end.partition("(")[0].rpartition(".")[0] for end in ends]


def _summed(lines: Set[str], whole: Set[str]) -> list[str]:
    """Return the lines; those of a routine in `whole` are only counted, in the routine's line."""
    others: list[str] = []
    heads: dict[str, str] = {}
    parts: dict[str, Counter[str]] = {routine_id: Counter() for routine_id in whole}
    for line in lines:
        kind = line.partition(" ")[0]
        owner = next((owner for owner in _owners(line) if owner in whole), None)
        if owner is None:
            others.append(line)
        elif kind == "routine":
            heads[owner] = line
        else:
            parts[owner][kind] += 1
    return others + [f"{line}{_with(parts[owner])}" for owner, line in heads.items()]


def _with(parts: Counter[str]) -> str:
    counts = [f"{n:,} {kind}{'s' if n > 1 else ''}" for kind, n in sorted(parts.items())]
    return f", with {' and '.join(counts)}" if counts else ""
