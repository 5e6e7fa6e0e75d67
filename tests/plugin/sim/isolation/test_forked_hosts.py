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
from typing import Any, ClassVar

import pytest

from pytest_routilux.hosts import fork_server
from pytest_routilux.sim.explore import explore, run_reference
from pytest_routilux.sim.results import Checks, Coverage, Exploration
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case
from routilux import Commit, Flow, Routine
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

_tries = 0
_ids = itertools.count(1)
_seen: set[object] = set()
_squares: dict[object, object] = {}


class Counted(Routine):
    """Counts in its class."""

    made: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.step)
        self.define_event("output", ["number"])

    def step(self) -> None:
        self.made.append(1)
        self.emit("output", number=len(self.made))


@pytest.fixture(autouse=True)
def _fresh_globals() -> None:
    global _tries, _ids
    _tries, _ids = 0, itertools.count(1)
    _seen.clear()
    _squares.clear()
    Counted.made.clear()


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


def numbered_by_a_global(routine: Any, number: Any) -> object:
    return next(_ids)


def numbered_by_state(routine: Any, number: Any) -> object:
    routine.ctx.shared["id"] = routine.ctx.shared.get("id", 0) + 1
    return routine.ctx.shared["id"]


def cached_in_a_global(routine: Any, number: Any) -> object:
    if number not in _squares:
        _squares[number] = (number or 3) ** 2
    return _squares[number]


def seen_is_counted(routine: Any, number: Any) -> object:
    _seen.add(number)
    return number


def test_a_retry_that_counts_in_a_module_global_is_found_and_named() -> None:
    result = explored(chain(same, fails_twice_by_a_global, retry_delay=0.1))
    point, finding = result.failures[0]
    assert "module-state" == finding.kind
    assert "r1" == finding.routine
    assert f"global.{__name__}:_tries" == finding.path
    assert STEP == finding.hint
    assert "after a write" == point.kind
    # The run of the other process is kept for the report.
    run = result.disturbed[finding.signature]
    assert point is run.point
    log = [what for _, _, what in run.world.log]
    crash = next(i for i, what in enumerate(log) if getattr(what, "text", "") == "CRASH")
    assert point.commits == sum(isinstance(what, Commit) for what in log[:crash])
    assert "completed" == run.world.commits[-1].status
    assert 4 == sum(
        what.kind in ("retry", "done") and what.routine_id == "r1" for what in run.world.commits
    )
    assert [] == found(chain(same, fails_twice_by_its_attempt, retry_delay=0.1))


def test_an_id_drawn_from_a_module_global_is_found_and_one_from_the_job_is_not() -> None:
    numbered = explored(chain(numbered_by_a_global, numbered_by_a_global)).failures
    assert ["module-state"] == [finding.kind for _, finding in numbered]
    assert f"global.{__name__}:_ids" == numbered[0][1].path
    assert [] == found(chain(numbered_by_state, numbered_by_state))


def test_progress_on_a_class_is_found_and_named() -> None:
    def build() -> Flow:
        flow = Flow("classes")
        for name in ("a", "b"):
            flow.add_routine(Counted(), name)
        flow.connect("a", "output", "b", "trigger", param_mapping={})
        return flow

    result = explored(Case(build, "a"))
    assert "module-state" == result.failures[0][1].kind
    assert f"class.{__name__}:Counted.made" == result.failures[0][1].path


