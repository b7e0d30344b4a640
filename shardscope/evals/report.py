"""The report of a run: held-out loss at its start and end, beside what needs no neural network.

The n-gram model is trained on the run's own training text and scored on the bytes that the model is scored on; gzip
and xz compress those bytes.
"""

from __future__ import annotations

import gzip
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardscope.checkpoint import CheckpointError, list_checkpoints, load, read_json
from shardscope.config import DataConfig, Recipe
from shardscope.data import Holdout, TokenShard, shards_of
from shardscope.evals.ngram import ByteNGram, Bytes
from shardscope.tokenizer import Tokenizer
from shardscope.train.metrics import read_metrics
from shardscope.train.run import RECIPE

# More text hardly moves a 3-gram model; this much is counted in a few seconds.
BASELINE_BYTES = 64_000_000


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
    gzip: float
    xz: float


def held_out_table(run: str | Path, order: int = 3, most: int = BASELINE_BYTES) -> list[Line]:
    """A line for each source of the run, the last one 'all'; the n-gram model sees at most `most` bytes of text.

    Raises CheckpointError if the run was never evaluated.
    """
    run = Path(run)
    if not list_checkpoints(run):
        raise CheckpointError(f"{run}: not a run with a checkpoint; name a folder like runs/shard-pico-anneal")
    evaluations = read_metrics(run, "eval")
    if not evaluations:
        raise CheckpointError(f"{run}: its metrics.jsonl holds no evaluation; train at least train.eval_every steps")
    first, last = evaluations[0], evaluations[-1]
    recipe = Recipe.from_dict(read_json(run / RECIPE))
    tokenizer = load(run).tokenizer
    assert tokenizer is not None, "a run's checkpoint holds its tokenizer"
    baseline = baselines(recipe.data, recipe.train.eval_tokens, tokenizer, order, most)
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


def baselines(data: DataConfig, eval_tokens: int, tokenizer: Tokenizer, order: int, most: int) -> dict[str, Baseline]:
    """The baselines on each source's held-out windows, and on 'all' of them."""
    shards = shards_of(data, tokenizer, progress=False)
    texts = [text_of(both.train, tokenizer, most // len(shards)) for both in shards.values()]
    model = ByteNGram(np.concatenate(texts), order)
    rows, sizes = {}, []
    for name, both in shards.items():
        holdout = Holdout(name, both.holdout, tokenizer, seq_len=data.seq_len, eval_tokens=eval_tokens)
        windows = _scored_bytes(holdout, tokenizer, order - 1)
        text = b"".join(window[-scored:].tobytes() for window, scored in windows)
        bits = float(sum(model.bits(window)[-scored:].sum() for window, scored in windows))
        packed = (bits, 8 * len(gzip.compress(text)), 8 * len(lzma.compress(text, preset=9)), len(text))
        rows[name] = _baseline(*packed)
        sizes.append(packed)
    return {**rows, "all": _baseline(*np.sum(sizes, axis=0).tolist())}


def _baseline(ngram: float, gzip: float, xz: float, size: float) -> Baseline:
    return Baseline(ngram / size, gzip / size, xz / size)


def text_of(shard: TokenShard, tokenizer: Tokenizer, most: int) -> Bytes:
    """The first `most` bytes or so of a shard's text."""
    return _as_bytes(shard.tokens[:most], tokenizer)[:most]


def format_report(table: list[Line], order: int = 3) -> str:
    """The table as text."""
    width = max(len(line.source) for line in table)
    header = (
        f"{'held out':{width}}  {'loss before':>11} {'after':>7}  {'bits/byte before':>16} {'after':>7}  "
        f"{f'{order}-gram':>7} {'gzip':>7} {'xz':>7}"
    )
    rows = [
        f"{line.source:{width}}  {line.loss_before:>11.4f} {line.loss_after:>7.4f}  "
        f"{line.before:>16.4f} {line.after:>7.4f}  "
        f"{line.baseline.ngram:>7.4f} {line.baseline.gzip:>7.4f} {line.baseline.xz:>7.4f}"
        for line in table
    ]
    return "\n".join([header, *rows])


def _scored_bytes(holdout: Holdout, tokenizer: Tokenizer, history: int) -> list[tuple[Bytes, int]]:
    """For each window `history` newlines and its bytes, and how many bytes are scored: all after the first token."""
    found = []
    for batch in holdout.batches(64):
        for tokens, lengths in zip(batch.tokens.numpy(), batch.bytes.numpy(), strict=True):
            text = _as_bytes(tokens, tokenizer)
            if scored := int(lengths.sum()):
                found.append((np.concatenate([np.full(history, ord("\n"), dtype=np.uint8), text]), scored))
    return found


def _as_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> Bytes:
    pieces = [b"" if i == tokenizer.bos_id else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return np.frombuffer(b"".join(pieces[i] for i in tokens.tolist()), dtype=np.uint8)
