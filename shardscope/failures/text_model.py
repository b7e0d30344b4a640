"""What text of each domain looks like: a small model of letters and words, fitted on training text.

It answers three questions that no rule can: which domain a passage belongs to (naive Bayes over hashed n-grams of
bytes), how much two passages have in common (cosine of hashed TF-IDF vectors over the same n-grams; Salton & Buckley
1988, doi:10.1016/0306-4573(88)90021-0), and which words are words (a Bloom filter over those of the training text;
Bloom 1970, doi:10.1145/362686.362692). Hashing keeps it at a fixed quarter of a megabyte (Weinberger et al. 2009,
arXiv:0902.2206). One fitted on the built-in model's sources ships with the package; `TextModel.fit` makes another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int, UInt8

from shardscope.config import ConfigError
from shardscope.failures.prompts import Domain

FILE_NAME = "text_model.npz"
DOMAINS: tuple[Domain, ...] = ("code", "math", "prose")
BUCKETS = 2**14
LENGTHS = (2, 3, 4)  # bytes of an n-gram
WORD_BITS = 2**21
COMMON = 2  # a word of the training text is known if it stands there as often
PASSAGE = 2048  # characters; how many passages hold an n-gram makes its weight
EVERY = 4  # passages: n-grams are counted in one of so many, words in all
_WORD = re.compile(r"[^\W\d_]{3,}")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class TextModel:
    """Domains, likeness and known words.

    `log_likelihood`: log p(n-gram | domain), one row for each of DOMAINS. `idf`: log of one over the share of passages
    that hold an n-gram. `words`: the Bloom filter, as bits packed in bytes.
    """

    def __init__(
        self,
        log_likelihood: Float[np.ndarray, "domain bucket"],
        idf: Float[np.ndarray, "bucket"],
        words: UInt8[np.ndarray, "byte"],
    ) -> None:
        self.log_likelihood, self.idf, self.words = log_likelihood, idf, words
        self._likelihood, self._idf = log_likelihood.astype(np.float64), idf.astype(np.float64)
        self._bits: list[bool] = np.unpackbits(words).astype(bool).tolist()

    @classmethod
    def fit(cls, texts: Mapping[Domain, Iterable[str]], vocabulary: Iterable[str] | None = None) -> TextModel:
        """From training text by domain. Raises ConfigError where a domain has none.

        `vocabulary`: the texts whose words are known (None: those by domain). Words take more text than domains do, for
        what people write only now and then is a word, too.
        """
        counts = np.zeros((len(DOMAINS), BUCKETS))
        holding, passages = np.zeros(BUCKETS), 0
        words: Counter[str] = Counter()
        for row, domain in enumerate(DOMAINS):
            for text in texts.get(domain, ()):
                if vocabulary is None:
                    words.update(_words(text))
                for start in range(0, len(text), EVERY * PASSAGE):
                    found = ngrams(text[start : start + PASSAGE])
                    counts[row] += found
                    holding += found > 0
                    passages += 1
            if not counts[row].any():
                raise ConfigError(f"no text of the domain {domain!r} to fit a text model on; give some of each")
        for text in vocabulary or ():
            words.update(_words(text))
        # Add-one smoothing (Laplace), so that what one domain never shows is unlikely there, not impossible.
        likelihood = np.log((counts + 1) / (counts + 1).sum(axis=1, keepdims=True))
        bits = np.zeros(WORD_BITS, dtype=bool)
        bits[[place for word, count in words.items() if count >= COMMON for place in _places(word)]] = True
        idf = np.log((1 + passages) / (1 + holding))
        return cls(likelihood.astype(np.float16), idf.astype(np.float16), np.packbits(bits))

    def save(self, path: Path) -> None:
        np.savez_compressed(path, log_likelihood=self.log_likelihood, idf=self.idf, words=self.words)

    @classmethod
    def load(cls, path: Path) -> TextModel:
        """Raises ConfigError, with the path, for a file that is none."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                model = cls(arrays["log_likelihood"], arrays["idf"], arrays["words"])
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise ConfigError(f"{path}: not a text model ({error}); TextModel.fit makes one") from None
        shapes = (model.log_likelihood.shape, model.idf.shape, model.words.shape)
        if shapes != ((len(DOMAINS), BUCKETS), (BUCKETS,), (WORD_BITS // 8,)):
            raise ConfigError(f"{path}: a text model of another version (shapes {shapes}); fit it again")
        return model

    def log_odds(self, text: str, domain: Domain, width: int) -> list[float]:
        """How much likelier passages of `width` bytes are in `domain` than in the likeliest other one.

        In nats per n-gram, by passage; what is left at the end counts if it is half a passage or more. One passage at
        least, if there is any n-gram.
        """
        scores = np.zeros((len(DOMAINS), len(_bytes(text)) + 1))
        counts = np.zeros(scores.shape[1])
        for buckets in _hashed(text):
            scores[:, 1 : 1 + len(buckets)] += self._likelihood[:, buckets]
            counts[1 : 1 + len(buckets)] += 1
        scores, counts = scores.cumsum(axis=1), counts.cumsum()
        whole = len(counts) - 1
        ends = [*range(width, whole + 1, width)]
        if not ends or whole - ends[-1] >= width // 2:
            ends.append(whole)
        row = DOMAINS.index(domain)
        odds = []
        for start, end in pairwise([0, *ends]):
            if counts[end] > counts[start]:
                likelihood = (scores[:, end] - scores[:, start]) / (counts[end] - counts[start])
                odds.append(float(likelihood[row] - np.delete(likelihood, row).max()))
        return odds

    def domain(self, text: str) -> Domain:
        """The likeliest domain of a text; prose for none."""
        found = ngrams(text)
        return DOMAINS[int((self._likelihood @ found).argmax())] if found.any() else "prose"

    def cosine(self, a: str, b: str) -> float:
        """Of the TF-IDF vectors of two passages, 0 to 1; 0 if one of them is empty."""
        x, y = (np.log1p(ngrams(text)) * self._idf for text in (a, b))
        norms = float(np.linalg.norm(x) * np.linalg.norm(y))
        return float(x @ y) / norms if norms else 0.0

    def knows(self, word: str) -> bool:
        """Whether a word stood in the training text twice or more; a few that did not pass, too."""
        return all(self._bits[place] for place in _places(word.lower()))


@cache
def built_in() -> TextModel:
    """The one that ships with the package."""
    return TextModel.load(Path(__file__).parent / FILE_NAME)


def ngrams(text: str) -> Float[np.ndarray, "bucket"]:
    """How often each hashed n-gram of bytes occurs in a text; its case counts."""
    return sum((np.bincount(found, minlength=BUCKETS) for found in _hashed(text)), start=np.zeros(BUCKETS))


def _hashed(text: str) -> list[Int[np.ndarray, "place"]]:
    """The buckets of the n-grams of each length, by where they begin."""
    data = np.frombuffer(_bytes(text), dtype=np.uint8).astype(np.uint64)
    hashed = []
    for length in LENGTHS:
        starts = max(0, len(data) - length + 1)
        key = np.full(starts, length, dtype=np.uint64)
        for place in range(length):
            key = key * np.uint64(257) + data[place : place + starts]
        # Multiplicative hashing: the high bits of a product with an odd constant (Knuth, vol. 3, 6.4).
        hashed.append(((key * _GOLDEN) >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64))
    return hashed


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _places(word: str) -> tuple[int, int]:
    data = _bytes(word)
    return crc32(data) % WORD_BITS, crc32(data, 0x5BD1E995) % WORD_BITS
