"""Flash attention in Triton: causal, over a window, within documents; forward and backward.

Query i sees key j iff  max(i - window + 1, document_start[i]) <= j <= i.  The softmax is computed block by block
(Dao 2023, FlashAttention-2, arXiv:2307.08691). What is added here: every loop runs only over blocks that hold a
visible key, and only blocks at an edge (the diagonal, the window's end, a document's start) are masked.

`document_start` must not decrease along a sequence, which a first position of a document never does.
Softmax runs in base 2: scores are multiplied by scale * log2(e), `logsumexp` is kept in that base.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.model.kernels.triton_or_none import tl, triton

QKV = Float[Tensor, "batch pos head d_head"]
Starts = Int[Tensor, "batch pos"]

_LOG2_E = 1.4426950408889634


class Blocks(NamedTuple):
    """How one kernel cuts the work: queries and keys of a block, warps of a program, depth of its pipeline."""

    query: int
    key: int
    warps: int
    stages: int


FORWARD = Blocks(query=128, key=64, warps=4, stages=3)
BACKWARD_KEYS = Blocks(query=64, key=128, warps=8, stages=2)
BACKWARD_QUERIES = Blocks(query=128, key=64, warps=8, stages=2)


# ------------------------------------------------------------------------------------------------- what is seen


@triton.jit
def _keys_of(first_query, starts, pos, window: tl.constexpr, documents: tl.constexpr, queries: tl.constexpr):
    """For a block of queries: the first key that any of them sees, and the first that all of them see."""
    any_sees = 0
    all_see = 0
    last_query = tl.minimum(first_query + queries, pos) - 1
    if window > 0:
        any_sees = tl.maximum(first_query - window + 1, 0)
        all_see = tl.maximum(last_query - window + 1, 0)
    if documents:
        any_sees = tl.maximum(any_sees, tl.load(starts + first_query))
        all_see = tl.maximum(all_see, tl.load(starts + last_query))
    return any_sees, all_see


@triton.jit
def _visible(query, key, query_start, pos, window: tl.constexpr, documents: tl.constexpr):
    """query and key broadcast against each other; query_start is document_start of each query."""
    seen = (key <= query) & (query < pos)
    if window > 0:
        seen = seen & (key > query - window)
    if documents:
        seen = seen & (key >= query_start)
    return seen


# --------------------------------------------------------------------------------------------------- forward


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, z_ptr, logsumexp_ptr, starts_ptr,
    q_batch, q_pos, q_head, k_batch, k_pos, k_head, v_batch, v_pos, v_head,
    heads, pos, scale,
    window: tl.constexpr, documents: tl.constexpr, d_head: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    # The blocks with the most keys start first.
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * queries
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    channel = tl.arange(0, d_head)
    query = first_query + tl.arange(0, queries)
    q_rows = q_ptr + batch * q_batch + head * q_head + query[:, None] * q_pos + channel[None, :]
    q = tl.load(q_rows, mask=query[:, None] < pos, other=0.0)
    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head
    starts = starts_ptr + batch * pos
    query_start = tl.zeros([queries], tl.int32)
    if documents:
        query_start = tl.load(starts + query, mask=query < pos, other=0)

    any_sees, all_see = _keys_of(first_query, starts, pos, window, documents, queries)
    begin = any_sees // keys * keys
    full_begin = (all_see + keys - 1) // keys * keys
    full_end = (first_query + 1) // keys * keys
    end = tl.minimum(first_query + queries, pos)
    highest = tl.full([queries], -float("inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    z = tl.zeros([queries, d_head], tl.float32)
    highest, total, z = _mix(
        highest, total, z, q, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale,
        begin, tl.minimum(full_begin, end), True, window, documents, d_head, keys,
    )  # fmt: skip
    highest, total, z = _mix(
        highest, total, z, q, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale,
        full_begin, full_end, False, window, documents, d_head, keys,
    )  # fmt: skip
    highest, total, z = _mix(
        highest, total, z, q, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale,
        tl.maximum(full_begin, full_end), end, True, window, documents, d_head, keys,
    )  # fmt: skip

    z_rows = z_ptr + ((batch * pos + query[:, None]) * heads + head) * d_head + channel[None, :]
    tl.store(z_rows, (z / total[:, None]).to(z_ptr.dtype.element_ty), mask=query[:, None] < pos)
    tl.store(logsumexp_ptr + tl.program_id(1).to(tl.int64) * pos + query, highest + tl.log2(total), mask=query < pos)


@triton.jit
def _mix(
    highest, total, z, q, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale, begin, end,
    masked: tl.constexpr, window: tl.constexpr, documents: tl.constexpr, d_head: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """Fold the keys begin … end - 1 into the running softmax of a block of queries."""
    channel = tl.arange(0, d_head)
    for first_key in tl.range(begin, end, keys):
        key = first_key + tl.arange(0, keys)
        k_rows = k_base + key[:, None] * k_pos + channel[None, :]
        v_rows = v_base + key[:, None] * v_pos + channel[None, :]
        if masked:
            k = tl.load(k_rows, mask=key[:, None] < pos, other=0.0)
            v = tl.load(v_rows, mask=key[:, None] < pos, other=0.0)
        else:
            k = tl.load(k_rows)
            v = tl.load(v_rows)
        scores = tl.dot(q, tl.trans(k)) * scale
        if masked:
            seen = _visible(query[:, None], key[None, :], query_start[:, None], pos, window, documents)
            scores = tl.where(seen, scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        shift = new_highest
        if masked:
            # A query that has seen no key yet has nothing to shift by.
            shift = tl.where(new_highest == -float("inf"), 0.0, new_highest)
        pattern = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(highest - shift)
        total = total * shrink + tl.sum(pattern, 1)
        z = z * shrink[:, None]
        z = tl.dot(pattern.to(v.dtype), v, z)
        highest = new_highest
    return highest, total, z


# -------------------------------------------------------------------------------------------------- backward


@triton.jit
def _delta_kernel(
    z_ptr, dz_ptr, delta_ptr, dz_batch, dz_pos, dz_head, heads, pos, d_head: tl.constexpr, queries: tl.constexpr
):
    """delta = sum over channels of z * dz, what the softmax's gradient subtracts from every score's."""
    query = tl.program_id(0) * queries + tl.arange(0, queries)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    channel = tl.arange(0, d_head)
    inside = query[:, None] < pos
    z = tl.load(
        z_ptr + ((batch * pos + query[:, None]) * heads + head) * d_head + channel[None, :], mask=inside, other=0.0
    )
    dz = tl.load(
        dz_ptr + batch * dz_batch + head * dz_head + query[:, None] * dz_pos + channel[None, :], mask=inside, other=0.0
    )
    delta = tl.sum(z.to(tl.float32) * dz.to(tl.float32), 1)
    tl.store(delta_ptr + tl.program_id(1).to(tl.int64) * pos + query, delta, mask=query < pos)


@triton.jit
def _backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, dz_ptr, logsumexp_ptr, delta_ptr, ends_ptr, starts_ptr, dk_ptr, dv_ptr,
    q_batch, q_pos, q_head, k_batch, k_pos, k_head, v_batch, v_pos, v_head, dz_batch, dz_pos, dz_head,
    heads, pos, scale,
    window: tl.constexpr, documents: tl.constexpr, d_head: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    first_key = tl.program_id(0) * keys
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    channel = tl.arange(0, d_head)
    key = first_key + tl.arange(0, keys)
    inside = key[:, None] < pos
    k = tl.load(
        k_ptr + batch * k_batch + head * k_head + key[:, None] * k_pos + channel[None, :], mask=inside, other=0.0
    )
    v = tl.load(
        v_ptr + batch * v_batch + head * v_head + key[:, None] * v_pos + channel[None, :], mask=inside, other=0.0
    )
    q_base = q_ptr + batch * q_batch + head * q_head
    dz_base = dz_ptr + batch * dz_batch + head * dz_head
    row = tl.program_id(1).to(tl.int64) * pos
    starts = starts_ptr + batch * pos

    # Queries that see any key of this block, and those that see all of it.
    last_key = tl.minimum(first_key + keys, pos) - 1
    end = pos
    full_end = pos // queries * queries
    if window > 0:
        end = tl.minimum(end, last_key + window)
        full_end = tl.minimum(full_end, (first_key + window) // queries * queries)
    if documents:
        end = tl.minimum(end, tl.load(ends_ptr + batch * pos + last_key))
        full_end = tl.minimum(full_end, tl.load(ends_ptr + batch * pos + first_key) // queries * queries)
    begin = first_key // queries * queries
    full_begin = (first_key + keys - 1 + queries - 1) // queries * queries
    full_end = tl.where(last_key - first_key + 1 < keys, 0, full_end)

    dk = tl.zeros([keys, d_head], tl.float32)
    dv = tl.zeros([keys, d_head], tl.float32)
    dk, dv = _gather_keys(
        dk, dv, k, v, q_base, dz_base, q_pos, dz_pos, logsumexp_ptr + row, delta_ptr + row, starts, key, pos, scale,
        begin, tl.minimum(full_begin, end), True, window, documents, d_head, queries,
    )  # fmt: skip
    dk, dv = _gather_keys(
        dk, dv, k, v, q_base, dz_base, q_pos, dz_pos, logsumexp_ptr + row, delta_ptr + row, starts, key, pos, scale,
        full_begin, full_end, False, window, documents, d_head, queries,
    )  # fmt: skip
    dk, dv = _gather_keys(
        dk, dv, k, v, q_base, dz_base, q_pos, dz_pos, logsumexp_ptr + row, delta_ptr + row, starts, key, pos, scale,
        tl.maximum(full_begin, full_end), end, True, window, documents, d_head, queries,
    )  # fmt: skip
    rows = ((batch * pos + key[:, None]) * heads + head) * d_head + channel[None, :]
    # dk lacks the scale of the scores, whose base is 2 here.
    tl.store(dk_ptr + rows, (dk * (scale / 1.4426950408889634)).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + rows, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gather_keys(
    dk, dv, k, v, q_base, dz_base, q_pos, dz_pos, logsumexp, delta, starts, key, pos, scale, begin, end,
    masked: tl.constexpr, window: tl.constexpr, documents: tl.constexpr, d_head: tl.constexpr, queries: tl.constexpr,
):  # fmt: skip
    """Add what the queries begin … end - 1 contribute to the gradients of a block of keys and values."""
    channel = tl.arange(0, d_head)
    for first_query in tl.range(begin, end, queries):
        query = first_query + tl.arange(0, queries)
        q_rows = q_base + query[:, None] * q_pos + channel[None, :]
        dz_rows = dz_base + query[:, None] * dz_pos + channel[None, :]
        if masked:
            inside = query < pos
            q = tl.load(q_rows, mask=inside[:, None], other=0.0)
            dz = tl.load(dz_rows, mask=inside[:, None], other=0.0)
            lse = tl.load(logsumexp + query, mask=inside, other=0.0)
            d = tl.load(delta + query, mask=inside, other=0.0)
        else:
            q = tl.load(q_rows)
            dz = tl.load(dz_rows)
            lse = tl.load(logsumexp + query)
            d = tl.load(delta + query)
        # Transposed [key query], so that the two products below need no further transpose.
        pattern = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        if masked:
            query_start = tl.zeros([queries], tl.int32)
            if documents:
                query_start = tl.load(starts + query, mask=query < pos, other=0)
            seen = _visible(query[None, :], key[:, None], query_start[None, :], pos, window, documents)
            pattern = tl.where(seen, pattern, 0.0)
        dv = tl.dot(pattern.to(dz.dtype), dz, dv)
        dscores = pattern * (tl.dot(v, tl.trans(dz)) - d[None, :])
        dk = tl.dot(dscores.to(q.dtype), q, dk)
    return dk, dv


@triton.jit
def _backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, dz_ptr, logsumexp_ptr, delta_ptr, starts_ptr, dq_ptr,
    q_batch, q_pos, q_head, k_batch, k_pos, k_head, v_batch, v_pos, v_head, dz_batch, dz_pos, dz_head,
    heads, pos, scale,
    window: tl.constexpr, documents: tl.constexpr, d_head: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    first_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * queries
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    channel = tl.arange(0, d_head)
    query = first_query + tl.arange(0, queries)
    inside = query < pos
    q = tl.load(
        q_ptr + batch * q_batch + head * q_head + query[:, None] * q_pos + channel[None, :],
        mask=inside[:, None],
        other=0.0,
    )
    dz = tl.load(
        dz_ptr + batch * dz_batch + head * dz_head + query[:, None] * dz_pos + channel[None, :],
        mask=inside[:, None], other=0.0,
    )  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * pos
    lse = tl.load(logsumexp_ptr + row + query, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + row + query, mask=inside, other=0.0)
    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head
    starts = starts_ptr + batch * pos
    query_start = tl.zeros([queries], tl.int32)
    if documents:
        query_start = tl.load(starts + query, mask=inside, other=0)

    any_sees, all_see = _keys_of(first_query, starts, pos, window, documents, queries)
    begin = any_sees // keys * keys
    full_begin = (all_see + keys - 1) // keys * keys
    full_end = (first_query + 1) // keys * keys
    end = tl.minimum(first_query + queries, pos)
    dq = tl.zeros([queries, d_head], tl.float32)
    dq = _gather_queries(
        dq, q, dz, lse, delta, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale,
        begin, tl.minimum(full_begin, end), True, window, documents, d_head, keys,
    )  # fmt: skip
    dq = _gather_queries(
        dq, q, dz, lse, delta, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale,
        full_begin, full_end, False, window, documents, d_head, keys,
    )  # fmt: skip
    dq = _gather_queries(
        dq, q, dz, lse, delta, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale,
        tl.maximum(full_begin, full_end), end, True, window, documents, d_head, keys,
    )  # fmt: skip
    rows = ((batch * pos + query[:, None]) * heads + head) * d_head + channel[None, :]
    tl.store(dq_ptr + rows, (dq * (scale / 1.4426950408889634)).to(dq_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _gather_queries(
    dq, q, dz, lse, delta, k_base, v_base, k_pos, v_pos, query, query_start, pos, scale, begin, end,
    masked: tl.constexpr, window: tl.constexpr, documents: tl.constexpr, d_head: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """Add what the keys begin … end - 1 contribute to the gradient of a block of queries."""
    channel = tl.arange(0, d_head)
    for first_key in tl.range(begin, end, keys):
        key = first_key + tl.arange(0, keys)
        k_rows = k_base + key[:, None] * k_pos + channel[None, :]
        v_rows = v_base + key[:, None] * v_pos + channel[None, :]
        if masked:
            k = tl.load(k_rows, mask=key[:, None] < pos, other=0.0)
            v = tl.load(v_rows, mask=key[:, None] < pos, other=0.0)
        else:
            k = tl.load(k_rows)
            v = tl.load(v_rows)
        pattern = tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None])
        if masked:
            seen = _visible(query[:, None], key[None, :], query_start[:, None], pos, window, documents)
            pattern = tl.where(seen, pattern, 0.0)
        dscores = pattern * (tl.dot(dz, tl.trans(v)) - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq)
    return dq


# ------------------------------------------------------------------------------------------------- launching


def forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    batch, pos, head, d_head = q.shape
    z = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    logsumexp = torch.empty(batch, head, pos, dtype=torch.float32, device=q.device)
    _forward_kernel[(triton.cdiv(pos, FORWARD.query), batch * head)](
        q, k, v, z, logsumexp, q if starts is None else starts,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], head, pos, d_head**-0.5 * _LOG2_E,
        window=window, documents=starts is not None, d_head=d_head, queries=FORWARD.query, keys=FORWARD.key,
        num_warps=FORWARD.warps, num_stages=FORWARD.stages,
    )  # fmt: skip
    return z, logsumexp


def backward(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, z: Tensor, logsumexp: Tensor, starts: Tensor | None, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, pos, head, d_head = q.shape
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    delta = torch.empty_like(logsumexp)
    ends = None if starts is None else document_ends(starts)
    _delta_kernel[(triton.cdiv(pos, 128), batch * head)](
        z, dz, delta, *dz.stride()[:3], head, pos, d_head=d_head, queries=128
    )
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dz.stride()[:3])
    shared = {"window": window, "documents": starts is not None, "d_head": d_head}
    blocks = BACKWARD_KEYS
    _backward_keys_kernel[(triton.cdiv(pos, blocks.key), batch * head)](
        q, k, v, dz, logsumexp, delta, q if ends is None else ends, q if starts is None else starts, dk, dv,
        *strides, head, pos, d_head**-0.5 * _LOG2_E, **shared, queries=blocks.query, keys=blocks.key,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    blocks = BACKWARD_QUERIES
    _backward_queries_kernel[(triton.cdiv(pos, blocks.query), batch * head)](
        q, k, v, dz, logsumexp, delta, q if starts is None else starts, dq,
        *strides, head, pos, d_head**-0.5 * _LOG2_E, **shared, queries=blocks.query, keys=blocks.key,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return dq, dk, dv


def document_ends(starts: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """For every position the first position after its document."""
    pos = starts.shape[1]
    index = torch.arange(pos, device=starts.device, dtype=starts.dtype)
    begins = torch.where(starts == index, index, pos)
    # The next beginning strictly after each position: a running minimum from the right, moved by one.
    after = begins.flip(1).cummin(dim=1).values.flip(1)
    return torch.cat([after[:, 1:], torch.full_like(after[:, :1], pos)], dim=1).contiguous()
