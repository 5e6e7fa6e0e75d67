"""Finds code that makes runs differ, with its line; code that may differ has no finding."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from pytest_routilux.faults.faults import Raises
from pytest_routilux.hosts import fork_server
from pytest_routilux.sim.determinism.check import check_determinism
from pytest_routilux.sim.determinism.swallowed_crash import swallowed_crash
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case, Finding
from pytest_routilux.virtual_time.freeze import frozen_simulation
from routilux import ErrorHandler, Flow, FlowDefinitionError, RoutiluxError
from showcase.flows import data_pipeline, fan_out_and_in, word_count
from tests.plugin.inner import run_inside
from tests.plugin.sim.steps import START, STEP, Work, chain, same
from tests.soak import also, sampled

pytestmark = pytest.mark.skipif(not fork_server.can_fork(), reason="needs os.fork")

_ids = itertools.count(1)
_cache: dict[object, object] = {}


@pytest.fixture(autouse=True)
def _virtual_time() -> Iterator[None]:
    global _ids
    _ids = itertools.count(1)
    _cache.clear()
    with frozen_simulation(START):
        yield


def found(work: Work) -> Finding:
    finding = check_determinism(chain(same, work, same), START)
    assert finding is not None
    return finding


def is_clean(*works: Work) -> bool:
    return check_determinism(chain(*works), START) is None


def line_of(work: Any, after: int = 1) -> str:
    return f"{__file__}:{work.__code__.co_firstlineno + after}"


# --- calls whose results differ -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "work"),
    [
        ("time.clock_gettime()", lambda r, n, clock=time.clock_gettime: clock(0)),
        ("random.randint()", lambda r, n: random.randint(1, 10**12)),
        ("uuid.uuid4()", lambda r, n: uuid.uuid4().hex),
        *also(
            ("id()", lambda r, n: id(object())),
            ("os.urandom()", lambda r, n: os.urandom(8).hex()),
            ("random.random()", lambda r, n: random.random()),
            ("secrets.token_hex()", lambda r, n: secrets.token_hex(8)),
        ),
    ],
)
def test_a_call_whose_result_differs_is_named_with_its_line(call: str, work: Work) -> None:
    finding = found(work)
    assert ("nondeterminism", "r1", line_of(work, 0)) == (
        finding.kind,
        finding.routine,
        finding.hint,
    )
    assert finding.what.startswith(
        f"r1 calls {call}: a second run that starts alike differs, first at r1 (task 0.0,"
        " attempt 1): emissions[0].payload.number "
    )


def test_a_random_shape_is_found() -> None:
    def maybe_more(routine: Any, number: Any) -> object:
        for bit in f"{int.from_bytes(os.urandom(8)):064b}":
            routine.emit("other" if bit == "1" else "output", number=1)
        return number

    finding = found(maybe_more)
    assert ("nondeterminism", line_of(maybe_more)) == (finding.kind, finding.hint)


def test_code_that_repeats_is_clean() -> None:
    works: list[Work] = [
        lambda r, n: r.ctx.random.random(),
        lambda r, n: str(r.ctx.uuid()),
        lambda r, n: r.ctx.now().isoformat(),
        lambda r, n: datetime.now().isoformat() + str(time.time()),
        lambda r, n: random.Random(7).random(),
        lambda r, n: sorted({"a", "b", "c"}),
        lambda r, n: r.ctx.key("x"),
        lambda r, n: time.sleep(5),
        lambda r, n: len({id(object()), id(r)}) > 5,
    ]
    assert is_clean(same, *works, same)


def test_a_shape_by_the_jobs_own_random_numbers_or_time_is_clean() -> None:
    def sampled(routine: Any, number: Any) -> object:
        if routine.ctx.random.random() < 0.5 or routine.ctx.now().day == 1:
            routine.emit("other", number=1)
        return number

    assert is_clean(*[sampled] * 8)


def test_a_shape_by_the_wall_clock_is_found() -> None:
    def only_in_january(routine: Any, number: Any) -> object:
        if datetime.now().month == 1:
            routine.emit("other", number=1)
        return number

    finding = found(only_in_january)
    assert "a run that starts at another instant differs" in finding.what
    assert line_of(only_in_january) == finding.hint


# --- one process ----------------------------------------------------------------------------------


def test_a_global_that_one_run_leaves_to_the_next_is_found_and_a_cache_is_not() -> None:
    finding = found(lambda r, n: next(_ids))
    assert ("module-state", "r1") == (finding.kind, finding.routine)
    assert f"global.{__name__}:_ids" == finding.path
    assert STEP == finding.hint
    assert is_clean(same, lambda r, n: _cache.setdefault(n, 7))


def test_a_fake_service_that_counts_in_the_test_is_found_unless_it_is_reset() -> None:
    ledger: list[object] = []

    def charge(routine: Any, number: Any) -> object:
        ledger.append(number)
        return len(ledger)

    case = chain(same, charge, same)
    finding = check_determinism(case, START)
    assert finding is not None
    assert ("closure-state", "kept.ledger") == (finding.kind, finding.path)
    assert "emissions[0].payload.number 1, then 2" in finding.what
    assert check_determinism(replace(case, fresh=ledger.clear), START) is None


def test_a_run_that_differs_in_the_process_of_the_test_is_found() -> None:
    here = os.getpid()

    def differs(routine: Any, number: Any) -> object:
        return os.getpid() == here

    finding = check_determinism(chain(same, differs, same), START)
    assert finding is not None
    assert ("repeat-differs", "r1") == (finding.kind, finding.routine)
    assert "a run in the process of the test and a run in a fork of it" in finding.what


def test_a_handler_that_kills_its_process_is_found() -> None:
    assert "kills-process" == found(lambda r, n: os._exit(2)).kind


def test_a_fault_is_injected_alike_each_time_and_is_counted() -> None:
    fault = Raises("r1", OSError)
    assert check_determinism(replace(chain(same, same), faults=(fault,)), START) is None
    assert fault.struck > 0


def test_a_run_that_does_not_finish_proves_nothing() -> None:
    with pytest.raises(FlowDefinitionError, match="has no routine 'r9' to start with"):
        check_determinism(replace(chain(same), entry="r9"), START)

    def fails(routine: Any, number: Any) -> object:
        pytest.fail("not here")

    with pytest.raises(pytest.fail.Exception, match="not here"):
        found(fails)

    def ends(routine: Any, number: Any) -> object:
        raise GeneratorExit

    assert "stuck" == found(ends).kind


def test_a_run_that_does_not_finish_in_another_process_is_an_error() -> None:
    here = os.getpid()

    def only_here(routine: Any, number: Any) -> object:
        if os.getpid() != here:
            pytest.skip("another process")
        return number

    with pytest.raises(RoutiluxError, match=r"ended early .Skipped: another process"):
        found(only_here)


# --- the order of sets ----------------------------------------------------------------------------


SEEDS = """
    import os

    import pytest

    @pytest.fixture
    def pay(flow_sim):
        return flow_sim.effect("pay")

    @pytest.mark.parametrize("name", ["a b"])
    def test_order(flow_sim, flow_factory, monkeypatch, pay, name):
        names = {f"{name}{n}" for n in range(8)}

        def work():
            return {"paid": pay(1), "names": list(names)}

        flow_sim.check_determinism(lambda: flow_factory(chain=[work]), "work")

    def test_hash(flow_sim, flow_factory):
        def work():
            return {"hash": hash("abc")}

        flow_sim.check_determinism(lambda: flow_factory(chain=[work]), "work")

    def test_sorted(flow_sim, flow_factory, pay):
        def first():
            return {"names": sorted({"a", "b", "c"})}

        def second(names):
            return {"paid": pay(*names)}

        flow_sim.check_determinism(lambda: flow_factory(chain=[first, second]), "first")
        flow_sim.check_determinism(lambda: flow_factory(chain=[second]), "second", {"names": []})

    def test_untried(flow_sim, flow_factory):
        def work():
            return {"done": True}

        excuse = ["hash-seed"] if EXCUSED else []
        if os.environ.get("PYTHONHASHSEED") in ("1", "2"):
            pytest.fail("not here")
        flow_sim.check_determinism(lambda: flow_factory(chain=[work]), "work", excuse=excuse)
