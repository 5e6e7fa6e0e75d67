"""Reproducers: texts such as `R1.9f3c.0.0@a1.effect1+f1` that name a failure.

Invariants:
- A reproducer is one word for a shell, unquoted: a character that a shell changes is written as `%`
  and its bytes, and a long name ends in its digest.
- Its digest names the flow. With another flow, or if its point or fault is gone, it is stale, with
  the reason, and never passes.
- A text that is no reproducer raises an error that names the form.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes

import pytest

from pytest_routilux.sim.simulator.scheduler import FIFO_ORDER, Tape
from pytest_routilux.sim.simulator.store_files import store_name
from pytest_routilux.text import shown, without_addresses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.sim.simulator.model import Case, CrashPoint
    from pytest_routilux.sim.simulator.scheduler import Order
    from routilux import Flow

_FORM: Final = "R1.<4 hex digits>.<crash point, fifo or order>[+<second crash>][+<order>][+f1[+f2]]"
_DEVIATION: Final = "(?:0|[1-9][0-9]{0,5})-[1-9][0-9]{0,5}"
_TAPE: Final = f"[oq](?:{_DEVIATION}(?:_{_DEVIATION})*)?"
_OTHER: Final = f"(?:fifo|f[0-9]+|{_TAPE})"  # a name of this form is escaped
_PLACE: Final = rf"(?!{_OTHER}(?:\+|$))(?:[A-Za-z0-9_.~@-]|%[0-9A-F]{{2}})+"
_LONGEST_NAME: Final = 80
_WRITTEN: Final = re.compile(
    r"R1\.([0-9a-f]{4})\."
    rf"(?:fifo|({_TAPE})(?=\+|$)|({_PLACE})(?:\+({_PLACE}))?(?:\+({_TAPE}))?)"
    r"((?:\+f[1-9][0-9]{0,19})*)"
)
_IN_QUOTES: Final = re.compile(r"[^\"$`\\!\x00-\x1f\x7f]*")


class StaleError(Exception):
    """Raised if a reproducer does not fit the test."""


@dataclass(frozen=True, slots=True)
class Repro:
    """A reproducer, which identifies one failure of a test.

    `place` is the name of a crash point as it is written here; without it nothing crashes. `second`
    is the name of the crash point in the run after that crash, None for a single crash. `tape` is
    the order of the work, None for FIFO. `faults` are the numbers, from 1, of the case's faults
    that it needs.

    >>> str(Repro("9f3c", "0.0@a1.effect1", faults=(1,)))
    'R1.9f3c.0.0@a1.effect1+f1'
    >>> str(Repro.parse("R1.9f3c.o3-1_9-2").tape)
    'o3-1_9-2'
    """

    digest: str
    place: str | None = None
    tape: Tape | None = None
    faults: tuple[int, ...] = ()
    second: str | None = None

    @classmethod
    def of(
        cls,
        case: Case,
        flow: Flow,
        point: CrashPoint | None = None,
        *,
        order: Order = FIFO_ORDER,
        faults: Sequence[int] | None = None,
    ) -> Repro:
        """Make a reproducer for `case`; `faults=None` means all faults."""
        numbers = range(1, len(case.faults) + 1) if faults is None else faults
        tape = order if isinstance(order, Tape) else None
        place = second = None
        if point is not None:
            place = _written(point.name)
        if point is not None and point.first is not None:
            place, second = _written(point.first.name), place
        return cls(digest_of(case, flow), place, tape, tuple(numbers), second)

    @classmethod
    def parse(cls, text: str) -> Repro:
        """Parse the text of a reproducer; raises `pytest.UsageError` if invalid."""
        match = _WRITTEN.fullmatch(text)
        faults = tuple(map(int, match[6].split("+f")[1:])) if match else ()
        order = None if match is None else match[2] or match[5]
        tape = None if order is None else Tape.parse(order)
        if match is None or not _ascend(faults) or (tape and not _is_written(tape, order)):
            raise pytest.UsageError(
                f"--routilux-repro={shown(text, 120)} is not a valid reproducer; write"
                f" {_FORM}, with the numbers of the faults in ascending order"
            )
        return cls(match[1], match[3], tape, faults, match[4])

    def __str__(self) -> str:
        parts = [part for part in (self.place, self.second, self.tape) if part is not None]
        faults = [f"f{number}" for number in self.faults]
        return f"R1.{self.digest}.{'+'.join(map(str, [*(parts or ['fifo']), *faults]))}"

    def applied(self, case: Case, flow: Flow) -> Case:
        """Return `case` with this reproducer's faults; raises `StaleError` if `case` changed."""
        now = digest_of(case, flow)
        if now != self.digest:
            raise StaleError(
                "the flow, entry, slot, faults or store of the test have changed: the digest of the"
                f" reproducer is {self.digest}, but the test's digest is {now}"
            )
        missing = [number for number in self.faults if number > len(case.faults)]
        if missing:
            raise StaleError(
                f"the reproducer needs fault f{missing[0]}, but the number of faults in"
                f" the test is {len(case.faults)}"
            )
        return replace(case, faults=tuple(case.faults[number - 1] for number in self.faults))

    def points(self, points: Sequence[CrashPoint]) -> list[CrashPoint]:
        """Return this reproducer's point of the run; raises `StaleError` if missing."""
        if self.place is None:
            return []
        return [_found(points, self.place, "the run without a crash")]

    def second_point(self, points: Sequence[CrashPoint]) -> CrashPoint:
        """Return the point of the run after the first crash; raises `StaleError` if missing."""
        return _found(points, self.second, f"the run after the crash at {self.place}")


