"""The attention microscope: every layer of a long prompt, exact, without ever building a dense pattern.

    reading = read(model, "a long text")              # one pass: rotated queries and keys of every layer
    reading.head(1, 3)                                # one head's map; in a notebook, its picture
    reading.layer(1).pooled(head=3)              # the whole map in at most 512 × 512 cells
    reading.layer(1).tile(3, range(6000, 6100), range(40, 140))  # any rectangle, exact
    find_heads(head_scores(reading), by="induction")  # every head in numbers, the best first

`head_scores(model, "a long text")` reads the prompt itself, as do `logit_lens`, `attribution` and `ablation_effect`.

Everything is rebuilt from queries and keys on demand, a block of queries at a time.
"""

from shardscope.microscope.ablation import AblationEffect, ablated, ablation_effect
from shardscope.microscope.head_map import HeadMap
from shardscope.microscope.heads import SCORES, THUMBNAIL_CELLS, HeadScores, find_heads, head_scores
from shardscope.microscope.logits import Attribution, LogitLens, Residuals, attribution, logit_lens, residuals
from shardscope.microscope.reading import (
    LayerReading,
    MicroscopeError,
    PooledBand,
    PooledMap,
    Reading,
    read,
    read_layers,
)

__all__ = [
    "SCORES",
    "THUMBNAIL_CELLS",
    "AblationEffect",
    "Attribution",
    "HeadMap",
    "HeadScores",
    "LayerReading",
    "LogitLens",
    "MicroscopeError",
    "PooledBand",
    "PooledMap",
    "Reading",
    "Residuals",
    "ablated",
    "ablation_effect",
    "attribution",
    "find_heads",
    "head_scores",
    "logit_lens",
    "read",
    "read_layers",
    "residuals",
]
