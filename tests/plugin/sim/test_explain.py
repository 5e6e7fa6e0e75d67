"""A failure is told in the same parts, in the same order, and fits on a screen; its figures count.

The texts come from real runs of flows with one bug each, `bugs.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from unicodedata import category, east_asian_width

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_routilux.cells import cut, cut_middle, cut_start, plain, width, wrapped
from pytest_routilux.choices import FIFO
from pytest_routilux.crash import Disturbed, recover, undisturbed
from pytest_routilux.effects import Effect
from pytest_routilux.evidence import key_part
from pytest_routilux.examine import Checks, Examination, examine
from pytest_routilux.explain import explain, explain_cause
from pytest_routilux.faults import Fault, Raises, Slow
from pytest_routilux.lives import Case
from pytest_routilux.oracle import Finding
from pytest_routilux.points import crash_points
from pytest_routilux.repro import Repro, command
from pytest_routilux.shrink import Cause, shrink
from pytest_routilux.world import Call
from routilux import Commit, Flow, Routine
from routilux.instants import instant_ns
from tests.plugin.sim import bugs
from tests.soak import examples

START = instant_ns("2026-01-01")
ROOT = Path(bugs.__file__).parents[1]
NODE = "test_shop.py::test_survives"

A_DOUBLE_CHARGE = """\
EFFECT REPEATED: gateway.charge('A7', 19.9) ran 2x, undisturbed run 1x             [effect-repeated]

smallest cause  1 crash, 0 faults, FIFO order
crash point     task 0.0 charge, attempt 1: after effect #1 (gateway.charge), before its commit

                                             undisturbed   with this crash
  > gateway.charge(order='A7', amount=19.9)  x1            x2   keys: none, none
    equal                                    status, outputs, routine states, attempts, emissions

    t       host commit  what happened
    0.000   h1   #1      the job starts -> 0 orders
    0.200   h1   #2      0    orders  ok -> 0.0
    0.200   h1           0.0  charge  attempt 1 starts
    0.560   h1             effect #1  gateway.charge('A7', 19.9) -> 'charge-de687f'  sim/bugs.py:43
  > 0.560   h1   --      CRASH  'charge-de687f' exists outside; nothing durable knows of it
    0.560   h2   #3      resumed from #2 (recovery 1 of 3); pending: 0.0
  > 0.920   h2           0.0  effect #1  gateway.charge('A7', 19.9) -> 'charge-de68…  sim/bugs.py:43
    0.920   h2   #4      0.0  charge  ok, emits output

