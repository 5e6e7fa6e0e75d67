"""A Dask scheduler and workers as processes that a test kills and starts again.

    python -m tests.engine.remote.dask_parts PORT
    python -m tests.engine.remote.dask_parts PORT worker

Invariants:
- Each process ends when its standard input ends, so also when the test process is killed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.routines import PATIENCE

HOST = "127.0.0.1"


class Part:
    """A scheduler, by default on a free port, or with `worker` a worker of the one at `port`."""

    def __init__(self, port: int = 0, *roles: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__, str(port), *roles],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process of Dask did not start"
        self.port = int(line)
        """The port of the scheduler, or of the worker."""

    @property
    def address(self) -> str:
        return f"tcp://{HOST}:{self.port}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve(port: int, roles: list[str]) -> None:
    from distributed import Scheduler, Worker

    part: Any
    if roles:
        part = Worker(f"tcp://{HOST}:{port}", nthreads=1, dashboard_address=":0")
    else:
        part = Scheduler(host=HOST, port=port, dashboard_address=":0")
    async with part:
        sys.stdout.write(f"{part.port}\n")
        sys.stdout.flush()
        await part.finished()


if __name__ == "__main__":
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2:]))
