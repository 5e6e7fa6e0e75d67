"""Kills workers at every place of every write, and checks what is left: `python -m tests.kills`.

    --count N         the number of kills
    --store KIND      sqlite or postgres
    --seed N          the same seed aims the same kills; the machine decides where they hit
    --minutes N       start nothing more after this time
    --fewest N        the number of kills that each place needs
    --folder PATH     the folder for stores and effects, instead of a temporary folder

Ends with 1 if a rule is broken, and keeps the store; with 2 if there were fewer kills than asked
for, in all or at a place.
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
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--fewest", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.store == "postgres" and (reason := postgres_server.available()):
        _say(reason)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=asked.folder))
    begun = time.monotonic()
    try:
        with hosts(2) as pair:
            soak = Soak(pair, fresh_stores(asked.store, folder), folder, asked.seed)
            soak.until = begun + 60 * asked.minutes
            _run(soak, asked.count, asked.fewest, begun)
    finally:
        postgres_server.stop()
    _say(*soak.table())
    _say(
        f"{soak.kills():,} kills in {soak.lives:,} lives of {soak.jobs:,} jobs, with"
        f" {soak.commits:,} commits acknowledged, in {time.monotonic() - begun:.0f} s"
    )
    if soak.broken:
        _say(*soak.broken[:50], f"{len(soak.broken)} broken rules; the store is in {folder}")
        return 1
    shutil.rmtree(folder)
    if soak.kills() < asked.count or (rare := soak.rare(asked.fewest)):
        _say("the time was too short" if soak.kills() < asked.count else f"too seldom: {rare}")
        return 2
    _say("no commit lost, none applied twice, no effect repeated, every retry as it was due")
    return 0


def _run(soak: Soak, wanted: int, fewest: int, begun: float) -> None:
    soak.rehearse()
    soak.broken += [f"the rehearsal never passed {place}" for place in soak.missing()]
    while not soak.broken and soak.kills() < wanted and time.monotonic() < soak.until:
        left = wanted - soak.kills()
        soak.round(min(ROUND, left), 0 if left > ROUND else fewest)
        _say(
            f"{soak.kills():,} of {wanted:,} in {time.monotonic() - begun:.0f} s,"
            f" {len(soak.broken)} broken"
        )


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