why    the call carried no key, so the gateway could not tell the repeat from a new call
fix    gateway.charge(..., key=self.ctx.key("charge")): the same on every attempt and host
       (its double has to know the parameter: flow_sim.effect("gateway.charge", key="key");
       ctx.once alone narrows this window but can't close it: a crash can come before its record)
tried  19 of 19 crash points x 1 schedule, complete, 0.04 s; 4 points fail, all in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.5361.0.0@a1.effect1
"""

A_BUDGET_OF_ITS_OWN = """\
ATTEMPTS DIFFER: charge attempted 5x, undisturbed run 4x                         [attempts-differ]

smallest cause  1 crash, 0 faults, FIFO order
crash point     task 0.0 charge, attempt 2: after its handler's end, before its commit

                     undisturbed            with this crash
  > charge attempts  4, waits 0.1 0.2 0.4   5, waits 0.1 | 0.2 0.4 0.8
    equal            status, outputs, routine states, emissions

    t       host commit  what happened
    …
    0.300   h1           0.0  charge  attempt 2 starts
  > 0.300   h1   --      CRASH  #4 is not written: nothing durable knows how the attempt ended
    0.300   h2   #4      resumed from #3 (recovery 1 of 3); pending: 0.0 due 0.300
    0.300   h2   #5      0.0  charge  attempt 2  GatewayDown, waits 0.2, due 0.500  sim/bugs.py:80
    0.500   h2   #6      0.0  charge  attempt 3  GatewayDown, waits 0.4, due 0.900  sim/bugs.py:80
  > 0.900   h2   #7      0.0  charge  attempt 4  GatewayDown, waits 0.8, due 1.700  sim/bugs.py:80
    1.700   h2   #8      0.0  charge  attempt 5  ok, emits output

why    sim/bugs.py:78 changes self.tries. That lives in the process; the job never saves it: the
       next host begins with 0 again
fix    use self.ctx.attempt (it was 2 at 0.300) and leave the waits to ErrorHandler(RETRY, ...);
       what must last belongs in self.ctx.state["tries"], kept when the handler returns
tried  49 of 49 crash points x 1 schedule, complete, 0.04 s; 33 points fail, all in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.9cb1.0.0@a2.end
"""

A_STATUS = """\
STATUS DIFFERS: the job is failed, undisturbed run completed                     [status-differs]

smallest cause  1 crash, 0 faults, FIFO order
crash point     task 0.0 charge, attempt 2: after its handler's end, before its commit

                undisturbed   with this crash
  > status      completed     failed
  > error       None          GatewayDown
  > … 2 more
    equal       attempts

    t       host commit  what happened
    …
    0.300   h1           0.0  charge  attempt 2 starts
  > 0.300   h1   --      CRASH  #4 is not written: nothing durable knows how the attempt ended
    …
  > 0.900   h2   #7      0.0  charge  attempt 4  GatewayDown, the job fails  sim/bugs.py:80

why    with the crash the job ends by GatewayDown (sim/bugs.py:80); sim/bugs.py:78 changes
       self.tries. That lives in the process; the job never saves it: the next host begins with 0
       again
fix    use self.ctx.attempt (it was 2 at 0.300) and leave the waits to ErrorHandler(RETRY, ...);
       what must last belongs in self.ctx.state["tries"], kept when the handler returns
tried  49 of 49 crash points x 1 schedule, complete, 0.04 s; 33 points fail, all in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.b67c.0.0@a2.end
"""

AN_OUTPUT = """\
SHARED DIFFERS: shared.last is 1, undisturbed run 2                                [shared-differs]

smallest cause  1 crash, 0 faults, FIFO order
crash point     task 0.1 charge, attempt 1: after its handler's end, before its commit

                                      undisturbed   with this crash
  > shared.last                       2             1
  > outputs charge.output[1].receipt  'a7/2'        'a7/1'
    equal                             status, routine states, attempts

    t       host commit  what happened
    0.000   h1   #1      the job starts -> 0 orders
    0.000   h1   #2      0    orders  ok -> 0.0, 0.1
    0.000   h1   #3      0.0  charge  ok, emits output
    0.000   h1           0.1  charge  attempt 1 starts
  > 0.000   h1   --      CRASH  #4 is not written: nothing durable knows how the attempt ended
    0.000   h2   #4      resumed from #3 (recovery 1 of 3); pending: 0.1
  > 0.000   h2   #5      0.1  charge  ok, emits output

why    charge, at sim/bugs.py:96, changes self.last. That lives in the process; the job never saves
       it: the next host begins with 0 again
fix    self.ctx.state["last"] in place of self.last: it is saved with the job; self.ctx.shared is
       for what several routines need
tried  22 of 22 crash points x 1 schedule, complete, 0.04 s; 6 points fail, all in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.e4fc.0.1@a1.end
"""

A_GLOBAL = """\
EMISSIONS DIFFER: charge.output[0].receipt is 'A7/3', undisturbed run 'A7/1'    [emissions-differ]

smallest cause  1 crash, 0 faults, FIFO order
crash point     the job's start: right after its commit; the next host has a document of it

                                      undisturbed   with this crash
  > outputs charge.output[0].receipt  'A7/1'        'A7/3'
    equal                             status, routine states, attempts

    t       host commit  what happened
    0.000   h1   #1      the job starts -> 0 orders
  > 0.000   h1   --      CRASH  a document of #1 is all that is left
    0.000   h2   #2      resumed from #1 (recovery 1 of 3); pending: 0
    0.000   h2   #3      0    orders  ok -> 0.0, 0.1
  > 0.000   h2   #4      0.0  charge  ok, emits output
    0.000   h2   #5      0.1  charge  ok, emits output

why    sim/bugs.py:103 changes the global SEEN of tests.plugin.sim.bugs. That lives in the module:
       jobs share it, no job saves it, and a new process has it as it was imported
fix    self.ctx.state["seen"] in place of SEEN: it is saved with the job; self.ctx.shared is for
       what several routines need
tried  22 of 22 crash points x 1 schedule, complete, 0.04 s; 7 points fail, 2 of them in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.66bc.start.document
"""

A_KEY = """\
KEY UNSTABLE: gateway.charge(order='A7', amount=19.9) ran 2x under other keys         [key-unstable]

smallest cause  0 crashes, 0 faults, FIFO order

                first             then
  > key         attempt 1: A7-1   attempt 2: A7-2

    t       host commit  what happened
    0.000   h1   #1      the job starts -> 0 orders
    0.200   h1   #2      0    orders  ok -> 0.0
    0.200   h1           0.0  effect #1  gateway.charge('A7', 19.9) -> 'charge-de68…  sim/bugs.py:59
    0.200   h1   #3      0.0  charge  attempt 1  GatewayDown, waits 0.1, due 0.300  sim/bugs.py:61
    0.300   h1             effect #1  gateway.charge('A7', 19.9) -> 'charge-de687f'  sim/bugs.py:59
    0.300   h1   #4      0.0  charge  attempt 2  ok, emits output

why    the number of the attempt is part of the key (sim/bugs.py:59), and differs between the calls:
       the service takes them for two
fix    key=self.ctx.key("charge"): made of the job and the task alone, so it is the same on every
       attempt and host
tried  5 runs, 0.04 s; no crash yet: it shows where nothing is disturbed
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.fea4.fifo
"""

ONCE_ALONE = """\
EFFECT REPEATED: gateway.charge('A7', 19.9) ran 2x, undisturbed run 1x             [effect-repeated]

smallest cause  1 crash, 0 faults, FIFO order
crash point     task 0.0 charge, attempt 1: after effect #1 (gateway.charge), before its commit

                                             undisturbed   with this crash
  > gateway.charge(order='A7', amount=19.9)  x1            x2   keys: none, none
    equal                                    status, outputs, routine states, attempts, emissions

    t       host commit  what happened
    …
    0.200   h1           0.0  effect #1  gateway.charge('A7', 19.9) -> 'charge-de68…  sim/bugs.py:49
  > 0.200   h1   --      CRASH  'charge-de687f' exists outside; nothing durable knows of it
    0.200   h2   #3      resumed from #2 (recovery 1 of 3); pending: 0.0
  > 0.200   h2           0.0  effect #1  gateway.charge('A7', 19.9) -> 'charge-de68…  sim/bugs.py:49
    0.200   h2   #4      0.0  charge  once('charge') is recorded
    0.200   h2   #5      0.0  charge  ok, emits output

why    once('charge') records the result after the call. The crash is between the two, and the call
       carried no key, so the gateway could not tell the repeat from a new call
fix    self.ctx.once("charge", gateway.charge, ..., key=self.ctx.key("charge")): the key closes the
       window that once leaves open
       (its double has to know the parameter: flow_sim.effect("gateway.charge", key="key"))
tried  25 of 25 crash points x 1 schedule, complete, 0.04 s; 4 points fail, all in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.3332.0.0@a1.effect1
"""

A_FAULT = """\
EFFECT REPEATED: gateway.charge('A7', 19.9) ran 2x, undisturbed run 1x             [effect-repeated]

smallest cause  1 crash + raises('charge', GatewayDown, attempts=[1]), FIFO order
                (shrunk from 1 crash + 2 faults, 61 runs)
crash point     task 0.0 charge, attempt 2: after effect #1 (gateway.charge), before its commit

                                             undisturbed   with this crash
  > gateway.charge(order='A7', amount=19.9)  x1            x2   keys: none, none
    equal                                    status, outputs, routine states, attempts, emissions

    t       host commit  what happened
    …
    0.300   h1           0.0  charge  attempt 2 starts
    0.300   h1             effect #1  gateway.charge('A7', 19.9) -> 'charge-de687f'  sim/bugs.py:122
  > 0.300   h1   --      CRASH  'charge-de687f' exists outside; nothing durable knows of it
    0.300   h2   #4      resumed from #3 (recovery 1 of 3); pending: 0.0 due 0.300
  > 0.300   h2           0.0  effect #1  gateway.charge('A7', 19.9) -> 'charge-de6…  sim/bugs.py:122
    0.300   h2   #5      0.0  charge  attempt 2  ok, emits output

why    the call carried no key, so the gateway could not tell the repeat from a new call
fix    gateway.charge(..., key=self.ctx.key("charge")): the same on every attempt and host
       (its double has to know the parameter: flow_sim.effect("gateway.charge", key="key");
       ctx.once alone narrows this window but can't close it: a crash can come before its record)
tried  30 of 30 crash points x 1 schedule, complete, 0.04 s; 4 points fail, all in this way
repro  pytest "test_shop.py::test_survives" --routilux-repro=R1.b836.0.0@a2.effect1+f2
"""


def case_of(
    charge: type[bugs.Charge], orders: type[bugs.Orders] = bugs.Orders, *faults: Fault
) -> Case:
    build = partial(bugs.shop, charge, orders)
    return Case(build, "orders", {"order": "A7", "amount": 19.9}, faults=faults)


def cause_of(case: Case, kind: str | None = None, checks: Checks | None = None) -> Cause:
    checks = checks or Checks()
    examination = examine(case, START, checks)
    examination.coverage.seconds, examination.coverage.runs = 0.04, 5
    told = [finding for _, finding in examination.failures if kind in (None, finding.kind)]
    return shrink(examination, case, START, checks, told[0] if told else None)


def told(case: Case, kind: str | None = None, checks: Checks | None = None) -> str:
    cause = cause_of(case, kind, checks)
    repro = Repro.of(case, case.build(), cause.point, faults=cause.faults)
    return explain_cause(cause, case, START, repro=command(NODE, repro), root=ROOT) + "\n"


# --- whole texts ----------------------------------------------------------------------------------


def test_an_effect_that_is_repeated() -> None:
    assert A_DOUBLE_CHARGE == told(case_of(bugs.Charge))


def test_a_retry_budget_in_an_attribute() -> None:
    assert A_BUDGET_OF_ITS_OWN == told(case_of(bugs.OwnBudget))


def test_another_status() -> None:
    assert A_STATUS == told(case_of(bugs.ShortBudget), "status-differs")


def test_shared_data_and_an_output_that_differ() -> None:
    assert AN_OUTPUT == told(case_of(bugs.Numbered, bugs.TwoOrders))


def test_a_global_of_a_module() -> None:
    assert A_GLOBAL == told(case_of(bugs.Remembering, bugs.TwoOrders), "emissions-differ")


def test_a_key_that_changes_with_the_attempt_without_any_crash() -> None:
    assert A_KEY == told(case_of(bugs.AttemptInKey))


def test_an_effect_in_once_without_a_key() -> None:
    assert ONCE_ALONE == told(case_of(bugs.OnceAlone))


def test_a_cause_that_needs_a_fault() -> None:
    slow, down = Slow("orders", 1), Raises("charge", bugs.GatewayDown, [1])

    assert A_FAULT == told(case_of(bugs.SecondThoughts, bugs.Orders, slow, down))


# --- figures --------------------------------------------------------------------------------------


def parts(charge: type[bugs.Charge]) -> tuple[Examination, Finding, Disturbed]:
    case = case_of(charge)
    cause = cause_of(case)
    run = undisturbed(case, START, FIFO, told=True)
    assert cause.point is not None
    known = replace(cause.examination.reference, run=run)
    examination = replace(cause.examination, reference=known)
    return examination, cause.finding, recover(run, cause.point, told=True)


def text_of(examination: Examination, finding: Finding, disturbed: Disturbed) -> str:
    return explain(examination, disturbed.point, finding, disturbed, repro=None, root=ROOT)


def one_more_call(_: Examination, disturbed: Disturbed) -> None:
    disturbed.world.called(disturbed.world.calls[-1])


def one_call_less(_: Examination, disturbed: Disturbed) -> None:
    disturbed.world.calls.pop()


def a_later_commit(_: Examination, disturbed: Disturbed) -> None:
    log = disturbed.world.log
    log[-1] = (log[-1][0] + 5_000_000, *log[-1][1:])


def another_host(_: Examination, disturbed: Disturbed) -> None:
    log = disturbed.world.log
    log[-1] = (log[-1][0], 7, log[-1][2])


def a_commit_that_is_missing(_: Examination, disturbed: Disturbed) -> None:
    commit = next(entry for entry in disturbed.world.log if isinstance(entry[2], Commit))
    disturbed.world.log.remove(commit)


def another_result(_: Examination, disturbed: Disturbed) -> None:
    for index, (at_ns, host, what) in enumerate(disturbed.world.log):
        if isinstance(what, Call):
            disturbed.world.log[index] = (at_ns, host, replace(what, result="another"))


def a_point_that_was_not_executed(examination: Examination, _: Disturbed) -> None:
    examination.coverage.executed["after a write"] -= 1


def one_failure_less(examination: Examination, _: Disturbed) -> None:
    examination.failures.pop()


def other_seconds(examination: Examination, _: Disturbed) -> None:
    examination.coverage.seconds = 0.05


@pytest.mark.parametrize(
    "plant",
    [
        one_more_call,
        one_call_less,
        a_later_commit,
        another_host,
        a_commit_that_is_missing,
        another_result,
        a_point_that_was_not_executed,
        one_failure_less,
        other_seconds,
    ],
)
def test_a_figure_that_is_planted_wrong_changes_the_text(plant) -> None:  # type: ignore[no-untyped-def]
    examination, finding, disturbed = parts(bugs.Charge)
    right = text_of(examination, finding, disturbed)
    assert "\n".join(right.splitlines()) in A_DOUBLE_CHARGE

    plant(examination, disturbed)

    assert right != text_of(examination, finding, disturbed)


def test_coverage_that_is_not_complete_is_said() -> None:
    examination, finding, disturbed = parts(bugs.Charge)
    examination.coverage.executed["after a write"] -= 1

    assert "cut at 18 of 19" in text_of(examination, finding, disturbed)


# --- why and fix ----------------------------------------------------------------------------------

KINDS = [
    "effect-repeated",
    "key-unstable",
    "effect-lost",
    "attempts-differ",
    "budget-reset",
    "state-differs",
    "shared-differs",
    "status-differs",
    "outputs-differ",
    "emissions-differ",
    "view-differs",
    "invariant",
    "always",
    "stuck",
    "engine-law",
    "leaked-thread",
    "module-state",
    "hash-order",
    "nondeterminism",
    "swallowed-crash",
    "kills-process",
    "hidden-state",
    "hangs",
    "payload-changed",
    "unreadable",
    "backoff-wrong",
    "of a law that is yet to come",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crash", [True, False])
def test_each_kind_has_a_why_and_a_fix_in_terms_of_the_flow(kind: str, crash: bool) -> None:
    examination, _, disturbed = parts(bugs.Charge)
    finding = Finding(kind, f"charge does {kind}", "somewhere", "charge")

    text = explain(
        examination,
        disturbed.point if crash else None,
        finding,
        disturbed if crash else None,
        repro=command(NODE, Repro("9f3c")),
        root=ROOT,
    )

    assert_well_formed(text, crash=crash)
    assert f"[{kind}]" in text.splitlines()[0]


@pytest.mark.parametrize("kind", ["engine-law", "backoff-wrong", "budget-reset", "unheard-of"])
def test_a_law_of_the_engine_is_called_our_bug(kind: str) -> None:
    examination, _, disturbed = parts(bugs.Charge)

    text = text_of(examination, Finding(kind, "a law", "engine.charge", "charge"), disturbed)

    assert "That is a bug of routilux, not of this flow" in text
    assert "report it to routilux" in text


@pytest.mark.parametrize("kind", ["always", "payload-changed", "unreadable"])
def test_what_a_flow_can_cause_is_not_called_our_bug(kind: str) -> None:
    examination, _, disturbed = parts(bugs.Charge)

    text = text_of(examination, Finding(kind, "it", "engine.charge", "charge"), disturbed)

    assert "bug of routilux" not in text


def test_a_uuid_in_a_key_is_named_as_what_it_looks_like() -> None:
    text = told(case_of(bugs.FreshKey))

    assert "what looks like a UUID is part of the key (sim/bugs.py:67)" in text
    assert "uuid.uuid4() does not" in text


@pytest.mark.parametrize(
    ("keys", "attempts", "part"),
    [
        (["a-1", "a-2"], [1, 2], "the number of the attempt"),
        (["a-1", "a-2"], [1, 1], None),
        (["a", "b"], [1, 2], None),
        (["2026-01-01T00:00:00.2+00:00", "2026-01-01T00:00:01"], [1, 1], "what looks like a time"),
        (["k1767225600", "k1767225601.25"], [1, 1], "what looks like a time"),
        (["a", None], [1, 2], None),
        (["a", "a"], [1, 2], None),
    ],
)
def test_what_changed_in_a_key_is_told_where_it_can_be_seen(
    keys: list[object], attempts: list[int], part: str | None
) -> None:
    assert part == key_part(keys, attempts)


def test_an_invariant_that_does_not_hold_says_what_is_the_same() -> None:
    checks = Checks(invariant=lambda outcome: len(outcome.calls) == 1)

    text = told(case_of(bugs.Ending), checks=checks)

    assert "INVARIANT: the invariant does not hold: it returned False" in text
    assert "equal       status, outputs, routine states, attempts, emissions\n" in text


def test_a_crash_in_a_recovery_counts_as_two() -> None:
    examination, finding, _ = parts(bugs.OwnBudget)
    point = next(p for p, _ in examination.failures if p.kind == "in a recovery")
    disturbed = recover(examination.reference.run, point, told=True)

    text = text_of(examination, finding, disturbed)

    assert "smallest cause  2 crashes, 0 faults" in text
    assert "CRASH  again, right after it went on" in text


def test_a_key_on_one_call_alone_is_told() -> None:
    examination, finding, disturbed = parts(bugs.Charge)
    finding.kind = "key-unstable"
    disturbed.world.calls[0] = replace(disturbed.world.calls[0], key="A7")

    text = text_of(examination, finding, disturbed)

    assert "one call carried a key and another none" in text
    assert "x2   keys: A7, none" in text


def test_a_record_of_something_else_is_not_taken_for_that_of_the_call() -> None:
    text = told(case_of(bugs.BeforeOnce))

    assert "why    the call carried no key, so the gateway could not tell" in text


def test_of_calls_at_one_instant_the_one_that_is_repeated_is_told() -> None:
    def build() -> Flow:
        flow = bugs.shop(bugs.AtOnce, bugs.ThreeOrders)
        flow.execution_strategy = "concurrent"
        return flow

    case = Case(build, "orders", {"order": "A7", "amount": 19.9})

    text = told(case)

    assert "gateway.charge('A7a', 19.9) ran 2x, undisturbed run 1x" in text
    marked = [line for line in text.splitlines() if line.startswith("  > ") and "effect #" in line]
    assert 1 == len(marked)
    assert "gateway.charge('A7a', 19.9)" in marked[0]


def test_an_effect_that_is_lost_names_the_attribute_that_it_may_hang_on() -> None:
    text = told(case_of(bugs.FirstTwoFree, bugs.ThreeOrders))

    head = "EFFECT LOST: gateway.charge(order='A7c', amount=19.9) ran 0x, undisturbed run 1x"
    assert text.startswith(head)
    assert "changes self.served." in text
    assert "begins with [] again; see whether the call of gateway.charge hangs on it" in " ".join(
        text.split()
    )


def test_an_attribute_of_the_routine_at_fault_comes_before_those_of_others() -> None:
    text = told(case_of(bugs.OwnBudget, bugs.CountingOrders))

    assert "changes self.tries" in text
    assert "self.taken" not in text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("store refuses", "CRASH  the store refuses #3, and its host ends"),
        ("store does not answer", "CRASH  the store has #3 but does not answer, and its host ends"),
        ("after a write", "CRASH  #3 is durable, though nobody heard of it"),
        ("by document", "CRASH  a document of #3 is all that is left"),
        ("in a wait", "CRASH  attempt 1 and due 0.300 are saved; no memory is"),
        ("before a write", "CRASH  #3 is not written: nothing durable knows how the attempt ended"),
    ],
)
def test_a_crash_says_what_is_left(kind: str, says: str) -> None:
    examination, finding, _ = parts(bugs.OwnBudget)
    points = crash_points(examination.reference.run)
    point = next(p for p in points if p.kind == kind and p.name.startswith("0.0@a1"))

    text = text_of(examination, finding, recover(examination.reference.run, point, told=True))

    assert says in text


# --- whatever the names ---------------------------------------------------------------------------


def cells_of(line: str) -> int:
    """Count without the library that the texts are cut with."""
    wide = sum(east_asian_width(char) in "WF" for char in line)
    return len(line) + wide - sum(category(char) == "Mn" for char in line)


LABELS = ("smallest cause  ", "    t ", "why    ", "fix    ", "tried  ", "repro  ")


def assert_well_formed(text: str, *, crash: bool = True) -> None:
    lines = text.split("\n")
    assert len(lines) <= 25
    assert all(width(line) <= 100 for line in lines), max(lines, key=width)
    assert all(line.isprintable() for line in lines)
    assert lines[0].endswith("]")
    places = [next(i for i, line in enumerate(lines) if line.startswith(label)) for label in LABELS]
    assert places == sorted(places)
    if crash:
        point = next(i for i, line in enumerate(lines) if line.startswith("crash point"))
        assert places[0] < point < places[1]
        assert any(line.startswith("  > ") and "CRASH" in line for line in lines)


class Anything(Routine):
    """Does an effect of any name, with any payload, and counts in an attribute."""

    def __init__(self, double: Effect, event: str, once: str) -> None:
        super().__init__()
        self.double = double
        self.event = event
        self.once = once
        self.count = 0
        self.define_slot("trigger", handler=self.run)
        self.define_event(event, ["payload"])

    def run(self, payload: object) -> None:
        self.count += 1
        self.ctx.once(self.once, self.double, payload)
        self.double(payload, payload=payload)
        self.ctx.shared[self.once] = [self.count, payload]
        self.emit(self.event, payload=payload)


TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(max_size=300),
    st.text("日本語 \n\t\x1b[31m‮á👩‍👩‍👧\\\"'$`!", max_size=60),
)
NAMED = TEXTS.filter(bool)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=examples(0.4), deadline=None)
@given(NAMED, NAMED, NAMED, NAMED, VALUES, TEXTS)
def test_whatever_the_names_the_payloads_and_the_paths_it_fits_on_a_screen(
    routine: str, effect: str, event: str, once: str, payload: object, path: str
) -> None:
    double = Effect(effect, "key", lambda *_, **__: [effect, payload])

    def build() -> Flow:
        flow = Flow("any")
        flow.add_routine(Anything(double, event, once), routine)
        return flow

    case = Case(build, routine, {"payload": payload})
    checks = Checks()
    examination = examine(case, START, checks)
    assert examination.failures

    root = Path("/", *(part for part in path.split("/") if "\0" not in part))
    for finding in {finding.kind: finding for _, finding in examination.failures}.values():
        cause = shrink(examination, case, START, checks, finding)
        repro = Repro.of(case, build(), cause.point)
        node = f"{path}::{routine}[{effect}]"
        assert_well_formed(explain_cause(cause, case, START, repro=command(node, repro), root=root))


def test_wide_names_and_payloads_are_counted_by_their_cells() -> None:
    name, order = "注文を受け付ける" * 9, "りんご" * 40
    double = Effect(name, "key")

    def build() -> Flow:
        flow = Flow("any")
        flow.add_routine(Anything(double, name, name), name)
        return flow

    case = Case(build, name, {"payload": order})
    cause = cause_of(case)
    node = command(f"テスト.py::{name}[{order}]", Repro.of(case, build(), cause.point))

    text = explain_cause(cause, case, START, repro=node)

    assert_well_formed(text)
    assert 100 == max(map(cells_of, text.split("\n")))


@given(TEXTS, st.integers(1, 60))
def test_what_is_cut_fits_and_says_so(text: str, cells: int) -> None:
    for one in (cut, cut_middle, cut_start):
        short = one(text, cells)
        assert width(short) <= cells
        assert plain(text) == short or "…" in short


@given(
    st.lists(TEXTS.filter(lambda text: "\xa0" not in text)), st.integers(5, 40), st.integers(1, 5)
)
def test_what_is_wrapped_fits_into_its_lines(words: list[str], cells: int, most: int) -> None:
    lines = wrapped(" ".join(words), cells, most)

    assert len(lines) <= most
    assert all(width(line) <= cells for line in lines)
