"""Runs jobs on hosts, which are processes with a new interpreter.

Invariants:
- A host has its own module state and clock, and shares only files with the test. A job travels as a
  `SavedState` document or in a store.
- A host's time is virtual. A host ends by itself, or by SIGKILL at the commit that the test names.
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

from pytest_routilux.hosts.child import Child, end_text, quoted
from pytest_routilux.settings import FlowTime, start_text
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

Named = str | Callable[..., object]
"""A function at the top level of a module, or its name as `package.module:function`."""


class HostError(Exception):
    """A host could not carry out the test's request; the message has what the host printed."""


@dataclass(frozen=True, slots=True)
class At:
    """Selects the commits that have all the given values.

    `kind` is one of `CommitKind`; every commit matches `At()`. An unknown kind raises `ValueError`.

    >>> At(kind="retry", routine_id="charge", attempt=2)
    At(kind='retry', routine_id='charge', attempt=2)
    """

    seq: int | None = None
    """The number of the commit."""
    kind: str | None = None
    """The kind of the commit, such as `retry`."""
    routine_id: str | None = None
    """The routine of its task."""
    attempt: int | None = None
    """The number of the attempt, from 1."""

    def __post_init__(self) -> None:
        kinds = [kind.value for kind in CommitKind]
        if self.kind is not None and self.kind not in kinds:
            raise ValueError(
                f"kind={self.kind!r} is not a kind of commit; known: {', '.join(kinds)}"
                f"{nearest(self.kind, kinds)}"
            )

    def fields(self) -> dict[str, object]:
        """Return the values that were given to `At(...)`, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __repr__(self) -> str:
        return f"At({', '.join(f'{name}={value!r}' for name, value in self.fields().items())})"


@dataclass(frozen=True)
class HostResult:
    """The result of a job's run on a host; see `FlowHosts.start`."""

    pid: int
    """The process id of the host."""
    saved: dict[int, Path]
    """The documents that the host wrote, by the number of the commit."""
    end: Path | None
    """The document of the stopped job; None with a store, or if the host was killed."""
    killed_at: int | None
    """The number of the commit at which the host was killed; None if it was not."""
    waits: tuple[Wait, ...]
    """The waits on the host's clock."""
    seen: Any
    """What `look` returned on the host."""
    output: str
    """What the host printed."""
    modules: tuple[str, ...]
    """The modules that the host imported for the flow."""
    store: Path | None
    """The path of the job's store; None without one."""
    job_id: str
    """The id of the job."""
    seq: int
    """The number of the host's last commit."""

    @property
    def document(self) -> Path:
        """The path of the last saved document; raises `HostError` without one."""
        if self.end is not None:
            return self.end
        if not self.saved:
            why = "keeps its jobs in a store"
            if self.store is None:
                why = f"was killed at commit {self.killed_at}"
            raise HostError(
                f"the host (pid {self.pid}) {why} and saved no document; add save_at=At(...) to"
                " save a document at a commit"
            )
        return self.saved[max(self.saved)]

    @cached_property
    def job(self) -> JobState:
        """The job as the host left it, loaded from the store or the last document."""
        for name in self.modules:
            importlib.import_module(name)
        if self.store is not None:
            with SqliteStore(self.store) as store:
                job = Runtime(store=store).load(self.job_id, history=True)
            return job.at(self.seq)  # another host may have resumed it
        return SavedState.read(self.document).job

    @cached_property
    def monitor(self) -> ExecutionMonitor:
        """A monitor with the job's history on this and earlier hosts."""
        return ExecutionMonitor.of(self.job)


@dataclass(frozen=True, slots=True)
class Launched:
    """The folder, report and output of a host that has ended."""

    name: str
    pid: int
    folder: Path
    report: Mapping[str, Any]
    output: str


