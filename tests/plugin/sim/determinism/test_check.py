"""Code that does not repeat is found, with its line or handler; code that may differ is clean.

Each finding has a flow with the bug, and one without it.
"""

from __future__ import annotations

import itertools
import os
import queue
import random
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from pytest_routilux.faults.faults import Raises
from pytest_routilux.hosts import fork_server
from pytest_routilux.sim.determinism.check import check_determinism
from pytest_routilux.sim.determinism.swallowed_crash import swallowed_crash
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.isolation.hidden_state import HiddenChange, hidden_state
from pytest_routilux.sim.results import Checks, Coverage
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case, Finding
from pytest_routilux.virtual_time.freeze import frozen_simulation
from routilux import ErrorHandler, Flow, FlowDefinitionError, RoutiluxError, Routine
from routilux.clocks.durations import instant_ns
from showcase.flows import data_pipeline, fan_out_and_in, word_count
from tests.soak import sampled

START = instant_ns("2026-01-01")
pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="needs os.fork")
Work = Callable[[Any, Any], object]


class Step(Routine):
    """Hands on what its function makes of a number."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.define_slot("trigger", handler=self.step)
        self.define_event("output", ["number"])
        self.define_event("other", ["number"])

    def step(self, number: object = 0) -> None:
        self.emit("output", number=self.work(self, number))


STEP = f"{__file__}:{Step.step.__code__.co_firstlineno}"


def same(routine: Any, number: Any) -> object:
    return number


def chain(*works: Work) -> Case:
    def build() -> Flow:
        flow = Flow("chain")
        for index, work in enumerate(works):
            flow.add_routine(Step(work), f"r{index}")
            if index:
                flow.connect(f"r{index - 1}", "output", f"r{index}", "trigger")
        return flow

    return Case(build, "r0")


@pytest.fixture(autouse=True)
def _virtual_time() -> Iterator[None]:
    global _ids
    _ids = itertools.count(1)
    _cache.clear()
    with frozen_simulation(START):
        yield


def checked(work: Work) -> Finding | None:
    return check_determinism(chain(same, work, same), START)


def line_of(work: Any, after: int = 1) -> str:
    return f"{__file__}:{work.__code__.co_firstlineno + after}"


# --- decisions that do not repeat -----------------------------------------------------------------

_kept_clock = time.time
_ids = itertools.count(1)
_cache: dict[object, object] = {}


def by_a_clock_kept_elsewhere(routine: Any, number: Any, clock: Any = time.clock_gettime) -> object:
    return clock(time.CLOCK_REALTIME)


def by_random(routine: Any, number: Any) -> object:
    return random.random()


def by_randint(routine: Any, number: Any) -> object:
    return random.randint(1, 10**12)


def by_uuid4(routine: Any, number: Any) -> object:
    return uuid.uuid4().hex


def by_urandom(routine: Any, number: Any) -> object:
    return os.urandom(8).hex()


def by_secrets(routine: Any, number: Any) -> object:
    return secrets.token_hex(8)


def by_id(routine: Any, number: Any) -> object:
    return id(object())


@pytest.mark.parametrize(
    ("work", "call"),
    [
        (by_a_clock_kept_elsewhere, "time.clock_gettime()"),
        (by_random, "random.random()"),
        (by_randint, "random.randint()"),
        (by_uuid4, "uuid.uuid4()"),
        (by_urandom, "os.urandom()"),
        (by_secrets, "secrets.token_hex()"),
        (by_id, "id()"),
    ],
)
def test_a_call_that_does_not_repeat_is_named_with_its_line(work: Work, call: str) -> None:
    finding = checked(work)
    assert finding is not None
    assert ("nondeterminism", "r1", line_of(work)) == (
        finding.kind,
        finding.routine,
        finding.hint,
    )
    assert finding.what.startswith(
        f"r1 calls {call}: a second run with the same decisions differs, first at r1 (task 0.0,"
        " attempt 1): emissions[0].payload.number "
    )


def test_a_random_shape_is_found() -> None:
    def maybe_more(routine: Any, number: Any) -> object:
        for bit in f"{int.from_bytes(os.urandom(8)):064b}":
            if bit == "1":
                routine.emit("other", number=1)
            else:
                routine.emit("output", number=1)
        return number

    case = chain(same, maybe_more)
    finding = check_determinism(case, START)
    assert finding is not None
    assert "nondeterminism" == finding.kind
    assert line_of(maybe_more) == finding.hint


@pytest.mark.parametrize(
    "work",
    [
        lambda r, n: r.ctx.random.random(),
        lambda r, n: str(r.ctx.uuid()),
        lambda r, n: r.ctx.now().isoformat(),
        lambda r, n: datetime.now().isoformat() + str(time.time()),
        lambda r, n: random.Random(7).random(),
        lambda r, n: sorted({"a", "b", "c"}),
        lambda r, n: r.ctx.key("x"),
        lambda r, n: time.sleep(5),
        lambda r, n: len({id(object()), id(r)}) > 5,
    ],
)
def test_code_that_repeats_is_clean(work: Work) -> None:
    assert checked(work) is None


def test_a_shape_by_the_jobs_own_random_numbers_or_time_is_clean() -> None:
    def sampled(routine: Any, number: Any) -> object:
        if routine.ctx.random.random() < 0.5 or routine.ctx.now().day == 1:
            routine.emit("other", number=1)
        return number

    assert check_determinism(chain(*[sampled] * 8), START) is None


def test_a_shape_by_the_wall_clock_is_found() -> None:
    def only_in_january(routine: Any, number: Any) -> object:
        if datetime.now().month == 1:
            routine.emit("other", number=1)
        return number

    finding = checked(only_in_january)
    assert finding is not None
    assert "a run that starts at another instant differs" in finding.what
    assert line_of(only_in_january) == finding.hint


def by_a_global(routine: Any, number: Any) -> object:
    return next(_ids)


def by_a_cache(routine: Any, number: Any) -> object:
    if number not in _cache:
        _cache[number] = 7
    return _cache[number]


def test_a_global_that_one_run_leaves_to_the_next_is_found_and_a_cache_is_not() -> None:
    finding = checked(by_a_global)
    assert finding is not None
    assert ("module-state", "r1") == (finding.kind, finding.routine)
    assert f"global.{__name__}:_ids" == finding.path
    assert STEP == finding.hint
    assert checked(by_a_cache) is None


def test_a_fake_service_in_the_test_is_clean() -> None:
    ledger: list[object] = []

    def charge(routine: Any, number: Any) -> object:
        ledger.append(number)
        return len(ledger)

    assert checked(charge) is None


def test_a_handler_that_kills_its_process_is_found() -> None:
    finding = checked(lambda r, n: os._exit(2))
    assert finding is not None
    assert "kills-process" == finding.kind


def test_a_fault_strikes_the_same_each_time_and_is_counted() -> None:
    fault = Raises("r1", OSError)
    assert check_determinism(replace(chain(same, same), faults=(fault,)), START) is None
    assert fault.struck > 0


def test_a_run_that_does_not_finish_proves_nothing() -> None:
    with pytest.raises(FlowDefinitionError, match="has no routine 'r9' to start with"):
        check_determinism(replace(chain(same), entry="r9"), START)

    def fails(routine: Any, number: Any) -> object:
        pytest.fail("not here")

    with pytest.raises(pytest.fail.Exception, match="not here"):
        checked(fails)

    def ends(routine: Any, number: Any) -> object:
        raise GeneratorExit

    finding = checked(ends)
    assert finding is not None
    assert "stuck" == finding.kind


def test_a_run_that_does_not_finish_in_another_process_is_an_error() -> None:
    here = os.getpid()

    def only_here(routine: Any, number: Any) -> object:
        if os.getpid() != here:
            pytest.skip("another process")
        return number

    with pytest.raises(RoutiluxError, match="another process ended by Skipped: another process"):
        checked(only_here)


# --- the order of sets ----------------------------------------------------------------------------

NAMES = [f"name-{n}" for n in range(8)]


class Names(Routine):
    """Emits names in the order of a set, or sorted."""

    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.in_order = in_order
        self.define_slot("trigger", handler=self.step)
        self.define_event("output", ["names"])

    def step(self) -> None:
        names = set(NAMES)
        self.emit("output", names=sorted(names) if self.in_order else list(names))


def named() -> Flow:
    flow = Flow("names")
    flow.add_routine(Names(False), "names")
    return flow


def named_in_order() -> Flow:
    flow = Flow("names")
    flow.add_routine(Names(True), "names")
    return flow


def test_the_order_of_a_set_is_found_by_another_hash_seed() -> None:
    finding = check_determinism(Case(named, "names"), START)
    assert finding is not None
    assert ("hash-order", "names") == (finding.kind, finding.routine)
    coverage = Coverage()
    case = Case(named, "names")
    assert check_determinism(case, START, fresh=False, coverage=coverage) is None
    assert ["another hash seed (the order of sets): not tried"] == [
        note.partition(", ")[0] for note in coverage.notes
    ]


def test_a_set_that_is_sorted_is_clean() -> None:
    assert check_determinism(Case(named_in_order, "names"), START) is None


def test_the_order_of_a_set_of_objects_is_found_without_another_interpreter() -> None:
    class Thing:
        pass

    def by_address(routine: Any, number: Any) -> object:
        things = [Thing() for _ in range(50)]
        return [things.index(thing) for thing in set(things)]

    finding = checked(by_address)
    assert finding is not None
    assert "nondeterminism" == finding.kind


# --- hidden state ---------------------------------------------------------------------------------


def test_state_that_no_commit_saves_is_found_with_its_name_handler_and_values() -> None:
    def counts(routine: Any, number: Any) -> object:
        next(_ids)
        routine.tries = getattr(routine, "tries", 0) + 1
        routine.ctx.state["kept"] = 1
        return number

    changes = {change.name: change for change in hidden_state(chain(same, counts), START)}
    assert {"self.tries", f"{__name__}:_ids"} == set(changes)
    wanted = HiddenChange("r1", "attribute", "self.tries", STEP, "nothing", "1")
    assert wanted == changes["self.tries"]
    assert ("count(1)", "count(2)") == (
        changes[f"{__name__}:_ids"].was,
        changes[f"{__name__}:_ids"].became,
    )


# --- a crash that is swallowed --------------------------------------------------------------------

charge = Effect("charge")


def in_a_sleep(routine: Any, number: Any) -> object:
    try:
        routine.ctx.sleep(1)
    except BaseException:
        return None
    return number


def in_the_second_effect(routine: Any, number: Any) -> object:
    charge(1)
    try:
        charge(2)
    except:  # noqa: E722 - the bug
        return None
    return number


def in_once(routine: Any, number: Any) -> object:
    try:
        number = routine.ctx.once("add", abs, -1)
    finally:
        return number  # noqa: B012 - the bug


def in_none(routine: Any, number: Any) -> object:
    try:
        charge(1)
        routine.ctx.sleep(1)
        return routine.ctx.once("charge", charge, 2)
    except Exception:
        return None
    finally:
        routine.ctx.shared["seen"] = 1


def turned_into_an_error(routine: Any, number: Any) -> object:
    try:
        routine.ctx.sleep(1)
    except BaseException as error:
        raise RuntimeError from error
    return number


@pytest.mark.parametrize(
    ("work", "place"),
    [
        (in_a_sleep, "ctx.sleep"),
        (in_the_second_effect, "the effect charge"),
        (in_once, "ctx.once('add')"),
    ],
)
def test_a_handler_that_swallows_a_crash_is_found(work: Work, place: str) -> None:
    finding = swallowed_crash(chain(same, work), START)
    assert finding is not None
    assert ("swallowed-crash", "r1") == (finding.kind, finding.routine)
    assert f"r1 continues when its host dies in {place}:" in finding.what
    assert STEP == finding.hint


@pytest.mark.parametrize("work", [in_none, turned_into_an_error, same])
def test_a_handler_that_cleans_up_or_fails_is_clean(work: Work) -> None:
    assert swallowed_crash(chain(same, work), START) is None


def test_a_handler_that_answers_an_exit_by_ending_its_process_does_not_end_the_test() -> None:
    def dies(routine: Any, number: Any) -> object:
        try:
            routine.ctx.sleep(1)
        except BaseException:
            os._exit(1)

    assert swallowed_crash(chain(dies), START) is None


class Async(Routine):
    """Sleeps in a coroutine, and swallows what ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.step)

    async def step(self) -> None:
        try:
            self.ctx.sleep(1)
        except BaseException:
            return


