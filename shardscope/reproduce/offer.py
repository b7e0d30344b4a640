"""What a reproduction would take on this machine, and what a machine without a GPU is offered instead."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shardscope.reproduce.ledger import duration
from shardscope.reproduce.pair import Pair, bytes_of_checkpoint, load_pair
from shardscope.train.flops import sheet_of
from shardscope.train.plan import Plan, format_plan, plan

LOCAL = ("reference-pretrain-local", "reference-anneal-local")
HUB = ("reference-pretrain", "reference-anneal")
SMALLER = (("shard-nano-pretrain", "shard-nano-anneal"), ("shard-pico-pretrain", "shard-pico-anneal"))
GPU, GPU_NAME, SHARE_OF_SHEET = "H100 80GB HBM3", "H100", 0.377  # bfloat16 at T=2048: docs/training.md


@dataclass(frozen=True)
class Needs:
    """What both phases take together."""

    pair: Pair
    pretrain: Plan
    anneal: Plan

    @property
    def flops(self) -> float:
        return (self.pretrain.flops or 0.0) + (self.anneal.flops or 0.0)

    @property
    def seconds(self) -> float:
        return 3600 * ((self.pretrain.hours or 0.0) + (self.anneal.hours or 0.0))

    @property
    def disk(self) -> int:
        """Bytes of all checkpoints."""
        return bytes_of_checkpoint(self.pair.model) * len(self.pair.checkpoints())


def default_recipes() -> tuple[str, str]:
    """The reference run's: on the text of SHARDSCOPE_DATA if that is set, else on the hub's."""
    return LOCAL if os.environ.get("SHARDSCOPE_DATA") else HUB


def needs(pair: Pair, processes: int = 1) -> Needs:
    """Reckon both phases. Raises ConfigError as `plan` does."""
    return Needs(pair, *(plan(run.recipe, processes, pair.model) for run in pair.runs()))


def format_needs(found: Needs) -> str:
    """Both plans as `--dry-run` of a training prints them, and their sum."""
    parts = [
        f"{run.phase}, {run.file.stem}\n\n{format_plan(planned)}"
        for run, planned in zip(found.pair.runs(), (found.pretrain, found.anneal), strict=True)
    ]
    total = (
        f"together: {found.flops:.3g} FLOPs of training, about {duration(found.seconds)} on this machine, "
        f"{found.disk / 1e9:.1f} GB of checkpoints; measuring comes on top"
    )
    return "\n\n".join([*parts, total])


def offer(words: tuple[str, str]) -> str:
    """For a machine without a GPU: what the reference run takes here and on a GPU, and what smaller ones take."""
    found = needs(load_pair(words, Path("runs")))
    sheet = sheet_of(GPU)
    assert sheet is not None, "the table of data sheets has this GPU"
    lines = [
        f"No GPU was found. The reference run ({words[0]}, {words[1]}: {found.pair.model.n_params:,} parameters) takes "
        f"{found.flops:.3g} FLOPs, which is about {duration(found.seconds)} of training on this machine and "
        f"{duration(found.flops / sheet / SHARE_OF_SHEET)} on one {GPU_NAME}; measuring comes on top.",
        "Smaller runs go through the same stages here:",
    ]
    for pair in SMALLER:
        smaller = needs(load_pair(pair, Path("runs")))
        lines.append(
            f"  shardscope reproduce --recipes {pair[0]} {pair[1]}    "
            f"{smaller.pair.model.n_params:,} parameters, about {duration(smaller.seconds)}"
        )
    lines.append("Named by --recipes, any pair runs on whatever there is.")
    return "\n".join(lines)
