"""The text of a failure: its parts, their order and figures, on one screen.

The texts come from real runs of the flows in `bugs.py`, each with one bug.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from unicodedata import category, east_asian_width
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_routilux.faults.faults import Fault, Raises, Slow
from pytest_routilux.sim.checks import check_disturbed
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explain.causes import CAUSES
from pytest_routilux.sim.explain.explain import explain_cause
from pytest_routilux.sim.explain.timeline import where_text
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.oracle import compare_effects
from pytest_routilux.sim.recovery import recover
from pytest_routilux.sim.repro import Repro, command
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.shrink import Cause, shrink
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Call, Case, Disturbed, Finding
from pytest_routilux.text import plain, shorten, width, wrapped
from routilux import Commit, ErrorHandler, Flow, Routine
from routilux.clocks.durations import instant_ns
from tests.plugin import golden
from tests.plugin.sim import bugs
from tests.soak import examples, sampled

START = instant_ns("2026-01-01")
ROOT = Path(bugs.__file__).parents[1]
NODE = "test_shop.py::test_survives"


def case_of(charge, orders=bugs.Orders, *faults):
    build = partial(bugs.shop, charge, orders)
    return Case(build, "orders", {"order": "A7", "amount": 19.9}, faults=faults)


def cause_of(case: Case, kind: str | None = None, checks: Checks | None = None) -> Cause:
    checks = checks or Checks()
    exploration = explore(case, START, checks)
    exploration.coverage.seconds, exploration.coverage.runs = 0.04, 5
    findings = [finding for _, finding in exploration.failures if kind in (None, finding.kind)]
    return shrink(exploration, case, START, checks, findings[0] if findings else None)


def text_of(case, kind=None, checks=None, columns=100):
    cause = cause_of(case, kind, checks)
    repro = Repro.of(case, case.build(), cause.point, faults=cause.faults)
    return explain_cause(cause, case, columns, repro=command(NODE, repro), root=ROOT) + "\n"


# --- whole texts ----------------------------------------------------------------------------------

TEXTS_OF: dict[str, tuple[Case, str | None]] = {
    "an effect that is repeated": (case_of(bugs.Charge), None),
    "an effect in once without a key": (case_of(bugs.OnceAlone), None),
    "a retry budget in an attribute": (case_of(bugs.OwnBudget), None),
    "another status": (case_of(bugs.ShortBudget), "status-differs"),
    "shared data and an output": (case_of(bugs.Numbered, bugs.TwoOrders), None),
    "a global of a module": (case_of(bugs.Remembering, bugs.TwoOrders), "emissions-differ"),
    "a key that changes with the attempt": (case_of(bugs.AttemptInKey), None),
    "a cause that needs a fault": (
        case_of(
            bugs.SecondThoughts,
            bugs.Orders,
            Slow("orders", 1),
            Raises("charge", bugs.GatewayDown, [1]),
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", sampled(TEXTS_OF, [*TEXTS_OF][::2] + [*TEXTS_OF][-1:]))
def test_the_whole_text_of_a_failure(name):
    text = text_of(*TEXTS_OF[name])
    assert len(text.splitlines()) <= 26
    golden.compare(golden.sections("explanations.txt")[name], text, name)


def test_a_narrow_terminal_gets_the_same_parts_in_80_columns():
    text = text_of(case_of(bugs.Charge), columns=80)
    golden.compare(golden.sections("explanations.txt")["in 80 columns"], text)
    assert_well_formed(text.rstrip("\n"), columns=80)


# --- figures --------------------------------------------------------------------------------------


first_cause = cache(lambda charge: cause_of(case_of(charge)))


def parts(charge: type[bugs.Charge]) -> tuple[Exploration, Finding, Disturbed]:
    """Return what a text is made of; a test may change it."""
    cause = first_cause(charge)
    assert cause.point is not None
    exploration = replace(
        cause.exploration,
        failures=list(cause.exploration.failures),
        coverage=deepcopy(cause.exploration.coverage),
    )
    disturbed = recover(exploration.reference.run, cause.point)
    finding = check_disturbed(exploration.reference, disturbed, Checks())
    assert finding is not None
    return exploration, finding, disturbed


@pytest.fixture(scope="module")
def charged() -> tuple[Exploration, Finding, Disturbed]:
    """The parts of a double charge, for tests that do not change them."""
    return parts(bugs.Charge)


def text_with(
    exploration: Exploration,
    finding: Finding,
    disturbed: Disturbed | None,
    repro: str | None = None,
) -> str:
    runs = {} if disturbed is None else {finding.signature: disturbed}
    cause = Cause(None, finding, (), replace(exploration, disturbed=runs))
    return explain_cause(cause, case_of(bugs.Charge), 100, repro=repro, root=ROOT)


def another_log_entry(disturbed: Disturbed, index: int, **changes: int) -> None:
    at_ns, host, what = disturbed.world.log[index]
    disturbed.world.log[index] = changes.get("at_ns", at_ns), changes.get("host", host), what


def a_commit_that_is_missing(_: Exploration, disturbed: Disturbed) -> None:
    commit = next(entry for entry in disturbed.world.log if isinstance(entry[2], Commit))
    disturbed.world.log.remove(commit)


def another_result(_: Exploration, disturbed: Disturbed) -> None:
    for index, (at_ns, host, what) in enumerate(disturbed.world.log):
        if isinstance(what, Call):
            disturbed.world.log[index] = (at_ns, host, replace(what, result="another"))


CHANGES = {
    "one call more": lambda _, disturbed: disturbed.world.add_call(disturbed.world.calls[-1]),
    "one call less": lambda _, disturbed: disturbed.world.calls.pop(),
    "a later commit": lambda _, run: another_log_entry(run, -1, at_ns=START + 925_000_000),
    "another host": lambda _, disturbed: another_log_entry(disturbed, -1, host=7),
    "one failure less": lambda exploration, _: exploration.failures.pop(),
    "a commit less": a_commit_that_is_missing,
    "another result": another_result,
    "a point less": lambda it, _: it.coverage.executed.update({"after a write": -1}),
    "other seconds": lambda it, _: setattr(it.coverage, "seconds", 0.05),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_figure_of_a_run_is_in_the_text(change):
    exploration, finding, disturbed = parts(bugs.Charge)
    right = text_with(exploration, finding, disturbed)
    assert right in golden.sections("explanations.txt")["an effect that is repeated"]
    CHANGES[change](exploration, disturbed)
    assert right != text_with(exploration, finding, disturbed)


def test_incomplete_coverage_is_reported():
    exploration, finding, disturbed = parts(bugs.Charge)
    exploration.coverage.executed["after a write"] -= 1
    assert "cut at 22 of at least 23" in text_with(exploration, finding, disturbed)


# --- why and fix ----------------------------------------------------------------------------------

KINDS = [
    *CAUSES,
    *("effect-repeated", "key-unstable", "effect-lost", "attempts-differ", "budget-reset"),
    *("state-differs", "shared-differs", "status-differs", "outputs-differ", "emissions-differ"),
    *("view-differs", "engine-rule", "hidden-state", "backoff-wrong", "an unknown kind"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crash", [True, False])
def test_each_kind_has_a_why_and_a_fix_in_terms_of_the_flow(kind, crash, charged):
    exploration, _, disturbed = charged
    finding = Finding(kind, f"charge does {kind}", "somewhere", "charge")
    repro = command(NODE, Repro("9f3c"))
    text = text_with(exploration, finding, disturbed if crash else None, repro)
    assert_well_formed(text, crash=crash)
    assert f"[{kind}]" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        *((kind, True) for kind in ("engine-rule", "backoff-wrong", "budget-reset", "unheard-of")),
        *((kind, False) for kind in ("always", "payload-changed", "unreadable")),
    ],
)
def test_a_broken_rule_of_the_engine_is_a_bug_of_routilux_unless_a_flow_can_cause_it(
    kind, ours, charged
):
    exploration, _, disturbed = charged
    text = text_with(exploration, Finding(kind, "a rule", "engine.charge", "charge"), disturbed)
    assert ours == ("That is a bug of routilux, not of this flow" in text)
    assert ours == ("report it to routilux" in text)


def test_a_broken_invariant_lists_the_parts_that_are_equal():
    checks = Checks(invariant=lambda outcome: len(outcome.calls) == 1)
    text = text_of(case_of(bugs.Ending), checks=checks)
    assert "INVARIANT: the invariant does not hold: the function returned False" in text
    assert "equal       status, outputs, routine states, attempts, emissions\n" in text


def test_a_crash_in_a_recovery_counts_as_two():
    exploration, finding, _ = parts(bugs.OwnBudget)
    point = next(p for p, _ in exploration.failures if p.kind == "in a recovery")
    disturbed = recover(exploration.reference.run, point)
    text = text_with(exploration, finding, disturbed)
    assert "smallest cause  2 crashes, 0 faults" in text
    assert "CRASH  again, right after the resume" in text


def test_a_key_on_one_call_alone_is_reported():
    exploration, _, disturbed = parts(bugs.Charge)
    disturbed.world.calls[0] = replace(disturbed.world.calls[0], key="A7")
    finding = compare_effects(exploration.reference.run.world, disturbed.world, {})
    assert finding is not None
    text = text_with(exploration, finding, disturbed)
    assert "one of the calls" in " ".join(text.split())
    assert "carries no key: the service takes" in " ".join(text.split())
    assert "x2   keys: A7, none" in text


def test_only_the_repeated_one_of_several_calls_at_one_instant_is_marked():
    def build() -> Flow:
        flow = bugs.shop(bugs.AtOnce, bugs.ThreeOrders)
        flow.execution_strategy = "concurrent"
        return flow

    case = Case(build, "orders", {"order": "A7", "amount": 19.9})
    text = text_of(case)
    assert "gateway.charge('A7a', 19.9) ran 2x, undisturbed run 1x" in text
    marked = [line for line in text.splitlines() if line.startswith("  > ") and "effect #" in line]
    assert 1 == len(marked)
    assert "gateway.charge('A7a', 19.9)" in marked[0]


class VaryingOnce(bugs.Charge):
    def charge(self, order: str, amount: float) -> None:
        name = f"charge {uuid4()}"
        receipt = self.ctx.once(name, bugs.gateway, order=order, amount=amount)
        self.emit("output", receipt=receipt)


class OnceForAnother(bugs.Charge):
    """Calls outside of `once`, which has a name that varies."""

    def charge(self, order: str, amount: float) -> None:
        self.ctx.once(f"audit {uuid4()}", len, order)
        receipt = bugs.gateway(order=order, amount=amount)
        self.emit("output", receipt=receipt)


class DigestOfAttempt(bugs.Charge):
    def __init__(self) -> None:
        super().__init__()
        self.set_error_handler(ErrorHandler("retry", max_retries=3, retry_delay=0.1))

    def charge(self, order: str, amount: float) -> None:
        key = sha256(f"{order}-{self.ctx.attempt}".encode()).hexdigest()[:32]
        receipt = bugs.gateway(order=order, amount=amount, key=key)
        if self.ctx.attempt < 2:
            raise bugs.GatewayDown("no answer")
        self.emit("output", receipt=receipt)


def test_a_name_of_once_that_varies_is_named_and_a_constant_one_is_not():
    text = " ".join(text_of(case_of(VaryingOnce)).split())
    assert "is in ctx.once under a name that varies: 'charge " in text
    assert "fix one name for one effect" in text
    for twin in (bugs.OnceAlone, OnceForAnother):
        assert "name that varies" not in text_of(case_of(twin))


class ChargesEach(bugs.Charge):
    def charge(self, order: str, amount: float) -> None:
        for part in ("a", "b", "c"):
            receipt = bugs.gateway(order=order + part, amount=amount)
        self.emit("output", receipt=receipt)


class ChargesEachOnItsLine(bugs.Charge):
    def charge(self, order: str, amount: float) -> None:
        bugs.gateway(order=order + "a", amount=amount)
        receipt = bugs.gateway(order=order + "b", amount=amount)
        self.emit("output", receipt=receipt)


def test_a_loop_that_begins_anew_is_named_and_calls_without_a_loop_are_not():
    text = " ".join(text_of(case_of(ChargesEach)).split())
    assert (
        "makes the call 3 times in one attempt, and the next attempt begins the loop anew" in text
    )
    assert 'key=self.ctx.key(f"charge-{item}")): a key of its own for each item' in text
    for twin in (ChargesEachOnItsLine, bugs.Charge):
        assert "begins the loop anew" not in text_of(case_of(twin))


def test_a_key_that_is_a_digest_is_not_called_a_uuid():
    text = text_of(case_of(DigestOfAttempt))
    assert "carries another key, which changes with the attempt" in " ".join(text.split())
    assert "uuid" not in text.lower()


def test_an_effect_that_is_lost_names_the_attribute_that_it_may_depend_on():
    text = text_of(case_of(bugs.FirstTwoFree, bugs.ThreeOrders))
    head = "EFFECT LOST: gateway.charge('A7c', 19.9) ran 0x, undisturbed run 1x"
    assert text.startswith(head)
    assert "changes self.served." in text
    assert "check whether the call of gateway.charge depends on it" in " ".join(text.split())


def test_an_attribute_of_the_routine_at_fault_comes_before_those_of_others():
    text = text_of(case_of(bugs.OwnBudget, bugs.CountingOrders))
    assert "changes self.tries" in text
    assert "self.taken" not in text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("store refuses", "CRASH  the store refuses #3, and its host ends"),
        ("store does not answer", "CRASH  the store has #3 but does not answer, and its host ends"),
        ("after a write", "CRASH  #3 is in the store, but the host dies before the store answers"),
        ("by document", "CRASH  the next host gets only a document of #3"),
        ("in a wait", "CRASH  the wait is saved in #3; the host's memory is lost"),
        ("before a write", "CRASH  #3 is not written: no commit records how the attempt ended"),
    ],
)
def test_the_row_of_a_crash_says_what_is_left(kind, says):
    exploration, finding, _ = parts(bugs.OwnBudget)
    points = crash_points(exploration.reference.run)
    point = next(p for p in points if p.kind == kind and p.name.startswith("0.0@a1"))
    text = text_with(exploration, finding, recover(exploration.reference.run, point))
    assert says in text


def test_a_line_of_the_plugin_is_not_shown_as_a_line_of_the_user():
    ours = Path(Fault.__module__.replace(".", "/")).with_suffix(".py").resolve()
    assert "" == where_text(f"{ours}:5", ROOT)
    assert "sim/bugs.py:5" == where_text(f"{bugs.__file__}:5", ROOT)


# --- all names and payloads -----------------------------------------------------------------------


def cells_of(line: str) -> int:
    """Count without the library that the texts are cut with."""
    wide = sum(east_asian_width(char) in "WF" for char in line)
    return len(line) + wide - sum(category(char) == "Mn" for char in line)


LABELS = ("smallest cause  ", "why    ", "fix    ", "    t ", "tried  ", "repro  ")


def assert_well_formed(text, *, crash=True, most=32, columns=100):
    lines = text.split("\n")
    assert len(lines) <= most
    assert lines[-1].startswith("repro  pytest ")
    assert all(width(line) <= columns for line in lines[:-1]), max(lines[:-1], key=width)
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
def test_a_text_fits_on_a_screen_for_all_names_payloads_and_files(
    routine, effect, event, once, payload, path
):
    double = Effect(effect, "key", lambda *_, **__: [effect, payload])

    def build() -> Flow:
        flow = Flow("any")
        flow.add_routine(Anything(double, event, once), routine)
        return flow

    case = Case(build, routine, {"payload": payload})
    checks = Checks()
    exploration = explore(case, START, checks)
    assert exploration.failures
    root = Path("/", *(part for part in path.split("/") if "\0" not in part))
    for finding in {finding.kind: finding for _, finding in exploration.failures}.values():
        cause = shrink(exploration, case, START, checks, finding)
        repro = Repro.of(case, build(), cause.point)
        node = f"{path}::{routine}[{effect}]"
        assert_well_formed(explain_cause(cause, case, 100, repro=command(node, repro), root=root))


def test_wide_names_and_payloads_are_counted_by_their_cells():
    name, order = "注文を受け付ける" * 9, "りんご" * 40
    double = Effect(name, "key")

    def build() -> Flow:
        flow = Flow("any")
        flow.add_routine(Anything(double, name, name), name)
        return flow

    case = Case(build, name, {"payload": order})
    cause = cause_of(case)
    node = command(f"テスト.py::{name}[{order}]", Repro.of(case, build(), cause.point))
    text = explain_cause(cause, case, 100, repro=node)
    assert_well_formed(text)
    assert text.endswith(node)  # whole, so that it can be pasted
    assert 100 == max(map(cells_of, text.split("\n")[:-1]))


@given(TEXTS, st.integers(1, 60))
def test_a_shortened_text_fits_and_has_a_mark(text, cells):
    for keep in ("start", "both", "end"):
        short = shorten(text, cells, keep)
        assert width(short) <= cells
        assert plain(text) == short or "…" in short


@given(
    st.lists(TEXTS.filter(lambda text: "\xa0" not in text)), st.integers(5, 40), st.integers(1, 5)
)
def test_a_wrapped_text_fits_into_its_lines(words, cells, most):
    lines = wrapped(" ".join(words), cells, most)
    assert len(lines) <= most
    assert all(width(line) <= cells for line in lines)
