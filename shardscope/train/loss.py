"""Unembedding, soft cap, cross-entropy and z-loss as one function that never holds all logits.

    logits = cap tanh(hidden W_Eᵀ / cap)
    loss   = mean over targets of  logsumexp(logits) - logits[target] + z_loss * logsumexp(logits)²

Rows are taken in chunks, and a chunk's gradient is finished before the next one begins (the idea of Liger's fused
linear cross-entropy, arXiv:2410.10989), so memory holds one chunk of logits in the dtype of `hidden`. On CUDA in
half precision one Triton kernel turns a chunk of raw logits into their gradient in place.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.model.kernels import cross_entropy
from shardscope.model.kernels.triton_or_none import HAS_TRITON

Scalar = Float[Tensor, ""]

_UNSHIFTED = 40.0  # e⁴⁰ times any vocabulary is far from float32's 3e38

# Logits of one chunk: 256 MB of bfloat16 keep the matmuls large; a CPU's chunk stays in its cache.
_CHUNK_BYTES = {"cuda": 1 << 28, "cpu": 1 << 21}


def capped_cross_entropy(
    hidden: Float[Tensor, "batch pos d_model"],
    W_E: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "batch pos"],
    cap: float,
    z_loss: float,
    ignore_index: int = -100,
) -> tuple[Scalar, dict[str, Scalar]]:
    """(loss, {"cross_entropy", "z"}), the metrics detached: mean cross-entropy in nats, mean logsumexp².

    Positions whose target is `ignore_index` do not count; with no target at all the loss is 0. Matmuls run in the
    dtype of `hidden`, everything else in float32; the gradient of W_E has W_E's dtype.
    """
    loss, metrics = _CappedCrossEntropy.apply(hidden.flatten(0, 1), W_E, targets.flatten(), cap, z_loss, ignore_index)
    return loss, {"cross_entropy": metrics[0], "z": metrics[1]}


class _CappedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, W_E, targets, cap, z_loss, ignore_index):  # type: ignore[no-untyped-def]
        needs_gradient = any(ctx.needs_input_grad[:2])
        weight = W_E.to(hidden.dtype)
        counted = (targets != ignore_index).sum().clamp(min=1).float()
        row_gradient = _kernel_gradient if _kernel_applies(hidden) else _plain_gradient
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(W_E, dtype=torch.float32) if needs_gradient else None
        sums = torch.zeros(2, device=hidden.device)
        rows = max(
            1, _CHUNK_BYTES[hidden.device.type if hidden.is_cuda else "cpu"] // (W_E.shape[0] * hidden.element_size())
        )
        for start in range(0, len(hidden), rows):
            chunk, target = hidden[start : start + rows], targets[start : start + rows]
            logits = chunk @ weight.T
            # From here on `logits` holds the gradient of the loss with respect to the uncapped logits.
            sums += row_gradient(logits, target, counted, cap, z_loss, ignore_index)
            if hidden_gradient is not None and weight_gradient is not None:
                torch.mm(logits, weight, out=hidden_gradient[start : start + rows])
                if logits.dtype == weight_gradient.dtype:
                    weight_gradient.addmm_(logits.T, chunk)
                else:
                    weight_gradient += logits.T @ chunk
        cross_entropy, z = metrics = sums / counted
        if weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient, weight_gradient.to(W_E.dtype))
        ctx.mark_non_differentiable(metrics)
        return cross_entropy + z_loss * z, metrics

    @staticmethod
    def backward(ctx, loss_gradient, _):  # type: ignore[no-untyped-def]
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            # Multiplied in float32, which a factor without axes would not bring about: a third is no bfloat16 number.
            (hidden_gradient * loss_gradient.float().view(1, 1)).to(hidden_gradient.dtype),
            weight_gradient * loss_gradient,
            None,
            None,
            None,
            None,
        )


def _kernel_applies(hidden: Tensor) -> bool:
    return hidden.is_cuda and HAS_TRITON and hidden.dtype in (torch.bfloat16, torch.float16)


def _kernel_gradient(
    logits: Tensor, targets: Tensor, counted: Tensor, cap: float, z_loss: float, ignore_index: int
) -> Float[Tensor, "2"]:
    rows = cross_entropy.logits_to_gradient(logits, targets, counted, cap, z_loss, ignore_index)
    return rows.sum(dim=1)


def _plain_gradient(
    logits: Tensor, targets: Tensor, counted: Tensor, cap: float, z_loss: float, ignore_index: int
) -> Float[Tensor, "2"]:
    """[sum of cross-entropies, sum of logsumexp²]; overwrites `logits` by the loss's gradient."""
    mask = targets != ignore_index
    index = torch.where(mask, targets, 0)[:, None]
    squashed = logits.float().div_(cap).tanh_()  # in place where the logits are float32
    capped = squashed * cap
    target = capped.gather(1, index)
    # Capped logits need no shift to keep their exponentials finite, unless the cap is a very high one.
    shift = 0.0 if cap <= _UNSHIFTED else capped.amax(dim=1, keepdim=True)
    exponentials = capped.sub_(shift).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    logsumexp = total.log() + shift
    nll = (logsumexp - target).squeeze(1)
    # Not by indexing with the mask, whose result has a size that a GPU would have to tell the host.
    sums = torch.stack([torch.where(mask, x, 0).sum() for x in (nll, logsumexp.squeeze(1).square())])
    row_weight = (mask / counted)[:, None]
    gradient = exponentials.mul_((1 + 2 * z_loss * logsumexp) * row_weight / total)
    gradient.scatter_add_(1, index, -row_weight)
    # Back through cap · tanh(z / cap), whose slope is 1 - tanh².
    logits.copy_(gradient.addcmul_(gradient, squashed.square_(), value=-1))
    return sums
