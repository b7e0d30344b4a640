"""A step out of few kernels (`shardscope.model.kernels.decode`), for GPUs with Triton.

Few rows: five kernels a layer, matrix-vector products included. More rows: the library's matrix products, and one
kernel between two of them. The cache is read where it lies, only as far as it is filled. Kernels find the likeliest
token, too; to sample takes all logits, from which PyTorch draws as it does elsewhere.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from shardscope.generation.cache import LayerCache
from shardscope.generation.forward import Packed
from shardscope.generation.sampling import Sampler
from shardscope.model.kernels import decode
from shardscope.model.kernels.swiglu import swiglu
from shardscope.model.shard import Block, JoinedQKV

FEW = 4  # rows for which a product is a pass over the weight and no more
PROGRAMS = 128  # that attention is divided into at least, where the rows do not suffice
MOST_SPLITS = 16


class _FusedLayer:
    """A block's matrices as [out, in]: copies, made once for all decoders of a `Packed`."""

    def __init__(self, block: Block, W_QKV: JoinedQKV) -> None:
        attn, mlp = block.attn, block.mlp
        self.ln1, self.ln2 = block.ln1.w, block.ln2.w
        self.W_QKV, self.W_out = W_QKV.T.contiguous(), mlp.W_out.T.contiguous()
        self.W_O = rearrange(attn.W_O, "head d_head d_model -> d_model (head d_head)").contiguous()
        self.W_both = rearrange([mlp.W_gate, mlp.W_in], "both d_model d_mlp -> (both d_mlp) d_model").contiguous()


_LAYERS: WeakKeyDictionary[Packed, list[_FusedLayer]] = WeakKeyDictionary()


class FusedStep:
    """One step of all rows over the layers' caches: appends `token`, leaves the next one in its place."""

    def __init__(
        self,
        packed: Packed,
        layers: list[LayerCache],
        token: Int[Tensor, "batch"],
        length: Int[Tensor, "batch"],
        record: int,
        sampler: Sampler,
    ) -> None:
        """`length`: positions held in each row; `record`: steps after which the record begins anew, and the random
        numbers in `uniforms`, of which a sampling step takes a row."""
        config, device, rows = packed.config, token.device, len(token)
        self.config, self.rotary, self.caches = packed.config, packed.rotary, layers
        self.W_E, self.final_norm = packed.model.embed.W_E.detach(), packed.model.ln_final.w.detach()
        if packed not in _LAYERS:
            with torch.no_grad():
                pairs = zip(packed.model.blocks, packed.W_QKV, strict=True)
                _LAYERS[packed] = [_FusedLayer(*pair) for pair in pairs]
        self.layers = _LAYERS[packed]
        self.few = rows <= FEW
        chained = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
        self.kernels = decode.Launcher(rows, chained)
        self.sampler, self.length = sampler, length
        self.uniforms = torch.zeros(record, rows, dtype=torch.float64, device=device)
        self.count = torch.zeros(rows, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(record, rows, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(record, rows, device=device)
        self.x = self.W_E[token].float()
        dtype = self.W_E.dtype
        wide = torch.float32 if self.few else dtype
        heads, d_head = config.n_heads, config.d_head
        self.qkv = torch.empty(rows, 3 * heads * d_head, device=device, dtype=wide)
        if self.few:
            self.hidden = torch.empty(rows, config.d_mlp, device=device)
        if not (self.few and sampler.likeliest):
            self.normed = torch.empty(rows, config.d_model, device=device, dtype=dtype)
        self.parts = {
            size: decode.Parts(rows, heads, d_head, self._splits(rows * heads, size), device, dtype)
            for size in {layer.keys.shape[2] for layer in layers}
        }
        # A block of the vocabulary is a product's share of the weights, or of logits that are there already.
        self.found = decode.Found(rows, config.vocab_size, 32 if self.few else 1024, device)

    def _splits(self, programs: int, size: int) -> int:
        if not self.few:
            return 1
        return max(2, min(-(-PROGRAMS // programs), -(-size // 128), MOST_SPLITS))

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What a step changes beside the caches' slots and the record."""
        return self.x, self.length, self.count, *([] if self.sampler.seen is None else [self.sampler.seen])

    def __call__(self) -> None:
        out = None
        if self.few:
            self._few_rows()
        else:
            out = self._many_rows()
        if not self.sampler.likeliest:
            self._sample(out)
            return
        kernels, config = self.kernels, self.config
        if self.few:
            kernels.unembed(self.x, self.final_norm, self.W_E, self.found, config.norm_eps, config.logit_cap)
        else:
            kernels.likeliest(self._raw_logits(out), self.found, config.logit_cap)
        kernels.choose(self.found, self.W_E, self.x, self.length, self.count, self.tokens, self.logprobs)

    def _sample(self, out: Tensor | None) -> None:
        """The next tokens drawn from all logits; what `Launcher.choose` does for the likeliest."""
        cap = self.config.logit_cap
        logits = cap * torch.tanh(self._raw_logits(out) / cap)
        at = self.count[:1].long() % len(self.tokens)  # the same for all rows
        token = self.sampler.choose(logits, self.uniforms.index_select(0, at)[0])
        logprob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)
        self.tokens.index_copy_(0, at, token[None])
        self.logprobs.index_copy_(0, at, logprob[None])
        self.x.copy_(self.W_E[token])
        self.length += 1
        self.count += 1

    def _raw_logits(self, out: Tensor | None) -> Float[Tensor, "batch vocab"]:
        """Not capped yet; `out` is what the last block still adds to the residual stream."""
        self.kernels.added_norm(self.x, out, self.final_norm, self.normed, self.config.norm_eps)
        return decode.product_in_float32(self.normed, self.W_E).float()

    def _few_rows(self) -> None:
        kernels, config = self.kernels, self.config
        for layer, cache in zip(self.layers, self.caches, strict=True):
            kernels.normed_product(self.x, layer.ln1, layer.W_QKV, self.qkv, config.norm_eps)
            kernels.added_mix(self._attend(cache), layer.W_O, self.x)
            kernels.gated_product(self.x, layer.ln2, layer.W_both, self.hidden, config.norm_eps)
            kernels.added_product(self.hidden, layer.W_out, self.x)

    def _many_rows(self) -> Tensor | None:
        """What the last block still adds to the residual stream."""
        kernels, config = self.kernels, self.config
        out: Tensor | None = None
        for layer, cache in zip(self.layers, self.caches, strict=True):
            kernels.added_norm(self.x, out, layer.ln1, self.normed, config.norm_eps)
            torch.mm(self.normed, layer.W_QKV.T, out=self.qkv)
            z = self._attend(cache).mixed.flatten(1)
            kernels.added_norm(self.x, z @ layer.W_O.T, layer.ln2, self.normed, config.norm_eps)
            out = swiglu(self.normed @ layer.W_both.T) @ layer.W_out.T
        return out

    def _attend(self, cache: LayerCache) -> decode.Parts:
        parts, rotary = self.parts[cache.keys.shape[2]], self.rotary
        self.kernels.attend(self.qkv, rotary.cos, rotary.sin, self.length, cache.keys, cache.values, parts)
        return parts
