"""What text of each domain looks like: a small model of letters and words, fitted on training text.

It answers three questions that no rule can: which domain a passage belongs to (naive Bayes over hashed n-grams of
bytes), how much two passages have in common (cosine of hashed TF-IDF vectors over the same n-grams; Salton & Buckley
1988, doi:10.1016/0306-4573(88)90021-0), and which words are words (a Bloom filter over those of the training text;
Bloom 1970, doi:10.1145/362686.362692). Hashing keeps it at a fixed quarter of a megabyte (Weinberger et al. 2009,
arXiv:0902.2206). One fitted on the built-in model's sources ships with the package; a training fits one of its own
(`keep_with_run`), which labels its samples (`text_model_of`).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int, UInt8

from shardscope.config import ConfigError
from shardscope.failures.prompts import Domain
from shardscope.files import file_inside, regular_file, whole_file

FILE_NAME = "text_model.npz"
DOMAINS: tuple[Domain, ...] = ("code", "math", "prose")
BUCKETS = 2**14
LENGTHS = (2, 3, 4)  # bytes of an n-gram
WORD_BITS = 2**21
COMMON = 2  # a word of the training text is known if it stands there as often
PASSAGE = 2048  # characters; how many passages hold an n-gram makes its weight
EVERY = 4  # passages: n-grams are counted in one of so many, words in all
# Of a run's own text, in characters: as much is read, which takes about a second; a domain with less is not fitted.
MOST_OF_RUN, FEWEST_OF_DOMAIN = 4_000_000, 50_000
MOST_BYTES = 2**20  # of a file; the three arrays together hold 0.8 MB
_ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "log_likelihood": ((len(DOMAINS), BUCKETS), "<f2"),
    "idf": ((BUCKETS,), "<f2"),
    "words": ((WORD_BITS // 8,), "|u1"),
}
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

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the three arrays, in hexadecimal."""
        digest = hashlib.sha256()
        for name, (_, dtype) in _ARRAYS.items():
            digest.update(np.ascontiguousarray(getattr(self, name), dtype=dtype).tobytes())
        return digest.hexdigest()

    @classmethod
    def fit(cls, texts: Mapping[Domain, Iterable[str]], vocabulary: Iterable[str] | None = None) -> TextModel:
        """From training text by domain. Raises ConfigError where a domain has none.

        `vocabulary`: the texts whose words are known (None: those by domain). Words take more text than domains do, for
        what people write only now and then is a word, too.
        """
        counted, words = [], Counter[str]()
        for domain in DOMAINS:
            own = list(texts.get(domain, ()))
            counted.append(_Counts.of(own))
            if not counted[-1].ngrams.any():
                raise ConfigError(f"no text of the domain {domain!r} to fit a text model on; give some of each")
            if vocabulary is None:
                _count_words(words, own)
        _count_words(words, vocabulary or ())
        likelihood = np.stack([found.log_likelihood() for found in counted])
        return cls(likelihood.astype(np.float16), _Counts.idf(counted).astype(np.float16), _bloom(words))

    def fitted_anew(self, texts: Iterable[str]) -> TextModel:
        """A model of other text, whose domains nobody has named: a text counts for the one that this model finds.

        A domain with less than 50,000 characters stays as it is here, and so do the weights of n-grams where no domain
        has them. What is a word here stays one: text without it says nothing against it.
        """
        by_domain: dict[Domain, list[str]] = {domain: [] for domain in DOMAINS}
        for text in texts:
            by_domain[self.domain(text[:PASSAGE])].append(text)
        likelihood, counted, words = self.log_likelihood.copy(), [], Counter[str]()
        for row, own in enumerate(by_domain.values()):
            _count_words(words, own)
            if sum(map(len, own)) >= FEWEST_OF_DOMAIN:
                counted.append(_Counts.of(own))
                likelihood[row] = counted[-1].log_likelihood()
        idf = _Counts.idf(counted).astype(np.float16) if counted else self.idf
        return TextModel(likelihood, idf, self.words | _bloom(words))

    def save(self, path: Path) -> None:
        """Write it whole or not at all. Raises WriteError."""
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, log_likelihood=self.log_likelihood, idf=self.idf, words=self.words)

    @classmethod
    def load(cls, path: Path) -> TextModel:
        """Raises ConfigError, with the path, for a file that is none.

        The file may be a stranger's: nothing in it runs, and nothing is unpacked that is larger than it should be.
        """
        try:
            if (size := regular_file(path).stat().st_size) > MOST_BYTES:
                raise ValueError(f"{size:,} bytes; one has at most {MOST_BYTES:,}")
            with zipfile.ZipFile(path) as archive:
                found = {name: _array(archive, name, *kind) for name, kind in _ARRAYS.items()}
            if not all(np.isfinite(array).all() for array in found.values()):
                raise ValueError("holds numbers that are not finite")
        except (OSError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(
                f"{path}: not a text model ({error}); delete it, and it is fitted again or the one that ships is used"
            ) from None
        return cls(**found)

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


class _Counts:
    """Of a domain: how often each n-gram stands there, how many passages hold it, and how many passages there are."""

    def __init__(self) -> None:
        self.ngrams, self.holding, self.passages = np.zeros(BUCKETS), np.zeros(BUCKETS), 0

    @classmethod
    def of(cls, texts: Iterable[str]) -> _Counts:
        counts = cls()
        for text in texts:
            for start in range(0, len(text), EVERY * PASSAGE):
                found = ngrams(text[start : start + PASSAGE])
                counts.ngrams += found
                counts.holding += found > 0
                counts.passages += 1
        return counts

    def log_likelihood(self) -> Float[np.ndarray, "bucket"]:
        # Add-one smoothing (Laplace), so that what one domain never shows is unlikely there, not impossible.
        likelihood: Float[np.ndarray, "bucket"] = np.log((self.ngrams + 1) / (self.ngrams + 1).sum())
        return likelihood

    @staticmethod
    def idf(counted: Iterable[_Counts]) -> Float[np.ndarray, "bucket"]:
        """Of the passages of all domains together."""
        counted = list(counted)
        passages = sum(counts.passages for counts in counted)
        weights: Float[np.ndarray, "bucket"] = np.log((1 + passages) / (1 + sum(counts.holding for counts in counted)))
        return weights


def _count_words(words: Counter[str], texts: Iterable[str]) -> None:
    for text in texts:
        words.update(_words(text))


def _bloom(words: Counter[str]) -> UInt8[np.ndarray, "byte"]:
    bits = np.zeros(WORD_BITS, dtype=bool)
    bits[[place for word, count in words.items() if count >= COMMON for place in _places(word)]] = True
    return np.packbits(bits)


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of an .npz whose size is known before it is unpacked. Raises ValueError for any other."""
    entry = archive.getinfo(f"{name}.npy")
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if entry.file_size > size + 1024 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is said to hold {entry.file_size:,} bytes; it has {size:,}")
    data = io.BytesIO(archive.read(entry))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"{name} is in another format than NumPy's 1.0")
    found_shape, by_columns, found_dtype = np.lib.format.read_array_header_1_0(data)
    if (found_shape, by_columns, found_dtype) != (shape, False, np.dtype(dtype)):
        raise ValueError(f"{name} is {found_dtype} of {found_shape}, which another version may read")
    return np.frombuffer(data.read(), dtype=dtype).reshape(shape)


@cache
def built_in() -> TextModel:
    """The one that ships with the package."""
    return TextModel.load(Path(__file__).parent / FILE_NAME)


def keep_with_run(run: Path, texts: Iterable[str]) -> TextModel:
    """The run's own model of text, fitted on the first 4,000,000 characters of `texts` unless it is there already.

    Raises ConfigError for a file of that name that is none, WriteError where it cannot be written.
    """
    if not has_own(run):
        built_in().fitted_anew(_at_most(texts, MOST_OF_RUN)).save(run / FILE_NAME)
    return text_model_of(run)


def text_model_of(run: Path | None) -> TextModel:
    """What labels a run's samples: the model of text in its folder, else the one that ships.

    Raises ConfigError for a file of that name that is none, or that lies elsewhere.
    """
    if run is None or not has_own(run):
        return built_in()
    return TextModel.load(file_inside(run, FILE_NAME, ConfigError))


def has_own(run: Path) -> bool:
    """Whether a model of text lies in the run's folder."""
    return os.path.lexists(run / FILE_NAME)


def _at_most(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


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
