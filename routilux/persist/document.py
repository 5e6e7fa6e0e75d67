"""A job and its flow as one JSON document, for people and other tools.

Laws:
- A document is a copy, not a lock: any number of hosts may go on from it.
- It is captured between two commits; steps in flight are pending in it.
- A crash while it is written leaves the old file or the new one: written beside the target,
  flushed, renamed over it, the folder flushed.
- The digest covers every byte before its own member. It tells damage, not attack.
- Nothing but `SavedStateError` escapes from reading what a file holds; a file that can't be
  opened is the system's own `OSError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, cast

from routilux import codec
from routilux.clock import SystemClock
from routilux.core.records import history_length, in_range
from routilux.core.state import JobState
from routilux.errors import CorruptStateError, SavedStateError, UnsupportedVersionError
from routilux.flow import Flow
from routilux.instants import SECOND, from_ns, instant_ns
from routilux.monitor import ExecutionMonitor

__all__ = ["FORMAT", "SavedState", "write_file"]

FORMAT: Final = "routilux/1"
_HEAD: Final = re.compile(rb'\s*\{\s*"format"\s*:\s*"(routilux/\d{1,9})"')
_DIGEST: Final = re.compile(rb',\n"digest": "sha256:([0-9a-f]{64})"\}\n?\Z')
_FIELDS: codec.Fields = {
    "format": str,
    "flow": dict,
    "job_state": dict,
    "saved_at": float,
    "saved_at_iso": str,
    "retry_count": int,
    "execution_history_count": int,
    "monitor_summary": dict,
}


@dataclass(slots=True, eq=False)
class SavedState:
    """A flow and a job as they were saved together; `saved_at_ns` is UTC nanoseconds.

    >>> import tempfile, pathlib
    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["said"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> job = flow.execute("hello")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "job.json")
    ...     SavedState.capture(flow, job).write(path)
    ...     SavedState.read(path).job == job
    True
    """

    flow: Flow
    job: JobState
    saved_at_ns: int
    monitor_summary: dict[str, int]
    _captured: tuple[str, str] | None = None  # the texts of flow and job

    @property
    def saved_at(self) -> float:
        """When it was saved, in seconds since 1970, by the clock that drove the job."""
        return self.saved_at_ns / SECOND

    @property
    def retry_count(self) -> int:
        """The most retries that any task had spent."""
        return self.job.retry_count()

    @classmethod
    def capture(cls, flow: Flow, job: JobState, monitor: ExecutionMonitor | None = None) -> Self:
        """Take a job as it is now; call it where the job stands still, or from an observer.

        `monitor` is the one whose counts are saved; by default they are those of the job's
        commits. Raises `UnserializableError` for what has no saved form.
        """
        own = job.copy()
        now = job.clock_ns() if job.clock_ns is not None else SystemClock().now_ns()
        now -= now % 1000  # what a float of seconds and ISO text both hold
        mirror_retries(flow, own)
        summary = ExecutionMonitor.summary_of(own) if monitor is None else monitor.summary()
        return cls(flow, own, now, summary, _texts(flow, own))

    def to_bytes(self) -> bytes:
        """Return the document's text, with its digest."""
        flow, job = self._captured or _texts(self.flow, self.job)
        counts = {
            "saved_at": self.saved_at_ns / SECOND,
            "saved_at_iso": from_ns(self.saved_at_ns).isoformat(),
            "retry_count": self.retry_count,
            "execution_history_count": _history_length(self.job),
            "monitor_summary": self.monitor_summary,
        }
        members = {
            "format": codec.dumps(FORMAT),
            "flow": flow,
            "job_state": job,
            **{name: codec.dumps(value) for name, value in counts.items()},
        }
        # One line a member, so that the head and the counts can be read at a glance.
        lines = [f"{json.dumps(name)}: {text}" for name, text in members.items()]
        body = ("{" + ",\n".join(lines)).encode()
        return body + f',\n"digest": "sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the document to a file, in one piece or not at all (mode 0600)."""
        write_file(Path(path), self.to_bytes())

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Read a document from a file.

        The routine classes of the flow must have been imported. `verify=False` leaves out the
        digest, for a file that was edited by hand. Raises `OSError` where there is no file, and
        `SavedStateError` for what is damaged, of another program or of a newer version.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes(), verify=verify)
        except SavedStateError as error:
            raise type(error)(error.path, f"{error.reason} (in {os.fspath(path)})") from None

    @classmethod
    def from_bytes(cls, data: bytes, *, verify: bool = True) -> Self:
        """Read a document from its text; see `read`."""
        if not data.strip():
            raise CorruptStateError("$", "the file is empty; the state was never written to it")
        digest = _DIGEST.search(data)
        if digest is None:
            if verify:
                _refuse_without_digest(data)
        else:
            body = data[: digest.start()]
            if verify and hashlib.sha256(body).hexdigest().encode() != digest[1]:
                raise CorruptStateError(
                    "$.digest",
                    "the file was changed after it was written: its digest is another one;"
                    " read(path, verify=False) reads it all the same",
                )
            data = body + b"}"
        newer = _HEAD.match(data)
        if newer is not None:
            _check_format(newer[1].decode())  # before anything that only a newer version knows
        return cls._load(codec.loads(data))

    @classmethod
    def _load(cls, document: object) -> Self:
        if not isinstance(document, dict) or "format" not in document:
            raise CorruptStateError("$.format", "is missing: this was not written by routilux")
        _check_format(document["format"])
        f = codec.check_fields(document, "$", _FIELDS, {"digest": str})
        job = JobState.load(f["job_state"], "$.job_state")
        flow = Flow.load(f["flow"], "$.flow", job.shape)
        saved_at_ns = _saved_at(f["saved_at_iso"], f["saved_at"])
        counts = (
            ("retry_count", job.retry_count()),
            ("execution_history_count", _history_length(job)),
        )
        for name, count in counts:
            if f[name] != count:
                raise CorruptStateError(f"$.{name}", f"is {f[name]}, but the job has {count}")
        summary = codec.check_fields(
            f["monitor_summary"],
            "$.monitor_summary",
            {"events": int, "data_flows": int, "state_changes": int},
        )
        for name, count in summary.items():
            in_range(count, f"$.monitor_summary.{name}")
        mirror_retries(flow, job)
        return cls(flow, job, saved_at_ns, summary)


