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
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.generation.cache import LayerCache
from shardscope.generation.forward import Decoder, Packed
from shardscope.generation.fused import FusedStep
from shardscope.generation.sampling import Sampler
from shardscope.model.attention import QKV
from shardscope.model.kernels import decode
from shardscope.model.kernels.capture import captured
from shardscope.model.shard import Attend, Attention

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
        attends = [self._attend(layer) for layer in self.layers]
        hidden = self.packed.hidden(self.token[:, None], self.length[:, None], attends)
        logits = self.packed.logits(hidden)[:, 0]
        token = self.sampler.choose(logits, self.uniforms.index_select(0, self.at)[0])
        self.tokens.index_copy_(0, self.at, token[None])
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)
        self.logprobs.index_copy_(0, self.at, logprob[None])
        self.token.copy_(token)
        self.length += 1
        self.at.add_(1).remainder_(len(self.tokens))

    def _attend(self, layer: LayerCache) -> Attend:
        """Attention over a layer's cache in which nothing depends on the host: each row writes to its own slot."""
        size = layer.keys.shape[2]
        slot, visible = self.length % size, (self.slots[size] <= self.length[:, None])[:, None, None]

        def attend(attn: Attention, q: QKV, k: QKV, v: QKV) -> QKV:
            layer.keys[self.rows, :, slot] = k[:, 0]
            layer.values[self.rows, :, slot] = v[:, 0]
            z = F.scaled_dot_product_attention(q.transpose(1, 2), layer.keys, layer.values, attn_mask=visible)
            return z.transpose(1, 2)

        return attend
