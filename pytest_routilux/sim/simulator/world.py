"""What outlives a simulated host: the commits in its store, and the effects outside.

Invariants:
- A world only grows. Its log holds everything that happened, in order. The world of any instant is
  a prefix of the log, so a crash cuts the log.
- A commit is in the world once the store has it, even if the host died before the answer.
- An effect enters the world at its virtual instant, not when the handler's code runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from routilux import Commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from routilux import JobState

__all__ = ["Call", "Entry", "Finding", "Note", "Signature", "Start", "StoreFiles", "World"]


Signature: TypeAlias = tuple[str, str | None, str]
"""What shrinking keeps of a finding: its kind, its routine and the first path that differs."""


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
class Finding:
    """One thing that a crash changed.

    `kind` is its name in lower case, `what` says it in one line. `routine` and `path` say where;
    together with the kind they are what shrinking must keep. `rows` are (name, undisturbed, with
    the crash) for those parts that differ, `at_ns` is about when it shows in the disturbed run,
    `call` the effect that it is about, `hint` a line of the user's code.
    """

    kind: str
    what: str
    path: str
    routine: str | None = None
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    at_ns: int | None = None
    hint: str = ""
    call: Call | None = None

    @property
    def signature(self) -> Signature:
        """What makes it this finding and no other."""
        return self.kind, self.routine, self.path


class StoreFiles(Protocol):
    """The files of a real store, as simulated hosts leave them; see `files.Files`."""

    def cut(self, commits: int) -> StoreFiles:
        """Return the files as they were after so many commits."""

    def opened(self) -> AbstractContextManager[None]:
        """Keep the store open for the life of one host."""

    def write(self, job_id: str, commit: Commit, owner: str, *, claims: bool) -> None:
        """Write a commit to the open store; raises what the store raises."""

    def given_back(self, job_id: str, world: World) -> JobState | Finding | None:
        """Return the job in the files, None without one, or how the store breaks its rules."""


@dataclass(slots=True)
class World:
    """The commits and effects of all hosts; `host` counts them, `now_ns` is the last instant.

    `files` are those of a real store, if the case has one.
    """

    now_ns: int
    commits: list[Commit] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    host: int = 0
    files: StoreFiles | None = None

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
        """Return the world as it was after so many commits and effects, with no host alive."""
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
