"""Held-out and scored text kept out of training: how many training documents repeat it, and the rest without them.

Two documents overlap if they are the same text, or share 13 words in a row, as Brown et al. (2020, arXiv:2005.14165,
appendix C) count it. Words are runs of letters and digits, without regard to case, punctuation, space and the way
Unicode spells them (`folding`); in scripts that write no spaces a phrase is one word. A text of fewer words counts only
if it is the same text, but for case, the amount of space and spelling.

Formulas are no overlap (licences, menus, "by the end of this section you will be able to"): 13 words that four or more
different held-out texts have in common, or, as in Brown et al., that more than ten training documents of the source
have. The latter holds of held-out text alone, for benchmark questions are copied; and a document that consists of
held-out text to the half or more overlaps however often its words are there.

Everything is counted on token shards, as arrays of hashes (`prints`), so that 20 MB of text take seconds
(docs/data.md has the measurement).

Axes: byte, gram (13 words), document.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardscope.data.files import DataError, log
from shardscope.data.folding import Places
from shardscope.data.prints import Documents, Hashes, prints_of
from shardscope.data.shards import Overlap, SourceShards, TokenShard
from shardscope.files import read_json, whole_folder, write_json
from shardscope.manifest import compared, read_manifest, write_manifest
from shardscope.progress import progress_bar
from shardscope.tokenizer import Tokenizer

COMMON = 4  # held-out texts that have the same words: they are a formula, not a leak
MOST_WITH_FORMULA = 10  # training documents of a source; words that more of them have are a formula, too
_FORMAT = 4  # raise when the same documents are counted in another way
_TOKENS_AT_ONCE, _CHARACTERS_AT_ONCE = 250_000, 1_000_000
_TOKENS_AGAIN, _CHARACTERS_AGAIN = 1000, 1000  # with which a part of a document begins: more than 12 words have
_FILTER_BITS = 24


def count_overlap(
    shards: Mapping[str, SourceShards],
    scored: Mapping[str, Iterable[str]],
    scored_state: Any,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    trained: Collection[str],
    drop: bool,
    progress: bool = True,
) -> dict[str, SourceShards]:
    """The sources with what was found in those that are `trained` on, and without those documents if `drop`.

    Held-out text is that of every source; `scored` are further texts by name, of which `scored_state` names the
    content. The count is kept in `cache`, so that it is made once. Raises DataError if nothing of a source is left.
    """
    counted = {name: both.train for name, both in shards.items() if name in trained}
    key = _key(shards, list(counted), scored_state, drop)
    folder = cache / f"overlap-{key}"
    if not folder.is_dir():
        pieces = _Pieces(tokenizer)
        index = _Index()
        for name, both in shards.items():
            index.add(held_out_name(name), pieces.documents(both.holdout))
        for name, texts in scored.items():
            index.add(name, _of_texts(texts), scored=True)
        with whole_folder(folder, replace=False) as making:
            found = {}
            for name, train in counted.items():
                overlap, documents = _count(name, train, index, pieces, drop, progress)
                found[name] = asdict(overlap)
                if drop and len(documents):
                    if overlap.documents == overlap.of_documents:
                        raise DataError(
                            f"data.sources.{name}: every training document repeats held-out or scored text, and "
                            "data.overlap = 'drop' leaves none; give it other text"
                        )
                    train.without(documents, making, str(list(counted).index(name)))
            write_json(making / "overlap.json", found)
            write_manifest(making, sorted(path.name for path in making.iterdir()))
    return _opened(folder, shards, list(counted))


def overlapping_documents(shards: Mapping[str, SourceShards], tokenizer: Tokenizer) -> dict[str, Places]:
    """For each source the numbers of its training documents that overlap with held-out text of any source."""
    pieces, index = _Pieces(tokenizer), _Index()
    for name, both in shards.items():
        index.add(held_out_name(name), pieces.documents(both.holdout))
    return {
        name: _count(name, both.train, index, pieces, drop=False, progress=False)[1] for name, both in shards.items()
    }


def _opened(folder: Path, shards: Mapping[str, SourceShards], counted: list[str]) -> dict[str, SourceShards]:
    try:
        with compared(folder, sorted(read_manifest(folder) or ())):
            found = {name: Overlap(**values) for name, values in read_json(folder / "overlap.json", DataError).items()}
            kept = {
                name: TokenShard(folder, str(number))
                for number, name in enumerate(counted)
                if found[name].dropped and found[name].documents
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: damaged ({error}); delete the folder to make it again") from error
    for name, overlap in found.items():
        if overlap.documents:
            done = "they are left out" if overlap.dropped else "data.overlap = 'drop' leaves them out"
            log.warning("data.sources.%s: %s; %s", name, overlap, done)
    return {
        name: both._replace(train=kept.get(name, both.train), overlap=found.get(name)) for name, both in shards.items()
    }


def _key(shards: Mapping[str, SourceShards], counted: list[str], scored_state: Any, drop: bool) -> str:
    content = {
        "format": _FORMAT,
        "sources": [(name, both.train.path.parent.name) for name, both in shards.items()],
        "counted": counted,
        "scored": scored_state,
        "drop": drop,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------------------ held-out text


class _Index:
    """Grams and whole texts of everything that is held out or scored."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._scored: list[bool] = []  # for each name, whether it is of a benchmark
        self._grams: list[Hashes] = []  # for each name
        self._texts: list[Hashes] = []
        self._different: list[Hashes] = []  # the grams of each text, however many names have it

    def add(self, name: str, chunks: Iterable[Documents], scored: bool = False) -> None:
        """Take up the documents of one held-out or scored text."""
        self._scored.append(scored)
        grams, texts = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for chunk in chunks:
            prints = prints_of(chunk)
            # A copy of a text may not make its words look like a formula.
            _, first = np.unique(prints.texts, return_index=True)
            new = first[~np.isin(prints.texts[first], np.concatenate([*self._texts, *texts]))]
            wanted = np.isin(prints.gram_documents, new)
            pairs = np.stack([prints.grams[wanted], prints.gram_documents[wanted].astype(np.uint64)], axis=1)
            self._different.append(np.unique(pairs, axis=0)[:, 0])
            grams.append(np.unique(prints.grams))
            texts.append(prints.texts[prints.texts != 0])
        self.names.append(name)
        self._grams.append(np.unique(np.concatenate(grams)))
        self._texts.append(np.unique(np.concatenate(texts)))

    @cached_property
    def grams(self) -> list[Hashes]:
        """For each name its grams, sorted; without those that many texts have."""
        found, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *self._different]), return_counts=True)
        rare = found[counts < COMMON]
        return [grams[_among(grams, rare)] for grams in self._grams]

    @cached_property
    def scored_grams(self) -> Hashes:
        """Those of benchmarks, sorted."""
        return _union_of([grams for grams, scored in zip(self.grams, self._scored, strict=True) if scored])

    def all_grams_of(self, name: str) -> Hashes:
        """All grams of a text, also those that many texts have."""
        return self._grams[self.names.index(name)]

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


