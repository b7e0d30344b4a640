"""Gradients of a micro-batch, replayed as a CUDA graph once its shape has been seen a few times.

Forward and backward of a small model start more than a thousand kernels, which takes Python longer than the GPU
needs to run them. A graph starts them all at once, on the same memory; nothing is computed otherwise. Where somebody
watches a hook point, or several processes average gradients, every step is run plainly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shardscope.config import ConfigError
from shardscope.model import Shard
from shardscope.model.kernels.capture import PLAIN, captured

Metrics = dict[str, Float[Tensor, ""]]


class Gradients:
    """`gradients(window, share)` adds `share` times the objective's gradient to every parameter's.

    Returns the loss and the objective's metrics, detached; these are not scaled.
    """

    def __init__(
        self,
        objective: nn.Module,
        model: Shard,
        graphs: bool,
        make_buffers: Callable[[], Mapping[nn.Parameter, Tensor]] | None = None,
    ) -> None:
        """`graphs`: whether shapes may be captured; only for one process on CUDA.

        `make_buffers` gives zeros where captured gradients are to lie (None: anywhere).
        """
        self.objective, self.model, self.graphs = objective, model, graphs
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.seen: Counter[tuple[torch.Size, float]] = Counter()
        self.captured: dict[tuple[torch.Size, float], _Captured] = {}
        self.make_buffers = make_buffers or self._anywhere
        self.buffers: Mapping[nn.Parameter, Tensor] = {}

    def __call__(self, window: Int[Tensor, "batch window"], share: float = 1.0) -> Metrics:
        if not self.graphs or any(point.watched for point in self.model.hook_dict.values()):
            return self.plain(window, share)
        key = (window.shape, share)
        self.seen[key] += 1
        if self.seen[key] <= PLAIN:
            return self.plain(window, share)
        self._lay_out_gradients()
        if key not in self.captured:
            self.captured[key] = _Captured(self, window, share)
        return self.captured[key](window)

    def plain(self, window: Int[Tensor, "batch window"], share: float) -> Metrics:
        loss, metrics = self.objective(window)
        (loss * share).backward()
        return {"loss": loss.detach(), **metrics}

    def _lay_out_gradients(self) -> None:
        """Every gradient where the graphs add to it: zero where there was none, else what was there."""
        if not self.buffers:
            self.buffers = self.make_buffers()
        fresh = []
        for parameter in self.parameters:
            buffer = self.buffers[parameter]
            if parameter.grad is None:
                fresh.append(buffer)
            elif parameter.grad is not buffer:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer
        if fresh:
            torch._foreach_zero_(fresh)

    def _anywhere(self) -> dict[nn.Parameter, Tensor]:
        return {parameter: torch.zeros_like(parameter) for parameter in self.parameters}


class _Captured:
    def __init__(self, gradients: Gradients, window: Int[Tensor, "batch window"], share: float) -> None:
        self.window = window.clone()
        try:
            self.replay, self.metrics = captured(lambda: gradients.plain(self.window, share), window.device)
        except RuntimeError as error:  # memory, most likely
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"a training step could not be captured as a CUDA graph ({reason}); checkpoints are intact, set "
                "train.cuda_graphs=false and start again"
            ) from None

    def __call__(self, window: Int[Tensor, "batch window"]) -> Metrics:
        self.window.copy_(window)
        self.replay()
        return {name: value.clone() for name, value in self.metrics.items()}
