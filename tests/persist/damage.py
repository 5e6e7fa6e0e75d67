"""Damages copies of a real store's file, and judges each job of each copy against the truth.

A copy is silent if the check of its content and the loading of all jobs raise nothing typed, yet
something differs from the truth. Run it: `python -m tests.persist.damage --count 5000 --seed 1`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from routilux import FakeClock, Runtime, SavedStateError, SqliteStore
from routilux.persist.journal import Journal
from tests.persist.stores import counter
from tests.routines import SECOND

Truth = dict[str, object]
STEPS = (1, 40, 300, 3)  # of jobs, so that one has a snapshot and pages of its own


def made(path: Path) -> Truth:
    """A store with jobs that completed, wait, are leased and are held; return what it holds."""
    clock = FakeClock()
    with SqliteStore(path, clock=clock) as store, Runtime(clock=clock, store=store) as runtime:
        for number, steps in enumerate(STEPS):
            flow = counter(steps, prints=True)
            flow.execute("a", job_id=f"done-{number}", runtime=runtime)
        for number in range(12):
            runtime.submit(flow, "a", job_id=f"queued-{number}")
        for owner in ("host-a", "host-b"):
            store.acquire(owner, [flow.flow_id], 30 * SECOND, limit=3)
        store.release("queued-1", "host-a", 60 * SECOND)
        store.release("queued-2", "host-a", 0, clean=False)
    return content(path)


def content(path: Path) -> Truth:
    """All that a store holds; raises a typed error for what is damaged."""
    with SqliteStore(path, clock=FakeClock()) as store:
        errors = Journal(store).damage()
        if errors:
            raise errors[0]
        return {
            entry.job_id: (
                entry,
                store.rows(entry.job_id),
                store.snapshot(entry.job_id),
                Journal(store).read(entry.job_id, history=False),
            )
            for entry in store.entries()
        } | {"free in": store.free_in(["flow", "tale"]), "ids": store.job_ids()}


def _flips_bit(data: bytearray, chance: random.Random) -> str:
    at = chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)
    return f"a bit of byte {at}"


def _sets_byte(data: bytearray, chance: random.Random) -> str:
    at = chance.randrange(len(data))
    data[at] = chance.randrange(256)
    return f"byte {at} is set"


def _block(data: bytearray, chance: random.Random) -> tuple[int, int]:
    size = chance.choice([16, 64, 512, 4096])
    return chance.randrange(len(data) // size) * size, size


def _zeroes(data: bytearray, chance: random.Random) -> str:
    at, size = _block(data, chance)
    data[at : at + size] = bytes(size)
    return f"{size} bytes at {at} are zero"


def _copies(data: bytearray, chance: random.Random) -> str:
    at, size = _block(data, chance)
    source = chance.randrange(len(data) // size) * size
    data[at : at + size] = data[source : source + size]
    return f"{size} bytes at {at} are those at {source}"


def _truncates(data: bytearray, chance: random.Random) -> str:
    at = chance.randrange(len(data))
    del data[at:]
    return f"cut at {at}"


KINDS: dict[str, Callable[[bytearray, random.Random], str]] = {
    "bit": _flips_bit,
    "byte": _sets_byte,
    "zeroed": _zeroes,
    "copied": _copies,
    "truncated": _truncates,
}


def verdicts(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield the kind, the place and the verdict of each damage: `named`, `same` or an error."""
    chance = random.Random(seed)
    with TemporaryDirectory() as folder:
        path = Path(folder, "jobs.db")
        truth, whole = made(path), path.read_bytes()
        for number in range(count):
            kind = chance.choices([*KINDS], [60, 20, 8, 8, 4])[0]
            data = bytearray(whole)
            place = KINDS[kind](data, chance)
            copy = Path(folder, f"{number}.db")
            copy.write_bytes(data)
            try:
                found = content(copy)
            except (SavedStateError, OSError):
                verdict = "named"
            except Exception as error:
                verdict = f"untyped {type(error).__name__}: {error}"
            else:
                differs = [name for name in truth | found if truth.get(name) != found.get(name)]
                verdict = f"silent: {', '.join(differs)}" if differs else "same"
            yield kind, place, verdict
            for left in Path(folder).glob(f"{number}.db*"):
                left.unlink()


def main() -> int:
    """Print each silent or untyped damage, and the number of each verdict."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=5000)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    counts: Counter[str] = Counter()
    for kind, place, verdict in verdicts(asked.count, asked.seed):
        name = verdict.split()[0].rstrip(":")
        counts[name] += 1
        if name not in ("named", "same"):
            sys.stdout.write(f"{kind}: {place}: {verdict}\n")
    sys.stdout.write(f"{asked.count:,} damages, seed {asked.seed}: {dict(counts)}\n")
    return 1 if set(counts) - {"named", "same"} else 0


if __name__ == "__main__":
    raise SystemExit(main())
