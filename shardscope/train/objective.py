"""What is minimised: capped cross-entropy plus z-loss, of a window of tokens, in the arithmetic a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shardscope.config import ConfigError, Recipe, TrainConfig
from shardscope.data import document_starts
from shardscope.model import Shard
from shardscope.model.kernels import fp8
from shardscope.model.kernels.triton_or_none import HAS_TRITON
from shardscope.model.shard import MLP
from shardscope.train.loss import capped_cross_entropy


class Objective(nn.Module):
    """`objective(window) -> (loss, metrics)`, where window is [batch pos+1]: inputs and, one later, their targets."""

    def __init__(self, model: Shard, recipe: Recipe, bos_id: int, device: torch.device | None = None) -> None:
        """`device` is where it will compute (default: where the model is)."""
        super().__init__()
        device = device or model.device
        self.model = model
        self.z_loss = recipe.optimizer.z_loss
        self.bos_id = bos_id if recipe.data.mask_documents else None
        wanted = recipe.train.dtype
        self.bfloat16_matmuls = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
        self.compiled = compiled = compiles(recipe.train, device)
        self.graphs = compiled and device.type == "cuda" and recipe.train.cuda_graphs
        for module in model.modules():
            if isinstance(module, MLP):
                module.fp8 = recipe.train.fp8 and fp8.available(device)
        # Blocks of one kind share their compiled code, so compiling takes seconds however deep the model is. A list
        # of callables and not of modules: parameters stay registered once, under the model's own names.
        self.block_calls: list[Callable[..., Tensor]] = [_compiled(b) if compiled else b for b in model.blocks]
        self.final = _compiled(model.ln_final) if compiled else model.ln_final

    def forward(self, window: Int[Tensor, "batch window"]) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        given, targets = window[:, :-1], window[:, 1:]
        starts = None if self.bos_id is None else document_starts(given, self.bos_id)
        with self.arithmetic():
            hidden = self.hidden(given, starts)
        return capped_cross_entropy(hidden, self.model.embed.W_E, targets, self.model.config.logit_cap, self.z_loss)

    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Capped logits in the recipe's arithmetic, for evaluation."""
        with self.arithmetic():
            logits: Tensor = self.model(tokens)
        return logits

    def hidden(self, given: Int[Tensor, "batch pos"], starts: Int[Tensor, "batch pos"] | None) -> Tensor:
        """`model.hidden`, block after block as they were compiled."""
        x = self.model.hook_embed(self.model.embed(given))
        for block in self.block_calls:
            x = block(x, starts)
        return self.final(x)

    def arithmetic(self) -> torch.autocast:
        """bfloat16 matmuls where the recipe wants them; weights and their gradients stay float32."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16_matmuls)


def compiles(train: TrainConfig, device: torch.device) -> bool:
    """Whether blocks and optimizer go through torch.compile. Raises ConfigError when it is asked for and cannot be."""
    # PyTorch's compiler writes Triton for a GPU; without it there is nothing to compile to.
    possible = device.type != "cuda" or HAS_TRITON
    if train.compile == "on" and not possible:
        raise ConfigError("train.compile='on' needs Triton on CUDA, which is not installed; use auto or off")
    return train.compile == "on" or (train.compile == "auto" and device.type == "cuda" and possible)


def _compiled(module: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(module, dynamic=False)
