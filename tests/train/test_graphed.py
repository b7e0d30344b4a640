"""Gradients of micro-batches, plainly and replayed as CUDA graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from shardscope import Shard
from shardscope.bench.train import BOS, Variant, language, recipe_of
from shardscope.config import PRESETS, ConfigError, ShardConfig
from shardscope.train import graphed
from shardscope.train.graphed import PLAIN, Gradients
from shardscope.train.objective import Objective

SMALL = ShardConfig(vocab_size=128, n_ctx=64, d_model=64, n_layers=2, n_heads=4, d_head=16, d_mlp=128, window=16)
on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def windows(config: ShardConfig, count: int, batch: int, seq_len: int) -> list[Tensor]:
    return [language(config.vocab_size, batch, seq_len, seed).tokens for seed in range(count)]


def gradients_of(model: Shard, batch: int, seq_len: int) -> Gradients:
    recipe = recipe_of(Variant(""), model.config, seq_len, batch * seq_len)
    objective = Objective(model, recipe, BOS)
    return Gradients(objective, model, graphs=objective.graphs)


def test_shares_of_two_micro_batches_add_up_to_the_gradient_of_both() -> None:
    torch.manual_seed(0)
    whole = Shard(SMALL)
    halves = copy.deepcopy(whole)
    (window,) = windows(SMALL, 1, 4, 32)
    found = gradients_of(whole, 4, 32)(window)
    by_half = gradients_of(halves, 4, 32)
    assert not by_half.graphs, "there are none on a CPU"
    losses = [by_half(part, 0.5)["loss"] for part in window.split(2)]
    assert sum(losses).item() / 2 == pytest.approx(found["loss"].item(), rel=1e-6)
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


class Replay:
    """Stands for a captured graph: computes anew, into the gradients that it was captured with."""

    def __init__(self, gradients: Gradients, window: Tensor, share: float) -> None:
        self.gradients, self.share = gradients, share
        self.places = [parameter.grad for parameter in gradients.parameters]

    def __call__(self, window: Tensor) -> dict[str, Tensor]:
        assert all(p.grad is place for p, place in zip(self.gradients.parameters, self.places, strict=True))
        return self.gradients.plain(window, self.share)


def test_gradients_add_up_in_one_place_whoever_clears_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "_Captured", Replay)
    torch.manual_seed(0)
    plain = Shard(SMALL)
    other = copy.deepcopy(plain)
    ways = [gradients_of(plain, 4, 32), gradients_of(other, 4, 32)]
    ways[1].graphs = True
    for step, window in enumerate(windows(SMALL, PLAIN + 3, 4, 32)):
        for way in ways:
            for part in window.split(2):
                way(part, 0.5)
        for one, two in zip(plain.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
            one.grad = None
            two.grad = None if step % 2 else torch.zeros_like(two)
    assert ways[1].captured


def test_a_step_that_cannot_be_captured_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore about it")

    monkeypatch.setattr(graphed, "captured", full)
    gradients = gradients_of(Shard(SMALL), 4, 32)
    gradients.graphs = True
    (window,) = windows(SMALL, 1, 4, 32)
    for _ in range(PLAIN):
        gradients(window)
    with pytest.raises(ConfigError, match=r"Tried to allocate 2 GiB\); checkpoints are .* train.cuda_graphs=false"):
        gradients(window)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_a_replayed_graph_gives_the_losses_and_gradients_of_plain_steps(device: str) -> None:
    config = PRESETS["shard-nano"]
    torch.manual_seed(0)
    plain = Shard(config).to(device)
    other = copy.deepcopy(plain)
    ways = {"plain": gradients_of(plain, 4, 512), "graphed": gradients_of(other, 4, 512)}
    ways["plain"].graphs = False
    for step, window in enumerate(windows(config, PLAIN + 3, 4, 512)):
        losses = {
            name: [way(part.to(device), 0.5)["loss"].item() for part in window.split(2)] for name, way in ways.items()
        }
        assert losses["graphed"] == pytest.approx(losses["plain"], rel=1e-4)
        for one, two in zip(plain.parameters(), other.parameters(), strict=True):
            assert one.grad is not None
            assert two.grad is not None
            assert (one.grad - two.grad).norm() < 1e-2 * one.grad.norm()
            with torch.no_grad():
                for weight in (one, two):
                    weight -= 0.01 * one.grad
            # As the optimizer leaves them, and as somebody does who keeps the tensors.
            one.grad = None
            two.grad = None if step % 2 else torch.zeros_like(two)
    assert len(ways["graphed"].captured) == 1


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_a_hook_fires_although_the_shape_was_captured(device: str) -> None:
    config = PRESETS["shard-nano"]
    torch.manual_seed(0)
    model = Shard(config).to(device)
    gradients = gradients_of(model, 2, 512)
    batches = [window.to(device) for window in windows(config, PLAIN + 3, 2, 512)]
    for window in batches[:-1]:
        gradients(window)
    assert gradients.captured
    seen: list[tuple[int, ...]] = []
    model.add_hook("blocks.1.hook_resid_post", lambda x, hook: seen.append(tuple(x.shape)))
    gradients(batches[-1])
    assert seen == [(2, 512, config.d_model)]
