"""Causes of findings, and their fixes as code, in terms of the flow that was tested.

Invariants:
- A cause that is stated as a fact was observed in a run or in the flow. Otherwise the text says
  where to look.
- A broken law of the engine is reported as a bug of routilux.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import routilux
from pytest_routilux.frames import handler_of
from pytest_routilux.sim.explain.evidence import calls_of, changed_by, key_part, recorded_by
from pytest_routilux.sim.explain.timeline import where_text
from pytest_routilux.text import class_name
from routilux.clocks.durations import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_routilux.sim.isolation.hidden_state import HiddenChange
    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import CrashPoint, Disturbed, Finding

__all__ = ["Asked", "Reason", "reason_of"]

_OF_USERS: Final = ("always", "payload-changed", "changed-by-saving", "unreadable")
"""Kinds that are found as laws of the engine are, but that a flow or a test can cause."""
_LONGEST_VALUE: Final = 24
_ADDRESS: Final = re.compile(r"\d{9,}")
_TOGETHER: Final = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Sentences, each on lines of its own: the cause, and what to do about it."""

    why: list[str]
    fix: list[str]


@dataclass(frozen=True)
class Asked:
    """A finding and the runs that show it; `only` are the kinds of crash that show it."""

    finding: Finding
    known: Reference
    disturbed: Disturbed | None
    point: CrashPoint | None
    root: Path
    only: frozenset[str] = frozenset()

    @property
    def routine(self) -> str:
        """The id of the routine, or words in its place."""
        return self.finding.routine or "a routine"

    @cached_property
    def kept(self) -> HiddenChange | None:
        """State that a handler changes and no commit saves."""
        return changed_by(self.known, self.known.run.world.log[0][0], self.finding.routine)

    @property
    def handler(self) -> str:
        """Where the routine's handler is defined, as ` (file:line)`, or nothing."""
        return self.at(handler_of(self.known.run.host.flow, self.finding.routine))

    def at(self, where: str | None) -> str:
        """Return a place as ` (file:line)`, or nothing."""
        place = where_text(where, self.root) if where else ""
        return f" ({place})" if place else ""


def reason_of(asked: Asked) -> Reason:
    """Return the cause of a finding, and what to do."""
    finding = asked.finding
    if finding.path.startswith("engine") and finding.kind not in _OF_USERS:
        return _engine(asked)
    if finding.kind in _PLAIN:
        return _plain(asked)
    return _REASONS.get(finding.kind, _engine)(asked)


# --- effects --------------------------------------------------------------------------------------