class _Look(NamedTuple):
    """What was found in some documents: each gram that is held out or scored, with its document."""

    grams: Hashes
    gram_documents: Places
    same: Places  # documents that are the same text as a held-out or scored one
    same_texts: Hashes
    documents: Places
    sizes: Places  # grams of each of the documents


def _count(
    name: str, train: TokenShard, index: _Index, pieces: _Pieces, drop: bool, progress: bool
) -> tuple[Overlap, Places]:
    """What of a source's training documents overlaps, and their numbers."""
    looks: list[_Look] = []
    sizes = np.zeros(len(train.starts), np.int64)
    known, may_be = _union_of(index.grams), index.filter  # made before threads ask for them
    whole_texts = _union_of(index.texts)

    def look(chunk: tuple[int, Documents]) -> _Look:
        first, documents = chunk
        prints = prints_of(documents)
        near = may_be[prints.grams >> np.uint64(64 - _FILTER_BITS)]
        grams, gram_documents = prints.grams[near], prints.gram_documents[near]
        found = _among(grams, known)
        same = np.flatnonzero(_among(prints.texts, whole_texts))
        return _Look(
            grams[found], first + gram_documents[found], first + same, prints.texts[same],
            first + np.arange(len(documents.starts)),
            np.bincount(prints.gram_documents, minlength=len(documents.starts)),
        )  # fmt: skip

    bar = progress_bar(
        desc=f"held-out text in {name}", total=len(train), unit=" tokens", unit_scale=True, disable=not progress
    )
    with bar, ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        chunks = pieces.numbered(train)
        while some := list(islice(chunks, 16)):
            for seen in pool.map(look, some):
                np.add.at(sizes, seen.documents, seen.sizes)
                looks.append(seen)
            bar.update(min(len(train) - bar.n, 16 * _TOKENS_AT_ONCE))
    return _judged(name, train, index, looks, sizes, drop)


