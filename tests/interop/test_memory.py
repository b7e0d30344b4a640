"""Caching holds what was asked for and nothing else: peaks of live tensor bytes, counted as they come and go."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shardscope import Shard, ShardConfig

POS = 2048


class Peak(TorchDispatchMode):
    """Bytes of all storages made inside the context that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (address := tensor.untyped_storage().data_ptr()) not in held | self.known:
                size = tensor.untyped_storage().nbytes()
                self.known.add(address)
                self.alive += size
                weakref.finalize(tensor.untyped_storage(), self._gone, address, size)
        self.peak = max(self.peak, self.alive)
        return out

    def _gone(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size


def peak_of(model: Shard, names_filter: Any) -> tuple[int, int]:
    """(peak bytes of the run, bytes that the cache holds after it)."""
    tokens = torch.randint(1, model.config.vocab_size, (1, POS), generator=torch.Generator().manual_seed(0))
    gc.collect()
    with torch.no_grad(), Peak() as counted:
        _, cache = model.run_with_cache(tokens, names_filter=names_filter, stop_at_layer=model.config.n_layers)
    return counted.peak, sum(activation.nbytes for activation in cache.values())


@pytest.fixture
def deep_model() -> Shard:
    torch.manual_seed(0)
    config = ShardConfig(n_ctx=POS, vocab_size=300, d_model=32, n_layers=8, n_heads=2, d_head=16, d_mlp=64, window=256)
    return Shard(config).eval()


@pytest.mark.parametrize("layer", [0, 3])
def test_caching_one_layer_peaks_below_a_fifth_of_caching_everything(deep_model: Shard, layer: int) -> None:
    everything, held = peak_of(deep_model, None)
    assert everything > held, "the count must see at least what the cache holds"
    one_layer, _ = peak_of(deep_model, lambda name: name.startswith(f"blocks.{layer}."))
    assert one_layer < everything / 5


@pytest.mark.slow
def test_one_layer_of_a_shard_54m_with_its_logits_peaks_below_a_fifth_of_what_all_layers_hold() -> None:
    """The real shapes: 2048 tokens, every activation of the last layer, logits computed. Holding all twelve layers
    would take 4.9 GB, so that side is not run: the layers are alike, and one of them is counted twelve times."""
    torch.manual_seed(0)
    model = Shard(ShardConfig.preset("shard-54m", n_ctx=POS)).eval()
    layer = model.config.n_layers - 1
    tokens = torch.randint(1, model.config.vocab_size, (1, POS))
    with torch.no_grad(), Peak() as counted:
        logits, cache = model.run_with_cache(tokens, names_filter=lambda name: name.startswith(f"blocks.{layer}."))
    held = sum(activation.nbytes for activation in cache.values())
    assert logits.shape == (1, POS, 8192)
    assert counted.peak > held
    assert counted.peak < model.config.n_layers * held / 5
