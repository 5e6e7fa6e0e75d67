"""Takes jobs from living hosts and checks their effects: `python -m tests.fences`.

The rounds of each kind: the host is stopped for longer than its lease, the clock of the store is
set 60 s forward or 1 h back, an operator takes the jobs over or cancels them. Ends with 1 if a host
ran an effect after it had lost the job, or a commit was lost, and keeps the stores; with 2 if the
time was too short or no host was ever fenced.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.fences.rounds import KINDS, Rounds
from tests.kills.__main__ import say
from tests.kills.soak import hosts
from tests.kills.stores import fresh_stores
from tests.persist import postgres_server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fences")
    parser.add_argument("--rounds", type=int, default=200, help="the rounds of each kind")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="the longest time")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fences-"))
    begun = time.monotonic()
    try:
        with hosts(2) as pair:
            rounds = Rounds(pair, fresh_stores(asked.store, folder), folder, asked.seed)
            for _ in range(asked.rounds):
                for kind in KINDS:
                    rounds.run(kind)
                if rounds.broken or time.monotonic() > begun + 60 * asked.minutes:
                    break
    finally:
        postgres_server.stop()
    say(*rounds.table(), f"in {time.monotonic() - begun:.0f} s, with seed {asked.seed}")
    if rounds.broken:
        say(*rounds.broken[:50], f"{len(rounds.broken)} broken rules; the stores are in {folder}")
        return 1
    shutil.rmtree(folder)
    if any(counts["rounds"] < asked.rounds for counts in rounds.counts.values()):
        say("the time was too short")
        return 2
    say("no host ran an effect after it had lost the job, except one that was in flight")
    return 0


if __name__ == "__main__":
    sys.exit(main())
