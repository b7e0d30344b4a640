"""Fused attention over a window and within documents, as one PyTorch operator with two engines.

cuDNN's kernel is taken where its Python package is installed and no documents are to be kept apart, the Triton
kernel otherwise. The choice is made inside the operator, where a compiler does not look.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.model.kernels import cudnn, flash
from shardscope.model.kernels.triton_or_none import HAS_TRITON

QKV = Float[Tensor, "batch pos head d_head"]
Starts = Int[Tensor, "batch pos"]


def applies(q: QKV) -> bool:
    """Whether there is a kernel for these tensors: half precision on CUDA, heads of 16, 32, 64 or 128 channels."""
    return q.is_cuda and HAS_TRITON and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] in (16, 32, 64, 128)


def windowed_attention(q: QKV, k: QKV, v: QKV, window: int | None, document_start: Starts | None = None) -> QKV:
    """softmax(q kᵀ / sqrt(d_head)) v over the visible keys, contiguous, in the dtype of q.

    Query i sees key j if max(i - window + 1, document_start[i]) <= j <= i; None: no such bound.
    """
    starts = None if document_start is None else document_start.to(torch.int32).contiguous()
    z, _ = _forward(q, k, v, starts, window or 0)
    return z


@torch.library.custom_op(
    "shardscope::windowed_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? starts, int window) -> (Tensor, Tensor)",
)
def _forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    if starts is None and cudnn.available():
        return cudnn.forward(q, k, v, window)
    return flash.forward(q, k, v, starts, window)


@torch.library.custom_op(
    "shardscope::windowed_attention_backward",
    mutates_args=(),
    schema="(Tensor dz, Tensor q, Tensor k, Tensor v, Tensor z, Tensor logsumexp, Tensor? starts, int window)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, z: Tensor, logsumexp: Tensor, starts: Tensor | None, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    if starts is None and cudnn.available():
        return cudnn.backward(dz, q, k, v, z, logsumexp, window)
    return flash.backward(dz, q, k, v, z, logsumexp, starts, window)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    batch, pos, head, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, head, pos, dtype=torch.float32)


@_backward.register_fake
def _(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, z: Tensor, logsumexp: Tensor, starts: Tensor | None, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    q, k, v, starts, ctx.window = inputs
    ctx.save_for_backward(q, k, v, starts, *output)


def _gradient(ctx: Any, dz: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, starts, z, logsumexp = ctx.saved_tensors
    dz = dz if dz.stride(-1) == 1 else dz.contiguous()
    return *_backward(dz, q, k, v, z, logsumexp, starts, ctx.window), None, None


_forward.register_autograd(_gradient, setup_context=_save)
