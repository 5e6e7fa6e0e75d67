"""The program of a host process: `python -m pytest_routilux.hosts.__main__ FOLDER LIFELINE`.

Invariants:
- A host reads `request.json` in its folder, and writes `report.json` there atomically. It shares
  nothing else with the process that started it.
- Time is virtual, for user code too.
- A kill is a real SIGKILL of the whole process group. A commit's observer sends it, so nothing of
  the host runs after that commit.
- The report names the reason if the host can't do the request, such as a missing module. Any other
  error ends the process with a traceback.
- The task `call` runs a function that the request names, so this module imports no simulation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.frames import object_named
from pytest_routilux.hosts.child import die_with_parent
from pytest_routilux.hosts.roundtrip import restored, saved
from pytest_routilux.virtual_time.event_loops import virtual_loops
from pytest_routilux.virtual_time.freeze import frozen_clock
from pytest_routilux.virtual_time.late_failures import fail_at_end
from routilux import (
    ExecutionMonitor,
    FakeClock,
    Flow,
    FlowDefinitionError,
    Runtime,
    SavedState,
    SavedStateError,
    SqliteStore,
    UnserializableError,
    codec,
)
from routilux.clocks.durations import from_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from routilux import Commit, JobState

Request = dict[str, Any]


class _RequestError(Exception):
    """Raised if this host can't carry out the test's request."""


class _Host:
    """An observer that saves the job or kills the host at requested commits."""

    def __init__(self, folder: Path, request: Request, flow: Flow, clock: FakeClock) -> None:
        self._folder = folder
        self._flow = flow
        self._save_at: list[Mapping[str, object]] = request["save_at"]
        self._kill_at: Mapping[str, object] | None = request["kill_at"]
        self._missed = [*self._save_at, *([] if self._kill_at is None else [self._kill_at])]
        self._commits: list[str] = []
        self._saved: list[int] = []
        self._seen: object = None
        self._job_id = ""
        self._seq = 0
        self.clock = clock
        path = request["store"]
        store = None if path is None else SqliteStore(path)
        self.runtime = Runtime(clock=self.clock, store=store, observers=[self])

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Save the job or kill the host, as requested for this commit."""
        self._job_id, self._seq = job.job_id, commit.seq
        self._missed = [point for point in self._missed if not _is_at(point, commit)]
        self._commits.append(
            f"{commit.seq} {commit.kind} {commit.routine_id or ''} {commit.attempt or ''}".rstrip()
        )
        if any(_is_at(point, commit) for point in self._save_at):
            SavedState.capture(self._flow, job).write(self._folder / f"saved-{commit.seq}.json")
            self._saved.append(commit.seq)
        if self._kill_at is not None and _is_at(self._kill_at, commit):
            self._report(killed_at=commit.seq)
            os.killpg(0, signal.SIGKILL)

    def look(self, name: str | None, state: SavedState) -> None:
        """Call the function `name` with `state`, and keep the result."""
        if name is not None:
            self._seen = codec.encode(_function(name)(state), "$.seen")

    def end(self, job: JobState) -> None:
        """Write the report, after saving the stopped `job` if no store keeps it."""
        for failure in self.runtime.observer_failures:
            raise failure.error
        if self.runtime.store is None:
            try:
                SavedState.capture(self._flow, job).write(self._folder / "end.json")
            except SavedStateError as error:
                raise _RequestError(
                    f"the stopped job can't be saved as a document: {error}; give store=path to"
                    " keep the job in a store, which saves no flow"
                ) from None
        self._report(killed_at=None)

    def _report(self, *, killed_at: int | None) -> None:
        report = {
            "job_id": self._job_id,
            "seq": self._seq,
            "killed_at": killed_at,
            "saved": self._saved,
            "missed": self._missed,
            "commits": self._commits,
            "waits": [[wait.who, wait.at_ns, wait.length_ns] for wait in self.clock.waits],
            "seen": self._seen,
        }
        _write_report(self._folder, report)


def _start(folder: Path, request: Request) -> None:
    flow = _built(request)
    with fail_at_end(), _frozen(request, request["clock_start"]) as clock:
        host = _Host(folder, request, flow, clock)
        params = codec.decode(request["params"], "$.params")
        options = {name: request[name] for name in ("slot", "job_id")}
        host.end(host.runtime.execute(flow, request["entry"], params, **options))


