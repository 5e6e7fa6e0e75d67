"""Records, one of which can't be parsed at first: the strategy of the flow decides what happens.

The code does not know of a fake clock: it calls `time.sleep` and `datetime.now`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from routilux import Routine

__all__ = ["CountRoutine", "ParseRoutine", "ReadRoutine"]


class ReadRoutine(Routine):
    """Emits every record that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.read)
        self.define_event("record", ["text"])

    def read(self, records: list[str]) -> None:
        """Emit one event a record."""
        for text in records:
            self.emit("record", text=text)


class ParseRoutine(Routine):
    """Takes 0.1 s a record; the text `late` is not there before the third attempt at it."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.parse)
        self.define_event("word", ["word", "parsed_at"])

    def parse(self, text: str) -> None:
        """Emit the record as a word."""
        time.sleep(0.1)
        if text == "late" and self.ctx.attempt < 3:
            raise LookupError(f"{text!r} has not arrived")
        self.emit("word", word=text.upper(), parsed_at=datetime.now(UTC))


class CountRoutine(Routine):
    """Keeps the words that arrived, in the order in which they did."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.count)

    def count(self, word: str) -> None:
        """Add a word to the job's shared data."""
        words = self.ctx.shared.setdefault("words", [])
        assert isinstance(words, list)
        words.append(word)
