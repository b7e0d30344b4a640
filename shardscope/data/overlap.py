"""Held-out and scored text kept out of training: how many training documents repeat it, and the rest without them.

Two documents overlap if they are the same text, or share 13 words in a row, as Brown et al. (2020, arXiv:2005.14165,
appendix C) count it. Words are runs of letters and digits, without regard to case, punctuation and space; in scripts
that write no spaces a phrase is one word. 13 words that four or more different held-out texts have in common (as in a
licence, or "which of the following best describes the") are no overlap. A text of fewer words counts only if it is the
same text.

Everything is counted on token shards, as arrays: words and their runs are 64-bit polynomial hashes of their bytes
(Karp & Rabin 1987), so that 20 MB of text take seconds (docs/training.md has the measurement).

Axes: byte, word, gram (13 words), document.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardscope.data.files import DataError, log
from shardscope.data.shards import WORDS_IN_COMMON, Overlap, SourceShards, TokenShard
from shardscope.files import read_json, whole_folder, write_json
from shardscope.manifest import compared, read_manifest, write_manifest
from shardscope.progress import progress_bar
from shardscope.tokenizer import Tokenizer

COMMON = 4  # held-out texts that have the same words: they are a formula, not a leak
_FORMAT = 2  # raise when the same documents are counted in another way
_TOKENS_AT_ONCE = 250_000
_BASE, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, so they have inverses mod 2⁶⁴
_FILTER_BITS = 24

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


class _Documents(NamedTuple):
    """Texts end to end, and where each begins; a separator stands between them."""

    data: Bytes
    starts: Places


class _Prints(NamedTuple):
    """What two overlapping documents have in common: hashes of their grams, and of their whole texts."""

    grams: Hashes
    gram_documents: Places  # which document a gram is of
    texts: Hashes


def count_overlap(
    shards: Mapping[str, SourceShards],
    scored: Mapping[str, Iterable[str]],
    scored_state: Any,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    drop: bool,
    progress: bool = True,
) -> dict[str, SourceShards]:
    """The sources with what was found in each, and without those documents if `drop`.

    Held-out text is that of every source; `scored` are further texts by name, of which `scored_state` names the
    content. The count is kept in `cache`, so that it is made once. Raises DataError if nothing of a source is left.
    """
    key = _key(shards, scored_state, drop)
    folder = cache / f"overlap-{key}"
    if not folder.is_dir():
        pieces = _Pieces(tokenizer)
        index = _Index()
        for name, both in shards.items():
            index.add(f"{name} (held out)", pieces.documents(both.holdout))
        for name, texts in scored.items():
            index.add(name, _of_texts(texts))
        with whole_folder(folder, replace=False) as making:
            found = {}
            for number, (name, both) in enumerate(shards.items()):
                overlap, documents = _count(name, both.train, index, pieces, drop, progress)
                found[name] = asdict(overlap)
                if drop and len(documents):
                    if overlap.documents == overlap.of_documents:
                        raise DataError(
                            f"data.sources.{name}: every training document repeats held-out or scored text, and "
                            "data.overlap = 'drop' leaves none; give it other text"
                        )
                    both.train.without(documents, making, str(number))
            write_json(making / "overlap.json", found)
            write_manifest(making, sorted(path.name for path in making.iterdir()))
    return _opened(folder, shards)


def _opened(folder: Path, shards: Mapping[str, SourceShards]) -> dict[str, SourceShards]:
    try:
        with compared(folder, sorted(read_manifest(folder) or ())):
            found = {name: Overlap(**values) for name, values in read_json(folder / "overlap.json", DataError).items()}
            kept = {
                name: TokenShard(folder, str(number)) if found[name].dropped and found[name].documents else both.train
                for number, (name, both) in enumerate(shards.items())
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: damaged ({error}); delete the folder to make it again") from error
    for name, overlap in found.items():
        if overlap.documents:
            done = "they are left out" if overlap.dropped else "data.overlap = 'drop' leaves them out"
            log.warning("data.sources.%s: %s; %s", name, overlap, done)
    return {name: both._replace(train=kept[name], overlap=found[name]) for name, both in shards.items()}


def _key(shards: Mapping[str, SourceShards], scored_state: Any, drop: bool) -> str:
    content = {
        "format": _FORMAT,
        "sources": [(name, both.train.path.parent.name) for name, both in shards.items()],
        "scored": scored_state,
        "drop": drop,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------------------ held-out text


class _Index:
    """Grams and whole texts of everything that is held out or scored."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._grams: list[list[Hashes]] = []
        self._texts: list[Hashes] = []

    def add(self, name: str, chunks: Iterable[_Documents]) -> None:
        """Take up the documents of one held-out text, each different one once."""
        grams, texts = [], [np.empty(0, np.uint64)]
        for chunk in chunks:
            prints = _prints(chunk)
            # A copy of a text may not make its words look like a formula.
            _, first = np.unique(prints.texts, return_index=True)
            new = first[~np.isin(prints.texts[first], np.concatenate([*self._texts, *texts, np.zeros(1, np.uint64)]))]
            texts.append(prints.texts[new])
            wanted = np.isin(prints.gram_documents, new)
            pairs = np.stack([prints.grams[wanted], prints.gram_documents[wanted].astype(np.uint64)], axis=1)
            grams.append(np.unique(pairs, axis=0)[:, 0])
        self.names.append(name)
        self._grams.append(grams)
        self._texts.append(np.unique(np.concatenate(texts)))

    @cached_property
    def grams(self) -> list[Hashes]:
        """For each name its grams, sorted; without those that many texts have."""
        found, counts = np.unique(
            np.concatenate([np.empty(0, np.uint64), *(some for own in self._grams for some in own)]),
            return_counts=True,
        )
        rare = found[counts < COMMON]
        own = [np.unique(np.concatenate([np.empty(0, np.uint64), *grams])) for grams in self._grams]
        return [grams[_among(grams, rare)] for grams in own]

    @property
    def texts(self) -> list[Hashes]:
        return self._texts

    @cached_property
    def filter(self) -> NDArray[np.bool_]:
        """Whether a gram with these first bits may be held out: one look instead of a search for nearly all."""
        table = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        for grams in self.grams:
            table[grams >> np.uint64(64 - _FILTER_BITS)] = True
        return table


