"""Raw logits to the gradient of capped cross-entropy plus z-loss, in place.

One program takes a row of raw logits x, finds the logsumexp L of y = cap tanh(x / cap), and writes
    dx = (softmax(y) (1 + 2 z_loss L) - onehot(target)) (1 - tanh(x / cap)²) / counted.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.model.kernels.triton_or_none import tl, triton

# Longer rows do not fit a program's registers and are read twice.
_LARGEST_BLOCK = 16384


@triton.jit
def _row_kernel(
    logits, targets, counted, rows_out, n_rows, cap, z_loss,
    ignore_index: tl.constexpr, vocab: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    x_row = logits + row.to(tl.int64) * vocab
    target = tl.load(targets + row)
    counts = target != ignore_index
    x_target = tl.load(x_row + tl.where(counts, target, 0)).to(tl.float32)
    y_target = cap * _tanh(x_target / cap)
    weight = tl.where(counts, 1.0, 0.0) / tl.load(counted)
    column = tl.arange(0, block)

    if block >= vocab:
        # The whole row stays in registers: one read, one write, one tanh and one exp for each logit.
        inside = column < vocab
        squashed = _tanh(tl.load(x_row + column, mask=inside, other=0.0).to(tl.float32) / cap)
        y = tl.where(inside, cap * squashed, -float("inf"))
        highest = tl.max(y, 0)
        exponential = tl.exp(y - highest)
        total = tl.sum(exponential, 0)
        logsumexp = highest + tl.log(total)
        gradient = _gradient(exponential / total, squashed, logsumexp, column == target, z_loss) * weight
        tl.store(x_row + column, gradient.to(logits.dtype.element_ty), mask=inside)
    else:
        highest = -float("inf")
        total = 0.0
        for start in tl.range(0, vocab, block):
            inside = start + column < vocab
            x = tl.load(x_row + start + column, mask=inside, other=0.0).to(tl.float32)
            y = tl.where(inside, cap * _tanh(x / cap), -float("inf"))
            new_highest = tl.maximum(highest, tl.max(y, 0))
            total = total * tl.exp(highest - new_highest) + tl.sum(tl.exp(y - new_highest), 0)
            highest = new_highest
        logsumexp = highest + tl.log(total)
        for start in tl.range(0, vocab, block):
            inside = start + column < vocab
            squashed = _tanh(tl.load(x_row + start + column, mask=inside, other=0.0).to(tl.float32) / cap)
            softmax = tl.exp(cap * squashed - logsumexp)
            gradient = _gradient(softmax, squashed, logsumexp, start + column == target, z_loss) * weight
            tl.store(x_row + start + column, gradient.to(logits.dtype.element_ty), mask=inside)

    tl.store(rows_out + row, tl.where(counts, logsumexp - y_target, 0.0))
    tl.store(rows_out + n_rows + row, tl.where(counts, logsumexp * logsumexp, 0.0))


@triton.jit
def _gradient(softmax, squashed, logsumexp, is_target, z_loss):
    return (softmax * (1 + 2 * z_loss * logsumexp) - tl.where(is_target, 1.0, 0.0)) * (1 - squashed * squashed)


@triton.jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


def logits_to_gradient(
    logits: Float[Tensor, "row vocab"],
    targets: Int[Tensor, " row"],
    counted: Float[Tensor, ""],
    cap: float,
    z_loss: float,
    ignore_index: int,
) -> Float[Tensor, "2 row"]:
    """Overwrites contiguous `logits`; returns each row's cross-entropy and logsumexp², 0 where a row does not count."""
    n_rows, vocab = logits.shape
    rows_out = torch.empty(2, n_rows, device=logits.device)
    block = min(triton.next_power_of_2(vocab), _LARGEST_BLOCK)
    _row_kernel[(n_rows,)](
        logits,
        targets,
        counted,
        rows_out,
        n_rows,
        cap,
        z_loss,
        ignore_index,
        vocab,
        block,
        num_warps=max(1, min(16, block // 512)),
    )
    return rows_out