class Unsaved:
    """Counts, and can't be carried into another process."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()


_unsaved = Unsaved()


def numbered_by_what_cannot_be_carried(routine: Any, number: Any) -> object:
    _unsaved.count += 1
    return _unsaved.count


def test_what_can_not_be_proved_is_a_note_and_no_finding() -> None:
    _unsaved.count = 0
    result = explored(chain(*[numbered_by_what_cannot_be_carried] * 2))
    assert [] == result.failures
    assert ["none of the module globals that a run changes makes the difference"] == [
        note.partition("but ")[2] for note in result.coverage.notes if "another process" in note
    ]


def test_of_two_globals_that_change_the_one_that_matters_is_named() -> None:
    def work(routine: Any, number: Any) -> object:
        seen_is_counted(routine, len(_seen))
        return numbered_by_a_global(routine, number)

    result = explored(chain(work, work, work))
    assert [f"global.{__name__}:_ids"] == [finding.path for _, finding in result.failures]


def test_progress_on_the_instance_is_found_as_what_it_does_not_as_module_state() -> None:
    def fails_twice_by_itself(routine: Any, number: Any) -> object:
        routine.tries = getattr(routine, "tries", 0) + 1
        if routine.tries < 3:
            raise OSError
        return number

    kinds = found(chain(same, fails_twice_by_itself, retry_delay=0.1, max_retries=9))
    assert {"attempts-differ"} == set(kinds)


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
        pytest.param(lambda: chain(same, same, same), id="plain handlers"),
        pytest.param(
            lambda: chain(cached_in_a_global, cached_in_a_global, seen_is_counted, same),
            id="a cache, and a count that nothing depends on",
        ),
        pytest.param(
            lambda: chain(lambda r, n: random.random(), same, lambda r, n: random.random()),
            id="random numbers",
        ),
        pytest.param(with_a_fake_service, id="a fake service in the test"),
        pytest.param(
            lambda: chain(lambda r, n: os.getloadavg()[1], lambda r, n: os.getloadavg()[2]),
            id="a function that the test has patched",
        ),
        pytest.param(with_effects, id="effects of the dead host and of the next"),
    ],
)
def test_no_module_state_is_found(
    case: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 2.0, 3.0))
    assert [] == found(case())


# --- a handler that ends its process --------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os._exit(3), "exit status 3"),
        (lambda: os._exit(0), "exit status 0"),
        (os.abort, "SIGABRT"),
        (lambda: sys.exit(4), "SystemExit: 4, at each of its attempts"),
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
    assert "kills-process" == finding.kind
    assert "r1" == finding.routine
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    server = functools.partial(fork_server.ForkServer, timeout=0.2)
    monkeypatch.setattr("pytest_routilux.sim.isolation.forked_hosts.ForkServer", server)


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
        """End the child's time one look after the handler began."""
        nonlocal seen
        over, seen = seen, begun.exists()
        return monotonic() + 3600 * over

    monkeypatch.setattr("pytest_routilux.hosts.fork_server._monotonic", now)
    monkeypatch.setattr("pytest_routilux.hosts.fork_server._WAIT", 0.01)
    # Threads that other tests have left to end would make it a note, and the flow run in here.
    monkeypatch.setattr(
        "pytest_routilux.sim.isolation.forked_hosts.threading.active_count", lambda: 1
    )
    finding = explored(chain(same, forever)).reference.finding
    assert finding is not None
    assert ("hangs", "r1") == (finding.kind, finding.routine)


@pytest.mark.usefixtures("impatient")
def test_a_handler_that_never_ends_is_a_note_if_the_test_has_other_threads() -> None:
    # The thread that would bring it to an end is not there in the other process.
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


def test_a_test_may_do_without() -> None:
    result = explore(chain(same, same), START, Checks(isolated=False))
    assert "hosts in other processes: not tried, the test turns them off" in result.coverage.notes


def test_a_reference_alone_is_as_careful() -> None:
    known = run_reference(chain(lambda r, n: os._exit(1)), START, Checks(), Coverage())
    assert known.finding is not None
    assert "kills-process" == known.finding.kind


def test_other_threads_bring_no_warning_and_no_lock() -> None:
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
from routilux import ErrorHandler, Flow, Routine

tries = 0

class Orders(Routine):
    def __init__(self):
        super().__init__()
        self.define_slot("trigger", handler=self.orders)
        self.define_event("output", ["id"])

    def orders(self, id):
        self.emit("output", id=id)

class Dies(Orders):
    def orders(self, id):
        os.kill(os.getpid(), 9)

class Counts(Orders):
    def orders(self, id):
        global tries
        tries += 1
        if tries < 3:
            raise OSError

def build(kind):
    flow = Flow("shop")
    flow.add_routine(Orders(), "orders")
    flow.add_routine(kind(), "charge")
    flow.connect("orders", "output", "charge", "trigger")
    flow.set_error_handler(ErrorHandler("retry", retry_delay=0.1))
    return flow

def test_dies(flow_sim):
    flow_sim.crash_everywhere(lambda: build(Dies), "orders", {"id": 7})

def test_counts(flow_sim):
    flow_sim.crash_everywhere(lambda: build(Counts), "orders", {"id": 7})
"""


def test_a_test_whose_handler_kills_its_process_fails_with_its_name(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(USERS)
    result = run_inside(pytester, "-k", "dies")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "PROCESS KILLED: charge (task 0.0, attempt 1) kills its process: SIGKILL *",
            "*0.0  charge  attempt 1 starts",
            "  > * the host ends: SIGKILL",
        ]
    )


def test_a_reproducer_of_progress_in_a_module_starts_another_process_again(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(USERS)
    result = run_inside(pytester, "-k", "counts")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["STATE IN A MODULE: charge *", "  > *:tries * 0 -> 1 * 0"])
    repro = next(
        word
        for line in result.outlines
        for word in line.split()
        if word.startswith("--routilux-repro=")
    )
    again = run_inside(pytester, "-k", "counts", repro)
    again.assert_outcomes(failed=1, deselected=1)
    again.stdout.fnmatch_lines(["STATE IN A MODULE: charge *", "*: fails"])