def _resume(folder: Path, request: Request) -> None:
    if request["store"] is not None:
        state = _stored(request)
        flow = state.flow
    else:
        state = _read(request)
        flow = state.flow if request["build"] is None else _built(request)
    start = request["clock_start"] or from_ns(state.saved_at_ns).isoformat()
    with fail_at_end(), _frozen(request, start) as clock:
        host = _Host(folder, request, flow, clock)
        host.look(request["look"], state)
        options = {name: request[name] for name in ("retry_failed", "execution_strategy")}
        host.end(host.runtime.resume(flow, state.job, **options))


@contextmanager
def _frozen(request: Request, start: str) -> Iterator[FakeClock]:
    with (
        frozen_clock(request["sleeping"], start=start, zone=request["zone"]) as clock,
        virtual_loops(clock),
    ):
        yield clock


def _read(request: Request) -> SavedState:
    try:
        return SavedState.read(request["document"])
    except SavedStateError as error:
        raise _RequestError(
            f"the document can't be loaded on the host: {error}; the host imported"
            f" {_imported(request)}; add the missing modules to imports=[...]"
        ) from None


def _stored(request: Request) -> SavedState:
    with SqliteStore(request["store"]) as store:
        try:
            job = Runtime(store=store).load(request["job_id"], history=True)
        except KeyError:
            known = ", ".join(map(repr, store.job_ids())) or "none"
            raise _RequestError(
                f"the store {request['store']} holds no job {request['job_id']!r}; known"
                f" jobs: {known}"
            ) from None
    return SavedState(_built(request), job, job.updated_ns, ExecutionMonitor.summary_of(job))


def _roundtrip(folder: Path, request: Request) -> None:
    kind = request["kind"]
    try:
        found = restored(kind, Path(request["document"]).read_bytes())
    except SavedStateError as error:
        raise _RequestError(
            f"a fresh interpreter can't load the object: {error}; the interpreter"
            f" imported {_imported(request)}; define"
            " and register each class at the top level of a module, and add the missing modules"
            " to imports=[...]"
        ) from None
    try:
        data = saved(found)
    except UnserializableError as error:
        raise _RequestError(f"the loaded object can't be saved again: {error}") from None
    (folder / "end.json").write_bytes(data)
    _write_report(folder, {})


_TASKS: Final[Mapping[str, Callable[[Path, Request], None]]] = {
    "start": _start,
    "resume": _resume,
    "roundtrip": _roundtrip,
}


def main(folder: Path) -> int:
    """Carry out the request in `folder`; return the exit status."""
    request: Request = json.loads((folder / "request.json").read_bytes())
    try:
        for name, file in {"pytest_routilux.factory": None, **request["imports"]}.items():
            _import(name, file)
        _TASKS[request["task"]](folder, request)
    except _RequestError as error:
        _write_report(folder, {"error": str(error)})
        return 1
    return 0


def _import(name: str, file: str | None) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        if file is None:
            places = "".join(f"\n  {place}" for place in sys.path)
            raise _RequestError(
                f"module {name!r} can't be imported on the host ({error}); install the module, or"
                f" add its folder to sys.path in the test; sys.path on the host is:{places}"
            ) from None
        # pytest has imported this test module from its file, outside of sys.path.
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def _imported(request: Request) -> str:
    return ", ".join(request["imports"]) or "no modules"


def _function(name: str) -> Callable[..., object]:
    found = object_named(name)
    if not callable(found):
        module, _, qualname = name.partition(":")
        raise _RequestError(
            f"on the host, module {module!r} has no function {qualname!r}; define the function at"
            " the top level of that module"
        )
    return found


def _built(request: Request) -> Flow:
    flow = _function(request["build"])(**codec.decode(request["build_args"], "$.build_args"))
    if not isinstance(flow, Flow):
        raise FlowDefinitionError(f"{request['build']} must return a Flow, not {flow!r}")
    return flow


def _is_at(point: Mapping[str, object], commit: Commit) -> bool:
    return all(getattr(commit, name) == value for name, value in point.items())


def _write_report(folder: Path, report: Mapping[str, object]) -> None:
    unfinished = folder / ".report.json"
    unfinished.write_text(json.dumps({"pid": os.getpid(), **report}))
    unfinished.replace(folder / "report.json")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
