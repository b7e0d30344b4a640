"""One token for each of a few sequences: what a decoder's step does, in five kernels a layer.

A step of few rows reads every weight once and computes almost nothing, so its time is that of starting kernels one
after the other. These take all that lies between two products into the products, and under programmatic dependent
launch (`chained`, Hopper and later) each fetches its weights while the kernel before it still runs. Of many rows the
products are the library's; what lies between two is a kernel of these, begun before the product has ended. Everything
is computed in float32. Weights lie as [out, in]; a row of the residual stream is float32.

`shardscope.generation.graphs` has the plain PyTorch that a step of these must equal.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.config import ShardConfig
from shardscope.model.kernels.triton_or_none import HAS_TRITON, gdc_launch_dependents, gdc_wait, tl, triton

Rows = Float[Tensor, "batch d_model"]


@triton.jit
def _after_the_last_kernel(chained: tl.constexpr):
    """What is read from here on may have been written by the kernel before; the one after may begin to fetch."""
    if chained:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _normalised(x, gain, k, inside, width, eps):
    wide = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
    return wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps) * gain


@triton.jit
def _weights(weight, n, k, columns, width):
    """A tile [n k] of a matrix [columns width]."""
    inside = (n < columns)[:, None] & (k < width)[None, :]
    return tl.load(weight + n[:, None].to(tl.int64) * width + k[None, :], mask=inside, other=0.0)


@triton.jit
def _normed_product_kernel(
    x, gain, weight, out, width, columns, eps,
    rows: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    n, k = tl.program_id(0) * block_n + tl.arange(0, block_n), tl.arange(0, block_k)
    inside = k < width
    tile = _weights(weight, n, k, columns, width)
    gains = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    _after_the_last_kernel(chained)
    for row in tl.static_range(rows):
        normed = _normalised(x + row * width, gains, k, inside, width, eps)
        tl.store(out + row * columns + n, tl.sum(tile.to(tl.float32) * normed[None, :], axis=1), mask=n < columns)


@triton.jit
def _gated_product_kernel(
    x, gain, weight, out, width, columns, eps,
    rows: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """silu(gate · x) (linear · x); the weights of the gate are the first half of the rows."""
    n, k = tl.program_id(0) * block_n + tl.arange(0, block_n), tl.arange(0, block_k)
    inside = k < width
    gate_tile = _weights(weight, n, k, columns, width)
    linear_tile = _weights(weight + columns.to(tl.int64) * width, n, k, columns, width)
    gains = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    _after_the_last_kernel(chained)
    for row in tl.static_range(rows):
        normed = _normalised(x + row * width, gains, k, inside, width, eps)[None, :]
        gate = tl.sum(gate_tile.to(tl.float32) * normed, axis=1)
        linear = tl.sum(linear_tile.to(tl.float32) * normed, axis=1)
        tl.store(out + row * columns + n, gate * tl.sigmoid(gate) * linear, mask=n < columns)


@triton.jit
def _added_product_kernel(
    h, weight, x, width, columns,
    rows: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    n, k = tl.program_id(0) * block_n + tl.arange(0, block_n), tl.arange(0, block_k)
    tile = _weights(weight, n, k, columns, width)
    _after_the_last_kernel(chained)
    for row in tl.static_range(rows):
        h_row = tl.load(h + row * width + k, mask=k < width, other=0.0).to(tl.float32)
        at = x + row * columns + n
        before = tl.load(at, mask=n < columns, other=0.0)
        tl.store(at, before + tl.sum(tile.to(tl.float32) * h_row[None, :], axis=1), mask=n < columns)


@triton.jit
def _added_mix_kernel(
    mixed, most, mass, weight, x, width, columns,
    rows: tl.constexpr, d_head: tl.constexpr, splits: tl.constexpr,
    block_n: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """As above, after the parts of each head have been put together: softmax over all slots from that over some."""
    n, k = tl.program_id(0) * block_n + tl.arange(0, block_n), tl.arange(0, block_k)
    inside = k < width
    head, channel = k // d_head, k % d_head
    tile = _weights(weight, n, k, columns, width)
    _after_the_last_kernel(chained)
    for row in tl.static_range(rows):
        part = (row * (width // d_head) + head) * splits
        top = tl.full([block_k], -1e30, tl.float32)
        for split in tl.static_range(splits):
            top = tl.maximum(top, tl.load(most + part + split, mask=inside, other=-1e30))
        z, total = tl.zeros([block_k], tl.float32), tl.zeros([block_k], tl.float32)
        for split in tl.static_range(splits):
            share = tl.exp2(tl.load(most + part + split, mask=inside, other=-1e30) - top)
            total += share * tl.load(mass + part + split, mask=inside, other=1.0)
            z += share * tl.load(mixed + (part + split) * d_head + channel, mask=inside, other=0.0)
        z = z / total
        at = x + row * columns + n
        before = tl.load(at, mask=n < columns, other=0.0)
        tl.store(at, before + tl.sum(tile.to(tl.float32) * z[None, :], axis=1), mask=n < columns)


@triton.jit
def _tile_of(tensor, cache, slot, d, seen, d_head: tl.constexpr):
    return tl.load(tensor + cache + slot[:, None] * d_head + d[None, :], mask=seen[:, None], other=0.0)


@triton.jit
def _mixed_in(top, total, z, q, key, value, seen):
    """Every lane of slots has its own running maximum, sum and mix; they meet once, at the end."""
    score = tl.where(seen, tl.sum(key.to(tl.float32) * q[None, :], axis=1), -1e30)
    higher = tl.maximum(top, score)
    fade, weight = tl.exp2(top - higher), tl.where(seen, tl.exp2(score - higher), 0.0)
    return higher, total * fade + weight, z * fade[:, None] + weight[:, None] * value.to(tl.float32)


@triton.jit
def _attend_kernel(
    qkv, cos, sin, length, keys, values, mixed, most, mass, n_ctx, size, part_size, scale,
    heads: tl.constexpr, d_head: tl.constexpr, splits: tl.constexpr, block: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """One row and head: turn q and k, keep k and v, and mix the values of some of the slots.

    With one split `mixed` is the finished output, with more it is to be divided by `mass`, in which the largest score
    (of base 2) is `most`.
    """
    row_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head = row_head // heads, row_head % heads
    half: tl.constexpr = d_head // 2
    d, lane = tl.arange(0, d_head), tl.arange(0, block)
    partner = (d + half) % d_head
    # Lengths and older slots were written at least two kernels before, so they may be fetched while one still runs.
    pos = tl.load(length + row)
    new_slot = pos % size
    angle = tl.minimum(pos, n_ctx - 1) * half + d % half
    turn_cos = tl.load(cos + angle)
    turn_sin = tl.load(sin + angle) * tl.where(d < half, -1.0, 1.0)
    cache = row_head * size * d_head
    first = split * part_size
    end = tl.minimum(first + part_size, tl.minimum(pos + 1, size))
    seen = (first + lane < end) & (first + lane != new_slot)
    first_key = _tile_of(keys, cache, first + lane, d, seen, d_head)
    first_value = _tile_of(values, cache, first + lane, d, seen, d_head)
    _after_the_last_kernel(chained)

    q_ptr = qkv + row * (3 * heads * d_head) + head * d_head
    k_ptr, v_ptr = q_ptr + heads * d_head, q_ptr + 2 * heads * d_head
    kept = keys.dtype.element_ty
    q = tl.load(q_ptr + d).to(tl.float32) * turn_cos + tl.load(q_ptr + partner).to(tl.float32) * turn_sin
    k = tl.load(k_ptr + d).to(tl.float32) * turn_cos + tl.load(k_ptr + partner).to(tl.float32) * turn_sin
    q = q.to(kept).to(tl.float32) * scale
    k, v = k.to(kept), tl.load(v_ptr + d).to(kept)
    mine = (new_slot >= first) & (new_slot < first + part_size)
    tl.store(keys + cache + new_slot * d_head + d, k, mask=mine & (d < d_head))
    tl.store(values + cache + new_slot * d_head + d, v, mask=mine & (d < d_head))

    # The new position is the first lane's start; its slot in memory, where the write may not have arrived, is not read.
    starts = mine & (lane == 0)
    top = tl.where(starts, tl.sum(q * k.to(tl.float32), axis=0), -1e30)
    total = tl.where(starts, 1.0, 0.0)
    z = tl.where(starts[:, None], v.to(tl.float32)[None, :], 0.0)
    top, total, z = _mixed_in(top, total, z, q, first_key, first_value, seen)
    for start in range(first + block, end, block):
        slot = start + lane
        seen = (slot < end) & (slot != new_slot)
        key = _tile_of(keys, cache, slot, d, seen, d_head)
        value = _tile_of(values, cache, slot, d, seen, d_head)
        top, total, z = _mixed_in(top, total, z, q, key, value, seen)

    highest = tl.max(top, axis=0)
    share = tl.exp2(top - highest)
    summed, all_mass = tl.sum(z * share[:, None], axis=0), tl.sum(total * share, axis=0)
    if splits == 1:
        tl.store(mixed + row_head * d_head + d, (summed / all_mass).to(mixed.dtype.element_ty))
    else:
        part = row_head * splits + split
        tl.store(mixed + part * d_head + d, summed)
        tl.store(most + part, highest)
        tl.store(mass + part, all_mass)


@triton.jit
def _capped(raw, cap):
    # cap · tanh(raw / cap), without a library that the interpreter does not have. Where it is all but straight, by its
    # series: the difference would lose what a high cap leaves of small logits.
    u = raw / cap
    series = raw * (1 - u * u * (1 / 3 - u * u * (2 / 15)))
    return tl.where(tl.abs(u) < 0.05, series, cap - 2 * cap / (tl.exp(2 * u) + 1))


@triton.jit
def _store_likeliest(logits, n, columns, at, likeliest, best, mass):
    logits = tl.where(n < columns, logits, -1e30)
    highest = tl.max(logits, axis=0)
    tl.store(likeliest + at, tl.min(tl.where(logits == highest, n, columns), axis=0))
    tl.store(best + at, highest)
    tl.store(mass + at, tl.sum(tl.exp(logits - highest), axis=0))


@triton.jit
def _unembed_kernel(
    x, gain, weight, likeliest, best, mass, width, columns, eps, cap,
    rows: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """Of each block of the vocabulary: the likeliest token, its capped logit, and the sum of exponentials under it."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    n, k = block * block_n + tl.arange(0, block_n), tl.arange(0, block_k)
    inside = k < width
    tile = _weights(weight, n, k, columns, width)
    gains = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    _after_the_last_kernel(chained)
    for row in tl.static_range(rows):
        normed = _normalised(x + row * width, gains, k, inside, width, eps)
        logits = _capped(tl.sum(tile.to(tl.float32) * normed[None, :], axis=1), cap)
        _store_likeliest(logits, n, columns, row * blocks + block, likeliest, best, mass)


