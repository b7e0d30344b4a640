"""The processes of one evaluation under torchrun, each with its share of the requests.

Only counts, metrics and samples travel between them, so they talk through gloo whatever the device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of_this_process(cls) -> Ranks:
        """From the variables that torchrun sets; one process without them."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        return cls(int(os.environ["RANK"]), world_size, int(os.environ.get("LOCAL_RANK", "0")))

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every process's tensor, joined along the first axis (a scalar counts as one entry), in the order of ranks."""
        own = torch.atleast_1d(tensor).cpu()
        if self.world_size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(parts, own)
        return torch.cat(parts)

    def gather_object(self, value: Any, dst: int = 0) -> list[Any] | None:
        """Every process's value, on process `dst`; None on the others."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        distributed.gather_object(value, parts, dst)
        return parts

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()
