"""One process or many: who am I, what do we agree on, who writes.

Started by torchrun, every process holds the same weights, takes its rows of each
batch, and averages gradients through DistributedDataParallel. A single process is a world of one and pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shardscope.device import pick_device

T = TypeVar("T")

# The others wait while the first process tokenizes a corpus; the library's ten minutes would end the run.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """The processes of this run. A context manager: leaving it ends the process group."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """This process's place, from torchrun's environment. Raises ConfigError for a device that is not there."""
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        place = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
        if place.type == "cuda":
            torch.cuda.set_device(place)
        if size > 1:
            backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls(rank, size, place)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.size > 1 else None

    def main_first(self, work: Callable[[], T]) -> T:
        """Every process does `work`, the main one before the others: what it wrote, they find."""
        if self.size == 1:
            return work()
        done = work() if self.main else None
        dist.barrier()
        return done if self.main and done is not None else work()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

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

    def any(self, flag: bool) -> bool:
        """True everywhere if it is true anywhere: all processes have to stop at the same step."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))  # on the host: nobody waits for a GPU to hear of it
        dist.all_reduce(flags)
        return bool(flags.item())


def is_main_process() -> bool:
    """True outside torchrun and in its process of rank 0."""
    return int(os.environ.get("RANK", 0)) == 0
