"""The report of a run: held-out loss at its start and end, beside what needs no neural network.

The n-gram models, one of bytes and one of words, are trained on the run's own training text and scored on the bytes
that the model is scored on; gzip and xz compress those bytes.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardscope.checkpoint import CheckpointError, list_checkpoints, load
from shardscope.config import ConfigError, DataConfig, Recipe
from shardscope.data import Holdout, shards_of
from shardscope.evals.ngram import WORD_ORDER, ByteNGram, WordNGram
from shardscope.files import read_json
from shardscope.progress import progress_of_shares
from shardscope.tokenizer import Tokenizer
from shardscope.train.metrics import read_metrics
from shardscope.train.run import RECIPE

# More text hardly moves a 3-gram model of bytes, but longer ones and the model of words keep gaining from it, at about
# 64 bytes of memory for each of text: 120 MB at order 8 took 7.7 GB, 20 MB at order 6 took 1.7 GB.
BASELINE_BYTES = 64_000_000
_TOKENS_AT_ONCE = 1 << 20  # of a training set that may be far larger than memory

Bytes = NDArray[np.uint8]
Tokens = NDArray[np.integer]


@dataclass(frozen=True)
class Line:
    """Bits per byte of one source, held out; the losses are in nats a token."""

    source: str
    loss_before: float
    loss_after: float
    before: float
    after: float
    baseline: Baseline


@dataclass(frozen=True)
class Baseline:
    """Bits per byte of one source's held-out text without a neural network."""

    ngram: float
    words: float
    gzip: float
    xz: float


def held_out_table(run: str | Path, order: int = 3, most: int = BASELINE_BYTES) -> list[Line]:
    """A line for each source of the run, the last one 'all'; the n-gram models see at most `most` bytes of text.

    `order` is that of the model of bytes. Raises CheckpointError if the run was never evaluated, and ConfigError for an
    order or an amount of text that the models cannot have.
    """
    run = Path(run)
    if not list_checkpoints(run):
        raise CheckpointError(f"{run}: not a run with a checkpoint; name a folder like runs/shard-pico-anneal")
    evaluations = read_metrics(run, "eval")
    if not evaluations:
        raise CheckpointError(f"{run}: its metrics.jsonl holds no evaluation; train at least train.eval_every steps")
    recipe = Recipe.from_dict(read_json(run / RECIPE))
    tokenizer = load(run).tokenizer
    assert tokenizer is not None, "a run's checkpoint holds its tokenizer"
    baseline = baselines(recipe.data, recipe.train.eval_tokens, tokenizer, order, most)
    first, last = (scores_in(line, run) for line in (evaluations[0], evaluations[-1]))
    if missing := baseline.keys() - (first.keys() & last.keys()):
        raise CheckpointError(
            f"{run}: its evaluations lack {', '.join(sorted(missing))}; its metrics.jsonl was changed"
        )
    return [
        Line(
            name,
            first[name]["loss"],
            last[name]["loss"],
            first[name]["bits_per_byte"],
            last[name]["bits_per_byte"],
            baseline[name],
        )
        for name in baseline
    ]


def scores_in(evaluation: Mapping[str, Any], run: Path) -> dict[str, dict[str, float]]:
    """The scores of a line of metrics.jsonl of the kind "eval", by source; `loss` and `bits_per_byte` of each.

    Raises CheckpointError where a score is not a number: it was not finite, or the file was changed.
    """
    scores = {name: found for name, found in evaluation.items() if isinstance(found, dict)}
    for name, found in scores.items():
        for what in ("loss", "bits_per_byte"):
            if not isinstance(found.get(what), int | float):
                raise CheckpointError(
                    f"{run}: its evaluation at step {evaluation['step']} has no {what} of {name}; the model computed "
                    "none, or its metrics.jsonl was changed"
                )
    return scores


