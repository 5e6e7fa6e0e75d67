"""A quote: the price of an article and the pieces in stock, asked from two services at once.

Invariants:
- A routine opens its HTTP client in the first attempt, and keeps it: all attempts run on the event
  loop of the web service.
- An answer that may be another one later is a `ConnectionError`, as is a connection that breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx

from routilux import Routine

if TYPE_CHECKING:
    from routilux import Gathered

__all__ = ["AskRoutine", "QuoteRoutine", "ServiceCallRoutine"]

_PASSING: Final = (502, 503, 504)


class AskRoutine(Routine):
    """Emits the article to all services that know a part of its quote."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.ask)
        self.define_event("article", ["article"])

    def ask(self, article: str) -> None:
        """Emit the article."""
        self.emit("article", article=article)


class ServiceCallRoutine(Routine):
    """Gets what one service knows of an article; `url` ends before the article's name."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.client: httpx.AsyncClient | None = None
        self.define_slot("input", handler=self.call)
        self.define_event("output", ["part"])

    async def call(self, article: str) -> None:
        """Emit the answer of the service."""
        if self.client is None:
            self.client = httpx.AsyncClient(trust_env=False)
        try:
            answer = await self.client.get(f"{self.url}/{article}")
        except httpx.TransportError as error:
            raise ConnectionError(str(error)) from None
        if answer.status_code in _PASSING:
            raise ConnectionError(f"HTTP {answer.status_code}")
        if answer.is_error:
            raise LookupError(f"{article}: HTTP {answer.status_code}")
        self.emit("output", part=answer.json())

    async def close(self) -> None:
        """Close the client."""
        if self.client is not None:
            await self.client.aclose()


class QuoteRoutine(Routine):
    """Joins the parts to one quote."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("parts", handler=self.join, gather=True)
        self.define_event("quote", ["article", "cents", "pieces"])

    def join(self, parts: Gathered) -> None:
        """Emit the quote."""
        quote: dict[str, object] = {}
        for delivered in parts:
            part = delivered["part"]
            assert isinstance(part, dict)
            quote |= part
        self.emit("quote", **quote)
