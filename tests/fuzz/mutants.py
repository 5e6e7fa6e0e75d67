"""Strategies for documents and journals that were tampered with.

A document is changed in its structure or in its bytes. It then gets a new digest, so that only
validation can refuse it, or a new signature, or keeps its old seal. The rows of a journal are
changed alike and get a new checksum or keep the old one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from routilux import (
    CommitKind,
    FakeClock,
    JobState,
    MemoryStore,
    Runtime,
    SavedState,
    SavedStateError,
)
from routilux.codec import signature
from routilux.persist.journal import Journal
from routilux.persist.rows import CHECKSUM_BYTES, row_place, with_checksum, without_checksum
from tests.fuzz.values import VALUES
from tests.persist.orders import GOLDEN, KEY, START, at_retry, pipeline, run

Path = tuple[str | int, ...]
_MARK: Final = "\ue000"  # marks text that no JSON writer writes


class _Short:
    """Hypothesis shows a mutant by its own repr, not with all its bytes."""

    __slots__ = ()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(frozen=True, slots=True, repr=False)
class Document(_Short):
    """A document and how it is read: `seal` is anew, signed, stale or unverified."""

    text: bytes
    seal: str
    original: bytes

    @property
    def size(self) -> int:
        return len(self.text)

    @property
    def values(self) -> int:
        return sum(map(self.text.count, (b",", b"[", b"{")))

    @property
    def is_changed(self) -> bool:
        end = self.original.index(b',\n"digest"')
        return not self.text.startswith(self.original[:end])

    def __repr__(self) -> str:
        return f"<{self.seal}: {_differs(self.original, self.text)}>"


@dataclass(frozen=True, slots=True, repr=False)
class Rows(_Short):
    """The rows of a journal."""

    rows: tuple[bytes, ...]
    original: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.rows))

    @property
    def values(self) -> int:
        return self.size  # more than there can be

    @property
    def is_changed(self) -> bool:
        return self.rows != self.original

    @property
    def is_damaged(self) -> bool:
        return any(_is_damaged(row, i) for i, row in enumerate(self.rows))

    def __repr__(self) -> str:
        pair = (b"\n".join(rows) for rows in (self.original, self.rows))
        return f"<rows: {_differs(*pair)}>"


def _place(index: int) -> str:
    return row_place("job-1", index + 1)


def _is_damaged(row: bytes, index: int) -> bool:
    try:
        without_checksum(row, _place(index))
    except SavedStateError:
        return True
    return False


def _differs(before: bytes, after: bytes) -> str:
    """The text around the first difference, which is enough to reproduce it."""
    at = next((i for i, pair in enumerate(zip(before, after, strict=False)) if len({*pair}) > 1), 0)
    shown = [text[max(at - 60, 0) : at + 100] for text in (before, after)]
    return f"at {at}, was {shown[0]!r}, is {shown[1]!r}"


# --- what they are made from ----------------------------------------------------------------------


@cache
def jobs() -> list[SavedState]:
    """Jobs that retry, have failed, were resumed, dropped a task, are done, lost their start."""
    failed_flow = pipeline(9, audit=True)
    failed, _ = run(failed_flow)
    resumed = failed_flow.resume(
        failed, retry_failed=True, runtime=Runtime(clock=FakeClock(START), max_steps=3)
    )
    done_flow = pipeline(1, audit=True, execution_strategy="concurrent")
    done, _ = run(done_flow)
    _, short = run(pipeline(9), history_limit=1)
    return [
        SavedState.read(GOLDEN / "routilux-1.json"),
        at_retry(pipeline(9), 2),
        short.taken[-2],
        SavedState.capture(failed_flow, failed),
        SavedState.capture(failed_flow, resumed),
        SavedState.capture(done_flow, done),
    ]


@cache
def documents() -> list[bytes]:
    return [saved.to_bytes() for saved in jobs()]


@cache
def journals() -> list[tuple[bytes, ...]]:
    whole = [saved.job for saved in jobs() if len(saved.job.commits) == saved.job.seq]
    return [rows_of(job) for job in whole]


def rows_of(job: JobState) -> tuple[bytes, ...]:
    """The rows of a store after a job's commits were written; a resume claims the job."""
    store = MemoryStore()
    journal = Journal(store)
    for commit in job.commits:
        journal.write(job.job_id, commit, "a", claims=commit.kind is CommitKind.RESUMED)
    return tuple(store.rows(job.job_id))


@cache
def paths_of(text: bytes) -> list[Path]:
    return list(_paths(json.loads(text)))


@cache
def shallow_paths_of(text: bytes) -> list[Path]:
    return [path for path in paths_of(text) if len(path) <= 2]


