"""A web service that makes quotes, and the services that it asks: real HTTP on the loopback.

Invariants:
- A request of a quote is one job, awaited on the event loop that serves the request.
- A request that takes too long gets 504, and its job is cancelled.
- All servers listen on 127.0.0.1 only, at a free port, and stop at the end of their `async with`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from showcase.flows import quote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from starlette.requests import Request

__all__ = ["Answer", "Parts", "listen", "quotes"]

SECOND: Final = 1_000_000_000
_PARTS: Final[dict[str, dict[str, int]]] = {"price": {"cents": 1250}, "stock": {"pieces": 4}}

Answer = Literal["503", "404", "hangs", "200"]


@asynccontextmanager
async def listen(app: Starlette) -> AsyncIterator[str]:
    """Serve an application, and yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


def quotes(services: str, patience: float) -> Starlette:
    """Return the web service; a request takes at most `patience` seconds."""
    flow, calls = quote(services)

    async def get_quote(request: Request) -> Response:
        article = request.path_params["article"]
        try:
            async with asyncio.timeout(patience):
                job = await flow.aexecute("ask", {"article": article})
        except TimeoutError:
            return JSONResponse({"error": "try later"}, status_code=504)
        if job.error is not None:
            return JSONResponse({"error": str(job.error)}, status_code=502)
        return JSONResponse(dict(job.outputs[0].data))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for call in calls:
            await call.close()

    return Starlette(routes=[Route("/quotes/{article}", get_quote)], lifespan=lifespan)


class Parts:
    """The services that know the parts of a quote, and fail as their scripts say.

    A script has an answer for each request of its path; later requests succeed.
    """

    def __init__(self, scripts: Mapping[str, Sequence[Answer]]) -> None:
        self.clients: set[object] = set()
        """The addresses of the clients: one for each connection."""
        self.app = Starlette(routes=[Route("/{part}/{article}", self._answer)])
        self._scripts = {path: list(script) for path, script in scripts.items()}
        self._seen: list[tuple[str, Answer, int]] = []
        self._first_ns: int | None = None

    def calls(self, part: str) -> str:
        """Return how the requests of a part ended, and how long after the first request of all."""
        return ", ".join(
            f"{answer} {'until' if answer == 'hangs' else 'at'} {after / SECOND:g} s"
            for name, answer, after in self._seen
            if name == part
        )

    async def _answer(self, request: Request) -> Response:
        part, article = request.path_params["part"], request.path_params["article"]
        self.clients.add(request.client)
        if self._first_ns is None:
            self._first_ns = time.monotonic_ns()
        script = self._scripts.get(request.url.path)
        answer = script.pop(0) if script else "200"
        if answer == "hangs":
            while (await request.receive())["type"] != "http.disconnect":
                pass
        self._seen.append((part, answer, time.monotonic_ns() - self._first_ns))
        if answer == "200":
            return JSONResponse({"article": article} | _PARTS[part])
        return Response(status_code=503 if answer == "hangs" else int(answer))
