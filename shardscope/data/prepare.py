"""From the data of a recipe to its batches: the one entry to this room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from shardscope.config import Benchmark, DataConfig, Source
from shardscope.data.corpora import documents, located
from shardscope.data.files import ReadLog
from shardscope.data.holdout import Holdout
from shardscope.data.mixture import Mixture
from shardscope.data.overlap import count_overlap
from shardscope.data.permute import key
from shardscope.data.shards import SourceShards, cache_of, state_of, token_shards
from shardscope.data.split import holdout_threshold, side_hash
from shardscope.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """What a run trains on and is measured on."""

    mixture: Mixture
    holdouts: dict[str, Holdout]
    shards: dict[str, SourceShards]

    @property
    def malformed(self) -> dict[str, int]:
        """Malformed pieces that were skipped, by source."""
        return {name: shards.malformed for name, shards in self.shards.items()}

    @property
    def overlap(self) -> dict[str, dict[str, Any]]:
        """Training documents that repeat held-out or scored text, by source; see `Overlap`."""
        return {name: asdict(shards.overlap) for name, shards in self.shards.items() if shards.overlap is not None}

    def texts(self, tokenizer: Tokenizer) -> Iterator[str]:
        """Training documents, one of each source in turn: a thousand of each or two, the first 8,192 tokens of each."""
        return _in_turn([_spread_texts(shards.train, tokenizer) for shards in self.shards.values()])

    @property
    def fingerprints(self) -> dict[str, str]:
        """What names the training tokens of each source."""
        return {name: shards.train.fingerprint for name, shards in self.shards.items()}


def prepare(
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seed: int,
    eval_tokens: int,
    phase: str = "pretrain",
    progress: bool = True,
) -> Prepared:
    """Tokenize what is not tokenized yet. Raises ConfigError or DataError for a source that cannot be used.

    Another `phase` takes another order, so that an anneal does not begin with the windows its pretraining began with.
    """
    shards = shards_of(data, tokenizer, progress)
    mixture = Mixture(
        {name: both.train for name, both in shards.items()},
        {source.name: source.weight for source in data.sources},
        seq_len=data.seq_len,
        batch_size=batch_size,
        seed=seed if phase == "pretrain" else key(seed, phase),
    )
    holdouts = {
        name: Holdout(name, both.holdout, tokenizer, seq_len=data.seq_len, eval_tokens=eval_tokens)
        for name, both in shards.items()
    }
    return Prepared(mixture, holdouts, shards)


def shards_of(data: DataConfig, tokenizer: Tokenizer, progress: bool = True) -> dict[str, SourceShards]:
    """The token shards of every source by name, made first where they are not in the cache.

    Training documents that repeat held-out text or benchmark questions are counted, or left out: `data.overlap`.
    """
    shards = {source.name: token_shards(located(source), data, tokenizer, progress) for source in data.sources}
    if data.overlap == "ignore":
        return shards
    scored = [located(as_source(benchmark)) for benchmark in data.benchmarks]
    return count_overlap(
        shards,
        {source.name: _texts(source, data) for source in scored},
        [(source.name, source.text, source.split, state_of(source.path)) for source in scored],
        tokenizer,
        cache_of(data),
        trained={source.name for source in data.sources if source.weight > 0},
        drop=data.overlap == "drop",
        progress=progress,
    )


def as_source(benchmark: Benchmark) -> Source:
    """A benchmark, to be read as sources are."""
    return Source(name=benchmark.name, path=benchmark.path, text=benchmark.text, split=benchmark.split)


def _texts(source: Source, data: DataConfig) -> Iterator[str]:
    reading = ReadLog(data.on_malformed, longest=data.max_document_bytes)
    return (document.text for document in documents(source, reading))


def sample_documents(data: DataConfig, n: int) -> Iterator[str]:
    """At most n texts to train a tokenizer on: one of each source in turn, and none that is held out."""
    return islice(_in_turn([_training_texts(located(source), data) for source in data.sources if source.weight > 0]), n)


def _training_texts(source: Source, data: DataConfig) -> Iterator[str]:
    threshold = holdout_threshold(source, data)
    for document in documents(source, ReadLog(data.on_malformed, quiet=True, longest=data.max_document_bytes)):
        if side_hash(document) >= threshold:
            yield document.text


def _spread_texts(shard: TokenShard, tokenizer: Tokenizer) -> Iterator[str]:
    documents = len(shard.starts)
    for document in range(0, documents, max(1, documents // 1000)):
        yield tokenizer.decode(shard.ids(document)[:8192])


def _in_turn(streams: list[Iterator[str]]) -> Iterator[str]:
    while streams:
        for stream in list(streams):
            text = next(stream, None)
            if text is None:
                streams.remove(stream)
            else:
                yield text
