"""Causes and fixes that follow from the kind of a finding alone.

A text may name `{routine}`, `{handler}` and `{hint}`, code lines as ` (file:line)`, and `{name}`,
what changed. Each line of a fix starts a new line in the report.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CAUSES", "CauseText"]


class CauseText(NamedTuple):
    """The cause and the fix."""

    why: str
    fix: str


_STORE: Final = "The store breaks the contract of JobStore, not the flow"

CAUSES: Final[dict[str, CauseText]] = {
    "invariant": CauseText(
        "the test's invariant=... does not hold at the end of this run",
        "compare what it reads of outcome.job and outcome.calls with the rows and lines above",
    ),
    "always": CauseText(
        "the test's always=... is checked after every commit, also while the job runs",
        "it must hold between any two steps; a rule for the end alone belongs in invariant=...",
    ),
    "stuck": CauseText(
        "no host can finish the job: each host that resumes it ends as shown above",
        "the code that raises must succeed, or raise an Exception that an ErrorHandler handles",
    ),
    "leaked-thread": CauseText(
        "{routine}{handler} returned while a thread that it had started was alive: no commit"
        " has the work of that thread, and it dies with its host",
        "join() it before the handler returns, or make it a routine of its own:\n"
        'self.emit(...) in {routine}, then flow.connect("{routine}", ...)',
    ),
    "module-state": CauseText(
        "{routine}{hint} changes {name}. It lives in the module: jobs share it, no job saves"
        " it, and a new process starts with its imported value",
        "use self.ctx.state for state of the routine, self.ctx.shared for state that several"
        " routines need, a constructor argument for configuration",
    ),
    "hash-order": CauseText(
        "the order of a set differs between processes, and the job depends on it",
        "use sorted(...) where the set is iterated, or a dict or list, which keep their order",
    ),
    "nondeterminism": CauseText(
        "{routine}{hint}: a second run from the same instant gives another result",
        "self.ctx.random, self.ctx.uuid() and self.ctx.now() repeat on every attempt and host;\n"
        "random, uuid.uuid4(), os.urandom and the machine's clock do not",
    ),
    "swallowed-crash": CauseText(
        "{routine}{hint} catches the exception that ends its process and returns, so an"
        " interrupt or an exit counts as success",
        "use except Exception: instead of a bare except or BaseException, or raise it again",
    ),
    "kills-process": CauseText(
        "{routine}{hint} ends its whole process, and every job in it, with no commit",
        "raise an Exception instead: an ErrorHandler decides what happens to the task",
    ),
    "hangs": CauseText(
        "{routine}{hint} loops or waits without end: it exceeded the limit of real time",
        "use self.ctx.sleep(...) to wait; ErrorHandler(..., timeout=seconds) limits an attempt",
    ),
    "store-lost": CauseText(
        "the next host opened the store's files as the dead host left them, and has nothing else."
        f" {_STORE}",
        "commit the transaction before a write returns, and do each write in one transaction:\n"
        "then a crash leaves the whole write or none of it",
    ),
    "store-changes": CauseText(
        f"a store must return rows as they were written. {_STORE}",
        "return from rows() the bytes that create, append and claim received, unchanged",
    ),
    "store-refuses": CauseText(
        "each host before this one is dead, and this one has started or claimed the job: no"
        f" other host can own it. {_STORE}",
        "in claim, set the owner in the transaction that inserts the row",
    ),
    "store-fence": CauseText(
        "the other host was not dead, only slow, and its late writes replace those of the job's"
        f" owner. {_STORE}",
        "in append, compare the owner and insert the row in one transaction;\n"
        "if there is another row, or the job has another owner, raise LeaseLostError",
    ),
    "store-frees": CauseText(
        f"a worker that asks for work gets a finished job and runs it again. {_STORE}",
        "in the transaction of a write with stopped=True, make the job unavailable to workers",
    ),
    "payload-changed": CauseText(
        "handlers get copies of a payload. A change reaches the original if the copy shares"
        " objects with it, for example because of a __deepcopy__ of its class",
        "send plain data (dict, list, str, numbers); change only objects that the handler makes",
    ),
    "changed-by-saving": CauseText(
        "a value differs after it is saved and loaded. If its type was given to register_type,"
        " its encode and decode don't match",
        "serialize_roundtrip(value) shows the first path that differs after loading",
    ),
}
CAUSES["unreadable"] = CAUSES["changed-by-saving"]
CAUSES["store-unreadable"] = CAUSES["store-lost"]
