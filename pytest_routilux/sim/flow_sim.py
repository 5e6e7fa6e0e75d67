"""`flow_sim`: runs, crashes and checks a user's flow, in one line of a test.

Laws:
- What is asked for is done whole: a point that was planned and not executed fails the test, and so
  does a fault that never struck.
- A failure is the smallest that keeps its kind, its routine and the place where it shows.
- A reproducer fails, is fixed, or is stale; stale is an error.
- The doubles of effects, the faults and the order of work are the test's; nothing is left to
  chance.
"""

from __future__ import annotations

from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING, Final

import pytest

from pytest_routilux.faults.faults import NEVER_STRUCK, Fault
from pytest_routilux.report.run_facts import facts_of
from pytest_routilux.settings import report_look
from pytest_routilux.sim.determinism.check import check_determinism
from pytest_routilux.sim.determinism.swallowed_crash import swallowed_crash
from pytest_routilux.sim.explain.explain import explain_cause, not_compared
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.repro import Repro, Stale, command
from pytest_routilux.sim.results import Checks, Coverage, Exploration, Outcome
from pytest_routilux.sim.shrink import Cause, shrink
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import Case, World
from pytest_routilux.sim.simulator.scheduler import FIFO, SeededScheduler
from pytest_routilux.sim.simulator.store_files import checked_store
from pytest_routilux.text import error_text, shorten
from routilux import Flow, FlowDefinitionError
from routilux.clocks.durations import instant_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_routilux.sim.simulator.model import CrashPoint, Finding, OpenStore
    from routilux import JobState

__all__ = ["START", "FlowSim"]

_PATCHES: Final = frozenset({"mocker", "monkeypatch"})
START: Final = instant_ns("2026-01-01")
"""What the wall clock shows when a simulated job starts (UTC nanoseconds)."""
_LONGEST_ERROR: Final = 70
_TIED: Final = "\u00a0"  # a blank at which no line ends


