"""A captured optimizer step is the plain one."""

from __future__ import annotations

import pytest
import torch

from shardscope.config import OptimizerConfig, ShardConfig
from shardscope.model import Shard
from shardscope.train.muon import ShardOptimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CONFIG = ShardConfig(vocab_size=256, n_ctx=64, d_model=64, n_layers=3, n_heads=2, d_head=32, d_mlp=128, window=16)
CHOICES = OptimizerConfig(lr=1e-2, neuron_beta=0.95, newton_schulz="polar-express", clip=1.0)


def weights_after(graphs: bool, steps: int = 12) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = Shard(CONFIG).cuda()
    optimizer = ShardOptimizer(model, CHOICES, compiled=True, graphs=graphs)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    norms = []
    for step in range(steps):
        generator = torch.Generator("cuda").manual_seed(step)
        for parameter in model.parameters():
            parameter.grad.normal_(generator=generator)
        loss = torch.tensor(float("nan") if step == 7 else 1.0, device="cuda")
        norms.append(optimizer.step(1 - step / steps, loss, momentum=0.85 + 0.01 * step))
    assert (optimizer._graph is not None) == graphs
    return [*(p.detach().clone() for p in model.parameters()), torch.stack(norms), *optimizer.state_dict().values()]


def test_a_captured_optimizer_step_is_the_plain_one_with_its_own_rate_momentum_and_verdict() -> None:
    for plain, replayed in zip(weights_after(False), weights_after(True), strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-3, atol=1e-5)
