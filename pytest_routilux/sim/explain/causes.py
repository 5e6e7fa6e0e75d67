"""Finds a failure's cause in the tested flow, and suggests a fix.

Invariants:
- A cause that is stated as a fact was observed in a run or in the flow. Otherwise the text says
  where to look.
- A broken rule of the engine is reported as a bug of routilux.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import routilux
from pytest_routilux.frames import handler_of
from pytest_routilux.handler_assertions import ADVICE
from pytest_routilux.sim.explain.timeline import where_text
from pytest_routilux.sim.isolation.forked_hosts import ENDS_PROCESS
from pytest_routilux.sim.isolation.hidden_state import hidden_state
from pytest_routilux.text import bare_name, shown
from routilux.codec.equality import same_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_routilux.sim.isolation.hidden_state import HiddenChange
    from pytest_routilux.sim.results import Reference
    from pytest_routilux.sim.simulator.model import Call, Disturbed, Finding, World

_OF_USERS: Final = ("always", "payload-changed", "changed-by-saving", "unreadable")
"""Kinds that are found as rules of the engine are, but that a flow or a test can cause."""


class Reason(NamedTuple):
    """The cause and the fix of a finding."""

    why: str
    fix: str


@dataclass(frozen=True)
class Failure:
    """A finding, and the runs that show the finding."""

    finding: Finding
    reference: Reference
    disturbed: Disturbed | None
    root: Path

    @property
    def routine(self) -> str:
        """The id of the finding's routine, or "a routine" by default."""
        return self.finding.routine or "a routine"

    @property
    def effect(self) -> str:
        """The name of the effect that the finding is about."""
        return self.finding.path.removeprefix("effects.")

    @property
    def key_text(self) -> str:
        """The argument that gives the effect a stable key, as code."""
        return f'{self._parameter}=self.ctx.key("{self.effect.rpartition(".")[2]}")'

    @property
    def key_of_item(self) -> str:
        """The same argument for a call that a loop makes for each item."""
        return f'{self._parameter}=self.ctx.key(f"{self.effect.rpartition(".")[2]}-{{item}}")'

    @property
    def double_text(self) -> str:
        """The double that takes such a key, as code."""
        return f'flow_sim.effect("{self.effect}", key="{self._parameter}")'

    @property
    def _parameter(self) -> str:
        call = self.finding.call
        return (call and call.parameter) or self.passed_key or "key"

    @property
    def passed_key(self) -> str | None:
        """The argument that looks like a key, but is not the double's parameter for it."""
        call = self.finding.call
        names = [] if call is None else call.arguments
        return next((name for name in names if name == "key" or name.startswith("idem")), None)

    @property
    def names_of_once(self) -> list[str]:
        """Two names under which two runs recorded the repeated call; none if they agree."""
        call, run = self.finding.call, self.disturbed
        if call is None or run is None:
            return []
        usual, here = (_names_of_once(call, one.world) for one in (self.reference.run, run))
        apart = [*(usual - here), *(here - usual)]
        return [shown(name, 24) for name in apart] if len(usual) == len(here) == 1 else []

    @property
    def calls_in_loop(self) -> int:
        """How often one line of one undisturbed attempt made the repeated call."""
        call = self.finding.call
        if call is None:
            return 0
        return sum(
            (other.effect, other.where, other.task_id, other.attempt)
            == (call.effect, call.where, call.task_id, call.attempt)
            for other in self.reference.run.world.calls
        )

    @cached_property
    def hidden(self) -> HiddenChange | None:
        """The change of unsaved state that fits the finding best."""
        finding, run = self.reference.finding, self.reference.run
        found: list[HiddenChange] = []
        if finding is None or finding.kind not in ENDS_PROCESS:
            with suppress(Exception):
                found = hidden_state(run.case, run.world.log[0][0])
        routine = self.finding.routine
        found.sort(key=lambda change: (change.routine_id != routine, change.scope != "attribute"))
        return found[0] if found else None

    @property
    def handler(self) -> str:
        """The handler's place in the code as ` (file:line)`; "" if unknown."""
        return self.at(handler_of(self.reference.run.host.flow, self.finding.routine))

    def at(self, where: str | None) -> str:
        """Return the code line `where` as ` (file:line)`."""
        line = where_text(where, self.root) if where else ""  # also "" for this plugin's code
        return f" ({line})" if line else ""


