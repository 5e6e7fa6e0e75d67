"""What outlives a simulated host: the commits that its store has, and the effects outside.

Invariants:
- A world only grows. Its log holds everything that happened, in the order in which it happened;
  what stood there at any instant is a prefix of it, so a crash is a cut and nothing softer.
- A commit is in the world once the store has it, whether or not the host lived to hear of it.
- An effect is in the world when its instant has come, not when the handler's code was run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from routilux import Commit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_routilux.files import Files

__all__ = ["Call", "Entry", "Note", "Start", "World"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an effect's double.

    `number` counts the effects of this attempt from 1; `arguments` are its inputs by name, without
    the key; `where` is the line of the user's code; `at_ns` is virtual time (UTC).
    """

    effect: str
    number: int
    arguments: Mapping[str, object]
    key: object
    result: object
    where: str
    routine_id: str
    task_id: str
    attempt: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Note:
    """The end of a host, in words."""

    text: str


Start: TypeAlias = tuple[str, str, int]
"""The start of a step: task id, routine id, attempt. A plain tuple costs a simulated step least."""
Entry: TypeAlias = "tuple[int, int, Commit | Call | Start | Note]"
"""An instant (UTC nanoseconds), the number of the host, and what happened."""


@dataclass(slots=True)
class World:
    """What there is outside of all hosts; `host` counts them, `now_ns` is the last instant.

    `files` are those of a real store, where there is one.
    """

    now_ns: int
    commits: list[Commit] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    host: int = 0
    files: Files | None = None

    def committed(self, commit: Commit) -> None:
        """Add a commit that the store has."""
        self.commits.append(commit)
        self.log.append((commit.at_ns, self.host, commit))

    def called(self, call: Call) -> None:
        """Add an effect."""
        self.calls.append(call)
        self.log.append((call.at_ns, self.host, call))

    def noted(self, at_ns: int, text: str) -> None:
        """Add the end of a host."""
        self.log.append((at_ns, self.host, Note(text)))

    def cut(self, commits: int, calls: int, at_ns: int) -> World:
        """Return the world as it stood with so many commits and effects, and no host alive."""
        files = None if self.files is None else self.files.cut(commits)
        world = World(at_ns, self.commits[:commits], self.calls[:calls], [], self.host, files)
        for entry in self.log:
            if isinstance(entry[2], Commit):
                commits -= 1
            elif isinstance(entry[2], Call):
                calls -= 1
            if commits < 0 or calls < 0 or entry[0] > at_ns:
                break
            world.log.append(entry)
        return world