def _paths(data: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(data, dict | list):
        for step, inner in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _paths(inner, (*path, step))


# --- changes of structure -------------------------------------------------------------------------


class _Twice(dict[str, Any]):
    """An object that is written with a duplicate key."""

    def items(self) -> Any:
        pairs = list(super().items())
        return [*pairs, *pairs[:1]]


_RAW: Final = re.compile(f'"{_MARK}' + r'((?:[^"\\]|\\.)*+)"')
_grown = st.builds(
    cache(lambda name, n: json.dumps(VALUES[name](n))),
    st.sampled_from([*VALUES]),
    st.sampled_from([1, 3, 30, 300, 2_000]),
)
_raw = st.one_of(
    _grown,
    st.integers(1, 300).map(lambda n: "[" * n + "]" * n),
    st.integers(1, 300).map(lambda n: '{"a":' * n + "1" + "}" * n),
    st.sampled_from([4_000, 4_001, 5_000, 20_000]).map(lambda n: "9" * n),
    st.sampled_from([200_000, 1_000_000]).map(lambda n: '"' + "x" * n + '"'),
    st.sampled_from([100_000]).map(lambda n: "[" * n + "]" * n),
    st.sampled_from(
        ["NaN", "Infinity", "1e999", "-0", "1E400", "01", '"\\ud800"', "'", "[1,]", "nul"]
    ),
)
_odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 2**31, 2**53, 2**53 + 1, 2**63, 10**18, 10**30]),
    st.sampled_from([-1.0, 0.0, 0.5, 1e300, 5e-324]),
    st.sampled_from(
        ["", "0", "0.0", "0.0.0", "done", "failed", "running", "process", "fetch", "\0"]
    ),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.builds(
        lambda tag, value: {"$type": tag, "value": value},
        st.sampled_from(["tuple", "dict", "set", "float", "datetime", "bytes", "Decimal", "x", 1]),
        st.sampled_from([None, [], [[1, 2]], "nan", "2026-01-03", "AA==", [1, 1], "1e999999999"]),
    ),
    _raw.map(lambda text: _MARK + text),
)
_integers = st.integers(-3, 3)
_OPS: Final = (
    *("replace", "replace", "delete", "copy", "swap", "move", "repeat", "nudge", "nudge"),
    *("again", "rename", "wrap"),
)


@st.composite
def changed(draw: st.DrawFn, text: bytes, most: int = 3) -> str:
    """The JSON text of data with up to `most` changes."""
    data, paths = json.loads(text), paths_of(text)
    for _ in range(draw(st.integers(1, most))):
        # The document has few top members, and most of them repeat a fact about the job.
        op, shallow = draw(st.sampled_from(_OPS)), draw(st.integers(0, 2)) == 2
        path = draw(st.sampled_from(shallow_paths_of(text) if shallow else paths))
        try:
            holder = data
            for step in path[:-1]:
                holder = holder[step]
            _change(draw, op, data, holder, path[-1], paths)
        except (AttributeError, IndexError, KeyError, TypeError):
            continue  # an earlier change has removed it
    return _written(data)


def _change(draw: st.DrawFn, op: str, data: Any, holder: Any, last: Any, paths: list[Path]) -> None:
    found = holder[last]
    if op in ("swap", "move", "repeat") and not isinstance(holder, list):
        op = "copy"
    if op == "replace":
        holder[last] = draw(_odd)
    elif op == "delete":
        del holder[last]
    elif op == "copy":
        other = data
        for step in draw(st.sampled_from(paths)):
            other = other[step]
        holder[last] = json.loads(json.dumps(other))
    elif op == "nudge":
        holder[last] = found + draw(_integers) * draw(st.sampled_from([1, 10**6, 10**9, 2**40]))
    elif op == "rename":
        holder[draw(st.sampled_from(["", "seq", "$type", "value", last + " ", last.upper()]))] = (
            holder.pop(last)
        )
    elif op == "wrap":
        holder[last] = draw(st.sampled_from([[found], {"$type": "tuple", "value": [found]}, [[]]]))
    elif op == "again":
        holder[last] = _Twice(found if isinstance(found, dict) else {"a": found})
    else:
        to = draw(st.integers(0, len(holder) - 1))
        if op == "swap":
            holder[last], holder[to] = holder[to], found
        elif op == "move":
            holder.insert(to, holder.pop(last))
        else:
            holder.insert(to, json.loads(json.dumps(found)))


def _written(data: Any) -> str:
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for name, value in data.items()
        if name != "digest"
    ]
    text = "{" + ",\n".join(lines) + "}"
    return _RAW.sub(lambda found: json.loads(f'"{found[1]}"'), text)


# --- changes of bytes -----------------------------------------------------------------------------

_BYTES: Final = ("flip", "flip", "insert", "delete", "repeat", "cut", "digit")
_bits = st.integers(0, 7)
_few = st.binary(min_size=1, max_size=4)


@st.composite
def scrambled(draw: st.DrawFn, text: bytes) -> bytes:
    """A text with a few changed bytes."""
    for _ in range(draw(st.integers(1, 3))):
        op = draw(st.sampled_from(_BYTES))
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        length = draw(st.integers(1, 40))
        before, part, after = text[:at], text[at : at + length], text[at + length :]
        if op == "flip" and part:
            part = bytes([part[0] ^ 1 << draw(_bits)]) + part[1:]
        elif op == "insert":
            part = draw(_few) + part
        elif op == "delete":
            part = b""
        elif op == "repeat":
            part = part * 2
        elif op == "cut":
            part = after = b""
        else:
            part = part.translate(bytes.maketrans(b"0123456789", b"1234567890"))
        text = before + part + after
    return text


