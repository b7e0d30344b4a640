"""A small model that has learnt to copy: trained on repeated random tokens until induction heads have formed.

Rounding differs between machines and so do the weights. With two seeds the copied tokens' loss was 0.02 and 0.05 nats,
and the strongest heads scored 0.97 (previous token) and 0.64 (induction), far from what tests ask for.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import shardscope.model
from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.tokenizer import Tokenizer

STEPS, BATCH, LENGTH, RATE = 480, 32, 40, 4e-3
COPIED = 64  # the ids 1 … 64 are '!' … '`', each a token of its own


@pytest.fixture(scope="session")
def trained_config() -> ShardConfig:
    return ShardConfig(vocab_size=300, n_ctx=512, d_model=64, n_layers=4, n_heads=4, d_head=16, d_mlp=96, window=8)


@pytest.fixture(scope="session")
def trained_weights(trained_config: ShardConfig, request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """A minute of training, kept by pytest until the model, its config or this file changes."""
    model = Path(shardscope.model.__file__).parent
    sources = [Path(__file__), model.parent / "config" / "model.py", model / "shard.py", model / "attention.py"]
    key = hashlib.sha256(torch.__version__.encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    cache = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    folder = cache.mkdir("trained_weights") if cache else Path(tempfile.gettempdir()) / "shardscope-trained-weights"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{key[:16]}.safetensors"
    if not kept.exists():
        partial = kept.with_suffix(f".{os.getpid()}")
        save_file(trained(trained_config), partial)
        partial.rename(kept)
    return load_file(kept)


def trained(config: ShardConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only loses by sharing its work
    model = Shard(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 30, (STEPS - step) / 100)
        tokens = repeated_tokens(BATCH, LENGTH)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    torch.set_num_threads(threads)
    return {name: weight.detach() for name, weight in model.state_dict().items()}


@pytest.fixture
def trained_model(
    trained_config: ShardConfig, trained_weights: dict[str, torch.Tensor], tiny_tokenizer: Tokenizer
) -> Shard:
    """A fresh copy for each test, so that one test's edits are not another's weights."""
    model = Shard(trained_config, tiny_tokenizer)
    model.load_state_dict(trained_weights)
    return model.eval()


@pytest.fixture(scope="session")
def random_shard_54m() -> Shard:
    """The published architecture with seeded random weights, one for all tests: none of them changes it.

    Weights as a run begins with them write one token for ever. Here heads are sharp, norms are uneven and logits are
    as wide as a trained model's, so its text wanders, and a window of one position more changes it.
    """
    torch.manual_seed(0)
    model = Shard(ShardConfig.preset("shard-54m"))
    with torch.no_grad():
        model.embed.W_E.mul_(5)
        model.ln_final.w.normal_(1, 0.3)
        for block in model.blocks:
            block.attn.W_Q.mul_(2)
            block.attn.W_K.mul_(2)
            for norm in (block.ln1, block.ln2):
                norm.w.normal_(1, 0.3)
    return model.eval()


@pytest.fixture
def trained_checkpoint(tmp_path: Path, trained_model: Shard) -> Path:
    return save_checkpoint(tmp_path / "trained", trained_model)


def repeated_tokens(batch: int, length: int, period: int | None = None) -> torch.Tensor:
    """The begin-of-document token, then different random tokens over and over, with a period of each row's own."""
    rows = []
    for _ in range(batch):
        span = period or int(torch.randint(5, 16, ()))
        unit = 1 + torch.randperm(COPIED)[:span]
        rows.append(unit.repeat(length // span + 1)[: length - 1])
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), torch.stack(rows)], dim=1)
