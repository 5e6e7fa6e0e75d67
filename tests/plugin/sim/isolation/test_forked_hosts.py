"""Finds progress that a process keeps and handlers that end their process, by forked hosts."""

from __future__ import annotations

import functools
import itertools
import os
import queue
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from pytest_routilux.hosts import fork_server
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.isolation import forked_hosts
from pytest_routilux.sim.results import Checks, Coverage, Exploration
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import Commit
from tests.plugin.inner import run_inside
from tests.plugin.sim.steps import START, STEP, chain, same

pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="needs os.fork")


def explored(case: Case) -> Exploration:
    return explore(case, START, Checks())


def found(case: Case) -> list[str]:
    """Return the kinds of all that is found, the first at each point."""
    result = explored(case)
    first = result.reference.finding
    assert result.coverage.planned == result.coverage.executed
    return [first.kind] if first is not None else [f.kind for _, f in result.failures]


# --- progress that a process keeps ----------------------------------------------------------------


class Counts:
    """A count on a class, and one in a global that can't be pickled."""

    made = 0

    def __init__(self) -> None:
        self.made = 0
        self.lock = threading.Lock()


_tries = 0
_ids = itertools.count(1)
_cache: dict[object, object] = {}
_unpicklable = Counts()


@pytest.fixture(autouse=True)
def _fresh_globals() -> None:
    global _tries, _ids
    _tries, _ids = 0, itertools.count(1)
    _cache.clear()
    Counts.made = _unpicklable.made = 0


def fails_twice_by_a_global(routine: Any, number: Any) -> object:
    global _tries
    _tries += 1
    if _tries < 3:
        raise OSError
    return number


def fails_twice_by_its_attempt(routine: Any, number: Any) -> object:
    if routine.ctx.attempt < 3:
        raise OSError
    return number


def fails_twice_by_an_attribute(routine: Any, number: Any) -> object:
    routine.tries = getattr(routine, "tries", 0) + 1
    if routine.tries < 3:
        raise OSError
    return number


def numbered_by_a_global(routine: Any, number: Any) -> object:
    return next(_ids)


def numbered_by_a_class(routine: Any, number: Any) -> object:
    Counts.made += 1
    return Counts.made


def numbered_by_an_unpicklable(routine: Any, number: Any) -> object:
    _unpicklable.made += 1
    return _unpicklable.made


def numbered_by_state(routine: Any, number: Any) -> object:
    routine.ctx.shared["id"] = routine.ctx.shared.get("id", 0) + 1
    return routine.ctx.shared["id"]


def cached_in_a_global(routine: Any, number: Any) -> object:
    return _cache.setdefault(number, 9)


def test_a_retry_that_counts_in_a_module_global_is_found_and_named() -> None:
    result = explored(chain(same, fails_twice_by_a_global, retry_delay=0.1))
    point, finding = result.failures[0]
    assert ("module-state", "r1") == (finding.kind, finding.routine)
    assert f"global.{__name__}:_tries" == finding.path
    assert STEP == finding.hint
    assert "after a write" == point.kind
    # The run of the other process is kept for the report.
    run = result.disturbed[finding.signature]
    assert point is run.point
    log = [what for _, _, what in run.world.log]
    crash = next(i for i, what in enumerate(log) if getattr(what, "kind", "") == "crash")
    assert point.commits == sum(isinstance(what, Commit) for what in log[:crash])
    assert "completed" == run.world.commits[-1].status
    attempts = [c for c in run.world.commits if c.kind in ("retry", "done")]
    assert 4 == sum(commit.routine_id == "r1" for commit in attempts)


@pytest.mark.parametrize(
    ("work", "path"),
    [(numbered_by_a_global, "global.{}:_ids"), (numbered_by_a_class, "class.{}:Counts.made")],
)
def test_an_id_from_a_global_or_a_class_is_found_and_named(
    work: Callable[[Any, Any], object], path: str
) -> None:
    findings = [finding for _, finding in explored(chain(work, work)).failures]
    assert [("module-state", path.format(__name__))] == [(f.kind, f.path) for f in findings]


def test_without_a_proof_there_is_a_note_and_no_finding() -> None:
    result = explored(chain(*[numbered_by_an_unpicklable] * 2))
    assert [] == result.failures
    assert ["no module global that a run changes makes the difference"] == [
        note.partition("but ")[2] for note in result.coverage.notes if "another process" in note
    ]


def test_of_two_globals_that_change_the_one_that_matters_is_named() -> None:
    def work(routine: Any, number: Any) -> object:
        cached_in_a_global(routine, len(_cache))
        return numbered_by_a_global(routine, number)

    result = explored(chain(work, work, work))
    assert [f"global.{__name__}:_ids"] == [finding.path for _, finding in result.failures]


def test_progress_in_an_attribute_is_found_by_its_effect_and_not_as_module_state() -> None:
    case = chain(same, fails_twice_by_an_attribute, retry_delay=0.1, max_retries=9)
    assert {"attempts-differ"} == set(found(case))


def with_a_fake_service() -> Case:
    ledger: list[object] = []

    def charge(routine: Any, number: Any) -> object:
        ledger.append(number)
        return len(ledger)

    return chain(charge, charge, charge)


def with_effects() -> Case:
    charge = Effect("charge", key="key")
    return chain(
        lambda r, n: charge(1, key=r.ctx.key("charge")),
        lambda r, n: charge(2, key=r.ctx.key("charge")),
        same,
    )


