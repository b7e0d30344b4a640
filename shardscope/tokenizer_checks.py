"""Which tokenizer.json files can be read, and why another cannot: no text may be lost, and none may take for ever.

A byte-level BPE gives back every text unchanged, unless a part around it changes the text first. Such parts are
refused by name, before any text is given to them. A tokenizer from elsewhere brings regular expressions of its own;
one that no known tokenizer uses is tried in a child process, where it can be stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import models, normalizers

_TIME_LIMIT = 10.0  # seconds for texts that any sound pattern cuts in milliseconds
_UTF8_BYTES = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}  # those that occur in UTF-8

# GPT-2's words, except that a number is cut into its digits: the pattern of tokenizers trained here.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's, GPT-4's and Llama 3's, Qwen 2's: patterns that are known to take time in proportion to the text.
_KNOWN_PATTERNS = {
    WORDS,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + number
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for number in (r"\p{N}{1,3}", r"\p{N}")
    ),
}

# Runs of one kind of character, short ones with an end that a nested repetition does not match.
_TRIAL = """
import sys, tokenizers
backend = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode("utf-8"))
runs = ("a", " ", "1", ".", "\\n", "aB", "_", "é", "漢", "a ", "a.", "\\t ", "0a", "'s")
texts = [run * 40 + end for run in runs for end in ("", "!", " ", "\\n", "a", "\\0")]
texts += [run * 50_000 + end for run in runs[:5] for end in ("", "!")]
for text in texts:
    try:
        backend.encode(text, add_special_tokens=False)
    except BaseException:
        sys.exit(3)
"""


def why_unreadable(backend: tokenizers.Tokenizer) -> str | None:
    """Why texts would not come back unchanged from these parts; None if nothing is known against them."""
    if not isinstance(backend.model, models.BPE):
        return f"its model is {type(backend.model).__name__}; only byte-level BPE is read"
    if lossy := [kind for kind in map(_kind, _parts(_state(backend.normalizer))) if kind not in ("NFC", "ByteLevel")]:
        return f"it changes the text before cutting it (normalizer {', '.join(lossy)}), so the text does not come back"
    steps = [*_parts(_state(backend.pre_tokenizer)), *_parts(_state(backend.normalizer))]
    kinds = [_kind(step) for step in steps]
    if "Metaspace" in kinds or backend.model.byte_fallback:
        return "it is a SentencePiece-style tokenizer (spaces written as \u2581); only byte-level BPE is read"
    if "ByteLevel" not in kinds:
        return "it does not cut text into bytes (no ByteLevel pre-tokenizer); only byte-level BPE is read"
    if any(_kind(step) == "ByteLevel" and step.get("add_prefix_space") for step in steps):
        return "it puts a space before every text (add_prefix_space), so the text does not come back"
    for token in backend.get_added_tokens_decoder().values():
        if not token.special and (token.lstrip or token.rstrip):
            return f"its added token {token.content!r} removes the space beside it, so the text does not come back"
    vocabulary = backend.get_vocab(with_added_tokens=False)
    byte_of = byte_of_character()
    missing = _UTF8_BYTES - {byte for character, byte in byte_of.items() if character in vocabulary}
    if missing:
        return f"{len(missing)} bytes have no token, the first is {min(missing):#04x}; only byte-level BPE is read"
    return _why_slow(backend, steps)


def lossless_normalizer(backend: tokenizers.Tokenizer) -> normalizers.Normalizer | None:
    """What is left of a normalizer that `why_unreadable` has nothing against: it may spell bytes, no more."""
    spells = "ByteLevel" in map(_kind, _parts(_state(backend.normalizer)))
    return normalizers.ByteLevel() if spells else None


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 byte is its own character, the others take those from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(others)}}


def _why_slow(backend: tokenizers.Tokenizer, steps: list[dict[str, Any]]) -> str | None:
    unknown = sorted({pattern for step in steps if (pattern := _regex(step)) and pattern not in _KNOWN_PATTERNS})
    if not unknown:
        return None
    try:
        # -P: what lies in the working folder is not imported.
        tried = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL],
            input=backend.to_str().encode("utf-8"),
            capture_output=True,
            timeout=_TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its pattern {unknown[0]!r} takes more than {_TIME_LIMIT:g} s for a short text"
    except OSError:  # no process can be started here
        return None
    return f"its pattern {unknown[0]!r} gives up on a short text" if tried.returncode == 3 else None


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as its file describes it."""
    state: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return state


def _parts(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The parts of a sequence, however deep."""
    inner = (state or {}).get("normalizers", (state or {}).get("pretokenizers"))
    if inner is not None:
        for part in inner:
            yield from _parts(part)
    elif state is not None:
        yield state


def _kind(state: dict[str, Any]) -> str:
    return str(state["type"])


def _regex(step: dict[str, Any]) -> str | None:
    pattern = step.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None