def _names_of_once(call: Call, world: World) -> set[object]:
    """Return the names under which the task of `call` recorded the results of this effect."""
    results = [one.result for one in world.calls if one.effect == call.effect]
    return {
        (commit.detail or {})["name"]
        for commit in world.commits
        if commit.effect is not None and commit.task_id == call.task_id
        if any(same_value(commit.effect.result, result) for result in results)
    }


def reason_of(failure: Failure) -> Reason:
    """Return the cause and the fix of a failure."""
    finding = failure.finding
    if finding.path.startswith("engine") and finding.kind not in _OF_USERS:
        return _engine(failure)
    if finding.kind in CAUSES:
        why, fix = CAUSES[finding.kind]
        names = {
            "routine": failure.routine,
            "handler": failure.handler,
            "hint": failure.at(finding.hint) or failure.handler,
            "name": finding.path.partition(".")[2],
            "what": finding.what,
        }
        return Reason(why.format_map(names), fix.format_map(names))
    return _REASONS.get(finding.kind, _engine)(failure)


def _engine(failure: Failure) -> Reason:
    where = "in an undisturbed run" if failure.disturbed is None else "in this run"
    python = ".".join(map(str, sys.version_info[:2]))
    fix = (
        "none in the flow. Please report it to routilux with this text, the flow and the"
        f" versions: routilux {routilux.__version__}, Python {python}"
    )
    why = f"a rule of the engine is broken {where}. That is a bug of routilux, not of this flow"
    return Reason(why, fix)


# --- effects --------------------------------------------------------------------------------------


def _effect_repeated(failure: Failure) -> Reason:
    call, passed = failure.finding.call, failure.passed_key
    if call is not None and call.key is not None:
        why = (
            f"one attempt makes the call{failure.at(failure.finding.hint)} more often than in the"
            " undisturbed run; by one key the service does it once, and the handler counts more"
        )
        return Reason(why, "decide by the payload and by self.ctx.state how often to call")
    service = failure.effect.rpartition(".")[0] or "service"
    if call is not None and passed is not None:
        has = "no key parameter" if call.parameter is None else f"the parameter {call.parameter!r}"
        why = f"the call passed {passed}=…, but this double has {has} for the key"
        declares = f'flow_sim.effect("{failure.effect}", key="{passed}")'
        if call.parameter is None:
            return Reason(why, f"{declares}: the double takes {passed} as the key")
        fix = f"{declares}, or pass {failure.key_text}: both must name the same parameter"
        return Reason(why, fix)
    names = failure.names_of_once
    if names:
        why = (
            f"the call{failure.at(failure.finding.hint)} is in ctx.once under a name that varies:"
            f" {' and '.join(names)}. The next attempt finds no result under its own name"
        )
        fix = (
            "one name for one effect: a constant, or made of the payload\n"
            f"and {failure.effect}(..., {failure.key_text}): a crash can come before the record"
        )
        return Reason(why, fix)
    why = f"the call carried no key, so the {service} could not tell the repeat from a new call"
    times = failure.calls_in_loop
    if times > 1:
        line = failure.at(failure.finding.hint)
        why = (
            f"a loop{line} makes the call {times} times in one attempt, and the next attempt begins"
            f" the loop anew; {why}"
        )
        fix = (
            f"{failure.effect}(..., {failure.key_of_item}): a key of its own for each item\n"
            "or emit each item: a task of its own, so that only its own call is repeated\n"
            f"(that call still needs a key; the double: {failure.double_text})"
        )
        return Reason(why, fix)
    fix = (
        f"{failure.effect}(..., {failure.key_text}): the same on every attempt and host\n"
        f"(its double: {failure.double_text}; for a query: reads=True)\n"
        "(ctx.once alone is not enough: a crash can come between the call and its record)"
    )
    return Reason(why, fix)


def _key_reused(failure: Failure) -> Reason:
    why = (
        f"two calls carry one key{failure.at(failure.finding.hint)}. The service takes the second"
        " for a repeat of the first: it refuses the call, or does nothing and sends the first"
        " answer"
    )
    fix = (
        f"{failure.key_text}: it names the effect;\n"
        "where one task makes several calls, add the id of the item"
    )
    return Reason(why, fix)


