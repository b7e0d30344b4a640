"""SwiGLU over one tensor that holds both halves: silu(both[..., :d_mlp]) * both[..., d_mlp:].

A compiler that sees the two halves as separate tensors writes their gradients apart and then copies them together;
here the backward kernel writes the one gradient that the matrix product before it needs. Nothing but `both` is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shardscope.model.kernels.triton_or_none import HAS_TRITON, tl, triton

# Elements of one program: eight for each thread of eight warps, which makes loads of 16 bytes.
_BLOCK = 2048


def swiglu(both: Float[Tensor, "*batch two_d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
    """The gated product, in the dtype of `both`; computed in float32 on CUDA."""
    if both.is_cuda and HAS_TRITON and both.dtype in (torch.bfloat16, torch.float16):
        return _forward(both.contiguous())
    gate, linear = both.chunk(2, dim=-1)
    return F.silu(gate) * linear


@triton.jit
def _halves(both, element, inside, d_mlp: tl.constexpr):
    """Where the two halves of each element lie, and their values."""
    gate_ptr = both + (element // d_mlp) * (2 * d_mlp) + element % d_mlp
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(gate_ptr + d_mlp, mask=inside, other=0.0).to(tl.float32)
    return gate, linear


@triton.jit
def _forward_kernel(both, post, elements, d_mlp: tl.constexpr, block: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = element < elements
    gate, linear = _halves(both, element, inside, d_mlp)
    tl.store(post + element, (gate * tl.sigmoid(gate) * linear).to(post.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(dpost, both, dboth, elements, d_mlp: tl.constexpr, block: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = element < elements
    gate, linear = _halves(both, element, inside, d_mlp)
    d = tl.load(dpost + element, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    dgate = d * linear * sigmoid * (1 + gate * (1 - sigmoid))
    dgate_ptr = dboth + (element // d_mlp) * (2 * d_mlp) + element % d_mlp
    tl.store(dgate_ptr, dgate.to(dboth.dtype.element_ty), mask=inside)
    tl.store(dgate_ptr + d_mlp, (d * gate * sigmoid).to(dboth.dtype.element_ty), mask=inside)


@torch.library.custom_op("shardscope::swiglu", mutates_args=(), schema="(Tensor both) -> Tensor")
def _forward(both: Tensor) -> Tensor:
    d_mlp = both.shape[-1] // 2
    post = both.new_empty(*both.shape[:-1], d_mlp)
    _forward_kernel[(triton.cdiv(post.numel(), _BLOCK),)](both, post, post.numel(), d_mlp, _BLOCK, num_warps=8)
    return post


@torch.library.custom_op(
    "shardscope::swiglu_backward",
    mutates_args=(),
    schema="(Tensor dpost, Tensor both) -> Tensor",
)
def _backward(dpost: Tensor, both: Tensor) -> Tensor:
    dboth = torch.empty_like(both)
    grid = (triton.cdiv(dpost.numel(), _BLOCK),)
    _backward_kernel[grid](dpost, both, dboth, dpost.numel(), both.shape[-1] // 2, _BLOCK, num_warps=8)
    return dboth


@_forward.register_fake
def _(both: Tensor) -> Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


@_backward.register_fake
def _(dpost: Tensor, both: Tensor) -> Tensor:
    return torch.empty_like(both)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dpost: Tensor) -> Tensor:
    return _backward(dpost.contiguous(), *ctx.saved_tensors)


_forward.register_autograd(_gradient, setup_context=_save)
