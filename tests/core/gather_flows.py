"""Random flows with gathers, and what each of their gathers must get: computed by recursion.

A task of such a flow decides what it emits, and whether it fails, by its id alone. So the same
flow gives the same tree of tasks under every schedule, and `Expected` walks this tree in the order
of lineage, with one list for each open gather. It knows nothing of plans, places and counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from routilux import ErrorHandler, Flow, FlowDefinitionError, Routine

EVENTS = ("out", "extra", "error")
LONGEST = 4  # components of an id, after which a task emits nothing: flows may have cycles

Got = tuple[list[object], list[tuple[str, str]], list[str]]
"""What a gather gets: the payloads, their sources, and the ids of dropped tasks."""


class Node(Routine):
    """A routine with a plain slot, a gather slot `all` if it gathers, and events `EVENTS`."""

    def __init__(
        self, *, gather: bool = False, errors: bool = False, strategy: str = "continue"
    ) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.take)
        if gather:
            self.define_slot("all", handler=self.take_all, gather=True)
        for event in EVENTS[: 2 + errors]:
            self.define_event(event, ["task_id"] if event == "error" else ["n"])
        self.set_error_handler(ErrorHandler(strategy))
        self.stops = strategy == "stop"

    def take(self, **fields: object) -> None:
        raise AssertionError("a story runs no handlers")

    def take_all(self, found: object) -> None:
        raise AssertionError("a story runs no handlers")


@dataclass
class Behaviour:
    """What the tasks do, as a function of their ids."""

    seed: int

    def fails(self, task_id: str) -> bool:
        """Whether the first attempt fails: the task is dropped, or retried in a failed job."""
        digest = hashlib.sha256(f"{self.seed}/{task_id}".encode()).digest()
        return digest[0] < (5 if task_id == "0" else 35)

    def emits(self, task_id: str, routine: Routine) -> list[tuple[str, int]]:
        """Return the events that a task emits, each with its `n`."""
        digest = hashlib.sha256(f"{self.seed}/{task_id}".encode()).digest()
        if task_id.count(".") >= LONGEST:
            return []
        plain = [event for event in routine.events if event != "error"]
        count = digest[1] % 4 + (2 if task_id == "0" else 0)
        return [(plain[digest[2 + i] % len(plain)], digest[20] + i) for i in range(count)]


@dataclass
class Expected:
    """The gathers of one job, by the id of the scope's task and the slot."""

    flow: Flow
    behaviour: Behaviour
    splits: dict[str, str]
    got: dict[tuple[str, str], Got] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)
    stops: bool = False
    """Whether a task ends the job: which others ran before it depends on the schedule."""

    def of(self, entry: str) -> dict[tuple[str, str], Got]:
        whole = [slot for slot in self._gathers() if slot not in self.splits]
        reached = self._below(entry)
        self._scope("0", entry, {}, [slot for slot in whole if slot in reached])
        return self.got

    def _gathers(self) -> list[str]:
        return [name for name, routine in self.flow.routines.items() if "all" in routine.slots]

    def _below(self, start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            name = todo.pop()
            for c in self.flow.connections:
                if c.source == name and c.target not in found:
                    found.add(c.target)
                    todo.append(c.target)
        return {
            c.target
            for c in self.flow.connections
            if c.slot == "all" and (c.source in found or c.source == start)
        }

    def _scope(
        self,
        task_id: str,
        routine: str,
        around: dict[str, Got],
        whole: Sequence[str] = (),
        *,
        reports: bool = False,
    ) -> None:
        """Run a task, what descends from it, and then the gathers of its scope."""
        own = [*whole, *(slot for slot, split in self.splits.items() if split == routine)]
        # A gather comes after those from which it gets deliveries.
        own.sort(key=self._gathers().index)
        own.sort(key=lambda slot: sum(slot in self._below(other) for other in self._gathers()))
        inner = {**around, **{slot: ([], [], []) for slot in own}}
        self._run(task_id, routine, inner, reports=reports)
        for slot in own:
            self.got[task_id, slot] = inner[slot]
            self._scope(f"{task_id}.g({slot})", slot, inner)

    def _run(self, task_id: str, routine: str, around: dict[str, Got], *, reports: bool) -> None:
        self.tasks.add(task_id)
        node = self.flow.routines[routine]
        assert isinstance(node, Node)
        fails = self.behaviour.fails(task_id)
        emitted: list[tuple[str, object, bool]] = []
        if fails and "error" in node.events and not reports:
            emitted.append(("error", None, True))
        self.stops |= fails and node.stops
        if fails and not node.stops:
            for slot, got in around.items():
                if self._delivers(routine, slot):
                    got[2].append(task_id)
        else:
            sent = self.behaviour.emits(task_id, node)
            emitted += [(event, {"n": n}, reports) for event, n in sent]
        number = 0
        for event, payload, below in emitted:
            for c in self.flow.connections:
                if (c.source, c.event) != (routine, event):
                    continue
                if c.slot == "all":
                    around[c.target][0].append(payload)
                    around[c.target][1].append((routine, event))
                else:
                    self._scope(f"{task_id}.{number}", c.target, around, reports=below)
                number += 1

    def _delivers(self, routine: str, slot: str) -> bool:
        """Whether a task of `routine` could still deliver to the gather that is open around it."""
        split, found, todo = self.splits.get(slot), {routine}, [routine]
        while todo:
            name = todo.pop()
            if name == split and name != routine:
                continue
            steps = [c for c in self.flow.connections if c.source == name]
            if any(c.target == slot and c.slot == "all" for c in steps):
                return True
            below = [c.target for c in steps if c.slot != "all"]
            below += [gather for gather, per in self.splits.items() if per == name]
            todo += [target for target in below if target not in found]
            found.update(below)
        return False


def plain_id(task_id: str, flow: Flow) -> str:
    """The id with the slot in place of the number of a gather."""
    gathers = flow.plan().gathers
    assert gathers is not None
    return re.sub(r"g(\d+)", lambda m: f"g({gathers.slots[int(m[1])].routine_id})", task_id)


def random_flow(random: Random, kind: type[Node] = Node) -> tuple[Flow, dict[str, str]]:
    """A flow that starts with `a`, and its splits by the routine that gathers."""
    while True:
        names = "abcdefgh"[: random.randint(3, 8)]
        gathering = [name for name in names[1:] if random.random() < 0.5]
        errors = [name for name in names if random.random() < 0.3]
        splits = {name: random.choice(names) for name in gathering if random.random() < 0.6}
        flow = Flow("f", execution_strategy="concurrent", max_workers=random.choice([1, 2, 4]))
        for name in names:
            strategy = random.choice(["continue", "continue", "stop"])
            node = kind(gather=name in gathering, errors=name in errors, strategy=strategy)
            flow.add_routine(node, name, gather_per=splits.get(name))
        for source in names:
            for _ in range(random.choice([1, 2, 2, 3])):
                later = names[names.index(source) + 1 :] if random.random() < 0.8 else names
                target = random.choice(later or names)
                slot = "all" if target in gathering and random.random() < 0.7 else "trigger"
                with suppress(FlowDefinitionError):  # a gather that could reach itself
                    flow.connect(
                        source, random.choice([*flow.routines[source].events]), target, slot
                    )
        with suppress(FlowDefinitionError):  # a split that is not upstream
            gathers = flow.plan().gathers
            if gathers is None or gathers.uncovered("a") is not None:
                continue
            if sum("a" in gather.entries for gather in gathers.slots) > random.randrange(3):
                return flow, splits


def gather_ids(job: Any) -> Iterator[str]:
    """The ids of the gathers that a job has created."""
    for commit in job.commits:
        yield from (task.task_id for task in commit.tasks if task.emission == -2)
