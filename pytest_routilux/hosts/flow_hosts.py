"""Hosts in fresh interpreters, on which jobs are started, killed and resumed.

Invariants:
- A host is a process of its own, with its own module state and clock; it shares only files with the
  test. A job travels as a `SavedState` document or in a store.
- A host's time is virtual. It ends by itself, or by SIGKILL at the commit that the test names.
- A point that was never reached, a host that died by itself, a missing module or document: each
  raises a `HostError` with the host's output.
- No host outlives the `with` block, `timeout` seconds of real time, or the process that started it.
- The last lines of a host's output are shown when the host fails, and when the test fails later.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from pytest_routilux.hosts.child import Child, shown
from routilux import (
    CommitKind,
    ExecutionMonitor,
    JobState,
    Runtime,
    SavedState,
    SqliteStore,
    Wait,
    codec,
)
from routilux.errors import nearest

if TYPE_CHECKING:
    from pytest_routilux.settings import Sleeping
    from routilux import ExecutionStrategy

__all__ = ["At", "FlowHosts", "HostError", "HostResult", "Launched"]

Named = str | Callable[..., object]
"""A function at the top level of a module, or its name as `package.module:function`."""


class HostError(Exception):
    """A host could not meet the test's request; the message shows the host's output."""


@dataclass(frozen=True, slots=True)
class At:
    """Names commits by their values: each commit that has all the values given here.

    `kind` is one of `CommitKind`; `At()` is every commit. An unknown kind is a `ValueError`.

    >>> At(kind="retry", routine_id="charge", attempt=2)
    At(kind='retry', routine_id='charge', attempt=2)
    """

    seq: int | None = None
    kind: str | None = None
    routine_id: str | None = None
    attempt: int | None = None

    def __post_init__(self) -> None:
        if self.kind is not None:
            kinds = [kind.value for kind in CommitKind]
            if self.kind not in kinds:
                raise ValueError(
                    f"kind={self.kind!r} is no kind of commit; known: {', '.join(kinds)}"
                    f"{nearest(self.kind, kinds)}"
                )

    def fields(self) -> dict[str, object]:
        """Return the values that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __repr__(self) -> str:
        return f"At({', '.join(f'{name}={value!r}' for name, value in self.fields().items())})"


@dataclass(frozen=True)
class HostResult:
    """What a host did.

    `saved` are the documents that it wrote, by commit; `end` the one that it wrote when the job
    came to rest, None if it was killed at commit `killed_at`. `waits` are those that its clock was
    asked for, `seen` what the function `look` returned there, `output` what it printed.
    """

    pid: int
    saved: dict[int, Path]
    end: Path | None
    killed_at: int | None
    waits: tuple[Wait, ...]
    seen: Any
    output: str
    modules: tuple[str, ...]
    store: Path | None
    job_id: str

    @property
    def document(self) -> Path:
        """The last document, which another host can resume. `HostError` if there is none."""
        if self.end is not None:
            return self.end
        if not self.saved:
            raise HostError(
                f"the host (pid {self.pid}) was killed at commit {self.killed_at} and had saved"
                " nothing; let it save with save_at=At(...)"
            )
        return self.saved[max(self.saved)]

    @cached_property
    def job(self) -> JobState:
        """The job in the store, or else in the last document."""
        for name in self.modules:
            importlib.import_module(name)
        if self.store is not None:
            with SqliteStore(self.store) as store:
                return Runtime(store=store).load(self.job_id, history=True)
        return SavedState.read(self.document).job

    @cached_property
    def monitor(self) -> ExecutionMonitor:
        """The job's history, on this host and on those before it."""
        return ExecutionMonitor.of(self.job)


@dataclass(frozen=True, slots=True)
class Launched:
    """A host that did its task: its folder, what it reported and what it printed."""

    name: str
    pid: int
    folder: Path
    report: Mapping[str, Any]
    output: str


