"""The payment gateway, as far as the orders need it."""

from __future__ import annotations

import time


def charge(order: str, amount: float, *, key: str | None = None) -> str:
    """Charge an amount, which takes a while, and return the receipt; once for each key."""
    time.sleep(0.25)
    return f"receipt of {order} over {amount}"
