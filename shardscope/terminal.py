"""Output that any terminal and any log file can take."""

from __future__ import annotations

import codecs
import sys
from functools import partialmethod

from tqdm import tqdm

ASCII = {"–": "-", "×": "x", "±": "+-", "…": "...", "·": "-", "’": "'", "“": '"', "”": '"', "→": "->", "−": "-"}


def prepare_output() -> None:
    """Print what stdout's encoding lacks in other characters, and in a log file no bars of other libraries."""
    codecs.register_error("shardscope.readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has no encoding
            stream.reconfigure(errors="shardscope.readable")
    if not sys.stderr.isatty():
        # Our own bars (shardscope.progress) say whether they are shown; those of lm-eval and transformers do not.
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # type: ignore[method-assign, assignment]


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """A codec's way out: our tables' signs in ASCII, everything else as its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    try:
        return "".join(ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in found), error.end
    except UnicodeEncodeError:
        raise error from None