class FlowHosts:
    """Starts, kills and resumes jobs in fresh interpreters; the fixture `flow_hosts`.

    `build` makes the flow there: a function at the top level of a module, or its name
    `package.module:function`; `build_args` are its arguments by name. The host finds modules where
    this process does. `imports` are modules, or their names, that define what a document needs.
    `save_at` and `kill_at` name commits: at each of the first the host saves the job, at the
    second it saves what is to be saved there and gets SIGKILL. `timeout` is in real seconds.
    A host's `time` and `datetime` follow its virtual clock; `sleeping` is `routilux_sleep`.

        host_a = flow_hosts.start("shop.flows:build", "orders", save_at=At(), kill_at=At(seq=4))
        host_b = flow_hosts.resume(host_a.document, imports=["shop.flows"])
        assert host_b.job.status == "completed"

    or, where every commit is to be on the disk before it counts:

        host_a = flow_hosts.start(build, "orders", job_id="A7", store=path, kill_at=At(seq=4))
        host_b = flow_hosts.resume(store=path, job_id="A7", build=build)
    """

    def __init__(
        self,
        folder: Path,
        *,
        timeout: float = 60.0,
        sleeping: Sleeping = "virtual",
        tell: Callable[[str, str], object] = lambda name, said: None,
    ) -> None:
        self._folder = folder
        self._timeout = timeout
        self._sleeping = sleeping
        self._tell = tell
        self._lock = threading.Lock()
        self._count = 0
        self._running: list[Child] = []
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            for child in self._running:
                child.kill()

    def start(
        self,
        build: Named,
        entry: str,
        params: Mapping[str, object] | None = None,
        *,
        slot: str = "trigger",
        job_id: str | None = None,
        build_args: Mapping[str, object] | None = None,
        imports: Iterable[str | ModuleType] = (),
        clock_start: datetime | str = "2026-01-01",
        store: str | os.PathLike[str] | None = None,
        save_at: At | Sequence[At] = (),
        kill_at: At | None = None,
    ) -> HostResult:
        """Run a new job on a new host until the job ends, or the host is killed.

        `clock_start` is what the host's wall clock shows at the beginning (naive means UTC). With
        `store`, the path of a `SqliteStore`, every commit is written to it before it counts.
        """
        name = _name_of(build)
        request = {
            "task": "start",
            "build": name,
            "build_args": codec.encode(dict(build_args or {}), "$.build_args"),
            "entry": entry,
            "params": codec.encode(dict(params or {}), "$.params"),
            "slot": slot,
            "job_id": job_id,
            "clock_start": _iso(clock_start),
            "store": _store(store),
        }
        return self._run(request, [*imports, _module_of(name)], save_at, kill_at)

    def resume(
        self,
        document: str | os.PathLike[str] | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        job_id: str | None = None,
        imports: Iterable[str | ModuleType] = (),
        clock_start: datetime | str | None = None,
        execution_strategy: ExecutionStrategy | None = None,
        build: Named | None = None,
        build_args: Mapping[str, object] | None = None,
        retry_failed: bool = False,
        look: Named | None = None,
        save_at: At | Sequence[At] = (),
        kill_at: At | None = None,
    ) -> HostResult:
        """Resume a saved job on a new host until the job ends, or the host is killed.

        The job is that of the `document`, or the one with this `job_id` in the `store`, which needs
        `build`: a store keeps no flows. Otherwise the flow is the saved one unless `build` makes
        it. The wall clock starts when the job was saved, or at its last commit in the store, unless
        `clock_start` says otherwise. `look` is a function that the host calls
        with the `SavedState` before it goes on; what it returns is `seen` in the result.
        """
        if (document is None) == (store is None):
            raise HostError("resume() takes a document, or a store with job_id= and build=")
        if store is not None and (job_id is None or build is None):
            raise HostError("a job of a store is resumed with job_id= and build=, its flow")
        path = None if document is None else Path(document).resolve()
        if path is not None and not path.is_file():
            raise HostError(
                f"there is no document {path}; a host writes one with save_at=At(...), a test with"
                " run.checkpoint(path) or SavedState.capture(flow, job).write(path)"
            )
        named = [None if function is None else _name_of(function) for function in (build, look)]
        request = {
            "task": "resume",
            "document": None if path is None else str(path),
            "store": _store(store),
            "job_id": job_id,
            "build": named[0],
            "build_args": codec.encode(dict(build_args or {}), "$.build_args"),
            "look": named[1],
            "clock_start": None if clock_start is None else _iso(clock_start),
            "execution_strategy": execution_strategy,
            "retry_failed": retry_failed,
        }
        modules = [*imports, *(_module_of(name) for name in named if name is not None)]
        return self._run(request, modules, save_at, kill_at)

    def _run(
        self,
        request: dict[str, object],
        imports: Iterable[str | ModuleType],
        save_at: At | Sequence[At],
        kill_at: At | None,
    ) -> HostResult:
        points = [save_at] if isinstance(save_at, At) else list(save_at)
        request["sleeping"] = self._sleeping
        request["save_at"] = [point.fields() for point in points]
        request["kill_at"] = None if kill_at is None else kill_at.fields()
        names = [name.__name__ if isinstance(name, ModuleType) else name for name in imports]
        host = self.launch(request, names)
        report, folder = host.report, host.folder
        killed_at = report["killed_at"]
        for point, when in [(p, "to save") for p in points] + (
            [] if kill_at is None else [(kill_at, "to be killed")]
        ):
            if point.fields() in report["missed"]:
                raise HostError(
                    f"{host.name} never came to {point}, where it was {when}; its commits were"
                    + "".join(f"\n  {line}" for line in report["commits"])
                )
        return HostResult(
            pid=host.pid,
            saved={seq: folder / f"saved-{seq}.json" for seq in report["saved"]},
            end=folder / "end.json" if killed_at is None else None,
            killed_at=killed_at,
            waits=tuple(Wait(*wait) for wait in report["waits"]),
            seen=codec.decode(report["seen"], "$.seen"),
            output=host.output,
            modules=tuple(names),
            store=None if request["store"] is None else Path(str(request["store"])),
            job_id=report["job_id"],
        )

    def launch(
        self,
        request: Mapping[str, object],
        imports: Iterable[str],
        environ: Mapping[str, str] | None = None,
    ) -> Launched:
        """Run one task of `host_main` in a fresh interpreter; raises `HostError` if it can't."""
        with self._lock:
            self._count += 1
            number = self._count
        folder = (self._folder / f"host-{number}").resolve()
        folder.mkdir(parents=True)
        files = {name: getattr(sys.modules.get(name), "__file__", None) for name in imports}
        (folder / "request.json").write_text(json.dumps({**request, "imports": files}))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_paths()), **(environ or {})}
        child = Child("pytest_routilux.hosts.__main__", [str(folder)], folder, environment)
        name = f"host {number} (pid {child.pid})"
        try:
            with self._lock:
                self._running.append(child)
                over = self._over
            ended = not over and child.ends_within(self._timeout)
        finally:
            child.kill()
            child.close()
            with self._lock:
                self._running.remove(child)
        output = child.output()
        if over:
            raise HostError(f"{name} was killed: the test that started it was over")
        if not ended:
            raise HostError(
                f"{name} did not end within {self._timeout:g} s and was killed{_said(output)}"
            )
        report = _report(child, name, folder, output)
        if output.strip():
            self._tell(name, shown(output))
        return Launched(name, child.pid, folder, report, output)


