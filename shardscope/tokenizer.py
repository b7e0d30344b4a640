"""Text to ids and back: byte-level BPE in the file format of the `tokenizers` library.

Every byte is in the vocabulary, so every UTF-8 string has ids and comes back unchanged. The text is first cut as GPT-2
cuts it (Radford et al. 2019), with one change: a digit is always a token of its own, and the space before a number is
one too. A small model then meets ten digits, written the same everywhere, in place of hundreds of number chunks whose
place values it would have to memorise; columns line up when it adds (Singh & Strouse 2024, arXiv:2402.14903, measure
how much the cut of numbers decides arithmetic).

The one special token, `<|endoftext|>`, begins every document and so ends the one before it. Any other added token is
text: it stands for the bytes it is written with.

Tokenizers from elsewhere are read if they are byte-level BPE, and made lossless: `truncation`, `padding`, BPE dropout
and what a post-processor adds are switched off. So is NFC, which changes nothing in text that is in that form, as
nearly all text is; the rest keeps its own bytes. A tokenizer that changes text in another way is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from shardscope.config import ConfigError
from shardscope.files import write_text
from shardscope.tokenizer_checks import WORDS, byte_of_character, lossless_normalizer, why_unreadable

END_OF_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.json"
SMALLEST, LARGEST = 257, 2**16  # the special token and 256 bytes; token shards hold 16-bit ids

LARGEST_FILE = 64_000_000  # bytes of a tokenizer.json; the largest published ones have a third of that

# Texts that a tokenizer has to give back: spaces, control characters, a lone combining mark, emoji; no space in front.
_PROBES = (
    "  A probe:\t12+7\r\n\x00\x7f\u0301é漢🙂 \u200d\ufffd" + "".join(map(chr, range(256))),
    f"Hello e\u0301, ﬁ Ａ İ{END_OF_TEXT} {END_OF_TEXT}  ",
)

# A longer text is encoded in pieces of this many characters, which bounds the library's memory (150 bytes a byte).
_PIECE = 500_000
_OVERLAP = 16  # words at the end of a piece that are encoded again with the next; patterns look one character ahead


class TokenizerError(ConfigError):
    """A tokenizer that cannot be read, trained or used; the message says why and what to do."""


class Tokenizer:
    """A byte-level BPE with `<|endoftext|>` as its only special token."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes over `backend` and switches off what changes texts. Raises TokenizerError if that is not enough."""
        known = backend.get_vocab(with_added_tokens=True)
        if END_OF_TEXT not in known:
            special = ", ".join(repr(t.content) for t in backend.get_added_tokens_decoder().values() if t.special)
            raise TokenizerError(
                f"the vocabulary has no {END_OF_TEXT}, the token that begins a document; special tokens: "
                f"{special or 'none'}"
            )
        if (last := max(known.values())) >= LARGEST:
            raise TokenizerError(f"the vocabulary has {last + 1} entries; token ids are 16-bit, so at most {LARGEST}")
        if len(set(known.values())) < len(known):
            raise TokenizerError("two tokens of the vocabulary share an id")
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = None
        if reason := why_unreadable(backend):
            raise TokenizerError(reason)
        backend.model.dropout = None
        backend.normalizer = lossless_normalizer(backend)
        # What looks like a special token in someone's text is text.
        backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        backend.encode_special_tokens = True
        self.backend = backend
        added = " ".join(f"a{token.content}b {token.content} " for token in backend.get_added_tokens_decoder().values())
        for probe in (*_PROBES, added):
            if (found := self.decode(self.encode(probe))) != probe:
                raise TokenizerError(f"text does not come back unchanged: {_difference(probe, found)}")

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn exactly `vocab_size` entries. The same documents give the same tokenizer.json, byte for byte."""
        if not SMALLEST <= vocab_size <= LARGEST:
            raise TokenizerError(f"vocab_size={vocab_size}: use {SMALLEST} to {LARGEST} entries")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=1,
            special_tokens=[AddedToken(END_OF_TEXT, special=True, normalized=False)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(documents, trainer)
        found = backend.get_vocab_size()
        if found != vocab_size:
            raise TokenizerError(
                f"the training text yields {found} entries, not vocab_size={vocab_size}; "
                f"train on more text or ask for at most {found}"
            )
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a tokenizer.json or the folder that holds it. Raises TokenizerError with the path and the reason."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise TokenizerError(f"{file}: no such tokenizer file")
        if (size := file.stat().st_size) > LARGEST_FILE:
            raise TokenizerError(f"{file}: {size:,} bytes are too many for a tokenizer.json; at most {LARGEST_FILE:,}")
        try:
            with _no_panic():
                backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{file}: not a tokenizer.json of the tokenizers library: {error}") from None
        try:
            return cls(backend)
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {error}") from None

    def save(self, path: str | Path) -> Path:
        """Write to `path`, or to tokenizer.json inside it when it is a folder; returns the file."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        return write_text(file, self.backend.to_str(pretty=True) + "\n")

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """The ids of `text`, after `<|endoftext|>` if `bos`. Raises TokenizerError for a text that is not Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not valid UTF-8 at character {error.start + 1}; correct it") from None
        ids = [id for piece in self._pieces(text) for id in piece]
        return [self.bos_id, *ids] if bos else ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """`encode` of every text, on all cores."""
        long = {n for n, text in enumerate(texts) if len(text) > _PIECE}
        short = [text for n, text in enumerate(texts) if n not in long]
        with _no_panic():
            encodings = iter(self.backend.encode_batch_fast(short, add_special_tokens=False))
        return [
            np.concatenate([np.array(ids, dtype=np.uint16) for ids in self._pieces(text)])
            if n in long
            else np.array(next(encodings).ids, dtype=np.uint16)
            for n, text in enumerate(texts)
        ]

    def _pieces(self, text: str) -> Iterator[list[int]]:
        """The ids of `text`, piece by piece: the same as at once, unless one word is longer than a piece."""
        start, overlap = 0, max(_OVERLAP, self._longest_added)
        while True:
            with _no_panic():
                encoding = self.backend.encode(text[start : start + _PIECE], add_special_tokens=False)
            ids: list[int] = encoding.ids
            words = encoding.word_ids
            if start + _PIECE < len(text):
                # Where words begin is decided from left to right, so all but the last words of a piece are final.
                begins = [n for n in range(1, len(ids)) if words[n] != words[n - 1]]
                ids = ids[: begins[-min(overlap, len(begins))]] if begins else ids
            yield ids
            start += len(self.decode(ids)) if start + _PIECE < len(text) else _PIECE
            if start >= len(text):
                return

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. `<|endoftext|>` has none; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(id) for id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes that one token stands for; none for `<|endoftext|>`."""
        if not 0 <= id < self.vocab_size:
            raise TokenizerError(f"token id {id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes[id]

    def token_text(self, id: int) -> str:
        """One token, readable on its own: a piece of a character is written as in `\\xe2\\x82`."""
        return END_OF_TEXT if id == self.bos_id else self.token_bytes(id).decode("utf-8", errors="backslashreplace")

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @cached_property
    def bos_id(self) -> int:
        """The id of `<|endoftext|>`, which begins a document."""
        id = self.backend.token_to_id(END_OF_TEXT)
        assert id is not None  # checked when the tokenizer was made
        return id

    @property
    def eos_id(self) -> int:
        """The same `<|endoftext|>`: it ends a document by beginning the next."""
        return self.bos_id

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the whole tokenizer, whatever the layout of its file."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _bytes(self) -> list[bytes]:
        """For every id its bytes: those that a byte-level vocabulary spells, and the text of an added token."""
        byte_of = byte_of_character()
        vocabulary = self.backend.get_vocab(with_added_tokens=False)
        added = self.backend.get_added_tokens_decoder()
        table = [b""] * (max(*vocabulary.values(), *added) + 1)
        for token, id in vocabulary.items():
            if byte_of.keys() >= set(token):
                table[id] = bytes(byte_of[character] for character in token)
            elif id not in added:
                raise TokenizerError(f"its token {token!r} is not byte-level; only byte-level BPE is read")
        for id, found in added.items():
            text = found.content.encode("utf-8")
            if table[id] not in (b"", text) and not found.special:
                raise TokenizerError(f"its token {found.content!r} is both added text and a byte-level token")
            table[id] = table[id] or text
        table[self.bos_id] = b""
        return table

    @cached_property
    def _longest_added(self) -> int:
        return max(len(token.content) for token in self.backend.get_added_tokens_decoder().values())


@contextmanager
def _no_panic() -> Iterator[None]:
    """A panic of the library, which is no Exception, becomes a TokenizerError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"the tokenizers library gave up: {error}") from None


def _difference(text: str, found: str) -> str:
    """Where two texts part, with a little of what follows."""
    place = next((n for n, (a, b) in enumerate(zip(text, found, strict=False)) if a != b), min(len(text), len(found)))
    return f"{text[place : place + 12]!r} becomes {found[place : place + 12]!r}"
