"""The fixture `flow_sim`: tests a flow with simulated crashes.

Invariants:
- A planned crash point that was not executed fails the test, and so does a fault that never struck.
- The reported failure has the smallest cause with the same kind, routine and first path.
- A reproducer fails, is fixed, or is stale; stale is an error.
- The test chooses the effects, the faults and the order of work; nothing happens by chance.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, Final

import pytest

from pytest_routilux.faults.faults import NEVER_STRUCK, Fault
from pytest_routilux.handler_assertions import ADVICE, failed_assertion
from pytest_routilux.report.progress import Progress
from pytest_routilux.report.run_facts import facts_of
from pytest_routilux.settings import assertions_count, report_look, search
from pytest_routilux.sim.determinism.check import UNTRIED, check_determinism
from pytest_routilux.sim.determinism.rerun import answer_request, rows_by_seed
from pytest_routilux.sim.determinism.swallowed_crash import swallowed_crash
from pytest_routilux.sim.explain.explain import explain_cause, not_compared
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.replay.jobs import replay_jobs
from pytest_routilux.sim.replay.report import explain_difference
from pytest_routilux.sim.repro import Repro, StaleError, repeat_command
from pytest_routilux.sim.results import (
    Checks,
    Coverage,
    CrashAt,
    Exploration,
    Outcome,
    Sample,
    Scope,
    checked_crashes,
    checked_schedules,
    checked_shard,
)
from pytest_routilux.sim.shrink import Cause, shrink
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.execution import run_host
from pytest_routilux.sim.simulator.model import ENDED, Case, World
from pytest_routilux.sim.simulator.scheduler import FIFO, Seeded, StaleTapeError
from pytest_routilux.sim.simulator.store_files import checked_store
from pytest_routilux.text import error_text, shorten
from routilux import Flow, FlowDefinitionError, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from pytest_routilux.sim.replay.judge import Replay
    from pytest_routilux.sim.results import Crashes, Schedules, Shard
    from pytest_routilux.sim.simulator.model import Finding, OpenStore
    from routilux import JobState, JobStore

_HASH_SEED: Final = "hash-seed"
_LONGEST_ERROR: Final = 70
_NO_BREAK_SPACE: Final = "\u00a0"


class FlowSim:
    """Simulates jobs of a test's flows.

    `build` makes a new flow each time it is called. `faults` are made by `flow_faults`. Handlers
    run in this process, in virtual time. Their external calls go through doubles made by `effect`;
    other external calls really happen, each time that a handler runs.

    A test with it::

        from routilux import ErrorHandler

        def test_orders_survive(flow_sim, flow_factory):
            pay = flow_sim.effect("pay", key="key")

            def charge(order):
                return {"receipt": pay(order, key=order)}

            def build():
                return flow_factory(chain=[charge], error_handler=ErrorHandler("retry"))

            coverage = flow_sim.crash_everywhere(build, entry="charge", params={"order": "A7"})
            assert coverage.word == "complete"
    """

    def __init__(self, node: pytest.Item, repro: str | None, start_ns: int) -> None:
        self._node = node
        self._start_ns = start_ns  # of the wall clock when a job starts
        self._assertions = assertions_count(node.config)
        self._search = search(node.config)
        self._progress = Progress(node.config)
        self._repro = None if repro is None else Repro.parse(repro)
        self._numbers: Counter[int] = Counter()  # of effects, by step
        self._stale: list[str] = []
        self._determinism = 0  # calls of `check_determinism`
        self._repeated = False

    def effect(
        self,
        name: str,
        key: str | None = None,
        returns: Callable[..., object] | None = None,
        *,
        reads: bool = False,
    ) -> Effect:
        """Return a test double that handlers call in place of an external service.

        The double records its inputs, its key and the time: in the `Outcome` of a simulation, or
        in its own `calls` if the handler runs in another job, such as one of `flow_runtime`. `key`
        is the name of the parameter that carries the idempotency key. `returns` makes the result
        from the same arguments; if it raises an error, the call is recorded, too. `reads` marks a
        call that may be repeated or left out, such as a query: its number is not checked.
        """
        return Effect(name, key, returns, self._numbers, reads=reads)

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
        """Run one job without a crash, and return the `Outcome`.

        With `seed`, steps start and end in another order, the same for the same seed. Raises the
        error that ended the host, such as the error of a store.
        """
        __tracebackhide__ = True
        case = self._case(build, entry, params, slot, faults)
        world = World(self._start_ns)
        for fault in faults:
            fault.begin(0)
        host = run_host(case, world, scheduler=FIFO if seed is None else Seeded(seed).scheduler())
        if host.error is not None:
            raise host.error
        _refuse_idle(faults)
        if case.assertions and (found := failed_assertion(world.commits)):
            pytest.fail(f"{found[1]}\n{ADVICE}", pytrace=False)
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
        ends: JobStatus | str | None = None,
        isolated: bool = True,
        store: OpenStore | None = None,
        fresh: Callable[[], object] | None = None,
        shard: Shard | None = None,
    ) -> Coverage:
        """Check that a crash at any point does not change a job's result.

        The same as `explore` with `schedules="some"` and `crashes="every"`.
        """
        __tracebackhide__ = True
        return self.explore(
            build,
            entry,
            params,
            slot=slot,
            faults=faults,
            invariant=invariant,
            always=always,
            view=view,
            ends=ends,
            isolated=isolated,
            store=store,
            fresh=fresh,
            shard=shard,
        )

    @staticmethod
    def random(orders: int) -> Sample:
        """Return the schedules of so many random orders, for `explore`."""
        return Sample(orders)

    @staticmethod
    def pct(orders: int, depth: int = 3) -> Sample:
        """Return the schedules of so many orders by random priorities, for `explore`.

        A bug that shows if `depth` events come in one order is found at a known rate, also among
        many tasks, where `random` hardly finds it. With few tasks `random` may find it sooner.
        """
        return Sample(orders, depth)

    def explore(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        schedules: Schedules = "some",
        crashes: Crashes | CrashAt = "every",
        slot: str = "trigger",
        faults: Sequence[Fault] = (),
        invariant: Callable[[Outcome], object] | None = None,
        always: Callable[[JobState], object] | None = None,
        view: Callable[[Outcome], object] | None = None,
        ends: JobStatus | str | None = None,
        isolated: bool = True,
        store: OpenStore | None = None,
        fresh: Callable[[], object] | None = None,
        shard: Shard | None = None,
    ) -> Coverage:
        """Check that neither an order of concurrent work nor a crash changes a job's result.

        `schedules` are the orders: "fifo" (first in, first out), "some" (a fixed set of others),
        "all" that can differ, `flow_sim.random(n)` or `flow_sim.pct(n)`. The results must be those
        of runs one task at a time. `crashes` are "none", "every" crash point in FIFO order and
        in one other order, or "pairs": the run that follows each crash is crashed again;
        a `CrashAt` is a single one.
        If "all" or "pairs" are too many for the budget (`--routilux-runs`), the test fails: what
        was tried is no proof. `shard` tries one part of the orders and points, see `shards`.
        The undisturbed job must end with the status `ends`, by default "completed" unless the test
        checks the end by `invariant`, `always` or `view`. `invariant` must hold for every outcome,
        and `always` for the job after every commit: each raises an AssertionError or returns a
        false value other than None if it does not. `view` returns the value to compare with the
        undisturbed run, by default all that a user can see.
        A sample of the hosts runs in forks of this process, which finds progress that is kept in
        module globals; `isolated=False` does without, for flows with a connection that a fork would
        break. `store` opens a real store in the file at a path, such as `SqliteStore`: then each
        host has only the files that the host before it left, and opens them anew.
        `fresh` is called before each run, to reset what handlers change outside of the job: a
        database, a folder. Then the handlers before a crash run anew in each run. A handler that
        the crash interrupts has run to its end there, or to its next await if it is async, since
        only its commit and its effects can be cut off. `view` and `invariant` may read the outside
        at the end of a run.
        Returns what was tried; fails the test with the smallest cause of the first finding.
        """
        __tracebackhide__ = True
        _refuse_uncallable(invariant=invariant, always=always, view=view)
        case = self._case(build, entry, params, slot, faults, always, store, fresh)
        if ends is None and (invariant, always, view) == (None, None, None):
            ends = JobStatus.COMPLETED
        scope = self._scope(schedules, crashes, shard)
        checks = Checks(invariant, view, isolated, _status(ends), scope, self._show)
        repeated = None
        with self._progress:
            if self._repro is not None:
                try:
                    repeated = self._repeat(case, checks, self._repro)
                except (StaleError, StaleTapeError) as error:
                    self._stale.append(str(error))  # it may fit another simulation of the test
            only = crashes if isinstance(crashes, CrashAt) else None
            case, result = repeated or (case, explore(case, self._start_ns, checks, only))
        if only is not None:
            result.coverage.orders_left = None
            result.coverage.notes.append(f"one crash point alone, as crashes={crashes!r} says")
        self._repeated = self._repeated or repeated is not None
        self._add_facts(result, self._repro if repeated else None)
        if result.reference.finding is not None or result.failures:
            self._fail_shrunk(case, checks, result)
        if repeated is None and (
            finding := swallowed_crash(case, self._start_ns, isolated=isolated)
        ):
            self._fail(case, checks, finding)
        _refuse_idle(case.faults)
        coverage = result.coverage
        if coverage.planned != coverage.executed:
            pytest.fail(
                f"crash points {coverage.word}: planned {dict(coverage.planned)}, executed"
                f" {dict(coverage.executed)}; a crash that did not happen proves nothing. If runs"
                " of the flow differ, flow_sim.check_determinism shows the first difference",
                pytrace=False,
            )
        if repeated is None and (coverage.pairs_left or coverage.orders_left):
            _fail_cut(coverage, scope)
        return coverage

    def _show(self, coverage: Coverage) -> None:
        left = coverage.planned.total() - coverage.executed.total()
        self._progress.show(coverage.runs, left)

    def _scope(self, schedules: object, crashes: object, shard: object) -> Scope:
        runs, seed = self._search
        return Scope(
            checked_schedules(schedules),
            checked_crashes(crashes),
            runs=runs,
            seed=seed,
            shard=checked_shard(shard),
        )

    def check_determinism(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        faults: Sequence[Fault] = (),
        fresh: Callable[[], object] | None = None,
        excuse: Collection[str] = (),
    ) -> None:
        """Check that several runs of one job write the same records.

        With another start instant, other ids and other random numbers of `ctx`, only values may
        differ, not the steps; with another hash seed nothing may. `fresh` is called before each
        run, as by `crash_everywhere`. Fails the test with the first record that differs, and the
        call that made it.

        For another hash seed the test runs again in new Python processes, up to this call. If that
        is not possible the test fails, unless `excuse` is ["hash-seed"].
        """
        __tracebackhide__ = True
        case = self._case(build, entry, params, slot, faults, fresh=fresh)
        unknown = [name for name in excuse if name != _HASH_SEED]
        if unknown or isinstance(excuse, str):
            raise FlowDefinitionError(
                f"excuse={excuse!r} names nothing that can be left out; known: [{_HASH_SEED!r}]"
            )
        self._determinism += 1
        number = self._determinism
        if answer_request(self._node, number, case, self._start_ns):
            return
        rows = None if excuse else partial(rows_by_seed, self._node, number)
        coverage = Coverage()
        finding = check_determinism(case, self._start_ns, rows_by_seed=rows, coverage=coverage)
        if finding is not None and finding.kind == UNTRIED:
            pytest.fail(
                f"another hash seed was not tried: {finding.what}; mend that, or pass"
                f" excuse=[{_HASH_SEED!r}] to do without (the order of sets and hash())",
                pytrace=False,
            )
        if finding is not None:
            self._fail(case, Checks(), finding)
        if excuse:
            coverage.notes.append("runs with another hash seed: not tried, by excuse=")
        _refuse_idle(case.faults)
        self._report("  🔁 all runs wrote the same records", coverage.notes)

    def replay(self, source: str | Path | JobStore, build: Callable[[], Flow]) -> Replay:
        """Check that saved jobs would go the same way with today's code.

        `source` is the path of a saved job, of a folder of saved jobs or of a SQLite store, the URL
        of a PostgreSQL database, or a store. Each recorded attempt of a job of this flow runs again
        with its recorded input: payload, attempt, state, results of `once`, random numbers and
        start time. No function of a `once` runs, and a call that leaves the process is refused;
        an attempt that makes such a call outside of `once` is not compared.
        Returns what was compared; fails the test with the first attempt that would do something
        else: emit, write, raise or wait. Fails if nothing was compared. Raises `SavedStateError`
        for a job that can't be read.
        """
        __tracebackhide__ = True
        _built(build)
        replay, differences = replay_jobs(source, build)
        if differences:
            columns = report_look(self._node.config)[0]
            first, others = differences[0], len(differences) - 1
            pytest.fail(explain_difference(first, replay, others, columns), pytrace=False)
        if not replay.steps:
            pytest.fail(f"replay() has compared nothing: {replay}", pytrace=False)
        self._report(f"  📼 {replay}", [])
        return replay

    def close(self) -> None:
        """Fail a test in which no simulation fits `--routilux-repro`."""
        if self._repro is not None and not self._repeated:
            reasons = self._stale or ["the test runs no simulation"]
            pytest.fail(
                f"STALE: {self._repro} fits no simulation of the test: {'; '.join(reasons)}."
                " Run the test without --routilux-repro to search for the bug again",
                pytrace=False,
            )

    def _case(
        self,
        build: Callable[[], Flow],
        entry: str,
        params: Mapping[str, object] | None,
        slot: str,
        faults: Sequence[Fault],
        always: Callable[[JobState], object] | None = None,
        store: OpenStore | None = None,
        fresh: Callable[[], object] | None = None,
    ) -> Case:
        __tracebackhide__ = True
        _refuse_uncallable(fresh=fresh)
        if isinstance(faults, Fault) or not all(isinstance(fault, Fault) for fault in faults):
            raise FlowDefinitionError(
                f"faults={faults!r} is not a list of faults; give a list of faults from flow_faults"
            )
        if fresh is not None:
            fresh()  # the flow may look at what it resets
        flow = _built(build)
        for fault in faults:
            fault.used = True
            fault.struck = 0  # by another simulation, which proves nothing here
            fault.check(flow)
        open_store = None if store is None else checked_store(store)
        return Case(
            build,
            entry,
            params,
            slot,
            faults=tuple(faults),
            always=always,
            store=open_store,
            assertions=self._assertions,
            fresh=fresh,
        )

    def _repeat(self, case: Case, checks: Checks, repro: Repro) -> tuple[Case, Exploration]:
        applied = repro.applied(case, case.build())
        scope = replace(checks.scope, shard=None)
        if repro.tape is not None:
            crashes: Crashes = "none" if repro.place is None else "every"
            scope = replace(scope, tape=repro.tape, crashes=crashes)
        checks = replace(checks, scope=scope)
        return applied, explore(applied, self._start_ns, checks, repro)

    def _add_facts(self, result: Exploration, repro: Repro | None) -> None:
        coverage, error = result.coverage, _job_error(result)
        failed = bool(result.failures) or result.reference.finding is not None
        verdict = "fails" if failed else "fixed"
        facts_of(self._node).add_simulation(
            {
                "planned": dict(coverage.planned),
                "executed": dict(coverage.executed),
                "repro": None if repro is None else f"{repro}: {verdict}",
            }
        )
        if failed:
            return
        rate = coverage.runs / coverage.seconds if coverage.seconds else 0
        counts = [
            f"{count} {kind}".replace(" ", _NO_BREAK_SPACE)
            for kind, count in coverage.executed.items()
        ]
        errors = [] if error is None else [f"the undisturbed job failed: {error}"]
        if not result.reference.run.world.calls:
            errors.append("no effect was seen: calls of other services are not checked")
        orders = f"{coverage.orders} orders, " if coverage.orders > 1 else ""
        self._report(
            f"  💥 {coverage.executed.total()} of {coverage.planned.total()} crash points,"
            f" {orders}{coverage.word}, {coverage.seconds:.2f} s ({rate:,.0f} runs/s)",
            [" · ".join(counts), *coverage.notes, *errors, *not_compared(result.reference)],
        )

    def _report(self, head: str, texts: Sequence[str]) -> None:
        width, _ = report_look(self._node.config)
        lines = [f"     {line}" for text in texts for line in wrap(text, width - 5)]
        part = "\n".join([head, *lines]).replace(_NO_BREAK_SPACE, " ")
        facts_of(self._node).parts.append(part)

    def _fail_shrunk(self, case: Case, checks: Checks, result: Exploration) -> None:
        __tracebackhide__ = True
        cause = shrink(result, case, self._start_ns, checks)
        flow = result.reference.run.host.flow
        repro = Repro.of(case, flow, cause.point, order=cause.order, faults=cause.faults)
        columns = report_look(self._node.config)[0]
        repeat = repeat_command(self._node, repro)
        text = explain_cause(cause, case, columns, repro=repeat)
        pytest.fail(text, pytrace=False)

    def _fail(self, case: Case, checks: Checks, finding: Finding) -> None:
        """Fail the test with the report on a finding that needs no crash."""
        __tracebackhide__ = True
        coverage = Coverage()
        reference = replace(run_reference(case, self._start_ns, checks, coverage), finding=finding)
        numbers = tuple(range(1, len(case.faults) + 1))
        cause = Cause(None, finding, numbers, Exploration(reference, [], coverage))
        columns = report_look(self._node.config)[0]
        pytest.fail(explain_cause(cause, case, columns, repro=None), pytrace=False)


def _built(build: object) -> Flow:
    __tracebackhide__ = True
    if not callable(build):
        raise FlowDefinitionError(
            f"build={build!r} can't be called; give the function that makes the flow, not the flow"
        )
    flow = build()
    if not isinstance(flow, Flow):
        raise FlowDefinitionError(f"build() returned {flow!r}, which is not a Flow; return a Flow")
    return flow


def _refuse_uncallable(**functions: object) -> None:
    __tracebackhide__ = True
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise FlowDefinitionError(f"{name}={function!r} can't be called; give a function")
        if inspect.iscoroutinefunction(function):
            raise FlowDefinitionError(
                f"{name}={function!r} is async, and nothing awaits it; give a plain function"
            )


def _status(ends: JobStatus | str | None) -> JobStatus | None:
    __tracebackhide__ = True
    if ends is not None and ends not in [*ENDED]:
        known = ", ".join(repr(status.value) for status in JobStatus if status in ENDED)
        raise FlowDefinitionError(f"ends={ends!r} is not the end of a job; known: {known}")
    return None if ends is None else JobStatus(ends)


def _refuse_idle(faults: Sequence[Fault]) -> None:
    idle = [repr(fault) for fault in faults if not (fault.struck or fault.may_miss)]
    if idle:
        pytest.fail(NEVER_STRUCK.format(", ".join(idle)), pytrace=False)


def _fail_cut(coverage: Coverage, scope: Scope) -> None:
    __tracebackhide__ = True
    what, instead = "orders", "schedules='some'"
    if coverage.pairs_left:
        what, instead = "crash points", "crashes='every'"
    pytest.fail(
        f"{coverage.word} {what}: no failure was found, but the budget of {scope.runs:,} runs, with"
        " 4 ms of processor time for each, was used up, so this is no proof. Give more runs by"
        " --routilux-runs=N, split the search by pytest_routilux.shards(n), or ask for"
        f" {instead}",
        pytrace=False,
    )


def _job_error(result: Exploration) -> str | None:
    error = result.reference.run.job.error
    if error is None:
        return None
    return shorten(" ".join(error_text(error).split()), _LONGEST_ERROR)
