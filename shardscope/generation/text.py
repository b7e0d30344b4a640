"""A sequence's text while its tokens arrive: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from shardscope.tokenizer import Tokenizer


class TextStream:
    """Feed it ids; it releases text that later tokens cannot change.

    Bytes that are never completed to a character become U+FFFD, as in `Tokenizer.decode`. Once a stop text appears
    the text ends before it and `stopped` is true.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.text = ""
        self.stopped = False
        self._released = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token makes final; often empty."""
        if self.tokenizer is None:
            return ""
        # A vocabulary that was padded has ids that stand for no text.
        known = id < self.tokenizer.vocab_size
        self._append(self._decoder.decode(self.tokenizer.token_bytes(id) if known else b""))
        return self._release(len(self.text) if self.stopped else len(self.text) - self._withheld())

    def finish(self) -> str:
        """The rest, when no token follows."""
        if not self.stopped:
            self._append(self._decoder.decode(b"", final=True))
        return self._release(len(self.text))

    def _append(self, new: str) -> None:
        searched = len(self.text)
        self.text += new
        found = [self.text.find(stop, max(0, searched - len(stop) + 1)) for stop in self.stop]
        ends = [place for place in found if place >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.stopped = True

    def _withheld(self) -> int:
        """Characters at the end that may turn out to begin a stop text."""
        lengths = (n for stop in self.stop for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _release(self, end: int) -> str:
        new = self.text[self._released : end]
        self._released = max(self._released, end)
        return new