class FlowHosts:
    """The fixture `flow_hosts`: runs jobs on hosts, and kills hosts.

    `build` makes the flow on a host: a function at the top level of a module, or its name
    `package.module:function`; `build_args` are its arguments by name. The host finds modules where
    this process does. `imports` are modules, or their names, that define what a document needs.
    The host saves the job at each commit that matches `save_at`, and gets SIGKILL at the first one
    that matches `kill_at`, after saving. `timeout` is in real seconds. A host's `time` and
    `datetime` follow its virtual clock; `sleeping` is `routilux_sleep`, and `time` has the start
    and the zone of the marker `flow_time`.

    A test with it::

        from pytest_routilux import At
        from pytest_routilux.factory import FlowFactory

        def price(count):
            return {"total": 2 * count}

        def charge(total):
            return {"paid": total}

        def build():
            return FlowFactory()(chain=[price, charge])

        def test_another_host_ends_the_job(flow_hosts):
            first = flow_hosts.start(build, "price", {"count": 21}, save_at=At(), kill_at=At(seq=2))
            second = flow_hosts.resume(first.document, imports=[__name__])

            assert first.killed_at == 2
            assert second.job.outputs[0].data == {"paid": 42}

    With `store=path` and `job_id=` the job is in a `SqliteStore` instead, in which each commit is
    durable: `flow_hosts.resume(store=path, job_id="A7", build=build)`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        timeout: float = 60.0,
        sleeping: Sleeping = "virtual",
        time: FlowTime | None = None,
        on_output: Callable[[str, str], object] = lambda name, output: None,
    ) -> None:
        self._folder = folder
        self._timeout = timeout
        self._sleeping = sleeping
        self._time = FlowTime() if time is None else time
        self._on_output = on_output
        self._lock = threading.Lock()
        self._count = 0
        self._running: list[Child] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
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
        clock_start: datetime | str | None = None,
        store: str | os.PathLike[str] | None = None,
        save_at: At | Sequence[At] = (),
        kill_at: At | None = None,
    ) -> HostResult:
        """Run a new job on a new host.

        The host's wall clock starts at `clock_start` (naive means UTC), by default where
        `flow_clock` starts. `store` is the path of a `SqliteStore` for the job. Returns when the
        job has stopped or the host was killed.
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
            "clock_start": _start(self._time.start if clock_start is None else clock_start),
            "store": _store(store),
        }
        return self._run(request, [*imports, name.partition(":")[0]], save_at, kill_at)

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
        """Resume a saved job on a new host.

        The job comes from the `document` or, by its `job_id`, from the `store`. A store keeps no
        flows, so it needs `build`; a document holds its flow, which `build` can replace. The wall
        clock starts at `clock_start`, else when the job was saved or last committed. Before the
        host resumes the job, it calls `look` with the `SavedState`; the result has the returned
        value as `seen`. Returns when the job has stopped or the host was killed.
        """
        if (document is None) == (store is None):
            raise HostError("resume() needs either a document, or a store with job_id= and build=")
        if store is not None and (job_id is None or build is None):
            raise HostError("resume(store=...) needs job_id=, and build= to make the job's flow")
        path = None if document is None else Path(document).resolve()
        if path is not None and not path.is_file():
            raise HostError(
                f"there is no document {path}; write it on a host with save_at=At(...), or in the"
                " test with run.checkpoint(path) or SavedState.capture(flow, job).write(path)"
            )
        build_name, look_name = (f if f is None else _name_of(f) for f in (build, look))
        request = {
            "task": "resume",
            "document": None if path is None else str(path),
            "store": _store(store),
            "job_id": job_id,
            "build": build_name,
            "build_args": codec.encode(dict(build_args or {}), "$.build_args"),
            "look": look_name,
            "clock_start": None if clock_start is None else _start(clock_start),
            "execution_strategy": execution_strategy,
            "retry_failed": retry_failed,
        }
        modules = [name.partition(":")[0] for name in (build_name, look_name) if name is not None]
        return self._run(request, [*imports, *modules], save_at, kill_at)

    def _run(
        self,
        request: dict[str, object],
        imports: Iterable[str | ModuleType],
        save_at: At | Sequence[At],
        kill_at: At | None,
    ) -> HostResult:
        points = list(save_at) if isinstance(save_at, Iterable) else [save_at]
        for name, point in [*(("save_at", p) for p in points), ("kill_at", kill_at)]:
            if not isinstance(point, At) and (name, point) != ("kill_at", None):
                raise HostError(f"{name}={point!r} selects no commit; give {name}=At(seq=2), say")
        request["sleeping"] = self._sleeping
        request["zone"] = self._time.zone
        request["save_at"] = [point.fields() for point in points]
        request["kill_at"] = None if kill_at is None else kill_at.fields()
        names = [name.__name__ if isinstance(name, ModuleType) else name for name in imports]
        host = self.launch(request, names)
        report, folder = host.report, host.folder
        killed_at = report["killed_at"]
        store = None if request["store"] is None else Path(str(request["store"]))
        actions = [*((p, "to save the job") for p in points), (kill_at, "to be killed")]
        for point, action in actions:
            if point is not None and point.fields() in report["missed"]:
                raise HostError(
                    f"{host.name} was {action} at {point}, but made no such commit; the"
                    " commits were" + "".join(f"\n  {line}" for line in report["commits"])
                )
        return HostResult(
            pid=host.pid,
            saved={seq: folder / f"saved-{seq}.json" for seq in report["saved"]},
            end=folder / "end.json" if killed_at is None and store is None else None,
            killed_at=killed_at,
            waits=tuple(Wait(*wait) for wait in report["waits"]),
            seen=codec.decode(report["seen"], "$.seen"),
            output=host.output,
            modules=tuple(names),
            store=store,
            job_id=report["job_id"],
            seq=report["seq"],
        )

    def launch(
        self,
        request: Mapping[str, object],
        imports: Iterable[str],
        environ: Mapping[str, str] | None = None,
    ) -> Launched:
        """Run the task in `request` on a new host."""
        with self._lock:
            self._count += 1
            number = self._count
        folder = (self._folder / f"host-{number}").resolve()
        folder.mkdir(parents=True)
        files = {name: getattr(sys.modules.get(name), "__file__", None) for name in imports}
        (folder / "request.json").write_text(json.dumps({**request, "imports": files}))
        # The host runs in its own folder, where "" and "." of the path would be another place.
        paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, **(environ or {})}
        child = Child("pytest_routilux.hosts.__main__", [str(folder)], folder, environment)
        name = f"host {number} (pid {child.pid})"
        try:
            with self._lock:
                self._running.append(child)
                closed = self._closed
            ended = not closed and child.ends_within(self._timeout)
        finally:
            child.kill()
            child.close()
            with self._lock:
                self._running.remove(child)
        output = child.output()
        if closed:
            raise HostError(f"{name} was killed: the test that started it has ended")
        printed = f"; its output:\n{quoted(output)}" if output.strip() else "; it printed nothing"
        if not ended:
            raise HostError(f"{name} was killed after {self._timeout:g} s of real time{printed}")
        path = folder / "report.json"
        report: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        if "error" in report:
            raise HostError(f"{name}: {report['error']}{printed}")
        expected = 0 if report.get("killed_at") is None else -signal.SIGKILL
        if report.get("pid") != child.pid or child.status != expected:
            raise HostError(f"{name} died with {end_text(child.status)}{printed}")
        if output.strip():
            self._on_output(name, quoted(output))
        return Launched(name, child.pid, folder, report, output)


def _name_of(function: Named) -> str:
    if isinstance(function, str):
        module, _, qualname = function.partition(":")
        if not module or not qualname:
            raise HostError(f"{function!r} names no function; write 'package.module:function'")
        return function
    name = f"{function.__module__}:{function.__qualname__}"
    if "<" in name:
        raise HostError(
            f"another host can't import {name}; define the function with def at the top level of"
            " a module"
        )
    return name


def _store(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _start(instant: object) -> str:
    try:
        text = start_text(instant, "clock_start")
    except ValueError as error:
        raise HostError(str(error)) from None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).isoformat()
