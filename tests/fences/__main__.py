"""Takes jobs from living hosts and checks their effects: `python -m tests.fences`.

The rounds of each kind: the host is stopped for longer than its lease, the clock of the store is
set 60 s forward or 1 h back, an operator takes the jobs over or cancels them. Ends with 1 if a host
ran an effect after it had lost the job, or a commit was lost, and keeps the stores; with 2 if the
time was too short or no host was ever fenced.
"""

from __future__ import annotations

import sys

from tests.fences.rounds import KINDS, Rounds
from tests.kills.program import Program
from tests.kills.soak import hosts
from tests.kills.stores import fresh_stores


def main() -> int:
    program = Program("tests.fences", "--rounds", 200, "the rounds of each kind")
    with program as asked, hosts(2) as pair:
        stores = fresh_stores(asked.store, program.folder)
        rounds = Rounds(pair, stores, program.folder, asked.seed)
        for _ in range(asked.rounds):
            for kind in KINDS:
                rounds.run(kind)
            if rounds.broken or program.is_over:
                break
    all_counts = rounds.counts.values()
    few = any(counts["rounds"] < asked.rounds for counts in all_counts)
    none = "no host was ever fenced" if not any(counts["fenced"] for counts in all_counts) else ""
    return program.verdict(
        [*rounds.table(), f"in {program.seconds}, with seed {asked.seed}"],
        rounds.broken,
        "the time was too short" if few else none,
        "no host ran an effect after it had lost the job, except one that was in flight",
    )


if __name__ == "__main__":
    sys.exit(main())