def _count(
    name: str, train: TokenShard, index: _Index, pieces: _Pieces, drop: bool, progress: bool
) -> tuple[Overlap, Places]:
    """What of a source's training documents overlaps, and their numbers."""
    every: list[Places] = []
    exact: list[Places] = []
    by_name: list[list[Places]] = [[] for _ in index.names]
    grams, texts, may_be = index.grams, index.texts, index.filter  # made before threads ask for them
    whole_texts = np.unique(np.concatenate([np.empty(0, np.uint64), *texts]))

    def look(chunk: tuple[int, _Documents]) -> tuple[Places, list[Places]]:
        first, documents = chunk
        prints = _prints(documents)
        near = may_be[prints.grams >> np.uint64(64 - _FILTER_BITS)]
        candidates, of_document = prints.grams[near], prints.gram_documents[near]
        same = first + np.flatnonzero(_among(prints.texts, whole_texts))
        shared = [
            np.union1d(
                first + of_document[_among(candidates, grams[n])],
                first + np.flatnonzero(_among(prints.texts, texts[n])),
            )
            for n in range(len(grams))
        ]
        return same, shared

    bar = progress_bar(
        desc=f"held-out text in {name}", total=len(train), unit=" tokens", unit_scale=True, disable=not progress
    )
    with bar, ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        chunks = pieces.numbered(train)
        while some := list(islice(chunks, 16)):
            for same, shared in pool.map(look, some):
                exact.append(same)
                for n, documents in enumerate(shared):
                    by_name[n].append(documents)
                    every.append(documents)
            bar.update(min(len(train) - bar.n, 16 * _TOKENS_AT_ONCE))
    found = _union(every)
    with_texts = {whose: len(_union(by_name[n])) for n, whose in enumerate(index.names)}
    ends = np.append(train.starts[1:], len(train))
    overlap = Overlap(
        documents=len(found),
        exact=len(_union(exact)),
        tokens=int((ends[found] - train.starts[found]).sum()),
        of_documents=len(train.starts),
        with_texts={whose: count for whose, count in with_texts.items() if count},
        dropped=drop,
    )
    return overlap, found


def _union(places: list[Places]) -> Places:
    return np.unique(np.concatenate([np.empty(0, np.int64), *places]))


