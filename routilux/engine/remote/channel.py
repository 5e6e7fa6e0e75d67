"""`Channel`: answers the questions of steps that run in other processes.

Invariants:
- A question is one TCP connection: a request, a reply, and the end. So neither side keeps anything
  that a death of the other could break. Each wait has a limit.
- Request and reply are JSON, each signed with a key that travels with the step. A message without
  the right signature is dropped before it is parsed; the reply's signature covers the request.
- An effect is committed before its request is answered. If another run of the same step has already
  recorded the effect, the reply is that record, and the later run continues with it.
- A forked child closes its copies of the sockets: only the process that runs the job answers.
- In the process that runs the job, a question is a call in the same thread. An executor may run a
  step inside `submit`, where the engine holds the lock of the runtime.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import threading
from contextlib import suppress
from errno import EBADF, EINVAL, EMFILE, ENFILE
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary, finalize

from routilux import codec
from routilux.clocks.forks import begin_in_children
from routilux.errors import LeaseLostError, NoActiveStepError, UnserializableError
from routilux.graph.messages import ErrorInfo, RecordedEffect

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.engine.driver import Driven
    from routilux.graph.messages import StepInput

Address = tuple[str, int, bytes]
"""Host, port and key of a channel."""
Message = dict[str, Any]

_log = logging.getLogger("routilux")
_CONNECT: Final = 10.0  # seconds until a connection is open, or a request has arrived
_REPLY: Final = 60.0  # seconds for the reply: the store may be slow
_SIGNATURE: Final = 32  # bytes
_ERRORS: Final = (NoActiveStepError, LeaseLostError, UnserializableError)
"""What a handler gets as the error of the same class; the host has trouble with any other."""

_here: Final[WeakValueDictionary[bytes, Channel]] = WeakValueDictionary()


class Channel:
    """The end of the process that runs the jobs; `host` is the address where others reach it."""

    def __init__(self, host: str) -> None:
        self._flights: dict[int, tuple[Driven, StepInput]] = {}
        self._sockets: set[socket.socket] = set()
        key = os.urandom(_SIGNATURE)
        listener = socket.create_server((host, 0), family=_family(host), backlog=128)
        self._sockets.add(listener)
        self.address: Address = host, listener.getsockname()[1], key
        """Where the steps ask."""
        threading.Thread(
            target=_accept,
            args=(listener, key, partial(_answer, self._flights), self._sockets),
            name="routilux-channel",
            daemon=True,
        ).start()
        # Also of a runtime that was never closed.
        self._close = finalize(self, _shut, listener, os.getpid())
        _here[key] = self
        begin_in_children(self.begin_process)

    def add(self, driven: Driven, step: StepInput) -> None:
        """Answer the questions of a step from now on."""
        self._flights[step.number] = driven, step

    def remove(self, step: StepInput) -> None:
        """Answer no more questions of a step: it has ended."""
        self._flights.pop(step.number, None)

    def answer(self, request: Message) -> Message:
        """Return the reply to a request."""
        return _answer(self._flights, request)

    def close(self) -> None:
        """Stop listening."""
        _here.pop(self.address[2], None)
        self._close()

    def begin_process(self) -> None:
        """Close this child's copies of the sockets."""
        self._close.detach()
        _here.pop(self.address[2], None)
        for each in list(self._sockets):
            each.close()


def ask(address: Address, request: Message) -> Message:
    """Return the reply of the process that runs the job.

    Raises `OSError` if that process can't be reached, or does not answer in time.
    """
    host, port, key = address
    here = _here.get(key)
    if here is not None:
        return here.answer(request)
    with socket.create_connection((host, port), _CONNECT) as connection:
        nonce = os.urandom(16).hex()  # so that no reply fits two requests
        body = codec.dumps(codec.encode({"nonce": nonce, **request})).encode()
        signed = hmac.digest(key, body, "sha256")
        connection.sendall(_framed(signed, body))
        connection.settimeout(_REPLY)
        signature, reply = _received(connection)
        if not hmac.compare_digest(signature, hmac.digest(key, signed + reply, "sha256")):
            raise ConnectionError("another program answered")
    found: Message = codec.loads(reply)
    return found