def _effect_repeated(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    service, _, verb = effect.rpartition(".")
    once = _once_of(asked, effect)
    why = (
        f"the call carried no key, so the {service or 'service'} could not tell the repeat from a"
        " new call"
    )
    double = f'its double has to know the parameter: flow_sim.effect("{effect}", key="key")'
    if once is None:
        narrow = (
            "ctx.once alone narrows this window but can't close it: a crash can come before its"
            " record)"
        )
        key = f'{effect}(..., key=self.ctx.key("{verb}")): the same on every attempt and host'
        return Reason([why], [key, f"({double};", narrow])
    why = (
        f"once({once!r}) records the result after the call. The crash is between the two, and {why}"
    )
    call = f'self.ctx.once("{once}", {effect}, ..., key=self.ctx.key("{once}"))'
    closes = ": the key closes the window that once leaves open"
    return Reason([why], [f"{_joined(call)}{closes}", f"({double})"])


def _key_unstable(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    key = f'key=self.ctx.key("{effect.rpartition(".")[2]}")'
    fix = [
        f"{key}: made of the job and the task alone, so it is the same on every attempt and host"
    ]
    run = asked.known.run if asked.disturbed is None else asked.disturbed
    calls = calls_of(run.world, effect)
    keys = [call.key for call in calls]
    if not calls:
        return Reason(["the key of the call did not stay the same"], fix)
    if None in keys:
        return Reason(["one call carried a key and another none, so they look like two"], fix)
    place = asked.at(calls[-1].where)
    changed = key_part(keys, [call.attempt for call in calls])
    if changed is None:
        why = (
            f"each attempt makes a new key{place} from a value that changes: look at the parts of"
            " the key"
        )
        return Reason([why], fix)
    if "UUID" in changed:
        fix.append("(self.ctx.uuid() repeats on every attempt and host; uuid.uuid4() does not)")
    why = (
        f"{changed} is part of the key{place}, and differs between the calls: the service takes"
        " them for two"
    )
    return Reason([why], fix)


def _effect_lost(asked: Asked) -> Reason:
    effect = asked.finding.path.removeprefix("effects.")
    if asked.kept is not None:
        why = f"{_said(asked, asked.kept)}; check whether the call of {effect} depends on it"
    else:
        why = (
            f"the next host decided differently: look at what {asked.routine} reads before it calls"
            f" {effect}{asked.at(asked.finding.hint)}"
        )
    fix = (
        "decide by the payload and by self.ctx.state, which are saved; not by attributes, globals,"
        " files or the clock"
    )
    return Reason([why], [fix])


def _once_of(asked: Asked, effect: str) -> str | None:
    worlds = [asked.known.run.world]
    if asked.disturbed is not None:
        worlds.append(asked.disturbed.world)
    for world in worlds:
        for call in reversed(calls_of(world, effect)):
            name = recorded_by(world, call)
            if name is not None:
                return name
    return None


# --- what is not saved ----------------------------------------------------------------------------


def _budget(asked: Asked) -> Reason:
    kept = asked.kept
    if kept is None or kept.scope != "attribute":
        return _unsaved(asked)
    began = _began(asked)
    attempt = f"self.ctx.attempt (it was {began})" if began else "self.ctx.attempt"
    handler = _joined("ErrorHandler(RETRY, ...)")
    return Reason(
        [_said(asked, kept)],
        [
            f"use {_joined(attempt)} and leave the waits to {handler};",
            (
                f'keep the value in self.ctx.state["{_key_of(kept)}"], saved when the handler'
                " returns"
            ),
        ],
    )


def _unsaved(asked: Asked) -> Reason:
    kept = asked.kept
    if kept is not None:
        fix = (
            f'use self.ctx.state["{_key_of(kept)}"] instead of {_short_name(kept)}: it is saved'
            " with the job; self.ctx.shared is for state that several routines need"
        )
        return Reason([_said(asked, kept)], [fix])
    fix = (
        "keep state that must last in self.ctx.state or self.ctx.shared, and take times, ids and"
        " random numbers from self.ctx.now(), .uuid() and .random"
    )
    look = (
        f"look at what {asked.routine}{asked.handler} reads besides its payload, ctx.state and"
        " ctx.shared"
    )
    if asked.only == {"by document"}:
        why = (
            "only a host that loads the flow from its document differs. It does not call build(),"
            f" so anything that build() does besides making the flow is missing: {look}"
        )
        return Reason([why], [fix])
    why = (
        f"the next host had all that the job saves, and differs; {look}: module globals,"
        " caches, files, the machine's clock"
    )
    return Reason([why], [fix])


def _status(asked: Asked) -> Reason:
    reason = _budget(asked)
    job = asked.disturbed.host.job if asked.disturbed is not None else None
    if job is None or job.error is None:
        return reason
    ends = f"with the crash the job ends by {class_name(job.error.type)}{asked.at(job.error.where)}"
    return Reason([f"{ends}; {reason.why[0]}", *reason.why[1:]], reason.fix)


def _view(asked: Asked) -> Reason:
    reason = _unsaved(asked)
    gives = "the test's view=... returns another value; nothing else is compared"
    return Reason([gives, *reason.why], reason.fix)


def _mistake(asked: Asked) -> Reason:
    why = f"{asked.finding.what}. Neither a retry nor another host changes that"
    fix = f"look at {asked.routine}{asked.handler}"
    if asked.finding.what.endswith("(UnserializableError)"):
        fix = (
            "use plain data, or routilux.register_type for a class of your own: another host can't"
            f" continue without a saved form; look at {asked.routine}{asked.handler}"
        )
    return Reason([why], [fix])


def _said(asked: Asked, kept: HiddenChange) -> str:
    """Describe state that a handler changes and no commit saves."""
    place = f"{kept.routine_id}{asked.at(kept.where)}"
    if kept.scope == "attribute":
        plain = len(kept.was) <= _LONGEST_VALUE and not _ADDRESS.search(kept.was)
        again = f": the next host starts with {kept.was} again" if plain else ""
        return f"{place} changes {kept.name}. It lives in the process and is never saved{again}"
    module, _, name = kept.name.rpartition(":")
    what = "global" if kept.scope == "global" else "class attribute"
    return (
        f"{place} changes the {what} {name} of {module}. It lives in the module: jobs share it,"
        " no job saves it, and a new process starts with its imported value"
    )


def _short_name(kept: HiddenChange) -> str:
    return kept.name if kept.scope == "attribute" else kept.name.rpartition(":")[2]


def _key_of(kept: HiddenChange) -> str:
    return _short_name(kept).rpartition(".")[2].lstrip("_").lower()


def _began(asked: Asked) -> str:
    """Return the attempt that the last host started with, and when, in words."""
    if asked.disturbed is None:
        return ""
    start = asked.disturbed.world.log[0][0]
    for _, step in asked.disturbed.host.steps:
        if step.task.routine_id == asked.finding.routine:
            return f"{step.attempt} at {seconds_text(step.started_ns - start)}"
    return ""


def _joined(code: str) -> str:
    # Code is not broken over lines.
    return code.replace(" ", _TOGETHER)


# --- causes that follow from the kind alone -------------------------------------------------------

_PLAIN: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "invariant": (
        "the test's invariant=... does not hold at the end of this run",
        ("compare what it reads of outcome.job and outcome.calls with the rows and lines above",),
    ),
    "always": (
        "the test's always=... is checked after every commit, also while the job runs",
        ("it must hold between any two steps; a rule for the end alone belongs in invariant=...",),
    ),
    "stuck": (
        "no host can finish the job: each host that resumes it ends as shown above",
        ("the code that raises must succeed, or raise an Exception that an ErrorHandler handles",),
    ),
    "leaked-thread": (
        (
            "{routine}{handler} returned while a thread that it had started was alive: no commit"
            " has the work of that thread, and it dies with its host"
        ),
        (
            "join() it before the handler returns, or make it a routine of its own:",
            'self.emit(...) in {routine}, then flow.connect("{routine}", ...)',
        ),
    ),
    "module-state": (
        (
            "{routine}{hint} changes {name}. It lives in the module: jobs share it, no job saves"
            " it, and a new process starts with its imported value"
        ),
        (
            (
                "use self.ctx.state for state of the routine, self.ctx.shared for state that"
                " several routines need, a constructor argument for configuration"
            ),
        ),
    ),
    "hash-order": (
        "the order of a set differs between processes, and the job depends on it",
        ("use sorted(...) where the set is iterated, or a dict or list, which keep their order",),
    ),
    "nondeterminism": (
        "{routine}{hint}: a second run from the same instant gives another result",
        (
            "self.ctx.random, self.ctx.uuid() and self.ctx.now() repeat on every attempt and host;",
            "random, uuid.uuid4(), os.urandom and the machine's clock do not",
        ),
    ),
    "swallowed-crash": (
        (
            "{routine}{hint} catches the exception that ends its process and returns, so an"
            " interrupt or an exit counts as success"
        ),
        ("use except Exception: instead of a bare except or BaseException, or raise it again",),
    ),
    "kills-process": (
        "{routine}{hint} ends its whole process, and every job in it, with no commit",
        ("raise an Exception instead: an ErrorHandler decides what happens to the task",),
    ),
    "hangs": (
        "{routine}{hint} loops or waits without end: it exceeded the limit of real time",
        ("use self.ctx.sleep(...) to wait; ErrorHandler(..., timeout=seconds) limits an attempt",),
    ),
    "store-lost": (
        (
            "the next host opened the store's files as this one left them when it died, and has"
            " nothing else. The store breaks the contract of JobStore, not the flow"
        ),
        (
            "commit the transaction before a write returns, and do each write in one transaction:",
            "then a crash leaves the whole write or none of it",
        ),
    ),
    "store-changes": (
        "a store must keep rows as they are: this one breaks the contract of JobStore",
        ("return from rows() the bytes that create, append and claim received, unchanged",),
    ),
    "store-refuses": (
        (
            "each host before this one is dead, and this one has started or claimed the job: no"
            " other can own it. The store breaks the contract of JobStore, not the flow"
        ),
        ("in claim, set the owner in the transaction that inserts the row",),
    ),
    "store-fence": (
        (
            "the other host was not dead, only slow. Its late writes replace those of the job's"
            " owner: the store breaks the contract of JobStore"
        ),
        (
            "in append, compare the owner and insert the row in one transaction;",
            "if there is another row, or the job has another owner, raise LeaseLostError",
        ),
    ),
    "store-frees": (
        (
            "a worker that asks for work gets a finished job and runs it again: the store breaks"
            " the contract of JobStore"
        ),
        ("in the transaction of a write with stopped=True, make the job unavailable to workers",),
    ),
    "payload-changed": (
        (
            "handlers get copies of a payload. A change reaches the original where the copy shares"
            " objects with it, for example because of a __deepcopy__ of its class"
        ),
        ("send plain data (dict, list, str, numbers); change only objects that the handler makes",),
    ),
    "changed-by-saving": (
        (
            "a value differs after it is saved and loaded. If its type was given to register_type,"
            " its encode and decode don't match"
        ),
        ("serialize_roundtrip(value) shows the first place that differs after loading",),
    ),
}
_PLAIN["unreadable"] = _PLAIN["changed-by-saving"]
_PLAIN["store-unreadable"] = _PLAIN["store-lost"]


def _plain(asked: Asked) -> Reason:
    why, fix = _PLAIN[asked.finding.kind]
    names = {
        "routine": asked.routine,
        "handler": asked.handler,
        "hint": asked.at(asked.finding.hint) or asked.handler,
        "name": asked.finding.path.partition(".")[2],
    }
    return Reason([why.format_map(names)], [line.format_map(names) for line in fix])


def _engine(asked: Asked) -> Reason:
    where = "in an undisturbed run" if asked.point is None else "in this run"
    python = ".".join(map(str, sys.version_info[:2]))
    fix = (
        "none in the flow. Please report it to routilux with this text, the flow and the"
        f" versions: routilux {routilux.__version__}, Python {python}"
    )
    why = f"a law of the engine is broken {where}. That is a bug of routilux, not of this flow"
    return Reason([why], [fix])


_REASONS: Final[dict[str, Callable[[Asked], Reason]]] = {
    "effect-repeated": _effect_repeated,
    "key-unstable": _key_unstable,
    "effect-lost": _effect_lost,
    "attempts-differ": _budget,
    "budget-reset": _budget,
    "status-differs": _status,
    "state-differs": _unsaved,
    "shared-differs": _unsaved,
    "outputs-differ": _unsaved,
    "emissions-differ": _unsaved,
    "hidden-state": _unsaved,
    "view-differs": _view,
    "mistake": _mistake,
}
