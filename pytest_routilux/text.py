"""Functions that format texts for messages and reports.

Invariants:
- A width is counted in cells: a wide character takes two, a combining one none.
- Every text stays on its line: characters that are not printable are escaped.
- A shortened text has one `…` in place of the part that is missing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal

from routilux import ErrorInfo
from routilux.clocks.durations import exact_text
from routilux.timeline import plain as plain

if TYPE_CHECKING:
    from collections.abc import Sequence

_ADDRESS: Final = re.compile("( at )?\\b0x[0-9a-fA-F]{6,}")
_LONGEST_ID: Final = 16


# --- widths ---------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Return the number of terminal cells that `text` takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # here, so that a test without reports does not load it

    return cell_len(text)


def padded(text: str, cells: int) -> str:
    """Pad `text` on the right to at least `cells` cells."""
    return text + " " * (cells - width(text))


def shorten(text: str, cells: int, keep: Literal["start", "end", "both"] = "start") -> str:
    """Cut `text` to at most `cells` terminal cells.

    >>> shorten("gateway.charge", 8)
    'gateway…'
    >>> shorten("/home/ann/shop/charge.py:41", 16, "end")
    '…op/charge.py:41'
    >>> shorten("gateway.charge(order='A7') x2", 20, "both")
    "gateway.c…r='A7') x2"
    """
    if len(text) <= 4 * cells:
        text = plain(text)
        if width(text) <= cells:
            return text
    if keep == "both":
        left = shorten(text, cells // 2).removesuffix("…")
        return left + shorten(text, cells - width(left), "end")
    if keep == "end":
        text = plain(text[-4 * cells - 4 :])
        size = len(text)
        kept = bisect_left(range(1, size), True, key=lambda n: width(text[size - n :]) >= cells)
        return "…" + text[size - kept :]
    text = plain(text[: 4 * cells + 4])
    return (
        text[: bisect_left(range(1, len(text)), True, key=lambda n: width(text[:n]) >= cells)] + "…"
    )


def wrapped(text: str, cells: int, lines: int) -> list[str]:
    """Wrap `text` to at most `lines` lines of `cells` cells.

    The last line may be shortened. A no-break space joins words, and is written as a blank.

    >>> wrapped("one two three five", 9, 2)
    ['one two', 'three fi…']
    """
    found = [""]
    words = [plain(word.replace("\N{NO-BREAK SPACE}", " ")) for word in text.split(" ")]
    for number, word in enumerate(words):
        line = f"{found[-1]} {word}" if found[-1] else word
        if width(line) <= cells:
            found[-1] = line
        elif len(found) == lines:
            found[-1] = shorten(" ".join([found[-1], *words[number:]]).lstrip(), cells)
            break
        else:
            found.append(shorten(word, cells, "both"))
    return [line for line in found if line]


# --- words ----------------------------------------------------------------------------------------


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return `number` with `noun` in the singular or the plural.

    >>> count(1, "retry", "retries"), count(4, "retry", "retries"), count(1200, "run")
    ('1 retry', '4 retries', '1,200 runs')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Join the first `most` names, and count the others.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def shown(value: object, cells: int = 60) -> str:
    """Return the shortened `repr` of `value`, even if `repr` raises."""
    try:
        return shorten(repr(value), cells)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr() raised {type(error).__name__}>"


def without_addresses(text: str) -> str:
    """Remove all memory addresses from `text`.

    >>> without_addresses("<shop.Cart object at 0x7f1c09f3>")
    '<shop.Cart object>'
    """
    return _ADDRESS.sub("", text)


def bare_name(name: str) -> str:
    """Remove the module from the full name of an exception's class."""
    return name.rpartition(".")[2]


def error_text(error: ErrorInfo | BaseException) -> str:
    """Return an error as `class name: message`.

    >>> error_text(ErrorInfo("shop.errors.GatewayDown", "try 2")), error_text(ValueError("no"))
    ('GatewayDown: try 2', 'ValueError: no')
    """
    if isinstance(error, ErrorInfo):
        name, message = bare_name(error.type), error.text
    else:
        name = type(error).__name__
        message = ErrorInfo.of(error).text
    return f"{name}: {message}" if message else name


def short_id(job_id: str) -> str:
    """Shorten a job's id that has more than 16 characters.

    >>> short_id("order-A7"), short_id("6483cf7c27cffd2c2c587a4bcbae9d52")
    ('order-A7', '6483cf7c…')
    """
    return job_id if len(job_id) <= _LONGEST_ID else f"{job_id[:8]}…"


def seconds(length: int) -> str:
    """Format nanoseconds as exact seconds, without zeros at the end.

    >>> seconds(675_000_000), seconds(2_000_000_000), seconds(-500_000_000)
    ('0.675', '2', '-0.5')
    """
    return exact_text(length)