def _among(values: NDArray[Any], ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `values` are in `ordered`, which is sorted."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


# ------------------------------------------------------------------------------------------------------- hashes

# Lower-case letters, digits and bytes of other scripts are parts of words; 0 is none.
_FOLDED = np.array(
    [ord(chr(b).lower()) if b < 128 and chr(b).isalnum() else b if b >= 128 else 0 for b in range(256)], np.uint64
)


def _prints(documents: _Documents) -> _Prints:
    data, starts = documents
    powers, inverses = _powers(len(data))
    folded = _FOLDED[data]
    edges = np.flatnonzero(np.diff(folded != 0, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    words = _mixed(_spans(folded * powers[: len(data)], begins, ends) * inverses[begins])
    of_document = np.searchsorted(starts, begins, side="right") - 1
    count = max(0, len(words) - WORDS_IN_COMMON + 1)
    grams = np.zeros(count, np.uint64)
    for n in range(WORDS_IN_COMMON):
        grams = grams * _STEP + words[n : n + count]
    within = of_document[:count] == of_document[WORDS_IN_COMMON - 1 :][:count]
    raw = (data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)]
    stops = np.append(starts[1:], len(data) + 1) - 1  # without the separator
    texts = _mixed(_spans(raw, starts, stops) * inverses[starts] + (stops - starts).astype(np.uint64))
    texts[stops == starts] = 0  # no text has no hash
    return _Prints(_mixed(grams[within]), of_document[:count][within], texts)


def _spans(terms: Hashes, begins: Places, ends: Places) -> Hashes:
    """The sum of the terms of every span, mod 2⁶⁴."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
    return total[ends] - total[begins]


def _powers(at_least: int) -> tuple[Hashes, Hashes]:
    """_BASE to the powers 0, 1, 2 … and their inverses, mod 2⁶⁴."""
    return _powers_to(next(count for count in (1 << 16, 1 << 21, 1 << 27) if count > at_least))


@lru_cache(maxsize=2)
def _powers_to(count: int) -> tuple[Hashes, Hashes]:
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    both = []
    for base in (_BASE, inverse):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors))
    return both[0], both[1]


def _mixed(hashes: Hashes) -> Hashes:
    """All bits of a hash spread over all of it (splitmix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


# --------------------------------------------------------------------------------------------- texts as bytes


class _Pieces:
    """The bytes of tokens, by table; `<|endoftext|>` is a line end, which no word crosses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = [b"\n" if id == tokenizer.bos_id else tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self._lengths = np.array([len(piece) for piece in table], np.int64)
        self._offsets = np.cumsum(self._lengths) - self._lengths
        self._bytes = np.frombuffer(b"".join(table), np.uint8)

    def documents(self, shard: TokenShard) -> Iterator[_Documents]:
        return (documents for _, documents in self.numbered(shard))

    def numbered(self, shard: TokenShard) -> Iterator[tuple[int, _Documents]]:
        """(number of the first document, documents): about a million tokens at a time, a longer document in parts.

        A part begins a chunk of its own under the number of its document.
        """
        stops = np.append(shard.starts[1:], len(shard))
        first = 0
        while first < len(shard.starts):
            start = int(shard.starts[first])
            after = max(first + 1, int(np.searchsorted(stops, start + _TOKENS_AT_ONCE, side="right")))
            stop = int(stops[after - 1])
            for part in range(start, stop, _TOKENS_AT_ONCE):
                end = min(part + _TOKENS_AT_ONCE, stop) if after == first + 1 else stop
                own = shard.starts[first:after] if part == start else np.array([part - 1])
                yield first, self._text(shard.tokens[part:end], own - part)
                if end == stop:
                    break
            first = after

    def _text(self, tokens: NDArray[np.uint16], starts: Places) -> _Documents:
        """The bytes of tokens; `starts` are the places of the documents' `<|endoftext|>`."""
        lengths = self._lengths[tokens]
        ends = np.cumsum(lengths)
        places = np.repeat(self._offsets[tokens] - (ends - lengths), lengths) + np.arange(int(ends[-1]))
        return _Documents(self._bytes[places], np.where(starts >= 0, ends[np.maximum(starts, 0)], 0))


def _of_texts(texts: Iterable[str]) -> Iterator[_Documents]:
    """Texts as documents, some megabytes at a time."""
    rest = iter(texts)
    while some := _some(rest):
        lengths = np.array([len(text) + 1 for text in some])
        starts = np.cumsum(lengths) - lengths
        yield _Documents(np.frombuffer(b"\n".join(some), np.uint8), starts)


def _some(texts: Iterator[str]) -> list[bytes]:
    found: list[bytes] = []
    size = 0
    for text in texts:
        found.append(text.encode("utf-8"))
        size += len(found[-1])
        if size > 4 * _TOKENS_AT_ONCE:
            break
    return found