class FlowSim:
    """Simulates jobs of flows; the fixture `flow_sim`.

    `build` makes a fresh flow each time it is called. `faults` are those of `flow_faults`. Handlers
    run in this process, in virtual time; what they do outside goes through doubles made by
    `effect`, or really happens, as often as they are run.

        def test_orders_survive(flow_sim):
            flow_sim.crash_everywhere(build_orders, entry="orders", params={"id": 7})
    """

    def __init__(self, node: pytest.Item, repro: str | None) -> None:
        self._node = node
        self._repro = None if repro is None else Repro.parse(repro)
        self._stale: list[str] = []
        self._taken = False

    def effect(
        self, name: str, key: str | None = None, returns: Callable[..., object] | None = None
    ) -> Effect:
        """Return a double of an external call, to stand in its place during the test.

        It records its inputs, its key and the virtual time. `key` is the name of the parameter that
        carries the idempotency key. `returns` gives the result for the same arguments.
        """
        return Effect(name, key, returns)

    def run(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        seed: int | None = None,
        faults: Sequence[Fault] = (),
    ) -> Outcome:
        """Run one job without a crash, and return how it ended and what it did outside.

        `seed` lets steps start and end in another order, the same for the same seed. Raises what
        ended the job from outside, such as a failing store.
        """
        __tracebackhide__ = True
        case = _case(build, entry, params, slot, faults)
        world = World(START)
        for fault in faults:
            fault.begin(0)
        host = run_host(case, world, scheduler=FIFO if seed is None else SeededScheduler(seed))
        if host.error is not None:
            raise host.error
        _refuse_idle(faults)
        assert host.job is not None
        facts_of(self._node).add_simulated_job(host.job)
        return Outcome(host.job, world.calls)

    def crash_everywhere(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        faults: Sequence[Fault] = (),
        invariant: Callable[[Outcome], object] | None = None,
        always: Callable[[JobState], object] | None = None,
        view: Callable[[Outcome], object] | None = None,
        isolated: bool = True,
        store: OpenStore | None = None,
    ) -> Coverage:
        """Let a host die at every point of a job, and prove that others bring it to the same end.

        That end may be a failure. The terminal says so where none of the following is given.
        `invariant` must hold of every outcome and `always` of the job after every commit: where
        they don't, they fail an assertion, or return something false that is not None. `view` gives
        what is compared with the undisturbed run, in place of all that a user can see. A sample of
        the hosts lives in forks of this process, so that progress in module globals is found;
        `isolated=False` leaves that out, for flows that hold a connection which a fork would spoil.
        `store` opens a real store in the file at a path, such as `SqliteStore`: then each host has
        nothing but the files, as they stood when the one before it died, and opens them anew.
        Returns what was tried; fails the test with the smallest cause of what it finds first.
        """
        __tracebackhide__ = True
        for name, check in (("invariant", invariant), ("always", always), ("view", view)):
            if check is not None and not callable(check):
                raise FlowDefinitionError(f"{name}={check!r} can't be called; give a function")
        case = _case(build, entry, params, slot, faults, always, store)
        checks = Checks(invariant, view, isolated)
        again = None if self._repro is None else self._again(case, checks, self._repro)
        if isinstance(again, Stale):
            # Perhaps it is of another simulation of the test, which this one must not keep from it.
            self._stale.append(again.reason)
            again = None
        case, result = again or (case, explore(case, START, checks))
        self._taken = self._taken or again is not None
        asked = (invariant, always, view) != (None, None, None)
        self._tell(result, self._repro if again else None, asked=asked)
        self._judge(case, checks, result)
        if again is None and (finding := swallowed_crash(case, START, isolated=isolated)):
            self._fail(case, checks, finding)
        _refuse_idle(case.faults)
        coverage = result.coverage
        if coverage.planned != coverage.executed:
            pytest.fail(
                f"{coverage.word}: planned {dict(coverage.planned)}, executed"
                f" {dict(coverage.executed)}; a crash that did not happen proves nothing. Where a"
                " flow does not do the same again, check_determinism tells why",
                pytrace=False,
            )
        return coverage

    def check_determinism(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        faults: Sequence[Fault] = (),
    ) -> None:
        """Prove that a job does the same again: with the same decisions, the same records.

        With another start instant, other ids and other random numbers of `ctx` only values may
        differ, not what is done; with another hash seed nothing may. Fails the test with the first
        record that differs, and the call that made it.
        """
        __tracebackhide__ = True
        case = _case(build, entry, params, slot, faults)
        # A fresh interpreter would call what the test has patched away.
        patched = not _PATCHES.isdisjoint(getattr(self._node, "fixturenames", ()))
        coverage = Coverage()
        finding = check_determinism(case, START, fresh=not patched, coverage=coverage)
        if finding is not None:
            self._fail(case, Checks(), finding)
        _refuse_idle(case.faults)
        self._report("  🔁 the same again", coverage.notes)

    def close(self) -> None:
        """Fail where no call took the reproducer that was given."""
        if self._repro is not None and not self._taken:
            reasons = self._stale or ["the test makes no simulation"]
            pytest.fail(
                f"STALE: {self._repro} reaches nothing any more: {'; '.join(reasons)}."
                " Run the test without --routilux-repro to look for the bug anew",
                pytrace=False,
            )

    def _again(self, case: Case, checks: Checks, repro: Repro) -> tuple[Case, Exploration] | Stale:
        if repro.seed is not None:
            return Stale("crash_everywhere does all in FIFO order, and it names a seed")
        applied = repro.applied(case, case.build())
        if isinstance(applied, Stale):
            return applied
        stale: list[Stale] = []

        def choose(points: list[CrashPoint]) -> list[CrashPoint]:
            if repro.place is None:
                return []
            point = repro.point(points)
            if isinstance(point, Stale):
                stale.append(point)
                return []
            return [point]

        result = explore(applied, START, checks, choose)
        return stale[0] if stale else (applied, result)

    def _tell(self, result: Exploration, repro: Repro | None, *, asked: bool) -> None:
        ends = _end(result)
        coverage = result.coverage
        failed = bool(result.failures) or result.reference.finding is not None
        verdict = "fails" if failed else "fixed"
        facts_of(self._node).add_simulation(
            {
                "planned": dict(coverage.planned),
                "executed": dict(coverage.executed),
                "word": coverage.word,
                "runs": coverage.runs,
                "seconds": coverage.seconds,
                "repro": None if repro is None else f"{repro}: {verdict}",
                "ends": None if asked or failed else ends,
            }
        )
        if not failed:
            self._report(*_told(result))

    def _report(self, head: str, more: Sequence[str]) -> None:
        width, _ = report_look(self._node.config)
        lines = [line for text in more for line in wrap(text, width - 5)]
        told = "\n".join([head, *(f"     {line}".replace(_TIED, " ") for line in lines)])
        facts_of(self._node).parts.append(told)

    def _judge(self, case: Case, checks: Checks, result: Exploration) -> None:
        __tracebackhide__ = True
        known = result.reference
        if known.finding is None and not result.failures:
            return
        cause = shrink(result, case, START, checks)
        repro = Repro.of(case, known.run.host.flow, cause.point, faults=cause.faults)
        text = explain_cause(
            cause, case, report_look(self._node.config)[0], repro=command(self._node.nodeid, repro)
        )
        pytest.fail(text, pytrace=False)

    def _fail(self, case: Case, checks: Checks, finding: Finding) -> None:
        """Fail by what no crash is needed to show."""
        __tracebackhide__ = True
        coverage = Coverage()
        known = replace(run_reference(case, START, checks, coverage), finding=finding)
        numbers = tuple(range(1, len(case.faults) + 1))
        cause = Cause(None, finding, numbers, Exploration(known, [], coverage))
        columns = report_look(self._node.config)[0]
        pytest.fail(explain_cause(cause, case, columns, repro=None), pytrace=False)