def _judged(
    name: str, train: TokenShard, index: _Index, looks: list[_Look], sizes: Places, drop: bool
) -> tuple[Overlap, Places]:
    """Which of the documents overlap, by how many of them have the same words and by how much of each is shared."""
    every = _Look(*map(np.concatenate, zip(*looks, strict=True)))  # a source has a document, so there is a look
    shared = np.bincount(every.gram_documents, minlength=len(sizes))
    mostly = np.flatnonzero((sizes > 0) & (2 * shared >= sizes))
    order = np.lexsort([every.gram_documents, every.grams])
    grams, documents = every.grams[order], every.gram_documents[order]
    new = np.append(True, (np.diff(grams) != 0) | (np.diff(documents) != 0))[: len(grams)]
    grams, documents = grams[new], documents[new]  # each gram of a document once
    _, place, counts = np.unique(grams, return_inverse=True, return_counts=True)
    rare = (counts[place] <= MOST_WITH_FORMULA) | _among(grams, index.scored_grams)
    found = np.unique(np.concatenate([every.same, mostly, documents[rare]]))
    in_found = _among(documents, found)
    with_texts = {
        whose: len(np.union1d(documents[in_found & _among(grams, own)], every.same[_among(every.same_texts, texts)]))
        for whose, own, texts in zip(index.names, index.grams, index.texts, strict=True)
    }
    ends = np.append(train.starts[1:], len(train))
    held_out = index.all_grams_of(held_out_name(name))
    overlap = Overlap(
        documents=len(found),
        exact=len(np.unique(every.same)),
        tokens=int((ends[found] - train.starts[found]).sum()),
        of_documents=len(train.starts),
        with_texts={whose: count for whose, count in with_texts.items() if count},
        dropped=drop,
        mostly=len(mostly),
        formulas=len(np.setdiff1d(documents, found)),
        held_out_share=float(_among(held_out, np.unique(grams[in_found])).mean()) if len(held_out) else 0.0,
    )
    return overlap, found


def held_out_name(source: str) -> str:
    """What a source's held-out text is called among the texts that are kept out."""
    return f"{source} (held out)"


def _union_of(some: list[Hashes]) -> Hashes:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *some]))


def _among(values: NDArray[Any], ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `values` are in `ordered`, which is sorted."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


# --------------------------------------------------------------------------------------------- texts as bytes


class _Pieces:
    """The bytes of tokens, by table; `<|endoftext|>` is a line end, which no word crosses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = [b"\n" if id == tokenizer.bos_id else tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self._lengths = np.array([len(piece) for piece in table], np.int64)
        self._offsets = np.cumsum(self._lengths) - self._lengths
        self._bytes = np.frombuffer(b"".join(table), np.uint8)

    def documents(self, shard: TokenShard) -> Iterator[Documents]:
        return (documents for _, documents in self.numbered(shard))

    def numbered(self, shard: TokenShard) -> Iterator[tuple[int, Documents]]:
        """(number of the first document, documents): so many tokens at a time, a longer document in parts.

        A part is a chunk of its own under the number of its document, and begins with the last words of the one before.
        """
        stops = np.append(shard.starts[1:], len(shard))
        first = 0
        while first < len(shard.starts):
            start = int(shard.starts[first])
            after = max(first + 1, int(np.searchsorted(stops, start + _TOKENS_AT_ONCE, side="right")))
            stop = int(stops[after - 1])
            for part in range(start, stop, _TOKENS_AT_ONCE):
                end = min(part + _TOKENS_AT_ONCE, stop) if after == first + 1 else stop
                if part == start:
                    yield first, self._text(shard.tokens[start:end], shard.starts[first:after] - start)
                else:
                    yield first, self._text(shard.tokens[max(start + 1, part - _TOKENS_AGAIN) : end], np.array([-1]))
                if end == stop:
                    break
            first = after

    def _text(self, tokens: NDArray[np.uint16], starts: Places) -> Documents:
        """The bytes of tokens; `starts` are the places of the documents' `<|endoftext|>`."""
        lengths = self._lengths[tokens]
        ends = np.cumsum(lengths)
        places = np.repeat(self._offsets[tokens] - (ends - lengths), lengths) + np.arange(int(ends[-1]))
        return Documents(self._bytes[places], np.where(starts >= 0, ends[np.maximum(starts, 0)], 0))


def _of_texts(texts: Iterable[str]) -> Iterator[Documents]:
    """Texts as documents, a megabyte or two at a time; a longer text in parts, as documents are."""
    some: list[bytes] = []
    size = 0
    for part in (part for text in texts for part in _parts(text)):
        some.append(part)
        size += len(part)
        if size > _CHARACTERS_AT_ONCE:
            yield _joined(some)
            some, size = [], 0
    if some:
        yield _joined(some)


def _parts(text: str) -> Iterator[bytes]:
    for start in range(0, max(1, len(text)), _CHARACTERS_AT_ONCE):
        yield text[max(0, start - _CHARACTERS_AGAIN) : start + _CHARACTERS_AT_ONCE].encode("utf-8")


def _joined(texts: list[bytes]) -> Documents:
    lengths = np.array([len(text) + 1 for text in texts])
    return Documents(np.frombuffer(b"\n".join(texts), np.uint8), np.cumsum(lengths) - lengths)