# --- mutants --------------------------------------------------------------------------------------

_seals = st.sampled_from(["anew", "anew", "anew", "signed", "stale", "unverified"])


@st.composite
def tampered_documents(draw: st.DrawFn, more: tuple[bytes, ...] = ()) -> Document:
    """Changed documents; `more` are taken for a third of them."""
    others = bool(more) and draw(st.integers(0, 2)) == 0
    original = draw(st.sampled_from(more if others else documents()))
    how = draw(_seals)
    end = original.index(b',\n"digest"')
    structural = draw(st.integers(0, 3)) > 0
    if structural:
        body = draw(changed(original)).encode("utf-8", "surrogatepass")[:-1]
    else:
        body = draw(scrambled(original[:end] if how != "stale" else original))
    if how == "stale":
        text = body + original[end:] if structural else body
    elif how == "unverified":
        text = body + b"}"
    else:
        text = signature.with_digest(body, signature.new_mac(KEY if how == "signed" else None))
    return Document(text, how, original)


@st.composite
def tampered_rows(draw: st.DrawFn, more: tuple[tuple[bytes, ...], ...] = ()) -> Rows:
    """Changed journals; `more` are taken for a third of them."""
    others = bool(more) and draw(st.integers(0, 2)) == 0
    original = draw(st.sampled_from(more if others else journals()))
    bodies = _bodies(original)
    stale: dict[int, bytes] = {}  # rows that keep a checksum, by index
    for _ in range(draw(st.integers(1, 2))):
        op = draw(
            st.sampled_from(["structure", "structure", "bytes", "drop", "swap", "repeat", "of"])
        )
        at, to = (draw(st.integers(0, len(bodies) - 1)) for _ in range(2))
        if op == "structure" and bodies[at] in _bodies(original):
            body = draw(changed(bodies[at], 2)).encode("utf-8", "surrogatepass")
            if draw(st.integers(0, 3)) == 0:
                stale[at] = body[:-1] + original[at % len(original)][-CHECKSUM_BYTES:]
            bodies[at] = body
        elif op == "bytes":
            stale[at] = draw(scrambled(with_checksum(bodies[at], _place(at))))
        elif op == "drop" and len(bodies) > 1:
            del bodies[at]
        elif op == "swap":
            bodies[at], bodies[to] = bodies[to], bodies[at]
        elif op == "repeat":
            bodies.insert(to, bodies[at])
        else:
            bodies[at] = draw(st.sampled_from(_bodies(draw(st.sampled_from(journals())))))
    if draw(st.integers(0, 4)) == 0:  # rows at other places, with the checksums of their own
        places = {body: i for i, body in enumerate(_bodies(original))}
        rows = [with_checksum(body, _place(places.get(body, i))) for i, body in enumerate(bodies)]
    else:
        rows = [with_checksum(body, _place(i)) for i, body in enumerate(bodies)]
    for i, row in stale.items():
        if i < len(rows):
            rows[i] = row
    return Rows(tuple(rows), original)


def _bodies(rows: tuple[bytes, ...]) -> list[bytes]:
    return [without_checksum(row, _place(i)) for i, row in enumerate(rows)]


ENDLESS: Final[dict[str, Callable[[int], bytes]]] = {
    "a string": lambda n: b'"' + b"x" * n + b'"',
    "a string that is not ASCII": lambda n: b'"' + b"\xc3\xa9" * (n // 2) + b'"',
    "a string of escapes": lambda n: b'"' + b"\\n" * (n // 2) + b'"',
    "a number": lambda n: b"9" * n,
    "brackets": lambda n: b"[" * n,
    "numbers": lambda n: b"[" + b"1," * (n // 2) + b"1]",
    "objects, as many as are allowed": lambda n: b"[" + b"{}," * min(n // 3, 2_400_000) + b"1]",
    "floats, as many as are allowed": lambda n: b"[" + b"1.5," * min(n // 4, 4_800_000) + b"1]",
    "blanks": lambda n: b" " * n + b"1",
    "a key": lambda n: b'{"' + b"k" * n + b'": 1}',
    "three times as much": lambda n: b'"' + b"x" * 3 * n + b'"',
}
"""Kinds of huge data in a document: a text of about the given number of bytes."""


def endless(what: str, size: int) -> Document:
    """An accepted document that holds one kind of huge data in a payload."""
    original = documents()[1]
    start = b'"payload":{"request_id":'  # of the first task; the text occurs once
    head, tail = original[: original.index(b',\n"digest"')].split(start + b'"r-1"')
    text = signature.with_digest(head + start + ENDLESS[what](size) + tail)
    return Document(text, "anew", original)
