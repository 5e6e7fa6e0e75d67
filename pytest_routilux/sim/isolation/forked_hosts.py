"""Finds handlers that end their process or keep progress in module variables.

Invariants:
- The undisturbed run happens first in a process of its own. A handler that ends this process is
  reported, and never runs in the test's process.
- If a run changes no module global and no class attribute, no other process is tried. Otherwise
  a sample of crash points is recovered in a process that has only the durable commits.
- If the job ends differently there than undisturbed, the flow keeps progress in its process. This
  is a finding only if it repeats, if the difference is larger than what varies between undisturbed
  runs in processes of their own, and if one value that is given to the new process removes the
  difference. Otherwise it is a note.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.frames import handler_of
from pytest_routilux.hosts.fork_server import ForkServer, Reply, can_fork
from pytest_routilux.sim.isolation.forked import (
    Entry,
    HostLog,
    fold_commits,
    hidden_changes,
    recovery_log,
    replay,
    undisturbed_log,
    value_at_commit,
    variation_log,
)
from pytest_routilux.sim.isolation.hidden_state import HiddenChange, Variable
from pytest_routilux.sim.oracle import Expected, compare_effects, trie_of, varying, view_of
from pytest_routilux.sim.repeats import Shape
from pytest_routilux.sim.simulator.execution import Variation, variations
from pytest_routilux.sim.simulator.model import (
    CrashPoint,
    Disturbed,
    Finding,
    Host,
    Note,
    Undisturbed,
    World,
)
from routilux import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.oracle import Trie, View
    from pytest_routilux.sim.results import Coverage, Reference
    from pytest_routilux.sim.simulator.model import Case

_SAMPLE: Final = 6
_SINGLE: Final = ("before a write", "around an effect", "in a wait", "in a recovery")
ENDS_PROCESS: Final = ("kills-process", "hangs")
"""The kinds of findings whose flow must not run in the test's process."""


@dataclass(slots=True)
class Killed:
    """A finding on a handler that ended its process."""

    finding: Finding
    run: Undisturbed  # until the process ended


