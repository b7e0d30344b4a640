"""The report of a run: held-out loss at its start and end beside a 3-gram baseline, and the card's prompts.

The baseline is trained on the run's own training text and scored on the bytes that the model is scored on.
"""

from __future__ import annotations

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
    """Bits per byte of one source, held out. `loss` is in nats a token."""

    source: str
    loss_before: float
    loss_after: float
    before: float
    after: float
    baseline: float


def held_out_table(run: str | Path) -> list[Line]:
    """A line for each source of the run, the last one 'all'. Raises CheckpointError if it was never evaluated."""
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
    baseline = baseline_bits_per_byte(recipe.data, recipe.train.eval_tokens, tokenizer)
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


def baseline_bits_per_byte(data: DataConfig, eval_tokens: int, tokenizer: Tokenizer) -> dict[str, float]:
    """Bits per byte of a byte 3-gram model on each source's held-out windows, and on 'all' of them."""
    shards = shards_of(data, tokenizer, progress=False)
    texts = [text_of(both.train, tokenizer, BASELINE_BYTES // len(shards)) for both in shards.values()]
    model = ByteNGram(np.concatenate(texts))
    scores, total_bits, total_bytes = {}, 0.0, 0
    for name, both in shards.items():
        holdout = Holdout(name, both.holdout, tokenizer, seq_len=data.seq_len, eval_tokens=eval_tokens)
        bits = sum(model.bits(window)[-scored:].sum() for window, scored in _scored_bytes(holdout, tokenizer))
        scores[name] = float(bits) / holdout.bytes
        total_bits, total_bytes = total_bits + float(bits), total_bytes + holdout.bytes
    return {**scores, "all": total_bits / total_bytes}


def text_of(shard: TokenShard, tokenizer: Tokenizer, most: int) -> Bytes:
    """The first `most` bytes or so of a shard's text."""
    return _as_bytes(shard.tokens[:most], tokenizer)[:most]


def format_report(table: list[Line]) -> str:
    """The table as text."""
    width = max(len(line.source) for line in table)
    header = (
        f"{'held out':{width}}  {'loss before':>11} {'after':>7}  {'bits/byte before':>16} {'after':>7}  {'3-gram':>7}"
    )
    rows = [
        f"{line.source:{width}}  {line.loss_before:>11.4f} {line.loss_after:>7.4f}  "
        f"{line.before:>16.4f} {line.after:>7.4f}  {line.baseline:>7.4f}"
        for line in table
    ]
    return "\n".join([header, *rows])


def _scored_bytes(holdout: Holdout, tokenizer: Tokenizer) -> list[tuple[Bytes, int]]:
    """For each window its bytes, and how many at its end are scored: all but the first token's and two for history."""
    found = []
    for batch in holdout.batches(64):
        for tokens, lengths in zip(batch.tokens.numpy(), batch.bytes.numpy(), strict=True):
            text = _as_bytes(tokens, tokenizer)
            history = np.frombuffer(b"\n\n", dtype=np.uint8)
            if scored := int(lengths.sum()):
                found.append((np.concatenate([history, text]), scored))
    return found


def _as_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> Bytes:
    pieces = [b"" if i == tokenizer.bos_id else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return np.frombuffer(b"".join(pieces[i] for i in tokens.tolist()), dtype=np.uint8)
