"""Families of documents and journals whose reading could cost more than their bytes.

Each family grows one dimension of a document; two of them multiply if a reader visits all of one
for each of the other. Reading must stay in proportion to the bytes, or refuse with a place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from routilux import Commit, CommitKind, Flow, JobState, JobStatus, Routine, SavedState
from routilux.codec import signature
from routilux.graph.messages import (
    GATHER,
    ROOT,
    Emission,
    ErrorInfo,
    RecordedEffect,
    Task,
    Writes,
)
from routilux.graph.patches import Patch
from tests.fuzz.mutants import Document, Rows, rows_of
from tests.fuzz.values import VALUES, set_of

_NODE: Final = "families/node"
_AT: Final = 1_767_225_600 * 10**9
_MARK: Final = "@value@"


class Node(Routine):
    """A routine with as many event fields as its saved arguments say."""

    routine_name = _NODE

    def __init__(self, fields: list[str] = [], *, keep: object = None) -> None:  # noqa: B006
        super().__init__()
        self.define_slot("trigger", handler=self.handle)
        self.define_event("out", fields)
        self.define_event("error", ["message"])

    def handle(self, **payload: object) -> None:
        pass


class Gather(Routine):
    """A routine that gathers."""

    routine_name = f"{_NODE}/rows"

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("all", handler=self.handle, gather=True)

    def handle(self, found: object) -> None:
        pass


# --- jobs -----------------------------------------------------------------------------------------


class Story:
    """Makes the commits of a job of one routine `a`."""

    def __init__(self, routines: int = 1, *, gather: bool = False, **params: object) -> None:
        self.flow = Flow("families")
        for i in range(routines):
            self.flow.add_routine(Node(), f"r{i}" if i else "a")
        self.job = JobState("job-1")
        tasks = (Task("0", "a", "trigger", params, False, ROOT),)
        if gather:
            self.flow.add_routine(Gather(), "rows")
            tasks[0].keeps = ("0.g0",)
            tasks += (Task("0.g0", "rows", "all", {"found": []}, False, GATHER),)
        plan = self.flow.plan()
        detail = {"flow_id": "families", "shape": list(plan.shape), "routines": list(plan.routines)}
        self._fold(CommitKind.START, tasks=tasks, detail=detail)

    def _fold(self, kind: CommitKind, status: JobStatus = JobStatus.RUNNING, **more: Any) -> None:
        self.job.fold(Commit(self.job.seq + 1, kind, _AT, status, **more))

    def step(self, kind: CommitKind, task: str = "0", attempt: int = 1, **more: Any) -> None:
        step = {"task_id": task, "routine_id": "a", "attempt": attempt, "started_ns": _AT}
        self._fold(kind, **step, **more)

    def spread(self, count: int, task: str = "0", payload: dict[str, Any] | None = None) -> None:
        """End a task that creates `count` tasks by one emission."""
        emission = Emission("out", payload or {}, False)
        keeps = self.job._pending[task].task.keeps
        tasks = [
            Task(f"{task}.{i}", "a", "trigger", emission.payload, False, 0, keeps)
            for i in range(count)
        ]
        self.step(CommitKind.DONE, task, emissions=(emission,), tasks=tuple(tasks))

    def retry(self, task: str, attempt: int, delay: int) -> None:
        error = ErrorInfo("E", "m")
        self.step(CommitKind.RETRY, task, attempt, error=error, delay_ns=delay, due_ns=_AT + delay)

    def fail(self, task: str, attempt: int = 1) -> None:
        self.step(
            CommitKind.FAILED, task, attempt, status=JobStatus.FAILED, error=ErrorInfo("E", "m")
        )

    def resume(self, *, retry_failed: bool = False, **shape: Any) -> None:
        detail = {"recoveries": 0, "retry_failed": retry_failed, **shape}
        self._fold(CommitKind.RESUMED, detail=detail)


def _resumed(n: int) -> Story:
    story = Story()
    story.spread(n)
    for _ in range(n):
        story.resume()
    return story


def _waiting_and_resumed(n: int) -> Story:
    story = Story()
    story.spread(n)
    for i in range(n):
        story.retry(f"0.{i}", 1, 10**15)
    for _ in range(n):
        story.resume()
    return story


def _failed_and_resumed(n: int) -> Story:
    story = Story()
    story.spread(n)
    for i in range(n):
        story.fail("0.0", i + 1)
        story.resume(retry_failed=True)
    return story


def _all_failed_and_resumed(n: int) -> Story:
    story = Story()
    story.spread(n)
    for i in range(n):
        story.fail(f"0.{i}")
    for _ in range(n):
        story.resume()
    return story


def _retried_and_resumed(n: int) -> Story:
    story = Story()
    story.spread(n + 1)
    for i in range(n):
        story.retry(f"0.{i}", 1, 0)
        story.step(CommitKind.DONE, f"0.{i}", 2)
    for _ in range(n):
        story.resume()
    return story


def _many_effects(n: int) -> Story:
    story = Story()
    for i in range(n):
        story.step(CommitKind.EFFECT, detail={"name": f"e{i}"}, effect=RecordedEffect("", i))
    return story


def _written_state(shared: bool) -> Callable[[int], Story]:
    def made(n: int) -> Story:
        story = Story()
        story.spread(n)
        large = Writes({f"k{i}": i for i in range(n)})
        for i in range(n - 1):
            writes = Writes({f"k{i}": -i}) if i else large
            story.step(CommitKind.DONE, f"0.{i}", **{"shared" if shared else "state": writes})
        return story

    return made


def _removed(n: int) -> Story:
    story = Story()
    story.spread(n)
    for i in range(n - 1):
        writes = Writes({}, (f"k{i}",)) if i else Writes({f"k{i}": i for i in range(n)})
        story.step(CommitKind.DONE, f"0.{i}", shared=writes)
    return story


def _patched(patch: Callable[[int], Patch], first: object) -> Callable[[int], Story]:
    """Steps that change one value of the state, each with a patch."""

    def made(n: int) -> Story:
        story = Story()
        story.spread(n)
        for i in range(n - 1):
            writes = Writes({}, (), {"x": [patch(i)]}) if i else Writes({"x": first})
            story.step(CommitKind.DONE, f"0.{i}", state=writes)
        return story

    return made


def _shared_payload(n: int) -> Story:
    story = Story()
    story.spread(n, payload={"x": "y" * n})
    for i in range(n - 1):
        story.step(
            CommitKind.DROPPED, f"0.{i}", error=ErrorInfo("E", "m"), detail={"as": "skipped"}
        )
    return story


def _outputs(n: int) -> Story:
    story = Story()
    story.spread(n)
    for i in range(n - 1):
        story.step(CommitKind.DONE, f"0.{i}", emissions=(Emission("out", {"i": i}, True),))
    return story


def _retries(n: int) -> Story:
    story = Story()
    for i in range(n):
        story.retry("0", i + 1, 0)
    return story


def _conflicts(n: int) -> Story:
    story = Story()
    for _ in range(n):
        story.step(CommitKind.CONFLICT)
    return story


def _generations(n: int) -> Story:
    story = Story()
    story.spread(n)
    story.spread(n, task="0.0")
    return story


def _deliver(story: Story, task: str, *, again: str | None = None) -> None:
    emission = Emission("out", {"task": task}, True)
    tasks = [Task(f"{task}.0", "rows", "all", emission.payload, True, 0, (), "0.g0")]
    if again is not None:
        tasks.append(Task(again, "a", "trigger", emission.payload, True, 0, ("0.g0",)))
    story.step(CommitKind.DONE, task, emissions=(emission,), tasks=tuple(tasks))


def _fanned_out(n: int) -> Story:
    """A step of many emissions, each of which makes two tasks, which end alike."""
    story = Story()
    emissions = [Emission("out", {"n": i}, True) for i in range(n)]
    tasks = [
        Task(f"0.{2 * i + k}", "a", "trigger", emission.payload, True, i)
        for i, emission in enumerate(emissions)
        for k in range(2)
    ]
    story.step(CommitKind.DONE, emissions=tuple(emissions), tasks=tuple(tasks))
    for i in range(2 * n - 1):
        patch = {"x": [Patch("extend", [i])]}
        story.step(CommitKind.DONE, f"0.{i}", state=Writes({"last": i}, (), patch))
    return story


def _gathered(n: int) -> Story:
    story = Story(gather=True)
    story.spread(2 * n)
    for i in range(0, 2 * n - 1, 2):
        _deliver(story, f"0.{i}")
        detail: dict[str, object] = {"as": "skipped"}
        if i:
            story.step(CommitKind.DROPPED, f"0.{i + 1}", error=ErrorInfo("E", "m"), detail=detail)
    return story


def _gathered_deep(n: int) -> Story:
    story = Story(gather=True)
    last = "0"
    for i in range(n):
        _deliver(story, last, again=f"p.{i}")
        last = f"p.{i}"
    return story


def _long_id(n: int) -> Story:
    long = "x" * 10 * n
    error, tasks = Emission("error", {"message": "m"}, True), []
    story = Story()
    story.step(
        CommitKind.DONE, emissions=(error,), tasks=(Task(long, "a", "trigger", {}, True, 0),)
    )
    prefix = f"~{hashlib.sha256(long.encode()).hexdigest()[:16]}"
    tasks = [Task(f"{prefix}.{i}", "a", "trigger", error.payload, True, 0) for i in range(n)]
    failed = {"status": JobStatus.FAILED, "error": ErrorInfo("E", "m")}
    story.step(CommitKind.FAILED, long, emissions=(error,), tasks=tuple(tasks), **failed)
    return story


JOBS: Final[dict[str, Callable[[int], Story]]] = {
    "tasks and resumes": _resumed,
    "waiting tasks and resumes": _waiting_and_resumed,
    "failed tasks and resumes": _failed_and_resumed,
    "many failed tasks and resumes": _all_failed_and_resumed,
    "ended retries and resumes": _retried_and_resumed,
    "effects": _many_effects,
    "writes to a large state": _written_state(False),
    "writes to large shared data": _written_state(True),
    "removals from large shared data": _removed,
    "items added to a list": _patched(lambda i: Patch("extend", [i]), []),
    "items added to a set": _patched(lambda i: Patch("union", {i}), set()),
    "changes of a large dict": _patched(
        lambda i: Patch("entries", ({f"k{i}": i}, [], {})), {f"k{i}": 0 for i in range(9)}
    ),
    "changes within a large list": _patched(
        lambda i: (
            Patch("extend", [[i]])
            if i % 2
            else Patch("entries", ({}, [], {0: Patch("extend", [i])}))
        ),
        [[]],
    ),
    "a payload of many tasks": _shared_payload,
    "emissions of one step": _fanned_out,
    "outputs": _outputs,
    "retries": _retries,
    "conflicts": _conflicts,
    "two generations of tasks": _generations,
    "a long id of a failed task with tasks": _long_id,
    "deliveries of many tasks to a gather": _gathered,
    "deliveries of tasks that follow each other": _gathered_deep,
    "routines": lambda n: Story(n),
}
"""Jobs that could have run, which grow with the given number."""


# --- flows ----------------------------------------------------------------------------------------


def _entry(name: str, fields: int = 0) -> dict[str, Any]:
    return {
        "id": name,
        "routine": _NODE,
        "args": [[f"f{i}" for i in range(fields)]],
        "kwargs": {},
        "error_handler": None,
    }


def _edge(
    source: str, target: str, mapping: dict[str, str] | None = None, event: str = "out"
) -> dict[str, Any]:
    return {
        "source": source,
        "event": event,
        "target": target,
        "slot": "trigger",
        "param_mapping": mapping or {},
    }


def _handler(n: int) -> dict[str, Any]:
    return {
        "strategy": "retry", "max_retries": 3, "retry_delay": 1.0, "retry_backoff": 2.0,
        "retryable_exceptions": ["builtins:OSError"] * n,
        "non_retryable_exceptions": [f"builtins:ValueError{'.x' * n}"],
        "max_delay": None, "jitter": 0.0, "timeout": None, "deadline": None,
        "on_exhausted": "stop", "retry_count": 0,
    }  # fmt: skip


def _ring(n: int) -> dict[str, Any]:
    names = ["a", *(f"r{i}" for i in range(1, n))]
    edges = [_edge(a, b) for a, b in zip(names, [*names[1:], "a"], strict=True)]
    return {"routines": [_entry(name) for name in names], "connections": edges}


def _fan(n: int) -> dict[str, Any]:
    names = ["a", *(f"r{i}" for i in range(1, n))]
    return {
        "routines": [_entry(name) for name in names],
        "connections": [_edge("a", name) for name in names],
    }


def _nowhere(n: int) -> dict[str, Any]:
    names = ["a", *(f"r{i}" for i in range(1, n))]
    return {
        "routines": [_entry(name) for name in names],
        "connections": [_edge(name, f"x{i}") for i, name in enumerate(names)],
    }


def _wide_event(mapping: Callable[[int], dict[str, str]], n: int) -> dict[str, Any]:
    names = ["a", *(f"r{i}" for i in range(1, n))]
    return {
        "routines": [_entry("a", n), *(_entry(name) for name in names[1:])],
        "connections": [_edge("a", name, mapping(i)) for i, name in enumerate(names)],
    }


FLOWS: Final[dict[str, Callable[[int], dict[str, Any]]]] = {
    "a ring": _ring,
    "one source": _fan,
    "connections to nowhere": _nowhere,
    "the same connection": lambda n: {
        "routines": [_entry("a")], "connections": [_edge("a", "a")] * n,
    },
    "a wide event": lambda n: _wide_event(lambda _: {}, n),
    "a wide event that is renamed": lambda n: _wide_event(lambda i: {f"f{i}": "other"}, n),
    "a wide event that is renamed twice": lambda n: _wide_event(
        lambda i: {f"f{i}": f"f{i - 1}"}, n
    ),
    "an unknown field of a wide event": lambda n: _wide_event(lambda i: {f"x{i}": "y"}, n),
    "an unknown event": lambda n: {
        "routines": [_entry("a", n)],
        "connections": [_edge("a", "a", {}, f"x{i}") for i in range(n)],
    },
    "a mapping": lambda n: {
        "routines": [_entry("a", n)],
        "connections": [_edge("a", "a", {f"f{i}": f"g{i}" for i in range(n)})],
    },
    "exception classes": lambda n: {
        "routines": [{**_entry("a"), "error_handler": _handler(n)}], "connections": [],
    },
    "arguments": lambda n: {"routines": [{**_entry("a"), "args": [[]] * n}], "connections": []},
    "named arguments": lambda n: {
        "routines": [{**_entry("a"), "kwargs": {f"k{i}": i for i in range(n)}}], "connections": [],
    },
    "kept arguments": lambda n: {
        "routines": [{**_entry("a"), "kwargs": {"keep": set_of(range(n))}}], "connections": [],
    },
}  # fmt: skip
"""The routines and connections of a flow as JSON data, which grow with the given number."""


# --- documents ------------------------------------------------------------------------------------


@cache
def _base() -> tuple[str, str]:
    """Documents with a mark in the payload of a pending task, and in state that commits wrote."""
    waiting = Story(value=_MARK)
    kept = Story()
    kept.spread(1)
    kept.step(CommitKind.DONE, "0.0", state=Writes({"value": _MARK}), status=JobStatus.COMPLETED)
    texts = []
    for story in (waiting, kept):
        text = SavedState.capture(story.flow, story.job).to_bytes()
        texts.append(text[: text.index(b',\n"digest"')].decode())
    return texts[0], texts[1]


def _document(body: str) -> Document:
    text = signature.with_digest(body.encode())
    return Document(text, "anew", text)


def value_document(name: str, n: int, *, kept: bool = False) -> Document:
    """A document with a value, in a payload or, `kept`, in the state of a routine."""
    text = json.dumps(VALUES[name](n), ensure_ascii=False, separators=(",", ":"))
    return _document(_base()[kept].replace(f'"{_MARK}"', text))


def job_document(name: str, n: int) -> Document:
    story = JOBS[name](n)
    text = SavedState.capture(story.flow, story.job).to_bytes()
    return Document(text, "anew", text)


def job_rows(name: str, n: int) -> Rows:
    rows = rows_of(JOBS[name](n).job)
    return Rows(rows, rows)


def flow_document(name: str, n: int) -> Document:
    data = json.loads(_base()[0] + "}")
    data["flow"] |= FLOWS[name](n)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return _document(text[:-1])


@cache
def small_documents() -> tuple[bytes, ...]:
    """A small document of each family of jobs, and of flows that can be read."""
    jobs = [job_document(name, 7).text for name in JOBS]
    jobs.append(job_document("emissions of one step", 15).text)  # large enough for rows
    flows = [flow_document(name, 7) for name in FLOWS]
    return (*jobs, *(flow.text for flow in flows))


@cache
def small_journals() -> tuple[tuple[bytes, ...], ...]:
    return tuple(job_rows(name, 7).rows for name in JOBS)


def families() -> Iterator[tuple[str, Callable[[int], Document | Rows]]]:
    """All families by name; each is a function of its size."""
    for name in VALUES:
        yield f"value: {name}", lambda n, name=name: value_document(name, n)
        yield f"state: {name}", lambda n, name=name: value_document(name, n, kept=True)
    for name in JOBS:
        yield f"job: {name}", lambda n, name=name: job_document(name, n)
        yield f"rows: {name}", lambda n, name=name: job_rows(name, n)
    for name in FLOWS:
        yield f"flow: {name}", lambda n, name=name: flow_document(name, n)
