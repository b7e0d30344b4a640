"""Parameters that the ranks share among themselves (FSDP2), and how to see one rank's part or the whole of one.

Every function takes ordinary tensors too and hands them back untouched, so the optimizer, the sentinel and the
checkpoints read alike whether each rank holds all weights or a share of them. Those that gather have to be called by
all ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from shardscope.model import Shard
    from shardscope.train.objective import Objective


def shard_over_ranks(objective: Objective, device: torch.device) -> None:
    """Give each rank its share of every weight: a block's are gathered while it computes, and its gradients scattered.

    What is outside the blocks (embedding, final norm) makes one group of its own. Weights move to `device` block by
    block, so the whole model needs to fit into the host's memory only.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in objective.model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(objective, "logits")


def is_sharded(tensor: Any) -> bool:
    # Not by type: importing DTensor takes a third of a second, and few runs need it.
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This rank's part, sharing memory with the tensor."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def whole(tensor: Any) -> Tensor:
    """All of it, gathered from the ranks."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def as_sharded(part: Tensor, like: Tensor) -> Tensor:
    """This rank's part of something that is shared as `like` is."""
    if not is_sharded(like):
        return part.view_as(like)
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    part = part.view_as(like.to_local())
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut as `like` is; nothing is sent, every rank has the whole."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name for the rank that will `keep` them, nothing for the others.

    What is shared arrives one tensor after the other and goes to the host's memory, so no device ever holds it all.
    """
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor).cpu() if is_sharded(tensor) else tensor
        if keep:
            found[name] = full
    return found


def whole_model(model: Shard, keep: bool) -> Shard | None:
    """The model itself where nothing is shared; else a whole copy on the rank that will `keep` it."""
    if not any(map(is_sharded, model.parameters())):
        return model if keep else None
    weights = gathered(model.state_dict(), keep)
    if not keep:
        return None
    copy = type(model).of_weights(model.config, weights, model.embed.W_E.dtype, model.device)
    copy.tokenizer = model.tokenizer
    return copy