def write_file(target: Path, data: bytes) -> None:
    """Write a file in one piece or not at all (mode 0600)."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
    _flush_folder(target.parent)


def mirror_retries(flow: Flow, job: JobState) -> None:
    """Show on the flow's error handlers how many retries the job has spent; for people only.

    A handler that decides for several routines shows the most of them.
    """
    spent: dict[int, int] = {}
    handlers = [(routine_id, r.error_handler) for routine_id, r in flow.routines.items()]
    for routine_id, own in handlers:
        handler = own or flow.error_handler
        if handler is not None:
            spent[id(handler)] = max(spent.get(id(handler), 0), _spent(job, routine_id))
    for handler in (flow.error_handler, *(own for _, own in handlers)):
        if handler is not None:
            handler.retry_count = spent.get(id(handler), 0)


def _texts(flow: Flow, job: JobState) -> tuple[str, str]:
    return codec.dumps(_flow_document(flow, job)), job.dumps()


def _history_length(job: JobState) -> int:
    return sum(map(history_length, job.commits))


def _flow_document(flow: Flow, job: JobState) -> dict[str, object]:
    # A handler object that several routines share is saved with the retries of each of them.
    data = flow.serialize()
    rest = 0
    for entry in cast("list[dict[str, object]]", data["routines"]):
        spent = _spent(job, cast(str, entry["id"]))
        if entry["error_handler"] is None:
            rest = max(rest, spent)
        else:
            cast("dict[str, object]", entry["error_handler"])["retry_count"] = spent
    if data["error_handler"] is not None:
        cast("dict[str, object]", data["error_handler"])["retry_count"] = rest
    return data


def _saved_at(text: str, seconds: float) -> int:
    # The text is exact; a float of seconds loses microseconds in far centuries.
    try:
        found = instant_ns(text)
        if from_ns(found).isoformat() != text:
            raise ValueError(f"is written {from_ns(found).isoformat()!r}, not {text!r}")
    except (OverflowError, ValueError) as error:
        raise CorruptStateError("$.saved_at_iso", f"is no UTC instant: {error}") from None
    if found / SECOND != seconds:
        raise CorruptStateError("$.saved_at", f"is {seconds!r}, but saved_at_iso is {text!r}")
    return found


def _spent(job: JobState, routine_id: str) -> int:
    return job.retry_count(routine_id) if routine_id in job.routine_states else 0


def _refuse_without_digest(data: bytes) -> None:
    # Tell the reason as well as it can be told: newer, cut off, another program's, or edited.
    head = _HEAD.match(data)
    if head is not None:
        _check_format(head[1].decode())
    document = codec.loads(data)
    if isinstance(document, dict) and "format" in document:
        _check_format(document["format"])
        raise CorruptStateError(
            "$.digest", "is missing at the end; read(path, verify=False) reads it all the same"
        )
    raise CorruptStateError("$.format", "is missing: this was not written by routilux")


def _check_format(found: object) -> None:
    if found == FORMAT:
        return
    if isinstance(found, str) and re.fullmatch(r"routilux/\d{1,9}", found):
        raise UnsupportedVersionError(
            "$.format", f"is {found!r}; this version reads {FORMAT!r}: install a newer routilux"
        )
    raise CorruptStateError("$.format", f"is {found!r}: this was not written by routilux")


def _flush_folder(folder: Path) -> None:
    # Without this the rename itself may be lost with the power. Windows can't flush a folder.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
