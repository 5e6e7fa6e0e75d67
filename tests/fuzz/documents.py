"""Fuzzes the readers of documents and journals: `python -m tests.fuzz.documents`.

    --count N   how many mutants; three quarters are documents, a quarter journals
    --seed N    the same seed gives the same mutants
    --huge N    how many of a hundred MB or with millions of values (eleven kinds)

Exits with 1 where `judge` found a broken invariant, and prints the smallest mutant of each batch.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.judge import MB, Tally, judge
from tests.fuzz.mutants import ENDLESS, Document, Rows, endless, tampered_documents, tampered_rows

BATCH = 2_000  # Hypothesis keeps data of each example in memory
MUTANTS = st.one_of(
    tampered_documents(), tampered_documents(), tampered_documents(), tampered_rows()
)


def run_batch(number: int, count: int, tally: Tally) -> None:
    """Judge `count` mutants; a failing one is shrunk and raised."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(MUTANTS)
    def judged(mutant: Document | Rows) -> None:
        try:
            judge(mutant, tally)
        except Exception as error:
            error.add_note(repr(mutant))
            raise

    judged()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.documents")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge", type=int, default=11)
    parser.add_argument("--memory", type=int, default=8_192, help="MB for the whole process")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (asked.memory * MB,) * 2)
    tally, broken, begun = Tally(), 0, time.perf_counter()
    done = 0
    while done < asked.count:
        number = asked.seed * 1_000_000 + done
        try:
            run_batch(number, min(BATCH, asked.count - done), tally)
        except Exception as error:
            broken += 1
            _say(f"batch {number} broke an invariant:\n{''.join(_lines(error))}")
        done += BATCH
        spent = time.perf_counter() - begun
        _say(f"{min(done, asked.count):,} of {asked.count:,} in {spent:.0f} s, {broken} broken")
    small = (tally.seconds, tally.memory)
    tally.seconds = tally.memory = 0
    for what in list(ENDLESS)[: asked.huge]:
        try:
            judge(endless(what), tally)
        except Exception as error:
            broken += 1
            _say(f"{what}, huge, broke an invariant:\n{''.join(_lines(error))}")
    _report(tally, small, broken)
    return 1 if broken else 0


def _report(tally: Tally, small: tuple[float, int], broken: int) -> None:
    kinds = ("anew", "signed", "stale", "unverified", "row")
    total = sum(tally.counts[kind] for kind in kinds)
    for kind in kinds:
        accepted, same = (tally.counts[f"{kind}: {what}"] for what in ("accepted", "unchanged"))
        _say(
            f"{kind:10} {tally.counts[kind]:8,}  accepted as consistent {accepted:6,}"
            f"  changes without effect {same:6,}"
        )
    anew = tally.counts["anew"] + tally.counts["signed"]
    _say(f"{total:,} mutants, {100 * anew / max(total, 1):.0f} % with a new seal")
    _say(f"refused as {dict(tally.places.most_common())}")
    _say(f"highest cost of one: {small[0]:.2f} s of the processor, {small[1] / MB:.0f} MB")
    if tally.memory:
        _say(f"highest cost of a huge one: {tally.seconds:.2f} s, {tally.memory / MB:,.0f} MB")
    _say(f"{broken} broken")


def _lines(error: BaseException) -> list[str]:
    # Hypothesis raises a group where several invariants are broken.
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
    lines = []
    for each in inner:
        *_, place = traceback.extract_tb(each.__traceback__)
        lines.append(f"  {type(each).__name__}: {str(each)[:600]}\n    {place}\n")
        lines += [f"    {note}\n" for note in getattr(each, "__notes__", [])[:1]]
    return lines


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
