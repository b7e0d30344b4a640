"""The trainer's real loop on real text, for comparison with its bare step: data, metrics and bookkeeping are in it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from shardscope.checkpoint import BUILT_IN, TOKENIZER
from shardscope.config import DataConfig, ProbeConfig, Recipe, ScheduleConfig, Source, TokenizerConfig
from shardscope.tokenizer import Tokenizer
from shardscope.train import train
from shardscope.train.metrics import read_metrics

TEXT = ("builtin:prose", "builtin:code")


def loop_rates(recipe: Recipe, steps: int, device: torch.device) -> tuple[list[float], float]:
    """(tokens a second of every line of the log, for `steps` steps, and the seconds that compiling took before).

    The recipe says model, arithmetic, batch and the steps of a line; it is trained in a temporary folder on text that
    every machine has.
    """
    every = recipe.train.log_every
    lines = max(2, math.ceil(steps / every))
    with TemporaryDirectory() as folder:
        train(_on_text(recipe, every * (lines + 1), device, Path(folder)), progress=False)
        first, *rates = [line["tokens_per_second"] for line in read_metrics(Path(folder) / "run", "train")]
    tokens = every * recipe.train.batch_size * recipe.data.seq_len
    return rates, max(0.0, tokens / first - tokens / median(rates))


def _on_text(recipe: Recipe, steps: int, device: torch.device, folder: Path) -> Recipe:
    assert recipe.model is not None, "Recipe says that a pretrain has a model"
    ready = Tokenizer.load(BUILT_IN / TOKENIZER).vocab_size == recipe.model.vocab_size
    return replace(
        recipe,
        run_dir=str(folder / "run"),
        tokenizer=TokenizerConfig(path=str(BUILT_IN / TOKENIZER)) if ready else TokenizerConfig(documents=500),
        data=DataConfig(
            sources=tuple(Source(name=path.removeprefix("builtin:"), path=path) for path in TEXT),
            seq_len=recipe.data.seq_len,
            mask_documents=recipe.data.mask_documents,
            overlap="ignore",
            cache_dir=str(folder / "cache"),
        ),
        schedule=ScheduleConfig(steps=steps),
        train=replace(
            recipe.train, device=str(device), eval_every=steps, eval_tokens=recipe.data.seq_len,
            save_every=steps, sentinel_every=steps,
        ),
        probe=ProbeConfig(every=0),
    )  # fmt: skip
