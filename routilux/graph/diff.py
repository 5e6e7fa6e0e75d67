"""Describes changes of a flow's shape in lines of text.

Invariants:
- Lines about the same part of the graph follow each other, the old line first.
- A message stays short, however much has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

_INLINE: Final = 3  # changes that fit into a sentence
_LISTED: Final = 20
_NAMED: Final = 5  # of a kind, in a sentence
_WIDTH: Final = 120


def shape_changes(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return one line for each change from `before` to `after`.

    >>> shape_changes(["slot a.x", "slot b.x"], ["slot a.y", "slot b.x"])
    ['- slot a.x', '+ slot a.y']
    """
    old, new = set(before), set(after)
    changes = [(line, "-") for line in old - new] + [(line, "+") for line in new - old]
    return [f"{sign} {line}" for line, sign in sorted(changes, key=_order)]


def mismatch(problem: str, cure: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Return an error message with `problem`, the changes and `cure`.

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
    """Describe in a text which tasks wait for which slot.

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
        parts.append(f"other tasks wait for {len(tasks) - _NAMED:,} more slots")
    return ", ".join(parts)


def _order(change: tuple[str, str]) -> tuple[bool, str, bool, str]:
    line, sign = change
    if line.startswith("routine "):
        return False, line.rpartition(": ")[0], sign == "+", line
    return True, line.partition("(")[0], sign == "+", line