@pytest.mark.parametrize(
    "case",
    [
        chain(same, same, same),
        chain(same, fails_twice_by_its_attempt, retry_delay=0.1),
        chain(numbered_by_state, numbered_by_state),
        chain(cached_in_a_global, cached_in_a_global, same),
        chain(lambda r, n: random.random(), same, lambda r, n: random.random()),
        with_a_fake_service(),
        chain(lambda r, n: os.getloadavg()[1], lambda r, n: os.getloadavg()[2]),
        with_effects(),
    ],
    ids=[
        "plain handlers",
        "a retry by the attempt",
        "numbers from the job",
        "a cache",
        "random numbers",
        "a fake service in the test",
        "a function that the test has patched",
        "effects of the dead host and of the next",
    ],
)
def test_no_module_state_is_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 2.0, 3.0))
    assert [] == found(case)


# --- a handler that ends its process --------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os._exit(0), "exit status 0"),
        (lambda: sys.exit(4), "SystemExit: 4, at each attempt of the task"),
        pytest.param(lambda: os._exit(3), "exit status 3", marks=pytest.mark.soak),
        pytest.param(os.abort, "SIGABRT", marks=pytest.mark.soak),
    ],
)
def test_a_handler_that_kills_its_process_is_named_and_the_test_lives(
    end: Callable[[], object], how: str
) -> None:
    def dies(routine: Any, number: Any) -> object:
        end()
        return number

    result = explored(chain(same, dies, same))
    finding = result.reference.finding
    assert finding is not None
    assert ("kills-process", "r1") == (finding.kind, finding.routine)
    assert f"r1 (task 0.0, attempt 1) kills its process: {how}" == finding.what
    assert ["r0"] == [c.routine_id for c in result.reference.run.world.commits if c.kind == "done"]
    assert [] == result.failures


def test_an_exit_in_the_first_attempt_alone_is_no_finding() -> None:
    def exits_once(routine: Any, number: Any) -> object:
        seen.append(1)
        if len(seen) == 1:
            raise SystemExit
        return number

    seen: list[int] = []
    assert explored(chain(same, exits_once)).reference.finding is None


def test_a_handler_that_never_ends_is_killed_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"

    def forever(routine: Any, number: Any) -> object:
        begun.touch()
        while True:
            pass

    seen = False

    def now() -> float:
        """End the child's time one wait after the handler began."""
        nonlocal seen
        over, seen = seen, begun.exists()
        return monotonic() + 3600 * over

    monkeypatch.setattr(fork_server, "_monotonic", now)
    monkeypatch.setattr(fork_server, "_WAIT", 0.01)
    # With threads of other tests still running it would be a note, and the flow run in here.
    monkeypatch.setattr(forked_hosts.threading, "active_count", lambda: 1)
    finding = explored(chain(same, forever)).reference.finding
    assert finding is not None
    assert ("hangs", "r1") == (finding.kind, finding.routine)


def test_a_handler_that_never_ends_is_a_note_if_the_test_has_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The thread that answers it does not exist in the other process.
    server = functools.partial(fork_server.ForkServer, timeout=0.2)
    monkeypatch.setattr(forked_hosts, "ForkServer", server)
    answers: queue.Queue[int] = queue.Queue()
    questions: queue.Queue[int | None] = queue.Queue()

    def serve() -> None:
        while (question := questions.get()) is not None:
            answers.put(question)

    def asks(routine: Any, number: Any) -> object:
        questions.put(1)
        return answers.get()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        result = explored(chain(same, asks))
    finally:
        questions.put(None)
        thread.join()
    assert result.reference.finding is None
    assert any("the other threads of this process" in note for note in result.coverage.notes)


def test_a_test_may_turn_other_processes_off() -> None:
    notes = explore(chain(same, same), START, Checks(isolated=False)).coverage.notes
    assert "hosts in other processes: not tried, the test sets isolated=False" in notes


def test_a_reference_run_alone_survives_such_a_handler() -> None:
    known = run_reference(chain(lambda r, n: os._exit(1)), START, Checks(), Coverage())
    assert known.finding is not None
    assert "kills-process" == known.finding.kind


def test_other_threads_cause_no_warning_and_no_lock() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [] == found(chain(same, same))
    finally:
        stop.set()
        thread.join()


def test_where_there_is_no_fork_the_coverage_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    result = explored(chain(same, same))
    assert ["hosts in other processes: not tried, this system can't fork"] == [
        note for note in result.coverage.notes if "process" in note
    ]
    assert [] == result.failures


# --- as a user sees it ----------------------------------------------------------------------------


USERS = """
import os
from tests.plugin.sim.steps import chain, same

tries = 0

def dies(routine, number):
    os.kill(os.getpid(), 9)

def counts(routine, number):
    global tries
    tries += 1
    if tries < 3:
        raise OSError

def test_dies(flow_sim):
    flow_sim.crash_everywhere(chain(same, dies).build, "r0")

def test_counts(flow_sim):
    flow_sim.crash_everywhere(chain(same, counts, retry_delay=0.1).build, "r0")
"""


def test_a_test_whose_handler_kills_its_process_fails_with_its_name(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(USERS)
    result = run_inside(pytester, "-k", "dies")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "PROCESS KILLED: r1 (task 0.0, attempt 1) kills its process: SIGKILL *",
            "*0.0  r1  attempt 1 starts",
            "  > * the host ends: SIGKILL",
        ]
    )


def test_a_reproducer_of_progress_in_a_module_starts_another_process_again(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(USERS)
    result = run_inside(pytester, "-k", "counts")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["STATE IN A MODULE: r1 *", "  > *:tries * 0 -> 1 * 0"])
    repro = next(
        word
        for line in result.outlines
        for word in line.split()
        if word.startswith("--routilux-repro=")
    )
    again = run_inside(pytester, "-k", "counts", repro)
    again.assert_outcomes(failed=1, deselected=1)
    again.stdout.fnmatch_lines(["STATE IN A MODULE: r1 *", "*: fails"])