def baselines(data: DataConfig, eval_tokens: int, tokenizer: Tokenizer, order: int, most: int) -> dict[str, Baseline]:
    """The baselines on each source's held-out windows, and on 'all' of them."""
    if most < 1:
        raise ConfigError(f"{most} bytes of text train no n-gram model; use 1 or more (--ngram-bytes)")
    pieces = _pieces(tokenizer)
    shards = shards_of(data, tokenizer)
    with progress_of_shares("baselines") as progress:
        progress(0.0, "reading the training text")
        shares = _shares([size_of(both.train.tokens, pieces, most) for both in shards.values()], most)
        texts = [text_of(both.train.tokens, pieces, share) for both, share in zip(shards.values(), shares, strict=True)]
        text = np.concatenate(texts)
        progress(0.2, f"fitting the {order}-gram model of bytes")
        byte_model = ByteNGram(text, order)
        progress(0.4, f"fitting the {WORD_ORDER}-gram model of words")
        word_model = WordNGram(text)
        rows, sizes = {}, []
        for number, (name, both) in enumerate(shards.items()):
            progress(0.6 + 0.4 * number / len(shards), f"scoring {name}")
            holdout = Holdout(name, both.holdout, tokenizer, seq_len=data.seq_len, eval_tokens=eval_tokens)
            windows = _scored_bytes(holdout, pieces)
            scored_text = b"".join(window[-scored:].tobytes() for window, scored in windows)
            packed = (
                float(sum(byte_model.bits(window)[-scored:].sum() for window, scored in windows)),
                sum(word_model.bits(window[-scored:]) for window, scored in windows),
                8 * len(gzip.compress(scored_text)),
                8 * len(lzma.compress(scored_text, preset=9)),
                len(scored_text),
            )
            rows[name] = _baseline(*packed)
            sizes.append(packed)
    return {**rows, "all": _baseline(*np.sum(sizes, axis=0).tolist())}


def _baseline(ngram: float, words: float, gzip: float, xz: float, size: float) -> Baseline:
    return Baseline(ngram / size, words / size, gzip / size, xz / size)


def _shares(sizes: list[int], most: int) -> list[int]:
    """How many bytes of each source are read, given its size: equal ones, and what short ones leave to the others."""
    shares = [0] * len(sizes)
    for done, source in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        fair = (most - sum(shares)) // (len(sizes) - done)
        shares[source] = min(fair, sizes[source])
    return shares


def size_of(tokens: Tokens, pieces: list[bytes], most: int) -> int:
    """The bytes of the tokens' text, or `most` if there are more; `pieces`: the bytes of each token."""
    lengths, size = _lengths(pieces), 0
    for some in _chunks(tokens):
        size += int(lengths[some].sum(dtype=np.int64))
        if size >= most:
            return most
    return size


def text_of(tokens: Tokens, pieces: list[bytes], most: int) -> Bytes:
    """The first `most` bytes of the tokens' text, or all of it."""
    texts, size = [np.empty(0, dtype=np.uint8)], 0
    for some in _chunks(tokens):
        texts.append(_as_bytes(some, pieces)[: most - size])
        size += len(texts[-1])
        if size >= most:
            break
    return np.concatenate(texts)


def format_report(table: list[Line], order: int = 3) -> str:
    """The table as text."""
    width = max(len(line.source) for line in table)
    ngram, words = f"{order}-gram bytes", f"{WORD_ORDER}-gram words"
    header = (
        f"{'held out':{width}}  {'loss before':>11} {'after':>7}  {'bits/byte before':>16} {'after':>7}  "
        f"{ngram} {words} {'gzip':>7} {'xz':>7}"
    )
    rows = [
        f"{line.source:{width}}  {line.loss_before:>11.4f} {line.loss_after:>7.4f}  "
        f"{line.before:>16.4f} {line.after:>7.4f}  "
        f"{line.baseline.ngram:>{len(ngram)}.4f} {line.baseline.words:>{len(words)}.4f} "
        f"{line.baseline.gzip:>7.4f} {line.baseline.xz:>7.4f}"
        for line in table
    ]
    return "\n".join([header, *rows])


def _scored_bytes(holdout: Holdout, pieces: list[bytes]) -> list[tuple[Bytes, int]]:
    """For each window its bytes, and how many of them are scored: all after the first token."""
    return [
        (_as_bytes(tokens, pieces), scored)
        for batch in holdout.batches(64)
        for tokens, lengths in zip(batch.tokens.numpy(), batch.bytes.numpy(), strict=True)
        if (scored := int(lengths.sum()))
    ]


def _pieces(tokenizer: Tokenizer) -> list[bytes]:
    return [b"" if id == tokenizer.bos_id else tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]


def _chunks(tokens: Tokens) -> Iterator[Tokens]:
    return (tokens[first : first + _TOKENS_AT_ONCE] for first in range(0, len(tokens), _TOKENS_AT_ONCE))


def _lengths(pieces: list[bytes]) -> NDArray[np.uint16]:
    return np.array([len(piece) for piece in pieces], dtype=np.uint16)


def _as_bytes(tokens: Tokens, pieces: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join([pieces[id] for id in tokens.tolist()]), dtype=np.uint8)