@triton.jit
def _likeliest_kernel(raw, likeliest, best, mass, columns, cap, block_n: tl.constexpr, chained: tl.constexpr):
    """The same, of logits [batch columns] that are still to be capped."""
    row, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    n = block * block_n + tl.arange(0, block_n)
    _after_the_last_kernel(chained)
    logits = _capped(tl.load(raw + row * columns + n, mask=n < columns, other=0.0).to(tl.float32), cap)
    _store_likeliest(logits, n, columns, row * blocks + block, likeliest, best, mass)


@triton.jit
def _choose_kernel(
    likeliest, best, mass, embedding, x, length, count, tokens, logprobs, width, vocab, blocks, record,
    block_b: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr,
):  # fmt: skip
    """The likeliest token of a row: into the record, and as the next input."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    b, k = tl.arange(0, block_b), tl.arange(0, block_k)
    _after_the_last_kernel(chained)
    logits = tl.load(best + row * blocks + b, mask=b < blocks, other=-1e30)
    highest = tl.max(logits, axis=0)
    candidates = tl.load(likeliest + row * blocks + b, mask=b < blocks, other=0)
    token = tl.min(tl.where((logits == highest) & (b < blocks), candidates, vocab), axis=0)
    token = tl.minimum(token, vocab - 1)  # where all logits are NaN none is the highest
    masses = tl.load(mass + row * blocks + b, mask=b < blocks, other=0.0)
    total = tl.sum(masses * tl.exp(logits - highest), axis=0)
    done = tl.load(count + row)
    at = (done % record) * rows + row
    tl.store(tokens + at, token)
    tl.store(logprobs + at, -tl.log(total))
    tl.store(count + row, done + 1)
    tl.store(length + row, tl.load(length + row) + 1)
    embedded = tl.load(embedding + token.to(tl.int64) * width + k, mask=k < width, other=0.0)
    tl.store(x + row * width + k, embedded.to(tl.float32), mask=k < width)


@triton.jit
def _added_norm_kernel(
    x, y, gain, normed, width, eps, adds: tl.constexpr, block_k: tl.constexpr, chained: tl.constexpr
):  # fmt: skip
    """x += y, where `adds`; then its norm in the dtype of `normed`."""
    row, k = tl.program_id(0).to(tl.int64), tl.arange(0, block_k)
    inside = k < width
    gains = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    _after_the_last_kernel(chained)
    wide = tl.load(x + row * width + k, mask=inside, other=0.0)
    if adds:
        wide += tl.load(y + row * width + k, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + row * width + k, wide, mask=inside)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps) * gains
    tl.store(normed + row * width + k, scaled.to(normed.dtype.element_ty), mask=inside)


# ------------------------------------------------------------------------------------------------- launches


def usable(config: ShardConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run here and in this dtype, a row of every matrix fits registers, and heads can be halved.

    They do not normalise queries and keys.
    """
    if config.qk_norm or device.type != "cuda" or torch.version.hip or not HAS_TRITON:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0) or not _builds_c():
        return False
    widest = max(config.d_model, config.d_mlp, config.n_heads * config.d_head)
    halved = config.d_head >= 16 and config.d_head & (config.d_head - 1) == 0
    return halved and widest <= 4096 and dtype in (torch.bfloat16, torch.float16, torch.float32)