def reachable_host(executor: object) -> str:
    """Return this machine's address as the processes of an executor see it.

    For a Dask cluster on other machines it is the address on the way to the scheduler.
    """
    scheduler = getattr(getattr(executor, "_client", None), "scheduler", None)
    scheme, _, place = str(getattr(scheduler, "address", "")).partition("://")
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    if scheme == "inproc" or not port.isdecimal():
        return "127.0.0.1"
    with socket.socket(_family(host), socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return str(probe.getsockname()[0])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


# --- the process that runs the job ----------------------------------------------------------------


def _answer(flights: dict[int, tuple[Driven, StepInput]], request: Message) -> Message:
    found = flights.get(request["step"])
    if request["ask"] == "cancelled":
        return {"cancelled": found is None or found[0].cancelled}
    try:
        if found is None:
            raise NoActiveStepError(
                "the engine no longer waits for this step, so the step can record nothing more; let"
                " its handler return"
            )
        driven, step = found
        if request["ask"] == "check":
            driven.check(step)
            recorded = driven.recorded(step)
            new = {name: e for name, e in recorded.items() if name not in request["known"]}
            return {"effects": {name: [e.arguments, e.result] for name, e in new.items()}}
        effect = RecordedEffect(*request["effect"])
        kept = driven.record_first(step, request["name"], effect)
        return {} if kept is effect else {"effect": [kept.arguments, kept.result]}
    except UnserializableError as error:
        return {"error": "UnserializableError", "args": [error.path, error.reason]}
    except _ERRORS as error:
        return {"error": type(error).__name__, "args": [str(error)]}
    except Exception as error:
        return {"trouble": str(ErrorInfo.of(error))}


def _accept(
    listener: socket.socket,
    key: bytes,
    answer: Callable[[Message], Message],
    sockets: set[socket.socket],
) -> None:
    pause = threading.Event()
    while True:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (EINVAL, EBADF):
                break  # it is closed
            if error.errno in (EMFILE, ENFILE):
                pause.wait(0.1)  # other files may be closed meanwhile
            continue
        serve = threading.Thread(
            target=_serve,
            args=(connection, key, answer, sockets),
            name="routilux-answer",
            daemon=True,
        )
        sockets.add(connection)
        try:
            serve.start()
        except RuntimeError:  # the system has no thread left
            sockets.discard(connection)
            connection.close()
    sockets.discard(listener)
    listener.close()


def _serve(
    connection: socket.socket,
    key: bytes,
    answer: Callable[[Message], Message],
    sockets: set[socket.socket],
) -> None:
    with connection, suppress(OSError):
        try:
            connection.settimeout(_CONNECT)
            signature, body = _received(connection)
            if not hmac.compare_digest(signature, hmac.digest(key, body, "sha256")):
                _log.warning("the channel for remote steps got a message without its signature")
                return
            reply = codec.dumps(codec.encode(answer(codec.loads(body)))).encode()
            connection.sendall(_framed(hmac.digest(key, signature + reply, "sha256"), reply))
        except Exception as error:  # the closed connection ends the step
            if not isinstance(error, OSError):
                _log.warning("the channel for remote steps can't answer: %s", ErrorInfo.of(error))
        finally:
            sockets.discard(connection)


def _shut(listener: socket.socket, process: int) -> None:
    if os.getpid() == process:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts


# --- messages -------------------------------------------------------------------------------------


def _framed(signature: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + signature + body


def _received(connection: socket.socket) -> tuple[bytes, bytes]:
    head = _read(connection, 4 + _SIGNATURE)
    length = int.from_bytes(head[:4], "big")
    if length > codec.MAX_BYTES:
        raise ConnectionError(f"a message of {length:,} bytes is too long")
    return head[4:], _read(connection, length)


def _read(connection: socket.socket, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise ConnectionError("the connection ended before the message did")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
