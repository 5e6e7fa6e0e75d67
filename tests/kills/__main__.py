"""Kills workers at every place of every write, and checks what is left: `python -m tests.kills`.

The same seed aims the same kills; the machine decides where they hit. Ends with 1 if a rule is
broken, and keeps the store; with 2 if there were fewer kills than asked for, in all or at a place.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.kills.soak import Soak, hosts
from tests.kills.stores import fresh_stores
from tests.persist import postgres_server

ROUND = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--count", type=int, default=10_000, help="the number of kills")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="the longest time")
    parser.add_argument("--fewest", type=int, default=10, help="kills that each place needs")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    begun = time.monotonic()
    try:
        with hosts(2) as pair:
            soak = Soak(pair, fresh_stores(asked.store, folder), folder, asked.seed)
            soak.until = begun + 60 * asked.minutes
            soak.rehearse()
            soak.broken += [f"the rehearsal never passed {place}" for place in soak.missing()]
            while (left := asked.count - soak.kills()) > 0 and time.monotonic() < soak.until:
                if soak.broken:
                    break
                soak.round(min(ROUND, left), 0 if left > ROUND else asked.fewest)
                say(f"{soak.kills():,} of {asked.count:,} in {time.monotonic() - begun:.0f} s")
    finally:
        postgres_server.stop()
    say(*soak.table())
    say(
        f"{soak.kills():,} kills in {soak.lives:,} lives of {soak.jobs:,} jobs, with"
        f" {soak.commits:,} commits acknowledged, in {time.monotonic() - begun:.0f} s"
    )
    if soak.broken:
        say(*soak.broken[:50], f"{len(soak.broken)} broken rules; the store is in {folder}")
        return 1
    shutil.rmtree(folder)
    if soak.kills() < asked.count or (rare := soak.rare(asked.fewest)):
        say("the time was too short" if soak.kills() < asked.count else f"too seldom: {rare}")
        return 2
    say("no commit lost, none applied twice, no effect repeated, every retry as it was due")
    return 0


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