def _builds_c() -> bool:
    """Triton builds a small C program for Python around a kernel."""
    compiler = "CC" in os.environ or any(map(shutil.which, ("cc", "gcc", "clang")))
    return compiler and Path(sysconfig.get_path("include"), "Python.h").exists()


def product_in_float32(
    a: Float[Tensor, "rows width"], weight: Float[Tensor, "columns width"]
) -> Float[Tensor, "rows columns"]:
    """a weightᵀ, not rounded to the dtype of `a`."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, weight.T, out_dtype=torch.float32)
    return a @ weight.T


def _tile(splits: int, size: int) -> tuple[int, int]:
    """Slots that a program looks at at once, and its warps: the fastest of those tried on an H200."""
    if splits == 1:
        return 32, 4
    return (64, 4) if size <= 2048 else (128, 8)


class Launcher:
    """Launches for `rows` sequences; `chained` uses programmatic dependent launch."""

    def __init__(self, rows: int, chained: bool) -> None:
        self.rows = rows
        self.chained = chained
        self.options = {"launch_pdl": True} if chained else {}

    def normed_product(self, x: Rows, gain: Tensor, weight: Tensor, out: Tensor, eps: float, block: int = 8) -> None:
        """out = norm(x) weightᵀ."""
        columns, width = weight.shape
        _normed_product_kernel[(triton.cdiv(columns, block),)](
            x, gain, weight, out, width, columns, eps,
            self.rows, block, triton.next_power_of_2(width), self.chained, **self.options,
        )  # fmt: skip

    def gated_product(self, x: Rows, gain: Tensor, weight: Tensor, out: Tensor, eps: float, block: int = 8) -> None:
        """out = silu(norm(x) gateᵀ) · norm(x) linearᵀ; `weight` is the gate's rows above the linear's."""
        columns, width = weight.shape[0] // 2, weight.shape[1]
        _gated_product_kernel[(triton.cdiv(columns, block),)](
            x, gain, weight, out, width, columns, eps,
            self.rows, block, triton.next_power_of_2(width), self.chained, **self.options,
        )  # fmt: skip

    def added_product(self, h: Tensor, weight: Tensor, x: Rows, block: int = 4) -> None:
        """x += h weightᵀ."""
        columns, width = weight.shape
        _added_product_kernel[(triton.cdiv(columns, block),)](
            h, weight, x, width, columns,
            self.rows, block, triton.next_power_of_2(width), self.chained, **self.options,
        )  # fmt: skip

    def added_mix(self, parts: Parts, weight: Tensor, x: Rows, block: int = 4) -> None:
        """x += z weightᵀ, where z is what the parts of all heads come to."""
        columns, width = weight.shape
        _added_mix_kernel[(triton.cdiv(columns, block),)](
            parts.mixed, parts.most, parts.mass, weight, x, width, columns,
            self.rows, parts.mixed.shape[-1], parts.splits, block, triton.next_power_of_2(width), self.chained,
            **self.options,
        )  # fmt: skip

    def attend(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, length: Int[Tensor, "batch"], keys: Tensor, values: Tensor,
        parts: Parts,
    ) -> None:  # fmt: skip
        """`parts` of softmax(q kᵀ / sqrt(d_head)) v for the position `length` of each row, whose k and v are kept."""
        _, heads, size, d_head = keys.shape
        block, warps = _tile(parts.splits, size)
        part_size = triton.cdiv(triton.cdiv(size, parts.splits), block) * block
        scale = d_head**-0.5 * 1.4426950408889634  # scores of base 2
        _attend_kernel[(self.rows * heads, parts.splits)](
            qkv, cos, sin, length, keys, values, parts.mixed, parts.most, parts.mass, cos.shape[0], size, part_size,
            scale, heads, d_head, parts.splits, block, self.chained, num_warps=warps, **self.options,
        )  # fmt: skip

    def unembed(self, x: Rows, gain: Tensor, weight: Tensor, found: Found, eps: float, cap: float) -> None:
        """The likeliest token of each block of the vocabulary."""
        columns, width = weight.shape
        _unembed_kernel[(triton.cdiv(columns, found.block),)](
            x, gain, weight, found.likeliest, found.best, found.mass, width, columns, eps, cap,
            self.rows, found.block, triton.next_power_of_2(width), self.chained, **self.options,
        )  # fmt: skip

    def likeliest(self, raw: Float[Tensor, "batch vocab"], found: Found, cap: float) -> None:
        """The same from logits that are not capped yet."""
        rows, columns = raw.shape
        grid = (rows, triton.cdiv(columns, found.block))
        _likeliest_kernel[grid](
            raw, found.likeliest, found.best, found.mass, columns, cap, found.block, self.chained, **self.options
        )

    def choose(
        self, found: Found, embedding: Tensor, x: Rows, length: Tensor, count: Tensor, tokens: Tensor, logprobs: Tensor
    ) -> None:
        """Each row's likeliest token into `tokens` and `x`; `length` and `count` go on by one."""
        blocks, width = found.best.shape[1], embedding.shape[1]
        _choose_kernel[(self.rows,)](
            found.likeliest, found.best, found.mass, embedding, x, length, count, tokens, logprobs, width,
            embedding.shape[0], blocks, tokens.shape[0], triton.next_power_of_2(blocks),
            triton.next_power_of_2(width), self.chained, **self.options,
        )  # fmt: skip

    def added_norm(self, x: Rows, y: Tensor | None, gain: Tensor, normed: Tensor, eps: float) -> None:
        """x += y (None: nothing); normed = norm(x)."""
        width = x.shape[1]
        _added_norm_kernel[(self.rows,)](
            x, x if y is None else y, gain, normed, width, eps, y is not None, triton.next_power_of_2(width),
            self.chained, **self.options,
        )  # fmt: skip


class Parts:
    """What the splits of each head's slots came to; the finished output of all heads where there is one split."""

    def __init__(self, rows: int, heads: int, d_head: int, splits: int, device: torch.device, dtype: torch.dtype):
        self.splits = splits
        self.mixed = torch.empty(
            rows, heads, splits, d_head, device=device, dtype=dtype if splits == 1 else torch.float32
        )
        self.most, self.mass = (torch.empty(rows, heads, splits, device=device) for _ in range(2))


class Found:
    """Of each `block` of the vocabulary the likeliest token, its logit, and the sum of exponentials relative to it."""

    def __init__(self, rows: int, vocab: int, block: int, device: torch.device) -> None:
        self.block = block
        blocks = triton.cdiv(vocab, block)
        self.likeliest = torch.empty(rows, blocks, dtype=torch.int32, device=device)
        self.best, self.mass = (torch.empty(rows, blocks, device=device) for _ in range(2))
