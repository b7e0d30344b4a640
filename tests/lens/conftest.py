"""A small model that has learnt to copy: trained on repeated random tokens until induction heads have formed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.tokenizer import Tokenizer

STEPS, BATCH, LENGTH, RATE = 480, 32, 40, 4e-3
COPIED = 64  # the ids 1 … 64 are '!' … '`', each a token of its own


@pytest.fixture(scope="session")
def trained_config() -> ShardConfig:
    return ShardConfig(vocab_size=300, n_ctx=512, d_model=64, n_layers=4, n_heads=4, d_head=16, d_mlp=64, window=24)


@pytest.fixture(scope="session")
def trained_weights(trained_config: ShardConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Shard(trained_config)
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
    return {name: weight.detach() for name, weight in model.state_dict().items()}


@pytest.fixture
def trained_model(
    trained_config: ShardConfig, trained_weights: dict[str, torch.Tensor], tiny_tokenizer: Tokenizer
) -> Shard:
    """A fresh copy for each test, so that one test's edits are not another's weights."""
    model = Shard(trained_config, tiny_tokenizer)
    model.load_state_dict(trained_weights)
    return model.eval()


@pytest.fixture
def trained_checkpoint(tmp_path: Path, trained_model: Shard) -> Path:
    return save_checkpoint(tmp_path / "trained", trained_model)


def repeated_tokens(batch: int, length: int, period: int | None = None) -> torch.Tensor:
    """The begin-of-document token, then different random tokens over and over; each row has its own period unless given."""
    rows = []
    for _ in range(batch):
        span = period or int(torch.randint(5, 16, ()))
        unit = 1 + torch.randperm(COPIED)[:span]
        rows.append(unit.repeat(length // span + 1)[: length - 1])
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), torch.stack(rows)], dim=1)
