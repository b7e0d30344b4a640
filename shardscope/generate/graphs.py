"""Greedy decoding as one CUDA graph: a step's 200 kernels are started once, by the GPU, not one by one from Python.

A graph replays the same kernels on the same memory, so nothing in a step depends on the host: every row writes to the
slot of its own length, looks at all slots under a mask, and takes its next token from its own logits. Tokens are read
back every `STEPS` steps; what was written past a stop text is thrown away.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shardscope.generate.forward import Decoder, PackedBlock, rotary_angles, rotate

STEPS = 16


class GraphSteps:
    """Steps of a prefilled decoder, all rows at once, each row greedy. The decoder must not be used beside it."""

    def __init__(self, decoder: Decoder, first: Int[Tensor, "batch"]) -> None:
        """`first`: the token that each row appends first."""
        self.packed, self.layers = decoder.packed, decoder.cache.layers
        device = decoder.cache.device
        self.rows = torch.arange(len(first), device=device)
        self.slots = {layer.keys.shape[2]: torch.arange(layer.keys.shape[2], device=device) for layer in self.layers}
        self.token = first.clone()
        self.length = torch.tensor(decoder.cache.lengths, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(STEPS, len(first), dtype=torch.long, device=device)
        self.logprobs = torch.zeros(STEPS, len(first), device=device)
        self.graph = self._captured() if device.type == "cuda" else None

    @torch.inference_mode()
    def run(self) -> tuple[list[list[int]], list[list[float]]]:
        """The next `STEPS` tokens of all rows and their log-probabilities, step by step."""
        self.at.zero_()
        for _ in range(STEPS):
            if self.graph is not None:
                self.graph.replay()
            else:
                self._step()
        return self.tokens.tolist(), self.logprobs.tolist()

    def _captured(self) -> torch.cuda.CUDAGraph:
        # A first run outside the capture lets the libraries set themselves up; what it changes is put back.
        state = (self.token, self.length, self.at)
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._step()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        return graph

    def _step(self) -> None:
        """Append `token` to every row; leave the next one, and its log-probability, in its place and in the record."""
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
        likeliest, token = logits.max(dim=-1)
        self.tokens.index_copy_(0, self.at, token[None])
        self.logprobs.index_copy_(0, self.at, (likeliest - logits.logsumexp(dim=-1))[None])
        self.token.copy_(token)
        self.length += 1
        self.at += 1

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
        qk = rotate(qkv[:, :, : 2 * heads], *angles)
        keys[self.rows, :, slot] = qk[:, 0, heads:]
        values[self.rows, :, slot] = qkv[:, 0, 2 * heads :]
        q = qk[:, :, :heads].transpose(1, 2)
        z = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
        x = torch.addmm(x, z.transpose(1, 2).reshape(x.shape[0], -1), block.W_O)
        normalized = F.rms_norm(x, x.shape[-1:], block.ln2, block.eps)
        gated = F.silu(normalized @ block.W_gate) * (normalized @ block.W_in)
        return torch.addmm(x, gated, block.W_out)