"""


def printed_by(pytester: pytest.Pytester, test: str, *, excused: bool = False) -> str:
    """Run one of these tests, and return what it prints as one line."""
    pytester.makepyfile(SEEDS.replace("EXCUSED", str(excused)))
    return " ".join(run_inside(pytester, "-v", "-k", test).stdout.str().split())


@pytest.mark.soak
@pytest.mark.parametrize(
    ("test", "texts"),
    [
        ("order", ["ORDER OF A SET: ", "use sorted(...) where the set is iterated"]),
        ("hash", ["HASH OF A VALUE: work calls hash()", "hashlib.sha256(text.encode())"]),
        ("untried", ["another hash seed was not tried: ", "Failed: not here", "excuse=['hash-"]),
    ],
)
def test_another_hash_seed_is_tried_by_running_the_test_again(
    pytester: pytest.Pytester, test: str, texts: list[str]
) -> None:
    printed = printed_by(pytester, test)
    assert "1 failed" in printed
    for text in texts:
        assert text in printed


@pytest.mark.soak
def test_what_no_hash_seed_changes_is_clean(pytester: pytest.Pytester) -> None:
    assert "1 passed" in printed_by(pytester, "sorted")


def test_another_hash_seed_can_be_excused_by_name(pytester: pytest.Pytester, flow_sim: Any) -> None:
    printed = printed_by(pytester, "untried", excused=True)
    assert "1 passed" in printed
    assert "runs with another hash seed: not tried, by excuse=" in printed
    with pytest.raises(FlowDefinitionError, match="names nothing that can be left out"):
        flow_sim.check_determinism(chain(same).build, "r0", excuse=["zone"])


def test_the_order_of_a_set_of_objects_is_found_without_another_interpreter() -> None:
    class Thing:
        pass

    def by_address(routine: Any, number: Any) -> object:
        things = [Thing() for _ in range(50)]
        return [things.index(thing) for thing in set(things)]

    assert "nondeterminism" == found(by_address).kind


# --- no false alarm -------------------------------------------------------------------------------

PICTURES = [
    {"name": "ash", "seconds": 0.4, "failures": 0},
    {"name": "elm", "seconds": 0.2, "failures": 1},
    {"name": "oak", "seconds": 0.3, "failures": 9},
]
RECORDS = {"records": ["early", "late", "last"]}


def pipeline() -> Flow:
    return data_pipeline(2)


def words() -> Flow:
    return word_count(ErrorHandler("retry", retry_delay=0.1))


FLOWS = [
    Case(pipeline, "data_fetch", {"request_id": "r1"}),
    Case(lambda: data_pipeline(9, "concurrent"), "data_fetch", {"request_id": "r1"}),
    Case(lambda: fan_out_and_in(1), "split", {"pictures": PICTURES}),
    Case(lambda: fan_out_and_in(4), "split", {"pictures": PICTURES}),
    Case(words, "read", RECORDS),
    Case(lambda: word_count(ErrorHandler("skip")), "read", RECORDS),
]


@pytest.mark.parametrize("case", sampled(FLOWS, [FLOWS[1], FLOWS[5]]))
def test_the_flows_of_the_showcase_are_clean(case: Case) -> None:
    assert check_determinism(case, START) is None
    assert swallowed_crash(case, START) is None
    result = explore(case, START, Checks())
    assert result.reference.finding is None
    assert [] == [finding.what for _, finding in result.failures]
    assert [] == [note for note in result.coverage.notes if "process" in note]
