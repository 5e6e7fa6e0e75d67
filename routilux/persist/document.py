"""A job and its flow as one JSON document, for people and other tools.

Laws:
- A document is a copy, not a lock: any number of hosts may go on from it.
- It is captured between two commits; steps in flight are pending in it.
- A crash while it is written leaves the old file or the new one; see `atomic`.
- The digest covers every byte before its own member. It tells damage, not attack: for a file that
  was in other hands there is a signature, checked before anything is parsed.
- A document of any earlier version is read, upgraded; a newer one is refused.
- Nothing but `SavedStateError` escapes from reading what a file holds; a file that can't be
  opened is the system's own `OSError`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never, Self, cast

from routilux import codec
from routilux.clock import SystemClock
from routilux.core.forms import in_range
from routilux.core.records import history_length
from routilux.core.state import JobState
from routilux.errors import CorruptStateError, SavedStateError
from routilux.flow import Flow
from routilux.instants import SECOND, from_ns, instant_ns
from routilux.monitor import ExecutionMonitor
from routilux.persist.atomic import write_whole
from routilux.persist.seal import SEAL, keyed, sealed, unsealed
from routilux.persist.upgrades import FORMAT, loaded

__all__ = ["FORMAT", "SavedState"]

_PIECE: Final = 1 << 20
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

    def to_bytes(self, *, key: bytes | None = None) -> bytes:
        """Return the document's text, with its digest, and signed if there is a `key`; see `write`.

        >>> from routilux import Flow, JobState
        >>> flow, key = Flow("empty"), b"sixteen bytes or more"
        >>> text = SavedState.capture(flow, JobState("job-1")).to_bytes(key=key)
        >>> SavedState.from_bytes(text, key=key).job.job_id
        'job-1'
        >>> SavedState.from_bytes(text, key=b"the key of others").job.job_id
        Traceback (most recent call last):
        routilux.CorruptStateError: $.signature: is not that of this key: the file was...
        """
        try:
            mac = keyed(key)
        finally:
            del key
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
        text = codec.bounded("{" + ",\n".join(lines) + "}")
        return sealed(text.removesuffix("}").encode(), mac)

    def write(self, path: str | os.PathLike[str], *, key: bytes | None = None) -> None:
        """Write the document to a file, in one piece or not at all (mode 0600).

        With a `key`, of at least 16 bytes, it is signed by HMAC-SHA256, for a file that passes
        through other hands; whoever reads it with that key gets what was written or an error. It
        is not encrypted. Raises `UnserializableError` for what has no saved form, `OSError` where
        the file can't be written, `TypeError` and `ValueError` for what is no key.
        """
        try:
            data = self.to_bytes(key=key)
        finally:
            del key
        write_whole(path, data)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, verify: bool = True, key: bytes | None = None
    ) -> Self:
        """Read a document from a file.

        The routine classes of the flow must have been imported. `verify=False` leaves out the
        digest, for a file that was edited by hand. With a `key` only a file is read that was
        written with it and not changed in any byte, whatever `verify` says; without one a signed
        file is read like any other. Raises `OSError` where there is no file, `SavedStateError` for
        what is damaged, of another program, of a newer version or not signed with the key, and
        `TypeError` and `ValueError` for what is no key.
        """
        try:
            return cls.from_bytes(_content(path), verify=verify, key=key)
        except SavedStateError as error:
            said, *listed = error.reason.split("\n")
            told = "\n".join([f"{said} (in {os.fspath(path)})", *listed])
            raise type(error)(error.path, told) from None
        finally:
            del key

    @classmethod
    def from_bytes(cls, data: bytes, *, verify: bool = True, key: bytes | None = None) -> Self:
        """Read a document from its text; see `read`."""
        try:
            mac = keyed(key)
        finally:
            del key
        if len(data) > codec.MAX_BYTES + SEAL:
            raise CorruptStateError("$", f"is longer than {codec.MAX_BYTES:,} bytes; no job is")
        if not data.strip():
            raise CorruptStateError("$", "the file is empty; the state was never written to it")
        text = unsealed(data, mac, verify=verify)
        if text is not None:
            data = text
        elif verify:
            _refuse_without_digest(data)
        return cls._load(loaded(data))

    @classmethod
    def _load(cls, document: object) -> Self:
        f = codec.check_fields(document, "$", _FIELDS, {"digest": str, "signature": str})
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


def _content(path: str | os.PathLike[str]) -> bytes:
    # No more than can be a document: a path may lead to a device, which never ends.
    left = codec.MAX_BYTES + SEAL
    pieces: list[bytes] = []
    with Path(path).open("rb") as file:
        while left >= 0 and (piece := file.read(_PIECE)):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


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


def _refuse_without_digest(data: bytes) -> Never:
    loaded(data)  # tells what is cut off, newer or another program's
    raise CorruptStateError(
        "$.digest", "is missing at the end; read(path, verify=False) reads it all the same"
    )
