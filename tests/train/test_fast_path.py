"""The fast path (bfloat16 products, fused loss, compiled and fused kernels where there are any) against float32.

On a GPU the same tests run the kernels of that GPU.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from shardscope import Shard, ShardConfig
from shardscope.bench.train import BOS, Variant, language, recipe_of, trace
from shardscope.config import PRESETS
from shardscope.train.objective import Objective

SMALL = ShardConfig(vocab_size=128, n_ctx=64, d_model=64, n_layers=4, n_heads=4, d_head=16, d_mlp=128, window=16)
CASES = [
    pytest.param("cpu", SMALL, 32, 1e-3, id="cpu"),
    pytest.param(
        "cuda",
        PRESETS["shard-54m"],
        2048,
        3e-4,
        id="cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "config", "seq_len", "lr"), CASES)
def test_over_200_steps_the_loss_stays_within_a_hundredth_of_float32(
    device: str, config: ShardConfig, seq_len: int, lr: float
) -> None:
    losses = trace(["shard"], config, seq_len, 200, torch.device(device), lr)
    exact, fast = losses["float32"], losses["shard"]
    assert fast != exact, "the fast path is a path of its own"
    assert exact[-1] < 0.9 * exact[0], "there was something to learn"
    assert max(abs(a - b) / b for a, b in zip(fast, exact, strict=True)) < 1e-2


@pytest.mark.parametrize(("device", "config", "seq_len", "lr"), CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["across documents", "documents apart"])
def test_every_parameter_has_the_gradient_of_float32(
    device: str, config: ShardConfig, seq_len: int, lr: float, masked: bool
) -> None:
    """As near to it as torch's own autocast comes, which is what bfloat16 can do."""
    window = language(config.vocab_size, 8, seq_len, seed=1).tokens.to(device)
    recipe = recipe_of(Variant("", mask_documents=masked), config, seq_len, 8 * seq_len, "bfloat16", lr)
    torch.manual_seed(0)
    exact = Shard(config).to(device)
    fast, plain = copy.deepcopy(exact), copy.deepcopy(exact)

    loss, _ = Objective(fast, recipe, BOS)(window)
    loss.backward()
    true = written_out(exact, window, masked, autocast=False)
    written_out(plain, window, masked, autocast=True)

    assert loss.item() == pytest.approx(true, rel=2e-3)
    for (name, weight), ours, theirs in zip(
        exact.named_parameters(), fast.parameters(), plain.parameters(), strict=True
    ):
        assert weight.grad is not None
        fast_error, plain_error = ((w.grad - weight.grad).norm() / weight.grad.norm() for w in (ours, theirs))
        assert fast_error < min(0.05, 1.2 * plain_error + 1e-3), name


def written_out(model: Shard, window: torch.Tensor, masked: bool, autocast: bool) -> float:
    """The objective with nothing of ours in it but the model: torch's cross-entropy, z-loss, autograd; its loss."""
    given, targets = window[:, :-1], window[:, 1:].flatten()
    starts = None
    if masked:
        position = torch.arange(given.shape[1], device=given.device).expand_as(given)
        starts = torch.where(given == BOS, position, 0).cummax(dim=1).values
        assert starts.max() > 0
    with torch.autocast(given.device.type, torch.bfloat16, enabled=autocast):
        logits = model(given, starts).flatten(0, 1).float()
    loss = F.cross_entropy(logits, targets) + 1e-4 * logits.logsumexp(dim=-1).square().mean()
    loss.backward()
    return loss.item()