def _key_unstable(failure: Failure) -> Reason:
    call = failure.finding.call
    world = (failure.disturbed or failure.reference.run).world
    without = any(
        (other.effect, other.task_id, other.key) == (failure.effect, call and call.task_id, None)
        for other in world.calls
    )
    if without:
        why = f"one of the calls{failure.at(failure.finding.hint)} carries no key"
    else:
        why = (
            f"each call{failure.at(failure.finding.hint)} carries another key, which changes with"
            " the attempt, a time or a random number"
        )
    why += ": the service takes the repeat for a new call"
    fix = (
        f"{failure.key_text}: made of the job and the task alone, so it is the same on every"
        " attempt and host"
    )
    return Reason(why, fix)


def _effect_lost(failure: Failure) -> Reason:
    why = (
        f"the next host decided differently: look at what {failure.routine} reads before it"
        f" calls {failure.effect}{failure.at(failure.finding.hint)}"
    )
    if failure.hidden is not None:
        why = (
            f"{_hidden_text(failure, failure.hidden)}; check whether the call of {failure.effect}"
            " depends on it"
        )
    fix = (
        "decide by the payload and by self.ctx.state, which are saved; not by attributes, globals,"
        " files or the clock"
    )
    return Reason(why, fix)


# --- state that is not saved ----------------------------------------------------------------------


def _budget(failure: Failure) -> Reason:
    hidden = failure.hidden
    if hidden is None or hidden.scope != "attribute":
        return _unsaved(failure)
    fix = (
        'use self.ctx.attempt and leave the waits to ErrorHandler("retry", ...);\n'
        f'keep the value in self.ctx.state["{_key_of(hidden)}"], saved when the handler returns'
    )
    return Reason(_hidden_text(failure, hidden), fix)


def _unsaved(failure: Failure) -> Reason:
    hidden = failure.hidden
    if hidden is not None:
        fix = (
            f'use self.ctx.state["{_key_of(hidden)}"] instead of {_short_name(hidden)}: it is saved'
            " with the job; self.ctx.shared is for state that several routines need"
        )
        return Reason(_hidden_text(failure, hidden), fix)
    why = (
        f"the next host had all saved data, but its run differs; look at what {failure.routine}"
        f"{failure.handler} reads besides its payload, ctx.state and ctx.shared: module globals,"
        " caches, files, the machine's clock, what build() does besides making the flow"
    )
    fix = (
        "keep state that must last in self.ctx.state or self.ctx.shared, and take times, ids and"
        " random numbers from self.ctx.now(), .uuid() and .random"
    )
    return Reason(why, fix)


def _status(failure: Failure) -> Reason:
    reason = _budget(failure)
    job = failure.disturbed.host.job if failure.disturbed is not None else None
    if job is None or job.error is None:
        return reason
    error = f"{bare_name(job.error.type)}{failure.at(job.error.where)}"
    return Reason(f"with the crash the job fails with {error}; {reason.why}", reason.fix)


def _view(failure: Failure) -> Reason:
    reason = _unsaved(failure)
    gives = "the test's view=... returns another value; nothing else is compared"
    return Reason(f"{gives}\n{reason.why}", reason.fix)


def _hidden_text(failure: Failure, hidden: HiddenChange) -> str:
    handler = f"{hidden.routine_id}{failure.at(hidden.where)}"
    if hidden.scope == "attribute":
        return (
            f"{handler} changes {hidden.name}. It lives in the process and is never saved: the next"
            " host starts with its first value again"
        )
    module, _, name = hidden.name.rpartition(":")
    what = "global" if hidden.scope == "global" else "class attribute"
    return (
        f"{handler} changes the {what} {name} of {module}. It lives in the module: jobs share it,"
        " no job saves it, and a new process starts with its imported value"
    )


def _short_name(hidden: HiddenChange) -> str:
    return hidden.name if hidden.scope == "attribute" else hidden.name.rpartition(":")[2]


def _key_of(hidden: HiddenChange) -> str:
    return _short_name(hidden).rpartition(".")[2].lstrip("_").lower()


_REASONS: Final[dict[str, Callable[[Failure], Reason]]] = {
    "effect-repeated": _effect_repeated,
    "key-unstable": _key_unstable,
    "key-reused": _key_reused,
    "effect-lost": _effect_lost,
    "attempts-differ": _budget,
    "budget-reset": _budget,
    "status-differs": _status,
    "view-differs": _view,
    "state-differs": _unsaved,
    "shared-differs": _unsaved,
    "outputs-differ": _unsaved,
    "emissions-differ": _unsaved,
    "hidden-state": _unsaved,
}

# --- by the kind alone ----------------------------------------------------------------------------