def test_a_coroutine_that_swallows_a_crash_is_found() -> None:
    def build() -> Flow:
        flow = Flow("async")
        flow.add_routine(Async(), "async")
        return flow

    finding = swallowed_crash(Case(build, "async"), START)
    assert finding is not None
    assert f"{__file__}:{Async.step.__code__.co_firstlineno}" == finding.hint


# --- a thread that outlives its step --------------------------------------------------------------


def test_a_thread_that_outlives_its_step_is_found_and_one_that_is_joined_is_not() -> None:
    stop = threading.Event()

    def leaks(routine: Any, number: Any) -> object:
        threading.Thread(target=stop.wait, daemon=True).start()
        return number

    def joins(routine: Any, number: Any) -> object:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        return number

    try:
        finding = explore(chain(same, leaks), START, Checks()).reference.finding
    finally:
        stop.set()
    assert finding is not None
    assert ("leaked-thread", "r1") == (finding.kind, finding.routine)
    assert explore(chain(same, joins), START, Checks()).reference.finding is None


def test_a_thread_of_a_threads_own_is_found_and_one_of_the_tests_server_is_not() -> None:
    stop = threading.Event()

    def leaks(routine: Any, number: Any) -> object:
        again = threading.Thread(target=stop.wait, daemon=True)
        first = threading.Thread(target=again.start)
        first.start()
        first.join()
        return number

    asked: queue.Queue[threading.Event | None] = queue.Queue()

    def answer(answered: threading.Event) -> None:
        answered.set()
        stop.wait()

    def serve() -> None:
        while (answered := asked.get()) is not None:
            threading.Thread(target=answer, args=[answered], daemon=True).start()

    def asks(routine: Any, number: Any) -> object:
        answered = threading.Event()
        asked.put(answered)
        answered.wait()
        return number

    threading.Thread(target=serve, daemon=True).start()
    checks = Checks(isolated=False)  # the server is not in other processes
    try:
        finding = explore(chain(same, leaks), START, checks).reference.finding
        assert finding is not None
        assert ("leaked-thread", "r1") == (finding.kind, finding.routine)
        found = explore(chain(same, asks), START, checks)
        assert (None, []) == (found.reference.finding, found.failures)
    finally:
        stop.set()
        asked.put(None)
    assert threading.Thread.start.__module__ == "threading"


