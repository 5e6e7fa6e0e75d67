"""Exceptions from other processes, as values that every process can load.

Invariants:
- An exception class that this process can't find is replaced by a class of the same name with the
  same bases. So the error is recorded and judged as in one process.
- Pickling and unpickling what a user's class defines may raise anything; nothing of it leaves this
  module.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from routilux.graph.messages import ErrorInfo, traceback_of


@dataclass(slots=True)
class SentType:
    """An exception class by its name, with its bases for a process that can't find the class."""

    data: bytes | None
    module: str
    name: str
    bases: tuple[SentType, ...]

    @classmethod
    def of(cls, kind: type) -> SentType:
        bases = () if kind.__module__ == "builtins" else tuple(map(cls.of, kind.__bases__))
        return cls(pickled(kind), kind.__module__, kind.__qualname__, bases)

    def open(self) -> Any:
        """Return the class, or one of the same name and bases."""
        found = None if self.data is None else opened(self.data)
        if isinstance(found, type) and found.__qualname__ == self.name:
            return found
        bases = [base.open() for base in self.bases]
        return _subclass(self.module, self.name, bases, {})


@dataclass(slots=True)
class SentError:
    """An exception that ends the run of a job.

    An exception that can't be pickled and unpickled is made anew, with its type, message, notes
    and, in a group, its leaves.
    """

    data: bytes | None
    kind: SentType
    text: str
    message: str
    notes: tuple[str, ...]
    traceback: str
    code: int | str | None  # of a `SystemExit`
    parts: tuple[SentError, ...]  # of a group

    @classmethod
    def of(cls, error: BaseException) -> SentError:
        info = ErrorInfo.of(error)
        code = getattr(error, "code", None) if isinstance(error, SystemExit) else None
        return cls(
            pickled(error),
            SentType.of(type(error)),
            str(info),
            info.message,
            info.notes,
            traceback_of(error, skip=2),
            code if isinstance(code, int | str) else None,
            tuple(map(cls.of, error.exceptions)) if isinstance(error, BaseExceptionGroup) else (),
        )

    def open(self) -> BaseException:
        """Return the exception, or one that is made anew; its cause has the traceback."""
        error = None if self.data is None else opened(self.data)
        # Its constructor may make other errors of the same arguments.
        if not isinstance(error, BaseException) or text_of(error) != self.text:
            error = self._anew()
        error.__cause__ = RemoteTraceback(self.traceback)
        return error

    def _anew(self) -> BaseException:
        kind = self.kind.open()
        message = self.message
        kind = _subclass(kind.__module__, self.kind.name, [kind], {"__str__": lambda _: message})
        builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        parts = [part.open() for part in self.parts]
        error: BaseException = builtin.__new__(kind, message, *([parts] if parts else []))
        if isinstance(error, SystemExit):
            error.code = self.code
        for note in self.notes:
            error.add_note(note)
        return error


class RemoteTraceback(Exception):  # noqa: N818 - as that of concurrent.futures
    """The cause of an exception from another process: the traceback in that process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _subclass(module: str, name: str, bases: list[type], members: dict[str, object]) -> type:
    members |= {"__module__": module, "__qualname__": name}
    try:
        return type(name, tuple(bases), members)
    except BaseException:  # of a metaclass or of `__init_subclass__`
        errors = [base for base in bases if issubclass(base, BaseException)]
        plain = next(base for base in errors[0].__mro__ if base.__module__ == "builtins")
        return type(name, (plain,), members)


def pickled(value: object) -> bytes | None:
    """Return a value as bytes; None if it can't be pickled."""
    try:
        return pickle.dumps(value)
    except BaseException:
        return None


def opened(data: bytes) -> Any:
    """Return the value of the bytes; None if it can't be unpickled."""
    try:
        return pickle.loads(data)
    except BaseException:
        return None


def text_of(error: BaseException) -> str:
    """Return the type and the message of an exception."""
    return str(ErrorInfo.of(error))