def _report(child: Child, name: str, folder: Path, output: str) -> Mapping[str, Any]:
    path = folder / "report.json"
    report: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    if "trouble" in report:
        raise HostError(f"{name}: {report['trouble']}{_said(output)}")
    killed = report.get("killed_at") is not None
    if report.get("pid") != child.pid or child.status != (-signal.SIGKILL if killed else 0):
        raise HostError(f"{name} died of itself: {_end_of(child.status)}{_said(output)}")
    return report


def _end_of(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"


def _said(output: str) -> str:
    return f"; it said\n{shown(output)}" if output.strip() else "; it said nothing"


def _paths() -> list[str]:
    # The host works in a folder of its own, so that "" and "." would mean another place.
    return [str(Path(entry).absolute()) for entry in sys.path]


def _name_of(function: Named) -> str:
    if isinstance(function, str):
        module, _, qualname = function.partition(":")
        if not module or not qualname:
            raise HostError(f"{function!r} names no function; write 'package.module:function'")
        return function
    name = f"{function.__module__}:{function.__qualname__}"
    if "<" in name:
        raise HostError(
            f"{name} can't be found by its name on another host; define it with def at the top"
            " level of a module"
        )
    return name


def _module_of(name: str) -> str:
    return name.partition(":")[0]


def _store(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _iso(instant: datetime | str) -> str:
    moment = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).isoformat()
