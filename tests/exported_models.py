"""A small random model and the built-in one, each as a checkpoint and exported for transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from real_items import QUESTIONS

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import BUILT_IN, load, save_checkpoint
from shardscope.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the same weights exported for transformers."""
    from shardscope.interop import export_pretrained

    folder = tmp_path_factory.mktemp("formats")
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([f"Question: {q}\nAnswer: {a}" for q, a in QUESTIONS] * 4, vocab_size=360)
    config = ShardConfig(vocab_size=360, n_ctx=512, d_model=48, n_layers=4, n_heads=4, d_head=16, d_mlp=64, window=64)
    model = Shard(config, tokenizer)
    with torch.no_grad():
        model.embed.W_E.mul_(5)
    checkpoint = save_checkpoint(folder / "checkpoint", model)
    return checkpoint, export_pretrained(model, folder / "exported")


@pytest.fixture(scope="session")
def built_in_formats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint that ships with the package, whose text means something, and its export."""
    from shardscope.interop import export_pretrained

    return BUILT_IN, export_pretrained(load(BUILT_IN), tmp_path_factory.mktemp("built-in") / "exported")
