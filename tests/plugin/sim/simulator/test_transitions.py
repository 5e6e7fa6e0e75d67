"""Each rule that keeps two transitions apart saves an outcome that the search would lose.

Every flow here loses one if one line of `transitions` is changed. A task that reads `k` calls a
double without a key, so that its conflicts show: they repeat the call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import pytest

from pytest_routilux.sim.oracle import canonical, view_of
from pytest_routilux.sim.orders import search
from pytest_routilux.sim.orders.search import Search
from pytest_routilux.sim.simulator import transitions
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import ErrorHandler, Flow, JobStatus, Routine
from tests.plugin.sim.steps import START
from tests.routines import Body, rest, send, sends
from tests.soak import sampled

call = Effect("service.call")


class Part(Routine):
    """A routine with a plain slot and a gather, either of which may be unused."""

    def __init__(self, body: Body, joined: Body, most: int) -> None:
        super().__init__()
        self.max_concurrency = most
        self.define_slot("trigger", handler=lambda n=0: body(self, n))
        self.define_slot("all", handler=lambda found: joined(self, len(found)), gather=True)
        self.define_event("out", ["n"])
        self.set_error_handler(ErrorHandler("retry", max_retries=1, retry_delay=0))


@dataclass(frozen=True)
class Small:
    """A flow: arrows such as `go>a`, a body for each routine, and how many steps may run.

    `joins` are the bodies of gathers; an arrow `a>>j` leads to one. A routine of `narrow` runs one
    step at a time.
    """

    arrows: str
    bodies: Mapping[str, Body]
    joins: Mapping[str, Body] = field(default_factory=dict)
    narrow: Collection[str] = ()
    workers: int = 4
    ordered: bool = False

    def build(self) -> Flow:
        flow = Flow("small", execution_strategy="concurrent", max_workers=self.workers)
        for name in {"go": send} | dict(self.bodies) | dict(self.joins):
            body, joined = self.bodies.get(name, send), self.joins.get(name, rest)
            flow.add_routine(Part(body, joined, 1 if name in self.narrow else 8), name)
        for arrow in self.arrows.split():
            first, slot, then = arrow.partition(">>" if ">>" in arrow else ">")
            flow.connect(first, "out", then, "all" if slot == ">>" else "trigger")
        return flow

    def outcomes(self, *, prunes: bool) -> set[str]:
        """Return what all orders show: shared data, calls, and the order of events if it counts."""
        plan = self.build().plan()
        case = Case(self.build, "go")
        orders = Search(case, START, plan, prunes=prunes, ordered=self.ordered)
        found: set[str] = set()
        for world, hosts, _ in orders.runs():
            job = hosts[-1].job
            assert job is not None
            assert job.status == JobStatus.COMPLETED, job.error
            calls = [one.arguments for one in world.calls]
            sent = [one.payload for commit in job.commits for one in commit.emissions]
            if not self.ordered:
                calls, sent = sorted(calls, key=canonical), []
            found.add(canonical([view_of(job, world)["shared"], calls, sent]))
        assert not orders.left
        assert orders.prunes == prunes
        return found


def reads(self: Any, n: object) -> None:
    saw = self.ctx.shared.get("k", 0)
    call(n)
    self.ctx.shared[f"{n} saw"] = saw


def writes(self: Any, n: object) -> None:
    self.ctx.shared["k"] = 1


def calls(self: Any, n: object) -> None:
    call(n)


def appends(name: str, *then: Body) -> Body:
    def body(self: Any, n: object) -> None:
        self.ctx.shared.append("list", name)
        for part in then:
            part(self, n)

    return body


def fails_once(self: Any, n: object) -> None:
    if self.ctx.attempt == 1:
        raise ValueError(n)
    self.emit("out", n=n)


def for_late(early: Body, late: Body) -> Body:
    """A body that does one thing, or the other if `n` is "late"."""
    return lambda self, n: late(self, n) if n == "late" else early(self, n)


BY_N: Mapping[object, Body] = {0: fails_once, "early": rest, "late": reads}
LATE = appends("e", sends("late"))
FLOWS = {
    "two tasks create more than there are workers": Small(
        "go>x go>y x>p y>w y>q",
        {"x": sends("r1", "r2"), "y": send, "p": reads, "w": writes, "q": rest},
        workers=3,
    ),
    "a task that starts a gather takes a worker, too": Small(
        "go>x go>y x>p x>>j y>w y>q",
        {"x": send, "y": send, "p": reads, "w": writes, "q": rest},
        {"j": reads},
        workers=3,
    ),
    "a task waits for a worker, and one comes after it": Small(
        "go>a go>x go>y go>z x>p y>b",
        {
            "a": rest,
            "x": sends(1, 2),
            "p": rest,
            "y": appends("y", send),
            "z": appends("z", writes),
            "b": reads,
        },
    ),
    "two tasks of one narrow routine": Small(
        "go>x go>y x>r y>r",
        {"x": sends("x"), "y": sends("y"), "r": lambda self, n: appends(str(n))(self, n)},
        narrow=["r"],
    ),
    "a task waits for a narrow routine, and its start moves": Small(
        "go>r go>e go>d e>r",
        {"r": for_late(rest, reads), "e": LATE, "d": appends("d", writes)},
        narrow=["r"],
    ),
    "a task no longer waits for a narrow routine": Small(
        "go>e go>r go>d e>r",
        {"e": sends("late"), "r": for_late(appends("r"), reads), "d": appends("d", writes)},
        narrow=["r"],
    ),
    "a task of a narrow routine has failed before": Small(
        "go>r r>m m>r m>e m>d e>r",
        {
            "r": lambda self, n: BY_N[n](self, n),
            "m": sends("early"),
            "e": LATE,
            "d": appends("d", writes),
        },
        narrow=["r"],
    ),
    "another task is the last that a gather waits for": Small(
        "go>a go>b a>>j b>>j b>c", {"a": send, "b": send, "c": writes}, {"j": reads}
    ),
    "a gather calls a service when its last task ends": Small(
        "go>a go>b go>d a>>j b>>j d>c",
        {"a": rest, "b": sends("b"), "d": sends("d"), "c": calls},
        {"j": calls},
        ordered=True,
    ),
    "a gather waits for its own routine": Small(
        "go>j go>a go>d a>>j",
        {"j": rest, "a": appends("a", send), "d": appends("d", writes)},
        {"j": reads},
        narrow=["j"],
    ),
}


@cache
def every_outcome(name: str) -> set[str]:
    return FLOWS[name].outcomes(prunes=False)


QUICK = [name for name in FLOWS if name != "a task waits for a worker, and one comes after it"]


@pytest.mark.parametrize("name", sampled(FLOWS, QUICK))
def test_pruning_loses_no_outcome(name):
    assert FLOWS[name].outcomes(prunes=True) == every_outcome(name)


FAULTS: Mapping[str, tuple[str, str]] = {
    "two tasks create more than there are workers": ("+ starts > trace.width", "> trace.width"),
    "a task that starts a gather takes a worker, too": (" + len(a.joins | b.joins)", ""),
    "a task waits for a worker, and one comes after it": (
        "if alone or self._flights + len(options) > self.width:",
        "if alone:",
    ),
    "two tasks of one narrow routine": ("> trace.limits[name]", "> 99"),
    "a task waits for a narrow routine, and its start moves": (
        "a.starts & (b.starts | b.freed)",
        "a.starts & b.starts",
    ),
    "a task no longer waits for a narrow routine": (" | (b.starts & a.freed)", ""),
    "a task of a narrow routine has failed before": ("done=commit.kind not in _AGAIN", "done=True"),
    "another task is the last that a gather waits for": (
        "current.reads.add(_ALL_SHARED)\n            self.deliver",
        "self.deliver",
    ),
    "a gather calls a service when its last task ends": (
        "current.reads.add(_ALL_SHARED)\n            self.deliver_call()",
        "current.reads.add(_ALL_SHARED)",
    ),
    "a gather waits for its own routine": ("{*self.created, *self.joins}", "{*self.created}"),
}


@pytest.mark.parametrize("name", sampled(FLOWS, QUICK))
def test_without_its_rule_an_outcome_is_lost(name, monkeypatch):
    changed = changed_module(*FAULTS[name], monkeypatch)
    for part in ("Trace", "commute"):
        monkeypatch.setattr(search, part, getattr(changed, part))
    assert FLOWS[name].outcomes(prunes=True) < every_outcome(name)


def changed_module(old: str, new: str, monkeypatch: Any) -> ModuleType:
    """Return `transitions` with one change of its text."""
    text = inspect.getsource(transitions)
    assert text.count(old) == 1, f"the text occurs {text.count(old)} times"
    module = ModuleType("changed_transitions")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look for it there
    exec(compile(text.replace(old, new), transitions.__file__, "exec"), vars(module))
    return module


# --- what needs no order --------------------------------------------------------------------------


def runs_of(flow: Small) -> int:
    plan = flow.build().plan()
    return sum(1 for _ in Search(Case(flow.build, "go"), START, plan).runs())


FAN = {"go": sends(0, 1, 2), "w": send}
INDEPENDENT: Mapping[str, Small] = {
    "tasks that do nothing": Small("go>w", FAN),
    "tasks and their gather": Small("go>w w>>j", FAN, {"j": rest}),
    "tasks, each with one after it": Small("go>w w>j", {**FAN, "j": rest}),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_tasks_that_never_meet_run_in_one_order(name):
    assert runs_of(INDEPENDENT[name]) == 1
