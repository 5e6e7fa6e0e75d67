"""Texts of a screen: what they hold is made visible, and what is too wide is cut.

Laws:
- A width is counted in cells: a wide character takes two, a combining one none.
- Whatever a user's text holds, it stays on its line: what is not printable is escaped.
- What is cut says so, with one `…` in the place of what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cut", "cut_middle", "cut_start", "padded", "plain", "width", "wrapped"]


def plain(text: str) -> str:
    r"""Return a text in which all that is not printable is escaped.

    >>> plain("a\nb")
    'a\\nb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Return how many cells a text takes."""
    return cell_len(text)


def padded(text: str, cells: int) -> str:
    """Return a text with blanks behind it, so that it takes at least so many cells."""
    return text + " " * (cells - width(text))


def cut(text: str, cells: int) -> str:
    """Return a text of at most so many cells, without its end where it is longer.

    >>> cut("gateway.charge", 8)
    'gateway…'
    """
    long = len(text) > 4 * cells
    text = plain(text[: 4 * cells + 4])
    if width(text) <= cells and not long:
        return text
    return text[: _most(len(text), lambda n: width(text[:n]) < cells)] + "…"


def cut_start(text: str, cells: int) -> str:
    """Return a text of at most so many cells, without its beginning where it is longer.

    >>> cut_start("/home/ann/shop/charge.py:41", 16)
    '…op/charge.py:41'
    """
    long = len(text) > 4 * cells
    text = plain(text[-4 * cells - 4 :])
    if width(text) <= cells and not long:
        return text
    size = len(text)
    return "…" + text[size - _most(size, lambda n: width(text[size - n :]) < cells) :]


def cut_middle(text: str, cells: int) -> str:
    """Return a text of at most so many cells, without its middle where it is longer.

    >>> cut_middle("gateway.charge(order='A7') x2", 20)
    "gateway.c…r='A7') x2"
    """
    if len(text) <= 4 * cells:
        text = plain(text)
        if width(text) <= cells:
            return text
    head = cells // 2
    left = cut(text, head)
    return left.removesuffix("…") + cut_start(text, cells - width(left.removesuffix("…")))


def wrapped(text: str, cells: int, lines: int) -> list[str]:
    """Return a text as at most so many lines, broken between words; the last may be cut.

    A no-break space holds words together, and is a blank then.

    >>> wrapped("one two three four", 9, 2)
    ['one two', 'three fo…']
    """
    found = [""]
    words = [plain(word.replace("\N{NO-BREAK SPACE}", " ")) for word in text.split(" ")]
    for number, word in enumerate(words):
        line = f"{found[-1]} {word}" if found[-1] else word
        if width(line) <= cells:
            found[-1] = line
        elif len(found) == lines:
            found[-1] = cut(" ".join([found[-1], *words[number:]]).lstrip(), cells)
            break
        else:
            found.append(cut_middle(word, cells))
    return [line for line in found if line]


def _most(size: int, fits: Callable[[int], bool]) -> int:
    # The largest number that fits, of 0 to size, where each smaller one fits as well.
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
