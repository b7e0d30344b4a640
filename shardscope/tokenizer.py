"""Text to ids and back: byte-level BPE in the file format of the `tokenizers` library.

Every byte is in the vocabulary, so every UTF-8 string has ids and comes back unchanged. The text is first cut as GPT-2
cuts it (Radford et al. 2019), with one change: a digit is always a token of its own, and the space before a number is
one too. A small model then meets ten digits, written the same everywhere, in place of hundreds of number chunks whose
place values it would have to memorise; columns line up when it adds (Singh & Strouse 2024, arXiv:2402.14903, measure
how much the cut of numbers decides arithmetic).

The one special token, `<|endoftext|>`, begins every document and so ends the one before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from shardscope.config import ConfigError

END_OF_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.json"
SMALLEST, LARGEST = 257, 2**16  # the special token and 256 bytes; token shards hold 16-bit ids

# GPT-2's words, except that a number is cut into its digits.
_WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# A tokenizer that changes this text is not one of ours: spaces, control characters, a lone combining mark, emoji.
_PROBE = "  A probe:\t12+7\r\n\x00\x7f\u0301é漢🙂 \u200d\ufffd" + "".join(map(chr, range(256)))


class TokenizerError(ConfigError):
    """A tokenizer that cannot be read, trained or used; the message says why and what to do."""


class Tokenizer:
    """A byte-level BPE with `<|endoftext|>` as its only special token."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        if backend.token_to_id(END_OF_TEXT) is None:
            raise TokenizerError(f"the vocabulary has no {END_OF_TEXT}; only tokenizers made by Shardscope are read")
        if backend.get_vocab_size() > LARGEST:
            raise TokenizerError(f"the vocabulary has {backend.get_vocab_size()} entries; token ids are 16-bit")
        # What looks like a special token in someone's text is text.
        backend.encode_special_tokens = True
        self.backend = backend
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise TokenizerError("text does not come back unchanged; only byte-level tokenizers are read")

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn exactly `vocab_size` entries. The same documents give the same tokenizer.json, byte for byte."""
        if not SMALLEST <= vocab_size <= LARGEST:
            raise TokenizerError(f"vocab_size={vocab_size}: use {SMALLEST} to {LARGEST} entries")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
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
        try:
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
        file.write_text(self.backend.to_str(pretty=True) + "\n", encoding="utf-8")
        return file

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """The ids of `text`, after `<|endoftext|>` if `bos`. Raises TokenizerError for a text that is not Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not valid UTF-8 at character {error.start + 1}; correct it") from None
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

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
        """For every id its bytes, read off the 256 characters that a byte-level vocabulary writes them with."""
        byte_of = _byte_of_character()
        vocab = self.backend.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocab.values()) + 1)
        for token, id in vocab.items():
            if token != END_OF_TEXT:
                missing = set(token) - byte_of.keys()
                if missing:
                    raise TokenizerError(f"the token {token!r} is not byte-level; only byte-level tokenizers are read")
                table[id] = bytes(byte_of[character] for character in token)
        return table


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 byte is its own character, the others take those from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(others)}}
