"""Held-out bits per byte with and without what stands in the training text, too, for a run that did not leave it out.

    python scripts/held_out_unseen.py CHECKPOINT RECIPE --out FILE

RECIPE names the text and the length of the windows, which are those of its evaluations. A token counts as seen if it
belongs to 13 words in a row that a training document has that overlaps (shardscope/data/overlap.py): it is the held-out
text itself, not its topic, that was seen. On a CPU it takes minutes; what FILE holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from shardscope import Shard, load
from shardscope.config import load_recipe
from shardscope.data import Holdout
from shardscope.data.overlap import overlapping_documents
from shardscope.data.prepare import shards_of
from shardscope.data.shards import WORDS_IN_COMMON, TokenShard
from shardscope.progress import progress_bar

POSITIONS = 1024  # whose logits are held at once
WORD = re.compile(rb"[a-z0-9\x80-\xff]+")


def runs_of_words(text: bytes) -> Iterator[tuple[int, int, int]]:
    """(hash, first byte, byte after the last) of every 13 words in a row, whatever their case and punctuation."""
    words = [(found.group(), found.start(), found.end()) for found in WORD.finditer(text.lower())]
    for first in range(len(words) - WORDS_IN_COMMON + 1):
        run = words[first : first + WORDS_IN_COMMON]
        yield hash(tuple(word for word, _, _ in run)), run[0][1], run[-1][2]


class Texts:
    """The documents of token shards as bytes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.lengths = np.array([len(piece) for piece in pieces])

    def document(self, shard: TokenShard, number: int) -> tuple[int, bytes]:
        """(its first token, its bytes)."""
        start = int(shard.starts[number])
        stop = int(shard.starts[number + 1]) if number + 1 < len(shard.starts) else len(shard)
        return start, b"".join(self.pieces[token] for token in shard.tokens[start:stop])


def seen_tokens(
    holdout: TokenShard, train: TokenShard, overlapping: NDArray[np.int64], texts: Texts
) -> NDArray[np.bool_]:
    """For each token of the held-out text, whether it belongs to words that an overlapping document has."""
    known = {run for number in overlapping for run, _, _ in runs_of_words(texts.document(train, int(number))[1])}
    seen = np.zeros(len(holdout), np.bool_)
    for number in range(len(holdout.starts)):
        start, text = texts.document(holdout, number)
        covered = np.zeros(len(text) + 1, np.bool_)
        for run, first, after in runs_of_words(text):
            if run in known:
                covered[first:after] = True
        lengths = texts.lengths[holdout.tokens[start : start + len(holdout)]]
        ends = np.cumsum(lengths)
        ends = ends[: np.searchsorted(ends, len(text), side="right")]
        before = np.concatenate([[0], np.cumsum(covered)])
        seen[start : start + len(ends)] = before[ends] > before[np.concatenate([[0], ends[:-1]])]
    return seen


@torch.inference_mode()
def nats_of(model: Shard, window: torch.Tensor) -> NDArray[np.float64]:
    """-log p of every token of a window [1 pos+1] but its first, in nats."""
    hidden = model.hidden(window[:, :-1])
    losses = [
        F.cross_entropy(model.unembed(x)[0].float(), targets, reduction="none")
        for x, targets in zip(hidden.split(POSITIONS, dim=1), window[0, 1:].split(POSITIONS), strict=True)
    ]
    return torch.cat(losses).double().cpu().numpy()


def scored(model: Shard, holdout: Holdout, seen: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Tokens, bytes and bits per byte of all held-out text, and of the two parts of it."""
    sums = {name: np.zeros(3) for name in ("all", "not seen", "seen")}
    bar = progress_bar(desc=holdout.name, total=len(holdout.starts), unit=" windows")
    for start, batch in zip(holdout.starts, holdout.batches(1), strict=True):
        bar.update()
        nats, lengths = nats_of(model, batch.tokens.to(model.device)), batch.bytes[0].numpy()
        those = np.pad(seen[start + 1 : start + 1 + len(lengths)], (0, max(0, start + 1 + len(lengths) - len(seen))))
        for name, wanted in (("all", True), ("not seen", ~those), ("seen", those)):
            counted = (lengths > 0) & wanted
            sums[name] += (nats[counted].sum(), lengths[counted].sum(), counted.sum())
    bar.close()
    return {
        name: {"tokens": int(tokens), "bytes": int(size), "bits_per_byte": round(total / math.log(2) / size, 6)}
        for name, (total, size, tokens) in sums.items()
        if size
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, recipe = load(arguments.checkpoint), load_recipe(arguments.recipe, {})
    tokenizer = model.tokenizer
    assert tokenizer is not None, "load gives a tokenizer"
    shards = shards_of(recipe.data, tokenizer)
    overlapping = overlapping_documents(shards, tokenizer)
    texts = Texts([tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)])
    found = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    for name, both in shards.items():
        if name in found or not len(overlapping[name]):
            continue
        seen = seen_tokens(both.holdout, both.train, overlapping[name], texts)
        holdout = Holdout(
            name, both.holdout, tokenizer, seq_len=recipe.data.seq_len, eval_tokens=recipe.train.eval_tokens
        )
        found[name] = {"overlapping_documents": len(overlapping[name]), **scored(model, holdout, seen)}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: found[name]}), flush=True)


if __name__ == "__main__":
    main()
