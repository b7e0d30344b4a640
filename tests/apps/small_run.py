"""A run folder as training leaves it, without the training."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import checkpoint_folder, save_checkpoint
from shardscope.config import DataConfig, Recipe, ScheduleConfig, Source
from shardscope.tokenizer import Tokenizer
from shardscope.train.metrics import Metrics


def make_run(folder: Path, config: ShardConfig, tokenizer: Tokenizer) -> Path:
    """A run that stands at step 20 of 100, with two checkpoints of random weights far from uniform attention."""
    sources = (Source(name="prose", path="builtin:prose", weight=3.0), Source(name="code", path="builtin:code"))
    recipe = Recipe(
        name=folder.name,
        phase="pretrain",
        model=config,
        data=DataConfig(sources=sources, seq_len=64),
        schedule=ScheduleConfig(steps=100),
    )
    metrics = Metrics(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    metrics.write("event", 0, event="start", started_from="")
    for step in (10, 20):
        metrics.write("train", step, cross_entropy=6.0 - step / 20, lr=1e-3, grad_norm=1.0, tokens_per_second=100.0)
        torch.manual_seed(step)
        model = Shard(config, tokenizer)
        with torch.no_grad():
            model.embed.W_E.mul_(20)
        save_checkpoint(checkpoint_folder(folder, step), model.eval())
    scores = {"loss": 5.0, "bits_per_byte": 2.5, "tokens": 100, "bytes": 300}
    metrics.write("eval", 20, prose=scores, code=scores, all=scores)
    for step, output, failure in ((10, " a a a a", "loop"), (20, " fine", "no flag")):
        metrics.write("sample", step, prompt="Once", output=output, failure=failure)
    metrics.close()
    return folder


MARKUP = "<script>alert(3)</script>"


def with_markup(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """The tokenizer with its last entry replaced by markup, as a stranger's vocabulary may hold it."""
    tokenizer.save(path)
    description = json.loads(path.read_text())
    entries = description["model"]["vocab"]
    last = max(entries, key=entries.get)
    description["model"]["merges"].pop()
    entries[MARKUP] = entries.pop(last)
    path.write_text(json.dumps(description))
    return Tokenizer.load(path)
