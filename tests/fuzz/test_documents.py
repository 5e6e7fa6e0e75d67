"""Fuzz tests of the readers of documents and journals, and tests of their judge."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.families import families, small_documents, small_journals
from tests.fuzz.judge import MB, Tally, judge
from tests.fuzz.mutants import (
    ENDLESS,
    Document,
    Rows,
    documents,
    endless,
    journals,
    tampered_documents,
    tampered_rows,
)
from tests.soak import also, batch_seed, examples, sampled

BATCHES = also(0, *range(1, 8))  # Hypothesis keeps the data of a batch in memory
FAMILIES = dict(families())
OF_EACH_KIND = {name.partition(":")[0]: name for name in FAMILIES}.values()
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux reports the peak memory"
)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_tampered_document_is_refused_with_its_place_or_is_consistent(batch):
    tally = Tally()

    @seed(batch_seed(batch))
    @settings(max_examples=examples(5), suppress_health_check=SLOW)
    @given(tampered_documents(small_documents()))
    def judged(mutant):
        judge(mutant, tally)

    judged()
    anew = tally.counts["anew"] + tally.counts["signed"]
    every = anew + tally.counts["stale"] + tally.counts["unverified"]
    assert anew >= 0.3 * every, "too few mutants reach the validation"
    accepted = sum(n for name, n in tally.counts.items() if name.endswith("accepted"))
    assert accepted < 0.5 * every
    assert tally.places["CorruptStateError"] > every / 2
    assert 0 == tally.counts["stale: accepted"]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_tampered_journal_is_refused_with_its_place_or_is_consistent(batch):
    tally = Tally()

    @seed(batch_seed(batch))
    @settings(max_examples=examples(5), suppress_health_check=SLOW)
    @given(tampered_rows(small_journals()))
    def judged(mutant):
        judge(mutant, tally)

    judged()
    assert tally.counts["row: accepted"] < tally.counts["row"] / 2


def test_the_originals_cover_every_kind_of_commit():
    assert 6 == len(documents())
    assert 5 == len(journals())
    text = b"".join(row for rows in journals() for row in rows)
    for kind in ("start", "done", "retry", "failed", "dropped", "effect", "resumed"):
        assert f'"kind":"{kind}"'.encode() in text


@pytest.mark.parametrize("what", sampled(ENDLESS, [*ENDLESS][::4]))
def test_huge_data_costs_time_and_memory_in_proportion_to_its_size(what):
    judge(endless(what, MB), Tally())


@pytest.mark.parametrize("name", sampled(FAMILIES, OF_EACH_KIND))
def test_what_grows_in_a_document_or_journal_costs_time_in_proportion_to_its_size(name):
    judge(FAMILIES[name](4_000 if name.startswith(("value", "state")) else 1_500), Tally())


# --- the judge itself -----------------------------------------------------------------------------


def test_the_judge_accepts_what_is_changed_and_consistent():
    tally = Tally()
    first, other = documents()[:2]
    judge(Document(other, "unverified", first), tally)
    rows = journals()[0]
    judge(Rows(rows[:-1], rows), tally)
    assert {"unverified: accepted": 1, "row: accepted": 1} == {
        name: n for name, n in tally.counts.items() if ":" in name
    }


@pytest.mark.parametrize(
    ("place", "does", "message"),
    [
        ("routilux.core.saved.check_unfolded", lambda *_: 1 / 0, "division by zero"),
        ("routilux.core.saved._check", lambda *_: None, "differs from the fold of its commits"),
    ],
)
def test_the_judge_reports_every_fault_of_the_engine(place, does, message, monkeypatch):
    monkeypatch.setattr(place, does)

    @settings(max_examples=400, suppress_health_check=SLOW, phases=[Phase.generate])
    @given(tampered_documents())
    def judged(mutant):
        judge(mutant, Tally())

    with pytest.raises(Exception, match=message) as caught:
        judged()
    assert str(caught.value)


# More memory than the allocator may have kept from other tests.
@pytest.mark.parametrize(
    ("what", "size", "message"),
    [("MEMORY", 40 * MB, "it took .* MB"), ("SECONDS", MB, "it took .* s")],
)
def test_the_judge_limits_time_and_memory(what, size, message, monkeypatch):
    monkeypatch.setattr(f"tests.fuzz.judge.{what}", (0, 0, 0))
    with pytest.raises(AssertionError, match=message):
        judge(endless("a string", size), Tally())
