"""Reads tampered documents and journals and counts what is wrong: `python -m tests.fuzz`.

The same seed makes the same mutants. Ends with 1 if damage was accepted, an error had no type of
its own, or reading took more time or memory than the size of the data allows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.families import small_documents, small_journals
from tests.fuzz.judge import Tally, judge
from tests.fuzz.mutants import Document, Rows, tampered_documents, tampered_rows

BATCH = 500  # Hypothesis keeps the data of a batch in memory
SHOWN = 20
documents = tampered_documents(small_documents())
mutants = st.one_of(documents, documents, documents, tampered_rows(small_journals()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=1_000_000, help="the number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="the longest time")
    asked = parser.parse_args()
    begun = time.monotonic()
    tally, wrong, reported = Tally(), Counter[str](), 0
    batch = 0
    while (done := count(tally)) < asked.count and time.monotonic() < begun + 60 * asked.minutes:
        for mutant, fault in failures(asked.seed * 1_000_000 + batch, tally):
            kind = fault_kind(fault)
            wrong[kind] += 1
            if sum(wrong.values()) <= SHOWN:
                print(f"{kind}: {mutant!r}: {fault!r}"[:2_000], flush=True)
        batch += 1
        if done // 10_000 > reported:
            reported = done // 10_000
            print(f"{done:,} in {time.monotonic() - begun:.0f} s: {dict(wrong)}", flush=True)
    print(*(f"{number:9,} {name}" for name, number in sorted(tally.counts.items())), sep="\n")
    print(
        f"{count(tally):,} mutants in {time.monotonic() - begun:.0f} s, seed {asked.seed}:", end=""
    )
    print(*(f" {wrong[kind]:,} {kind}" for kind in ("silent", "untyped", "slow")), sep=",")
    return 1 if wrong else 0


def count(tally: Tally) -> int:
    return sum(n for name, n in tally.counts.items() if ":" not in name)


def failures(number: int, tally: Tally) -> list[tuple[Document | Rows, Exception]]:
    """Judge one batch of mutants; return those that broke a rule, with the error."""
    found = []

    @seed(number)
    @settings(
        max_examples=BATCH,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutants)
    def judged(mutant: Document | Rows) -> None:
        try:
            judge(mutant, tally)
        except Exception as error:
            found.append((mutant, error))

    judged()
    return found


def fault_kind(fault: Exception) -> str:
    if not isinstance(fault, AssertionError):
        return "untyped"
    return "slow" if str(fault).startswith("it took") else "silent"


if __name__ == "__main__":
    sys.exit(main())