_STORE: Final = "The store breaks the contract of JobStore, not the flow"

CAUSES: Final[dict[str, Reason]] = {
    "invariant": Reason(
        "the test's invariant=... does not hold at the end of this run",
        "compare what it reads of outcome.job and outcome.calls with the table and the timeline",
    ),
    "always": Reason(
        "the test's always=... is checked after every commit, also while the job runs",
        "it must hold between any two steps; a rule for the end alone belongs in invariant=...",
    ),
    "unexpected-end": Reason(
        "no crash is needed: the undisturbed job ends like this{hint}, and each run with a crash is"
        " compared with it",
        'mend the flow; if the job should end like this, pass ends="failed" to crash_everywhere,'
        " or check the end by invariant=, always= or view=",
    ),
    "failed-assertion": Reason(
        "{routine}{hint} raises an AssertionError, which a retry or a strategy may hide",
        ADVICE,
    ),
    "mistake": Reason(
        "{what}. Neither a retry nor another host changes that",
        "look at {routine}{handler}; a value must be plain data, or of a class that was given to"
        " routilux.register_type",
    ),
    "stuck": Reason(
        "no host can finish the job: each host that resumes it ends as the timeline shows",
        "the code that raises must succeed, or raise an Exception that an ErrorHandler handles",
    ),
    "leaked-thread": Reason(
        "{what}{hint}: no commit has the work of that thread, and it dies with its host",
        "join() it, or wait for the result, before the handler returns; or make the work a routine"
        " of its own:\n"
        'self.emit(...) in {routine}, then flow.connect("{routine}", ...)',
    ),
    "module-state": Reason(
        "{routine}{hint} changes {name}. It lives in the module: jobs share it, no job saves"
        " it, and a new process starts with its imported value",
        "use self.ctx.state for state of the routine, self.ctx.shared for state that several"
        " routines need, a constructor argument for configuration",
    ),
    "repeat-differs": Reason(
        "both runs begin alike, and no crash is needed: the second one finds what the first one"
        " left outside of the job, such as a file, a row or a global, or reads a clock or a random"
        " number{hint}. What is compared with such a run proves nothing",
        "reset what lies outside by fresh=..., keep progress in self.ctx.state, and take time and"
        " randomness from self.ctx; flow_sim.check_determinism names a call that differs",
    ),
    "hash-order": Reason(
        "the order of a set differs between processes, and the job depends on it",
        "use sorted(...) where the set is iterated, or a dict or list, which keep their order",
    ),
    "instance-state": Reason(
        "{routine}{hint} changes {name}, and the next job sees it. A worker runs many jobs with one"
        " flow object; after a crash another object has another value",
        "self.ctx.state belongs to the job alone, and is saved; an attribute is for configuration"
        " and for caches that answer every job alike",
    ),
    "closure-state": Reason(
        "{routine}{hint} changes the variable {name} of an outer function, and the next job sees"
        " it. It lives in the process and no job saves it",
        "keep it in self.ctx.state or self.ctx.shared. If it plays a service outside,"
        " reset it by fresh=...",
    ),
    "default-state": Reason(
        "{routine}{hint} changes the default of its parameter {name}, which all calls share",
        "use None as the default and make the object in the function",
    ),
    "cache-state": Reason(
        "{routine}{hint}: what the cache {name} returns for one job reaches the next one",
        "cache only what is the same for every job, and don't change what a cache returns;\n"
        "self.ctx.state keeps what belongs to the job",
    ),
    "generator-state": Reason(
        "{routine}{hint} takes a value of {name}, and the next job takes the next. No job"
        " saves where a generator is, and a new process starts it again",
        "make the generator in the handler, or count in self.ctx.state",
    ),
    "next-job": Reason(
        "a job depends on what an earlier job of the same flow object left, but which variable"
        " makes the difference is not known",
        "look at what the handlers change besides self.ctx: attributes, closures, generators,"
        " caches, files, services; fresh=... resets what lies outside",
    ),
    "zone": Reason(
        "{routine}{hint} uses local time without a zone. The next host has another local time zone,"
        " so the same text or number means another instant there",
        "self.ctx.now(), or datetime.now(UTC) and fromtimestamp(..., UTC): the zone is part of the"
        " value, and isoformat() saves it",
    ),
    "host-name": Reason(
        "{routine}{hint} asks its host for the name, and the job or a call depends on it. After a"
        " crash another host does the rest, under another name",
        "self.ctx.job_id, .task_id or .key(...) are the same on every host; write the host name to"
        " the log, not into the job",
    ),
    "process-id": Reason(
        "{routine}{hint} asks for its process id, and the job or a call depends on it. After a"
        " crash another process does the rest",
        "self.ctx.job_id, .task_id, .key(...) and .uuid() are the same on every host",
    ),
    "environment": Reason(
        "{routine}{hint} reads an environment variable, and its value reaches the job or a call."
        " The next host may have another value",
        "give the value to the job in params=, or to the constructor of the routine: it is saved",
    ),
    "other-host": Reason(
        "{routine}{hint} depends on more than one of: the time zone, the name and the process id",
        "take times, ids and keys from self.ctx; they are the same on every host",
    ),
    "hash-value": Reason(
        "{routine}{hint} calls hash(), which gives the same text another number in each process",
        "hashlib.sha256(text.encode()).hexdigest() is the same in every process",
    ),
    "nondeterminism": Reason(
        "{routine}{hint}: a second run from the same instant gives another result",
        "self.ctx.random, self.ctx.uuid() and self.ctx.now() repeat on every attempt and host;\n"
        "random, uuid.uuid4(), os.urandom and the machine's clock do not",
    ),
    "swallowed-crash": Reason(
        "{routine}{hint} catches the exception that ends its process and returns, so an"
        " interrupt or an exit counts as success",
        "use except Exception: instead of a bare except or BaseException, or raise it again",
    ),
    "swallowed-lease": Reason(
        "{routine}{hint} catches the LeaseLostError of ctx.key or ctx.once and returns. Its host is"
        " slow: another one owns the job by now and runs this task too, and no commit of this"
        " host is accepted",
        "put ctx.key before the try, or write except LeaseLostError: raise before except Exception",
    ),
    "swallowed-cancellation": Reason(
        "{routine}{hint} catches CancelledError and does not raise it again, so a timeout or a"
        " cancelled job does not end it",
        "catch Exception, or raise CancelledError again when the cleanup is done",
    ),
    "kills-process": Reason(
        "{routine}{hint} ends its whole process, and every job in it, with no commit",
        "raise an Exception instead: an ErrorHandler decides what happens to the task",
    ),
    "hangs": Reason(
        "{routine}{hint} loops or waits without end: it exceeded the limit of real time",
        "use self.ctx.sleep(...) to wait; ErrorHandler(..., timeout=seconds) limits an attempt",
    ),
    "store-lost": Reason(
        "the next host opened the store's files as the dead host left them, and has nothing else."
        f" {_STORE}",
        "commit the transaction before a write returns, and do each write in one transaction:\n"
        "then a crash leaves the whole write or none of it",
    ),
    "store-changes": Reason(
        f"a store must return rows as they were written. {_STORE}",
        "return from rows() the bytes that create, append and claim received, unchanged",
    ),
    "store-refuses": Reason(
        "each host before this one is dead, and this one has started or claimed the job: no"
        f" other host can own it. {_STORE}",
        "in claim, set the owner in the transaction that inserts the row",
    ),
    "store-fence": Reason(
        "the other host was not dead, only slow, and its late writes replace those of the job's"
        f" owner. {_STORE}",
        "in append, compare the owner and insert the row in one transaction;\n"
        "if there is another row, or the job has another owner, raise LeaseLostError",
    ),
    "store-frees": Reason(
        f"a worker that asks for work gets a finished job and runs it again. {_STORE}",
        "in the transaction of a write whose status is not live, hide the job from workers",
    ),
    "payload-changed": Reason(
        "handlers get copies of a payload. A change reaches the original if the copy shares"
        " objects with it, for example because of a __deepcopy__ of its class",
        "send plain data (dict, list, str, numbers); change only objects that the handler makes",
    ),
    "changed-by-saving": Reason(
        "a value differs after it is saved and loaded. If its type was given to register_type,"
        " its encode and decode don't match",
        "serialize_roundtrip(value) shows the first path that differs after loading",
    ),
}
CAUSES["unreadable"] = CAUSES["changed-by-saving"]
CAUSES["store-unreadable"] = CAUSES["store-lost"]
"""Causes and fixes that follow from the kind alone; each line of a fix starts a new line.

A text may name `{routine}`, `{handler}` and `{hint}`, code lines as ` (file:line)`, `{name}`, what
changed, and `{what}`, the finding.
"""