def digest_of(case: Case, flow: Flow) -> str:
    """Return 4 hex digits for a flow, entry, slot, faults and store."""
    faults = [without_addresses(repr(fault)) for fault in case.faults]
    store = [] if case.store is None else [f"store={store_name(case.store)}"]
    made_for = "\n".join([*flow.shape, case.entry, case.slot, *faults, *store])
    return hashlib.sha256(made_for.encode("utf-8", "backslashreplace")).hexdigest()[:4]


def repeat_command(item: pytest.Item, repro: Repro) -> str:
    """Return the command that repeats a test where pytest was started, and as it was started."""
    config = item.config
    path, _, name = item.nodeid.partition("::")
    path = os.path.relpath(config.rootpath / path, config.invocation_params.dir)
    started: list[str] = getattr(config, "workerinput", {}).get("mainargv") or sys.argv
    # Only python -m puts the current folder on sys.path, which the test may need.
    as_module = Path(started[0]).name == "__main__.py"
    program = "python -m pytest" if as_module else "pytest"
    seed: str | None = config.getoption("routilux_seed")
    seeded = "" if seed is None else f" --routilux-seed={int(seed)}"
    return command(f"{Path(path).as_posix()}::{name}", repro, program) + seeded


def command(nodeid: str, repro: Repro, program: str = "pytest") -> str:
    """Return the shell command that runs a test again with a reproducer.

    >>> command("test_shop.py::test_survives[a b]", Repro("9f3c", "0.0@a1.effect1"))
    'pytest "test_shop.py::test_survives[a b]" --routilux-repro=R1.9f3c.0.0@a1.effect1'
    """
    quoted = f'"{nodeid}"' if _IN_QUOTES.fullmatch(nodeid) else shlex.quote(nodeid)
    return f"{program} {quoted} --routilux-repro={repro}"


def _found(points: Sequence[CrashPoint], name: str | None, run: str) -> CrashPoint:
    for point in points:
        if _written(point.name) == name:
            return point
    raise StaleError(f"{run} has no crash point {name}")


def _is_written(tape: Tape, order: str | None) -> bool:
    return str(tape) == order and _ascend([*tape.deviations])


def _ascend(numbers: Sequence[int]) -> bool:
    return list(numbers) == sorted(set(numbers))


def _written(name: str) -> str:
    text = quote_from_bytes(name.encode("utf-8", "surrogatepass"), safe="@")
    if re.fullmatch(_OTHER, text):
        return f"%{ord(text[0]):02X}{text[1:]}"
    if len(text) <= _LONGEST_NAME:
        return text
    tail = hashlib.sha256(text.encode()).hexdigest()[:8]
    head = re.sub("%.?$", "", text[: _LONGEST_NAME - 9])
    return f"{head}~{tail}"
