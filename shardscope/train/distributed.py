"""One process or many in training: the same weights everywhere, gradients averaged.

Started by torchrun, every process holds the same weights, takes its rows of each
batch, and averages gradients through DistributedDataParallel. A single process is a world of one and pays nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shardscope.device import pick_device
from shardscope.processes import Processes


@dataclass(frozen=True, kw_only=True)
class World(Processes):
    """The processes of this run, each with its device."""

    device: torch.device

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """This process's place, from torchrun's environment. Raises ConfigError for a device that is not there."""
        us = Processes.of_torchrun()
        place = pick_device(device, us.local_rank)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        us.connect("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
        return cls(rank=us.rank, size=us.size, local_rank=us.local_rank, device=place)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the world."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def without_averaging(self, module: nn.Module) -> AbstractContextManager[None]:
        """Gradients that are computed in here are added up on each rank and averaged with the next ones outside."""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The average of a tensor over the world."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value
