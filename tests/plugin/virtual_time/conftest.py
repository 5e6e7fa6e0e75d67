"""A test bed whose inner tests run a flow with one routine, `charge`, from a file `shop.py`."""

from __future__ import annotations

from typing import Final

import pytest

SHOP: Final = """
    import asyncio, os, queue, threading
    from time import sleep
    from routilux import ErrorHandler
    from tests.routines import chain

    def event():
        threading.Event().wait()

    def polled():
        while True:
            threading.Event().wait(0.001)

    def queued():
        queue.Queue().get(timeout=10**6)

    def pipe():
        os.read(os.pipe()[0], 1)

    async def later():
        threading.Event().wait()

    def naps():
        sleep(0.25)

    def naps_carelessly():
        try:
            naps()
        except:
            pass

    async def book():
        pass

    def forgets():
        book()

    async def forgets_later():
        book()

    async def awaits_later():
        await book()

    def shop(work, strategy="sequential"):
        async def charge_later(self, n=0):
            await work()

        def charge(self, n=0):
            work()

        body = charge_later if asyncio.iscoroutinefunction(work) else charge
        flow = chain(charge=body, workers=1 if strategy == "concurrent" else None)
        flow.set_error_handler(ErrorHandler("retry", max_retries=2))
        return flow
"""


@pytest.fixture
def shop(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\npythonpath = .")
    return pytester