class ForkedHosts:
    """Runs hosts of one case in forked processes."""

    def __init__(
        self, case: Case, start_ns: int, coverage: Coverage, *, isolated: bool = True
    ) -> None:
        # They report through pipes, and get the durable commits as arguments: no files are needed.
        self._case = case = replace(case, store=None)
        self._start_ns = start_ns
        self._coverage = coverage
        # Starts now, so create this object before the case runs in the test's process.
        self._server = ForkServer(case) if isolated and can_fork() else None
        self._threads = threading.active_count() > 1
        self.changed: list[Variable] = []
        """The module globals and class attributes that the run in a fork changed."""
        self.first: Shape | None = None
        """The shape of the run in a fork, which was the first one; None if there was none."""
        if self._server is None:
            why = "this system can't fork" if isolated else "the test sets isolated=False"
            self._note(f"hosts in other processes: not tried, {why}")

    def __enter__(self) -> ForkedHosts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.__exit__()

    def ask(self, function: Callable[..., object], *args: object) -> Reply:
        """Call `function(case, send, *args)`, in a forked process if possible."""
        if self._server is None:
            return Reply(function(self._case, lambda value: None, *args))
        self._coverage.runs += 1
        return self._server.ask(function, *args)

    # --- handlers that end their process --------------------------------------------------------

    def canary(self) -> Killed | None:
        """Return a finding if a handler ends or blocks its process."""
        if self._server is None:
            return None
        reply = self.ask(undisturbed_log, self._start_ns)
        if reply.failed:
            self._note(f"the undisturbed run in another process failed: {reply.ended}")
            return None
        if reply.ended is None:
            log: HostLog = reply.result
            self.changed = log.changed
            self.first = log.shape or None
            return None if log.ended is None else self._killed(log.ended, log.entries)
        if reply.hung and self._threads:
            self._note(
                f"the undisturbed run in another process had {reply.ended}; that process lacks the"
                " other threads of this process, which may be the cause"
            )
            return None
        if not reply.hung and self._server.ask(undisturbed_log, self._start_ns).ended is None:
            self._note(f"one of two undisturbed runs in another process ended by {reply.ended}")
            return None
        return self._killed(reply.ended, reply.sent, hung=reply.hung)

    def _killed(self, how: str, entries: Sequence[Entry], *, hung: bool = False) -> Killed:
        world = World(self._start_ns)
        replay(world, self._case.job_id, entries)
        step = next((what for _, _, what in reversed(world.log) if isinstance(what, tuple)), None)
        routine, who = None, "build()"
        if step is not None:
            task_id, routine, attempt = step
            who = f"{routine} (task {task_id}, attempt {attempt})"
        if hung:
            kind, what = "hangs", f"{who} does not end: {how}"
        else:
            kind, what = "kills-process", f"{who} kills its process: {how}"
        if not world.log or not isinstance(world.log[-1][2], Commit):  # else the job was given up
            at = world.log[-1][0] if world.log else self._start_ns
            world.add_note(at, Note("ends", how))
        flow = self._case.build()
        job = fold_commits(self._case.job_id, world.commits)
        path = f"process.{routine or 'build'}"
        finding = Finding(kind, what, path, routine, hint=handler_of(flow, routine))
        durable = list(world.commits)
        return Killed(finding, Undisturbed(self._case, world, Host(flow, job), durable, [job]))

    # --- progress that a process keeps ----------------------------------------------------------

    def compare(
        self,
        known: Reference,
        points: Sequence[CrashPoint],
        failures: Sequence[tuple[CrashPoint, Finding]],
    ) -> tuple[Finding, Disturbed] | None:
        """Resume the job in forked processes, and return the first new finding."""
        if self._server is None or not self.changed:
            return None
        known_at = {point: finding.signature for point, finding in failures}
        trie: Trie | None = None
        for point in _sample(points, len(known.run.durable)):
            world = self._recovered(known.run, point)
            if world is None or _difference(known, world, {}) is None:
                continue
            if trie is None and (trie := self._variance(known)) is None:
                return None
            finding = _difference(known, world, trie)
            if finding is None or finding.signature == known_at.get(point):
                continue
            again = self._recovered(known.run, point)
            repeated = None if again is None else _difference(known, again, trie)
            if again is None or repeated is None or repeated.signature != finding.signature:
                continue
            for variable in self.changed:
                other = self._recovered(known.run, point, variable)
                if other is not None and _difference(known, other, trie) is None:
                    job = fold_commits(self._case.job_id, again.commits)
                    host = Host(known.run.host.flow, job)
                    named = self._named(finding, variable)
                    return named, Disturbed(point, again, [host], executed=True)
            self._note(
                f"in another process the job ends differently after a crash ({point.text}):"
                f" {finding.what}, but no module global that a run changes makes the difference"
            )
            return None
        return None

    def _recovered(
        self, run: Undisturbed, point: CrashPoint, variable: Variable | None = None
    ) -> World | None:
        """Resume the job in a forked process after a crash."""
        kept = None
        if variable is not None:
            data = self.ask(value_at_commit, self._start_ns, point.commits, variable).result
            if data is None:
                return None
            kept = (variable, data)  # the only variable that survives the crash
        rows = [commit.dumps() for commit in run.durable[: point.commits]]
        reply = self.ask(recovery_log, self._start_ns, rows, point, kept)
        if reply.ended is not None:
            self._note(f"another process can't resume the job ({point.text}): {reply.ended}")
            return None
        world = run.world.cut(point.commits, point.calls, point.at_ns)
        replay(world, self._case.job_id, reply.result.entries)
        return world

    def _variance(self, known: Reference) -> Trie | None:
        """Return the paths at which runs in separate processes differ."""
        views = []
        for variation in [*variations(known.run.host.flow.plan()), Variation(), Variation()]:
            reply = self.ask(variation_log, self._start_ns, variation)
            if reply.ended is None:
                world = World(self._start_ns)
                replay(world, self._case.job_id, reply.result.entries)
                views.append(_view(self._case.job_id, world))
        return trie_of(varying(known.view, views, ordered=known.ordered)) if views else None

    def _named(self, finding: Finding, variable: Variable) -> Finding:
        scope, module, name = variable
        full = f"{module}:{name}"
        changes: list[HiddenChange] = self.ask(hidden_changes, self._start_ns).result or []
        unknown = HiddenChange(finding.routine or "?", "global", full, "", "?", "?")
        change = next((change for change in changes if change.name == full), unknown)
        kind = "module global" if scope == "global" else "class attribute"
        what = (
            f"{change.routine_id} keeps progress in the {kind} {full}, which a new host does not"
            f" have: {finding.what}"
        )
        rows = [(full, f"{change.was} -> {change.became}", change.was), *finding.rows]
        path = f"{scope}.{full}"
        return Finding("module-state", what, path, change.routine_id, rows, change.where)

    def _note(self, text: str) -> None:
        self._coverage.notes.append(text)


def _sample(points: Sequence[CrashPoint], commits: int) -> list[CrashPoint]:
    sample = [p for p in points if p.kind == "after a write" and p.commits < commits]
    if not sample:  # a reproducer names one point
        sample = [p for p in points[:_SAMPLE] if p.kind in _SINGLE and p.commits < commits]
    if len(sample) <= _SAMPLE:
        return sample
    return [sample[round(i * (len(sample) - 1) / (_SAMPLE - 1))] for i in range(_SAMPLE)]


def _difference(known: Reference, world: World, trie: Trie) -> Finding | None:
    job_id = known.run.case.job_id
    expected = Expected(known.view, trie, ordered=known.ordered)
    return compare_effects(known.run.world, world, trie) or expected.compare(_view(job_id, world))


def _view(job_id: str, world: World) -> View:
    return view_of(fold_commits(job_id, world.commits), world)
