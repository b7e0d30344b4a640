"""Decoding as one CUDA graph: a step's kernels are started once, by the GPU, not one by one from Python.

A graph replays the same kernels on the same memory, so nothing in a step depends on the host: every row writes to the
slot of its own length, looks at all that it holds, and takes its next token from its own logits. The host reads tokens
`STEPS` steps at a time, while the device is already at the next ones; what was written past a row's end is thrown away.
Random numbers for a block of steps are sent before it begins, so a text is sampled as it would be without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.generation.cache import LayerCache
from shardscope.generation.forward import Decoder, Packed, PackedBlock, rotary_angles, rotate
from shardscope.generation.fused import FusedStep
from shardscope.generation.sampling import Sampler
from shardscope.model.kernels import decode
from shardscope.model.kernels.capture import captured

STEPS = 16


def graph_steps(
    decoder: Decoder, first: Int[Tensor, "batch"], limit: int, sampler: Sampler
) -> Iterator[tuple[list[int], list[float]]]:
    """The next tokens of a prefilled decoder's rows and their log-probabilities, step by step, `limit` times at most.

    `first`: the token that each row appends first, which `sampler` chose. Neither it nor the decoder must be used
    beside it.
    """
    device, dtype = decoder.cache.device, decoder.model.embed.W_E.dtype
    make = FusedStep if decode.usable(decoder.model.config, device, dtype) else PlainStep
    length = torch.tensor(decoder.cache.lengths, dtype=torch.int32, device=device)
    with _on(device):
        step = make(decoder.packed, decoder.cache.layers, first, length, 2 * STEPS, sampler)
        replay = _replayed(step, device) if device.type == "cuda" else step
    # Blocks of steps that were started and not read yet: one, or two while the host reads the older.
    started = [_Block(step, replay, 0, sampler, device)]
    for block in range(1, -(-limit // STEPS) + 1):
        if block * STEPS < limit:
            started.append(_Block(step, replay, block, sampler, device))
        yield from started.pop(0).read()


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _Block:
    """`STEPS` steps, started at once; their tokens are on the way to the host."""

    def __init__(
        self,
        step: FusedStep | PlainStep,
        replay: Callable[[], None],
        number: int,
        sampler: Sampler,
        device: torch.device,
    ) -> None:
        half = slice((number % 2) * STEPS, (number % 2 + 1) * STEPS)
        on_cuda = device.type == "cuda"
        with torch.inference_mode(), _on(device):
            uniforms = sampler.next_uniforms(STEPS)
            step.uniforms[half].copy_(uniforms.pin_memory() if on_cuda else uniforms, non_blocking=True)
            for _ in range(STEPS):
                replay()
            self.arrived = torch.cuda.Event() if on_cuda else None
            self.copies = [
                torch.empty(r[half].shape, dtype=r.dtype, pin_memory=on_cuda).copy_(r[half], non_blocking=True)
                for r in (step.tokens, step.logprobs)
            ]
            if self.arrived is not None:
                self.arrived.record()

    def read(self) -> Iterator[tuple[list[int], list[float]]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens, logprobs = (copy.tolist() for copy in self.copies)
        yield from zip(tokens, logprobs, strict=True)


def _replayed(step: FusedStep | PlainStep, device: torch.device) -> Callable[[], None]:
    before = [tensor.clone() for tensor in step.state]
    with torch.inference_mode():
        replay, _ = captured(step, device, warm_up=True)
    for tensor, value in zip(step.state, before, strict=True):
        tensor.copy_(value)  # what the warm-up changed
    return replay


class PlainStep:
    """The step in plain PyTorch: what `FusedStep` must equal, and what runs where its kernels do not.

    Appends a token to every row and leaves the next one in its place, and in the record. `state` is what a step changes
    beside the caches and the record.
    """

    def __init__(
        self,
        packed: Packed,
        layers: list[LayerCache],
        first: Int[Tensor, "batch"],
        length: Int[Tensor, "batch"],
        record: int,
        sampler: Sampler,
    ) -> None:
        """As that of `FusedStep`."""
        device = first.device
        self.sampler = sampler
        self.uniforms = torch.zeros(record, len(first), dtype=torch.float64, device=device)
        self.packed, self.layers = packed, layers
        self.rows = torch.arange(len(first), device=device)
        self.slots = {layer.keys.shape[2]: torch.arange(layer.keys.shape[2], device=device) for layer in layers}
        self.token, self.length = first.clone(), length
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(record, len(first), dtype=torch.long, device=device)
        self.logprobs = torch.zeros(record, len(first), device=device)
        self.state = (self.token, self.length, self.at, *([] if sampler.seen is None else [sampler.seen]))

    def __call__(self) -> None:
        packed = self.packed
        x = F.embedding(self.token, packed.embedding)
        angles = rotary_angles(packed.rotary, self.length[:, None])
        visible = {size: (slot <= self.length[:, None])[:, None, None] for size, slot in self.slots.items()}
        slot = {size: self.length % size for size in self.slots}
        for block, layer in zip(packed.blocks, self.layers, strict=True):
            size = layer.keys.shape[2]
            x = self._block(block, x, layer.keys, layer.values, slot[size], visible[size], angles)
        hidden = F.rms_norm(x, x.shape[-1:], packed.final_norm, packed.config.norm_eps)
        logits = packed.logits(hidden[:, None])[:, 0]
        token = self.sampler.choose(logits, self.uniforms.index_select(0, self.at)[0])
        self.tokens.index_copy_(0, self.at, token[None])
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)
        self.logprobs.index_copy_(0, self.at, logprob[None])
        self.token.copy_(token)
        self.length += 1
        self.at.add_(1).remainder_(len(self.tokens))

    def _block(
        self,
        block: PackedBlock,
        x: Float[Tensor, "batch d_model"],
        keys: Float[Tensor, "batch head slot d_head"],
        values: Float[Tensor, "batch head slot d_head"],
        slot: Int[Tensor, "batch"],
        visible: Tensor,
        angles: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "batch d_model"]:
        heads = block.heads
        qkv = F.rms_norm(x, x.shape[-1:], block.ln1, block.eps) @ block.W_QKV
        qkv = qkv.view(x.shape[0], 1, 3 * heads, -1)
        qk = rotate(block.normalised(qkv[:, :, : 2 * heads]), *angles)
        keys[self.rows, :, slot] = qk[:, 0, heads:]
        values[self.rows, :, slot] = qkv[:, 0, 2 * heads :]
        q = qk[:, :, :heads].transpose(1, 2)
        z = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
        x = torch.addmm(x, z.transpose(1, 2).reshape(x.shape[0], -1), block.W_O)
        normalized = F.rms_norm(x, x.shape[-1:], block.ln2, block.eps)
        gated = F.silu(normalized @ block.W_gate) * (normalized @ block.W_in)
        return torch.addmm(x, gated, block.W_out)