# --- no false alarm -------------------------------------------------------------------------------


def pipeline() -> Flow:
    return data_pipeline(2)


def words() -> Flow:
    return word_count(ErrorHandler("retry", retry_delay=0.1))


PICTURES = [
    {"name": "ash", "seconds": 0.4, "failures": 0},
    {"name": "elm", "seconds": 0.2, "failures": 1},
    {"name": "oak", "seconds": 0.3, "failures": 9},
]
RECORDS = {"records": ["early", "late", "last"]}
FLOWS = [
    Case(pipeline, "data_fetch", {"request_id": "r1"}),
    Case(lambda: data_pipeline(9, "concurrent"), "data_fetch", {"request_id": "r1"}),
    Case(lambda: fan_out_and_in(1), "split", {"pictures": PICTURES}),
    Case(lambda: fan_out_and_in(4), "split", {"pictures": PICTURES}),
    Case(words, "read", RECORDS),
    Case(lambda: word_count(ErrorHandler("skip")), "read", RECORDS),
]


@pytest.mark.parametrize("case", sampled(FLOWS, [*FLOWS[1:3], FLOWS[5]]))
def test_the_flows_of_the_showcase_are_clean(case: Case) -> None:
    assert check_determinism(case, START) is None
    assert swallowed_crash(case, START) is None
    result = explore(case, START, Checks())
    assert result.reference.finding is None
    assert [] == [finding.what for _, finding in result.failures]
    assert [] == [note for note in result.coverage.notes if "process" in note]
