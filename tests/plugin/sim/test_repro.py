"""A reproducer is one word that names its flow; a stale one never passes."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_routilux.faults.faults import Raises, Slow
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explore import run_reference
from pytest_routilux.sim.repro import Repro, StaleError, command, digest_of
from pytest_routilux.sim.results import Checks, Coverage
from pytest_routilux.sim.simulator.model import Case, CrashPoint
from routilux.clocks.durations import instant_ns
from tests.plugin.sim import bugs
from tests.soak import examples

START = instant_ns("2026-01-01")
SLOW = Slow("orders", 1)
DOWN = Raises("charge", bugs.GatewayDown, [1])
CASE = Case(
    partial(bugs.shop, bugs.Charge), "orders", {"order": "A7", "amount": 1}, faults=(SLOW, DOWN)
)
FLOW = CASE.build()
NAMES = st.text(st.characters(), min_size=1, max_size=200)


def point(name: str) -> CrashPoint:
    return CrashPoint("around an effect", name, "somewhere", 1, 1, START, START)


def points_of(case: Case) -> list[CrashPoint]:
    return crash_points(run_reference(case, START, Checks(), Coverage()).run)


@pytest.mark.parametrize(
    "text",
    [
        "R1.9f3c.0.0@a1.effect1",
        "R1.9f3c.0.0@a2.wait.mid+f1",
        "R1.9f3c.resumed~2",
        "R1.9f3c.~0123456789abcdef.4@a1.done",
        "R1.9f3c.0.0@a1.once-send%20the%20mail%21+f1+f12",
        "R1.41d0.fifo",
        "R1.41d0.o",
        "R1.41d0.o3-1_12-4+f2",
        "R1.41d0.q0-1",
        "R1.9f3c.0.0@a1.effect1+o3-1+f1",
        "R1.9f3c.0.0@a1.effect1+0.0@a1.end",
        "R1.9f3c.0@a1.end+resumed+f1",
    ],
)
def test_a_reproducer_is_written_as_it_was_read(text):
    assert text == str(Repro.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "R2.9f3c.fifo",
        "r1.9f3c.fifo",
        "R1",
        "R1.9f3.fifo",
        "R1.9F3C.fifo",
        "R1.9f3c",
        "R1.9f3c.+f1",
        "R1.9f3c.o3-1+",
        "R1.9f3c.0+o3-1+o4-1",
        "R1.9f3c.0+o4-1_3-1",
        "R1.9f3c.o3-1_3-2",
        "R1.9f3c.a b",
        "R1.9f3c.a%2",
        "R1.9f3c.fifo+",
        "R1.9f3c.fifo+f0",
        "R1.9f3c.fifo+2",
        "R1.9f3c.fifo+f٣",
        "R1.9f3c.fifo+f2+f1",
        "R1.9f3c.fifo+f1+f1",
        "R1.9f3c.fifo\n",
    ],
)
def test_a_text_that_is_no_reproducer_is_refused_with_the_form(text):
    with pytest.raises(pytest.UsageError) as caught:
        Repro.parse(text)
    message = str(caught.value)
    assert (
        "R1.<4 hex digits>.<crash point, fifo or order>[+<second crash>][+<order>][+f1[+f2]]"
        in message
    )
    assert 1 == len(message.splitlines())


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    for given_ in (text, f"R1.{text}", f"R1.9f3c.{text}"):
        try:
            repro = Repro.parse(given_)
        except pytest.UsageError:
            continue
        assert given_ == str(repro)


@given(NAMES, st.sets(st.integers(1, 2)))
def test_any_name_makes_one_short_word_that_finds_its_point(name, faults):
    made = Repro.of(CASE, FLOW, point(name), faults=sorted(faults))
    text = str(made)
    assert re.fullmatch(r"[A-Za-z0-9_.~@%+-]+", text)
    assert ["x", text] == shlex.split(f"x {text}")
    assert len(text) < 110
    read = Repro.parse(text)
    assert made == read
    points = [point("x"), point(f"{name}."), point(name), point(name + "x")]
    assert [point(name)] == read.points(points)


@given(NAMES, NAMES)
def test_a_pair_of_any_names_finds_both_points(first, second):
    made = Repro.of(CASE, FLOW, replace(point(second), first=point(first)))
    read = Repro.parse(str(made))
    assert made == read
    assert [point(first)] == read.points([point(f"{first}."), point(first)])
    assert point(second) == read.second_point([point(f"{second}."), point(second)])


@pytest.mark.parametrize("name", ["fifo", "o", "q3-1", "o3-1_4-2"])
def test_a_point_that_is_called_as_an_order_is_still_a_point(name):
    read = Repro.parse(str(Repro.of(CASE, FLOW, point(name))))
    assert (None, point(name)) == (read.tape, *read.points([point("x"), point(name)]))


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_two_names_make_two_words(names):
    assert 2 == len({str(Repro.of(CASE, FLOW, point(name))) for name in names})


def test_every_point_of_a_run_is_found_again():
    points = points_of(CASE)
    for one in points:
        [found] = Repro.parse(str(Repro.of(CASE, FLOW, one))).points(points)
        assert one is found


def test_a_reproducer_runs_the_case_with_its_faults_alone():
    repro = Repro.of(CASE, FLOW, faults=[2])
    assert replace(CASE, faults=(DOWN,)) == repro.applied(CASE, FLOW)


@pytest.mark.parametrize(
    "case",
    [
        replace(CASE, entry="charge"),
        replace(CASE, slot="other"),
        replace(CASE, faults=(DOWN, SLOW)),
        replace(CASE, faults=(SLOW,)),
        replace(CASE, build=partial(bugs.shop, bugs.OnceAlone)),
    ],
)
def test_on_another_case_it_is_stale(case):
    repro = Repro.of(CASE, FLOW)
    says = f"store of the test have changed: the digest of the reproducer is {repro.digest}"
    with pytest.raises(StaleError, match=says):
        repro.applied(case, case.build())


def test_another_payload_or_job_id_does_not_make_it_stale():
    case = replace(CASE, params={"order": "B2", "amount": 2}, job_id="another")
    assert case == Repro.of(CASE, FLOW).applied(case, FLOW)


def test_without_its_fault_it_is_stale():
    repro = replace(Repro.of(CASE, FLOW), faults=(1, 3))
    with pytest.raises(
        StaleError, match="the reproducer needs fault f3, but the number of faults in the test is 2"
    ):
        repro.applied(CASE, FLOW)


@pytest.mark.parametrize("name", ["0.0@a7.effect1", "0.9@a1.effect1", "resumed~9"])
def test_without_its_point_it_is_stale(name):
    with pytest.raises(StaleError, match=f"no crash point {name}"):
        replace(Repro.of(CASE, FLOW), place=name).points(points_of(CASE))


def test_the_digest_is_the_same_for_faults_whose_text_holds_an_address():
    cases = [replace(CASE, faults=(Raises("charge", ValueError(object())),)) for _ in "ab"]
    first, second = (digest_of(case, FLOW) for case in cases)
    assert first == second


def test_the_digest_is_the_same_for_every_flow_of_one_shape():
    assert digest_of(CASE, FLOW) == digest_of(CASE, CASE.build())


NODES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=400)


@settings(max_examples=examples(0.25), deadline=None)
@given(NODES)
def test_a_command_is_one_line_that_a_shell_reads_unchanged(node):
    text = command(f"tests/test_shop.py::test[{node} a b]", Repro("9f3c", "0.0@a1.effect1"))
    assert text.isprintable()
    script = text.replace("pytest", "printf '%s\\n'", 1)
    shell = subprocess.run(["sh", "-c", script], capture_output=True, check=True, encoding="utf-8")
    assert [
        f"tests/test_shop.py::test[{node} a b]",
        "--routilux-repro=R1.9f3c.0.0@a1.effect1",
    ] == shell.stdout.splitlines()
