"""Kills workers at every place of every write, and looks at what is left: `python -m tests.kills`.

    --count N         how many kills
    --store KIND      sqlite or postgres
    --seed N          the same seed aims the same kills; where they strike, the machine decides
    --minutes N       begin nothing more after so long
    --fewest N        how often each place has to be struck
    --folder PATH     where stores and effects are kept, in place of a temporary folder

Ends with 1 where anything is broken, whose store is then left where it is; with 2 where there were
fewer kills than asked for, or too few at some place.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from tests.kills.soak import Soak, hosts
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
            soak = Soak(pair, _fresh(asked.store, folder), folder, asked.seed)
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
        _say(*soak.broken[:50], f"{len(soak.broken)} broken; what is left is in {folder}")
        return 1
    shutil.rmtree(folder)
    if soak.kills() < asked.count or (rare := soak.rare(asked.fewest)):
        _say("the time was too short" if soak.kills() < asked.count else f"too seldom: {rare}")
        return 2
    _say("no commit lost, none applied twice, no effect repeated, every retry as it was due")
    return 0


def _fresh(kind: str, folder: Path) -> Callable[[], str]:
    numbers = count()
    if kind == "postgres":
        return lambda: f"postgres:{postgres_server.fresh_dsn()}"
    return lambda: str(folder / f"jobs-{next(numbers)}.db")


def _run(soak: Soak, wanted: int, fewest: int, begun: float) -> None:
    soak.rehearse()
    soak.broken += [f"the rehearsal never came to {place}" for place in soak.missing()]
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
