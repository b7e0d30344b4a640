"""The SwiGLU MLP with its matrix products in 8-bit floats (Micikevicius et al. 2022, arXiv:2209.05433).

Values and weights are rounded to e4m3 (3 bits of mantissa), gradients to e5m2 (2 bits, wider range); products are
accumulated in float32 and leave as bfloat16, weight gradients as float32. Tensors are scaled by fixed powers of two
before rounding, which needs no pass over the data to find a largest value: RMSNorm bounds the input, an 8-bit float
keeps its precision over 15 to 30 binades, and what lies beyond is clamped.

A product on Hopper needs both operands contiguous along the summed axis, so a tensor that takes part in two products
is written twice, as it is and transposed, by the kernel that rounds it. SwiGLU itself happens in those kernels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shardscope.model.kernels.triton_or_none import HAS_TRITON, tl, triton

Residual = Float[Tensor, "batch pos d_model"]

VALUE, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
_LARGEST = {VALUE: 448.0, GRADIENT: 57344.0}
_MANTISSA = {VALUE: 3, GRADIENT: 2}

# Scales. Normalised inputs are of order 1, weights of order 1 / sqrt(d_model), products of SwiGLU of order 1; the
# gradient of a mean over n positions is of order 1 / n.
INPUT, WEIGHT, PRODUCT, GRADIENT_TIMES_POSITIONS = 8.0, 64.0, 8.0, 64.0


def available(device: torch.device) -> bool:
    """Whether this device multiplies 8-bit floats: Hopper, Ada or newer, with Triton installed."""
    return device.type == "cuda" and HAS_TRITON and torch.cuda.get_device_capability(device) >= (8, 9)


def fp8_mlp(
    x: Residual,
    W_gate: Float[Tensor, "d_model d_mlp"],
    W_in: Float[Tensor, "d_model d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
) -> Residual:
    """(silu(x W_gate) * (x W_in)) W_out for bfloat16 x; positions, d_model and d_mlp are multiples of 16.

    The gradient is scaled as that of a mean over the positions of x.
    """
    y, *_ = _forward(x.reshape(-1, x.shape[-1]), W_gate, W_in, W_out)
    return y.view(x.shape)


# ------------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _rounded(x, largest, mantissa: tl.constexpr, hardware: tl.constexpr):
    """The bytes of x as an 8-bit float with that many bits of mantissa (3: e4m3, 2: e5m2), clamped, ties to even.

    By the GPU's own instruction, or on the bits of the float32: a factor of 2^-120 or 2^-112 takes a value's exponent
    to where the 8-bit one has its own, subnormal numbers included; what is left is to cut off the mantissa.
    """
    if hardware and mantissa == 3:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; "
            "cvt.rn.satfinite.e4m3x2.f32 high, $4, $3; mov.b32 $0, {low, high}; }",
            "=r,f,f,f,f", [x], dtype=tl.uint8, is_pure=True, pack=4,
        )  # fmt: skip
    if hardware:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 low, high; cvt.rn.satfinite.e5m2x2.f32 low, $2, $1; "
            "cvt.rn.satfinite.e5m2x2.f32 high, $4, $3; mov.b32 $0, {low, high}; }",
            "=r,f,f,f,f", [x], dtype=tl.uint8, is_pure=True, pack=4,
        )  # fmt: skip
    dropped: tl.constexpr = 23 - mantissa
    shift: tl.constexpr = 7.52316384526264e-37 if mantissa == 3 else 1.925929944387236e-34
    magnitude = (tl.minimum(tl.abs(x), largest) * shift).to(tl.int32, bitcast=True)
    magnitude = (magnitude + ((1 << (dropped - 1)) - 1) + ((magnitude >> dropped) & 1)) >> dropped
    return tl.where(x < 0, magnitude | 128, magnitude).to(tl.uint8)


@triton.jit
def _store_both(
    x, largest, mantissa: tl.constexpr, hardware: tl.constexpr, out, out_row, turned, turned_row, row, column, inside
):
    """Round a tile and write it as it is and transposed."""
    rounded = _rounded(x, largest, mantissa, hardware)
    tl.store(out + row[:, None].to(tl.int64) * out_row + column[None, :], rounded, mask=inside)
    tl.store(
        turned + column[:, None].to(tl.int64) * turned_row + row[None, :], tl.trans(rounded), mask=tl.trans(inside)
    )


@triton.jit
def _round_kernel(
    x_ptr, out, turned, x_row, out_row, turned_row, rows, columns, scale, largest, mantissa: tl.constexpr,
    hardware: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    x = tl.load(x_ptr + row[:, None].to(tl.int64) * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    _store_both(x * scale, largest, mantissa, hardware, out, out_row, turned, turned_row, row, column, inside)


@triton.jit
def _swiglu_kernel(
    pre_ptr, out, turned, rows, d_mlp, scale, largest, mantissa: tl.constexpr,
    hardware: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = (row[:, None] < rows) & (column[None, :] < d_mlp)
    pre = pre_ptr + row[:, None].to(tl.int64) * (2 * d_mlp) + column[None, :]
    gate = tl.load(pre, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(pre + d_mlp, mask=inside, other=0.0).to(tl.float32)
    post = gate * tl.sigmoid(gate) * linear
    _store_both(post * scale, largest, mantissa, hardware, out, d_mlp, turned, rows, row, column, inside)


@triton.jit
def _swiglu_gradient_kernel(
    pre_ptr, dpost_ptr, out, turned, rows, d_mlp, scale, largest, mantissa: tl.constexpr,
    hardware: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = (row[:, None] < rows) & (column[None, :] < d_mlp)
    pre = pre_ptr + row[:, None].to(tl.int64) * (2 * d_mlp) + column[None, :]
    gate = tl.load(pre, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(pre + d_mlp, mask=inside, other=0.0).to(tl.float32)
    dpost = tl.load(dpost_ptr + row[:, None].to(tl.int64) * d_mlp + column[None, :], mask=inside, other=0.0)
    dpost = dpost.to(tl.float32) * scale
    sigmoid = tl.sigmoid(gate)
    dlinear = dpost * gate * sigmoid
    dgate = dpost * linear * sigmoid * (1 + gate * (1 - sigmoid))
    _store_both(dgate, largest, mantissa, hardware, out, 2 * d_mlp, turned, rows, row, column, inside)
    _store_both(
        dlinear,
        largest,
        mantissa,
        hardware,
        out + d_mlp,
        2 * d_mlp,
        turned + d_mlp.to(tl.int64) * rows,
        rows,
        row,
        column,
        inside,
    )


# The interpreter has no instructions.
HARDWARE = os.environ.get("TRITON_INTERPRET") != "1"
TILE = {"tile_rows": 64, "tile_columns": 128, "num_warps": 8}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return triton.cdiv(rows, TILE["tile_rows"]), triton.cdiv(columns, TILE["tile_columns"])


def round_both(
    x: Float[Tensor, "row column"], scale: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "row column"], Float[Tensor, "column row"]]:
    """x * scale in 8 bits, clamped, as it is and transposed, both contiguous."""
    rows, columns = x.shape
    out, turned = x.new_empty(rows, columns, dtype=dtype), x.new_empty(columns, rows, dtype=dtype)
    _round_kernel[_grid(rows, columns)](
        x, _bytes(out), _bytes(turned), x.stride(0), columns, rows, rows, columns, scale, _LARGEST[dtype],
        _MANTISSA[dtype], HARDWARE, **TILE,
    )  # fmt: skip
    return out, turned


def _swiglu(pre: Tensor) -> tuple[Tensor, Tensor]:
    rows, d_mlp = pre.shape[0], pre.shape[1] // 2
    post, turned = pre.new_empty(rows, d_mlp, dtype=VALUE), pre.new_empty(d_mlp, rows, dtype=VALUE)
    _swiglu_kernel[_grid(rows, d_mlp)](
        pre, _bytes(post), _bytes(turned), rows, d_mlp, PRODUCT, _LARGEST[VALUE], _MANTISSA[VALUE], HARDWARE, **TILE
    )
    return post, turned


def _swiglu_gradient(pre: Tensor, dpost: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows, d_mlp = dpost.shape
    dpre, turned = pre.new_empty(pre.shape, dtype=GRADIENT), pre.new_empty(2 * d_mlp, rows, dtype=GRADIENT)
    _swiglu_gradient_kernel[_grid(rows, d_mlp)](
        pre,
        dpost,
        _bytes(dpre),
        _bytes(turned),
        rows,
        d_mlp,
        scale,
        _LARGEST[GRADIENT],
        _MANTISSA[GRADIENT],
        HARDWARE,
        **TILE,
    )
    return dpre, turned


# ---------------------------------------------------------------------------------------------------- operators


def _product(a: Tensor, b_turned: Tensor, scale: float, dtype: torch.dtype, exact: bool = False) -> Tensor:
    """a bᵀ / scale. `exact` adds partial sums in float32 all along, for sums over very many terms."""
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b_turned.T, scale_a=one / scale, scale_b=one, out_dtype=dtype, use_fast_accum=not exact)


@torch.library.custom_op(
    "shardscope::fp8_mlp",
    mutates_args=(),
    schema="(Tensor x, Tensor W_gate, Tensor W_in, Tensor W_out) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor, W_gate: Tensor, W_in: Tensor, W_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x8, x8_turned = round_both(x, INPUT, VALUE)
    W_pre8, W_pre8_turned = round_both(torch.cat([W_gate, W_in], dim=1), WEIGHT, VALUE)
    W_out8, W_out8_turned = round_both(W_out, WEIGHT, VALUE)
    pre = _product(x8, W_pre8_turned, INPUT * WEIGHT, x.dtype)
    post8, post8_turned = _swiglu(pre)
    y = _product(post8, W_out8_turned, PRODUCT * WEIGHT, x.dtype)
    return y, pre, x8_turned, post8_turned, W_pre8, W_out8


@torch.library.custom_op(
    "shardscope::fp8_mlp_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor pre, Tensor x8_turned, Tensor post8_turned, Tensor W_pre8, Tensor W_out8)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    dy: Tensor, pre: Tensor, x8_turned: Tensor, post8_turned: Tensor, W_pre8: Tensor, W_out8: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale = GRADIENT_TIMES_POSITIONS * dy.shape[0]
    dy8, dy8_turned = round_both(dy, scale, GRADIENT)
    dpost = _product(dy8, W_out8, scale * WEIGHT, dy.dtype)
    dW_out = _product(post8_turned, dy8_turned, PRODUCT * scale, torch.float32, exact=True)
    dpre8, dpre8_turned = _swiglu_gradient(pre, dpost, scale)
    dx = _product(dpre8, W_pre8, scale * WEIGHT, dy.dtype)
    dW_pre = _product(x8_turned, dpre8_turned, INPUT * scale, torch.float32, exact=True)
    dW_gate, dW_in = dW_pre.chunk(2, dim=1)
    return dx, dW_gate.contiguous(), dW_in.contiguous(), dW_out


@_forward.register_fake
def _(x: Tensor, W_gate: Tensor, W_in: Tensor, W_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (rows, d_model), d_mlp = x.shape, W_gate.shape[1]

    def eight(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=VALUE)

    pre = x.new_empty(rows, 2 * d_mlp)
    return (
        x.new_empty(x.shape),
        pre,
        eight(d_model, rows),
        eight(d_mlp, rows),
        eight(d_model, 2 * d_mlp),
        eight(d_mlp, d_model),
    )


@_backward.register_fake
def _(
    dy: Tensor, pre: Tensor, x8_turned: Tensor, post8_turned: Tensor, W_pre8: Tensor, W_out8: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_mlp, d_model = W_out8.shape
    into = dy.new_empty(d_model, d_mlp, dtype=torch.float32)
    return dy.new_empty(dy.shape), into, torch.empty_like(into), into.new_empty(d_mlp, d_model)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Otherwise zeros would be written as the gradients of the outputs that only the backward pass reads.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _gradient(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward(dy.contiguous(), *ctx.saved_tensors)


_forward.register_autograd(_gradient, setup_context=_save)