def _case(
    build: Callable[[], Flow],
    entry: str,
    params: Mapping[str, object] | None,
    slot: str,
    faults: Sequence[Fault],
    always: Callable[[JobState], object] | None = None,
    store: OpenStore | None = None,
) -> Case:
    __tracebackhide__ = True
    if not callable(build):
        raise FlowDefinitionError(
            f"build is called anew for every run: give the function, and not what it returns,"
            f" {build!r}"
        )
    if isinstance(faults, Fault) or not all(isinstance(fault, Fault) for fault in faults):
        raise FlowDefinitionError(
            f"faults is a list of faults that flow_faults has made, not {faults!r}"
        )
    flow = build()
    if not isinstance(flow, Flow):
        raise FlowDefinitionError(f"build() returned {flow!r}, which is no Flow")
    for fault in faults:
        fault.used = True
        fault.struck = 0  # what it hit in another simulation proves nothing of this one
        fault.check(flow)
    open_store = None if store is None else checked_store(store)
    return Case(build, entry, params, slot, faults=tuple(faults), always=always, store=open_store)


def _refuse_idle(faults: Sequence[Fault]) -> None:
    idle = [fault for fault in faults if not fault.struck]
    if idle:
        pytest.fail(
            NEVER_STRUCK.format(", ".join(map(repr, idle))),
            pytrace=False,
        )


def _told(result: Exploration) -> tuple[str, list[str]]:
    """Return how much was tried, and what it does not prove."""
    coverage, known = result.coverage, result.reference
    rate = coverage.runs / coverage.seconds if coverage.seconds else 0
    head = (
        f"  💥 {coverage.executed.total()} of {coverage.planned.total()} crash points,"
        f" {coverage.word}, {coverage.seconds:.2f} s ({rate:,.0f} runs/s)"
    )
    counts = [f"{count} {kind}".replace(" ", _TIED) for kind, count in coverage.executed.items()]
    end = _end(result)
    ends = [] if end is None else [f"the undisturbed job failed: {end}"]
    return head, [" · ".join(counts), *coverage.notes, *ends, *not_compared(known)]


def _end(result: Exploration) -> str | None:
    """Return by what error the undisturbed job failed, if it did."""
    error = result.reference.run.job.error
    if error is None:
        return None
    return shorten(" ".join(error_text(error).split()), _LONGEST_ERROR)
