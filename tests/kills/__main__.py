"""Kills workers at every place of every write, and checks what is left: `python -m tests.kills`.

The same seed aims the same kills; the machine decides where they hit. Ends with 1 if a rule is
broken, and keeps the store; with 2 if there were fewer kills than asked for, in all or at a place.
"""

from __future__ import annotations

import sys

from tests.kills.program import Program, say
from tests.kills.soak import Soak, hosts
from tests.kills.stores import fresh_stores

ROUND = 500


def main() -> int:
    program = Program("tests.kills", "--count", 10_000, "the number of kills")
    program.parser.add_argument("--fewest", type=int, default=10, help="kills of each place")
    with program as asked, hosts(2) as pair:
        soak = Soak(pair, fresh_stores(asked.store, program.folder), program.folder, asked.seed)
        soak.until = program.until
        soak.rehearse()
        soak.broken += [f"the rehearsal never passed {place}" for place in soak.missing()]
        while (left := asked.count - soak.kills()) > 0 and not (program.is_over or soak.broken):
            soak.round(min(ROUND, left), 0 if left > ROUND else asked.fewest)
            say(f"{soak.kills():,} of {asked.count:,} in {program.seconds}")
    total = (
        f"{soak.kills():,} kills in {soak.lives:,} lives of {soak.jobs:,} jobs, with"
        f" {soak.commits:,} commits acknowledged, in {program.seconds}"
    )
    rare = soak.rare(asked.fewest)
    missing = f"too seldom: {rare}" if rare else ""
    return program.verdict(
        [*soak.table(), total],
        soak.broken,
        "the time was too short" if soak.kills() < asked.count else missing,
        "no commit lost, none applied twice, no effect repeated, every retry as it was due",
    )


if __name__ == "__main__":
    sys.exit(main())
