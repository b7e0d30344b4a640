"""The Shard: a decoder-only transformer whose layers alternate between a sliding window and the whole context.

Pre-norm blocks of causal attention and a SwiGLU MLP, RMSNorm, rotary positions, tied embeddings, and logits
softly capped at ±30. Sliding or global is decided in the config; a block only knows its own window.

Axes: batch, pos (query, key), d_model, head, d_head, d_mlp, vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shardscope.config import InitConfig, ShardConfig
from shardscope.model.attention import QKV, Starts, attention_scores, fused_attention
from shardscope.model.hooks import HookedModule, HookPoint
from shardscope.model.kernels.fp8 import fp8_mlp
from shardscope.model.kernels.product import product
from shardscope.model.kernels.swiglu import swiglu
from shardscope.model.prompts import Prompts, TextInterface, check_length, token_batch

if TYPE_CHECKING:
    from shardscope.tokenizer import Tokenizer

STANDARD_INIT = InitConfig()
# Positions that pass through an MLP at once where no gradient is wanted: at 8192 of the published model its hidden
# layer would be larger than all else.
MLP_POSITIONS = 1024

Tokens = Int[Tensor, "batch pos"]
Residual = Float[Tensor, "batch pos d_model"]
Logits = Float[Tensor, "batch pos vocab"]
# Cosines and signed sines of positions, of each row's own or of all rows'.
Angles = tuple[Float[Tensor, "*rows pos 1 d_head"], Float[Tensor, "*rows pos 1 d_head"]]
JoinedQKV = Float[Tensor, "d_model three_head_d_head"]
Loss = Float[Tensor, ""] | Float[Tensor, "batch next"]
ReturnType = Literal["logits", "loss", "both"]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · w (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32."""

    def __init__(self, config: ShardConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.w = nn.Parameter(torch.ones(config.d_model))
        self.hook_scale = HookPoint()  # [batch pos 1]
        self.hook_normalized = HookPoint()  # [batch pos d_model]

    def forward(self, x: Residual) -> Residual:
        w, watched = self.w, self.hook_scale.watched or self.hook_normalized.watched
        if not watched and not torch.is_grad_enabled() and x.dtype == w.dtype:
            return F.rms_norm(x, w.shape, w, self.eps)  # the same in one step
        wide = x.float()
        scale = self.hook_scale((wide.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized(wide / scale)
        return (normalized * w).to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), half-rotation: channel i turns with channel i + d_head/2."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ShardConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("cos", torch.empty(config.n_ctx, config.d_head // 2), persistent=False)
        self.register_buffer("sin", torch.empty(config.n_ctx, config.d_head // 2), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The table of angles, in float32 throughout: that is how transformers rounds far positions, to the bit."""
        # No checkpoint holds it: it has to be there when weights are assigned to a model on the meta device.
        device = "cpu" if self.cos.is_meta else self.cos.device
        channel = torch.arange(0, self.config.d_head, 2, dtype=torch.float32, device=device)
        pos = torch.arange(self.config.n_ctx, dtype=torch.float32, device=device)
        angle = pos[:, None] * (1.0 / self.config.rope_base ** (channel / self.config.d_head))
        self.cos = angle.cos()
        self.sin = angle.sin()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        # A table rounded to bfloat16 by `model.to(...)` would blur far positions; make it anew in float32.
        super()._apply(fn, recurse)
        self.reset_parameters()
        return self

    def angles(self, positions: slice | Int[Tensor, "batch pos"]) -> Angles:
        """What `rotate` turns by at these positions; those past the table, which only padding has, get its last."""
        if isinstance(positions, Tensor):
            positions = positions.clamp(max=len(self.cos) - 1)
        cos, sin = self.cos[positions][..., None, :], self.sin[positions][..., None, :]
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def rotate(self, x: QKV, angles: Angles) -> QKV:
        """Turn each position's channels by its angle."""
        cos, sin = angles
        left, right = x.float().chunk(2, dim=-1)
        return torch.addcmul(x * cos, torch.cat([right, left], dim=-1), sin).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention over the last `window` positions, the query's own included (None: over all of them)."""

    def __init__(self, config: ShardConfig, window: int | None, rotary: Rotary) -> None:
        super().__init__()
        self.window = window
        self.rotary = rotary
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.qk_norm, self.qk_gain, self.eps = config.qk_norm, config.qk_gain, config.norm_eps
        into_heads = (config.n_heads, config.d_model, config.d_head)
        self.W_Q = nn.Parameter(torch.empty(into_heads))
        self.W_K = nn.Parameter(torch.empty(into_heads))
        self.W_V = nn.Parameter(torch.empty(into_heads))
        self.W_O = nn.Parameter(torch.empty(config.n_heads, config.d_head, config.d_model))
        self.hook_q = HookPoint()  # [batch pos head d_head], before rotation
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_rot_q = HookPoint()  # [batch pos head d_head], after normalisation (with qk_norm) and rotation
        self.hook_rot_k = HookPoint()
        self.hook_attn_scores = HookPoint()  # [batch head query key], scaled, -inf where invisible
        self.hook_pattern = HookPoint()  # [batch head query key], rows sum to 1
        self.hook_z = HookPoint()  # [batch pos head d_head]
        self.hook_result = HookPoint()  # [batch pos head d_model], each head's share of the output

    def project(
        self, x: Residual, angles: Angles | None = None, W_QKV: JoinedQKV | None = None
    ) -> tuple[QKV, QKV, QKV]:
        """Rotated queries, rotated keys, and values, at `angles` (None: of positions 0, 1, 2 …).

        `W_QKV` are the weights as `joined` gives them, where they were joined before.
        """
        # One product for all three: a third of the passes over x, forward and backward.
        qkv = product(x, self.joined() if W_QKV is None else W_QKV)
        qkv = qkv.view(*x.shape[:2], 3 * self.n_heads, self.d_head)
        # Hooks may change each part in place, which autograd forbids for those that a plain split gives.
        qk, v = torch.unsafe_split_with_sizes(qkv, [2 * self.n_heads, self.n_heads], dim=2)
        if self.hook_q.watched or self.hook_k.watched:
            q, k = torch.unsafe_chunk(qk, 2, dim=2)
            qk = torch.cat([self.hook_q(q), self.hook_k(k)], dim=2)
        v = self.hook_v(v)
        angles = self.rotary.angles(slice(x.shape[1])) if angles is None else angles
        q, k = torch.unsafe_chunk(self.rotary.rotate(self.normalised(qk), angles), 2, dim=2)
        return self.hook_rot_q(q), self.hook_rot_k(k), v

    def joined(self) -> JoinedQKV:
        """The weights of queries, keys and values as one matrix, whose columns are (three head d_head)."""
        return torch.stack([W.transpose(0, 1) for W in (self.W_Q, self.W_K, self.W_V)], dim=1).flatten(1)

    def normalised(self, x: QKV) -> QKV:
        """With `qk_norm`, x over its root mean square, times `qk_gain` (Henry et al. 2020, arXiv:2010.04245)."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).mul(self.qk_gain).to(x.dtype) if self.qk_norm else x

    def attend(self, q: QKV, k: QKV, v: QKV, document_start: Starts | None = None) -> QKV:
        """Mix the values; the pattern is only written out when somebody watches it."""
        if not (self.hook_attn_scores.watched or self.hook_pattern.watched):
            return fused_attention(q, k, v, self.window, document_start)
        scores = self.hook_attn_scores(attention_scores(q, k, self.window, document_start))
        pattern = self.hook_pattern(scores.softmax(dim=-1))
        return einsum(pattern, v, "batch head query key, batch key head d_head -> batch query head d_head")

    def output(self, z: QKV) -> Residual:
        z = self.hook_z(z)
        if self.hook_result.watched:
            result = einsum(z, self.W_O, "batch pos head d_head, head d_head d_model -> batch pos head d_model")
            return self.hook_result(result).sum(dim=2)
        return product(z.flatten(2), self.W_O.flatten(0, 1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): W_out(silu(W_gate x) · W_in x), no biases.

    With `fp8` set, bfloat16 inputs are multiplied in 8-bit floats, unless somebody watches inside.
    """

    fp8 = False

    def __init__(self, config: ShardConfig) -> None:
        super().__init__()
        self.W_gate = nn.Parameter(torch.empty(config.d_model, config.d_mlp))
        self.W_in = nn.Parameter(torch.empty(config.d_model, config.d_mlp))
        self.W_out = nn.Parameter(torch.empty(config.d_mlp, config.d_model))
        self.hook_pre = HookPoint()  # [batch pos d_mlp], before silu
        self.hook_pre_linear = HookPoint()  # [batch pos d_mlp], what it gates
        self.hook_post = HookPoint()  # [batch pos d_mlp], their product

    def forward(self, x: Residual) -> Residual:
        apart = self.hook_pre.watched or self.hook_pre_linear.watched
        watched = apart or self.hook_post.watched
        if not (watched or torch.is_grad_enabled()) and x.shape[1] > MLP_POSITIONS:
            return torch.cat([self.forward(piece) for piece in x.split(MLP_POSITIONS, dim=1)], dim=1)
        if self.fp8 and x.dtype == torch.bfloat16 and not watched:
            return fp8_mlp(x, self.W_gate, self.W_in, self.W_out)
        if not (watched or torch.is_grad_enabled()):
            post = F.silu(product(x, self.W_gate), inplace=True).mul_(product(x, self.W_in))
        elif apart or not torch.is_grad_enabled():
            post = F.silu(self.hook_pre(product(x, self.W_gate))) * self.hook_pre_linear(product(x, self.W_in))
        else:
            # One product for both, forward and backward; where there is only a forward it is not worth joining them.
            post = swiglu(product(x, torch.cat([self.W_gate, self.W_in], dim=1)))
        return product(self.hook_post(post), self.W_out)


# How queries meet keys: attend(attn, q, k, v) gives z, all [batch pos head d_head], with q and k rotated.
Attend = Callable[[Attention, QKV, QKV, QKV], QKV]


class Block(nn.Module):
    def __init__(self, config: ShardConfig, window: int | None, rotary: Rotary) -> None:
        super().__init__()
        self.ln1 = RMSNorm(config)
        self.attn = Attention(config, window, rotary)
        self.ln2 = RMSNorm(config)
        self.mlp = MLP(config)
        self.hook_resid_pre = HookPoint()  # [batch pos d_model], as are all five
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self,
        x: Residual,
        document_start: Starts | None = None,
        *,
        attend: Attend | None = None,
        angles: Angles | None = None,
        W_QKV: JoinedQKV | None = None,
    ) -> Residual:
        """The residual stream after the block.

        Training, decoding with a cache and reading long prompts differ in how queries meet keys: `attend(attn, q, k,
        v)` is called in place of the block's own attention. `angles` and `W_QKV`: see `Attention.project`.
        """
        x = self.hook_resid_pre(x)
        q, k, v = self.attn.project(self.ln1(x), angles, W_QKV)
        return self.output(
            x, self.attn.attend(q, k, v, document_start) if attend is None else attend(self.attn, q, k, v)
        )

    def output(self, x: Residual, z: QKV) -> Residual:
        """The residual stream after the block, where attention found `z`."""
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn.output(z)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))


class Embed(nn.Module):
    def __init__(self, config: ShardConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(config.vocab_size, config.d_model))

    def forward(self, tokens: Tokens) -> Residual:
        x = F.embedding(tokens, self.W_E)
        # Under autocast the residual stream has the matmuls' dtype: half the bytes in every norm and addition.
        device = tokens.device.type
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def next_token_loss(logits: Logits, tokens: Tokens, lengths: list[int] | None = None, per_token: bool = False) -> Loss:
    """Cross-entropy of each next token in nats, [batch pos-1] or their mean; what lies past `lengths` counts 0."""
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    if lengths is None:
        return losses if per_token else losses.mean()
    there = (
        torch.arange(1, tokens.shape[1], device=tokens.device) < torch.tensor(lengths, device=tokens.device)[:, None]
    )
    losses = losses.masked_fill(~there, 0)
    return losses if per_token else losses.sum() / there.sum()


class Shard(HookedModule, TextInterface):
    """The language model. Weights, hook names and their shapes are TransformerLens's.

    `model(prompt)` gives capped logits [batch pos vocab]. `tokenizer` is set by `shardscope.load`.
    """

    blocks: list[Block]  # an nn.ModuleList, typed by what it holds

    def __init__(
        self, config: ShardConfig, tokenizer: Tokenizer | None = None, init: InitConfig = STANDARD_INIT
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.embed = Embed(config)
        self.hook_embed = HookPoint()  # [batch pos d_model]
        rotary = Rotary(config)
        self.blocks = nn.ModuleList(Block(config, window, rotary) for window in config.windows)  # type: ignore[assignment]
        self.ln_final = RMSNorm(config)
        self.reset_parameters(init)
        self.name_hooks()

    @classmethod
    def of_weights(
        cls,
        config: ShardConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
    ) -> Shard:
        """A model of copies of these weights (a state dict), without random ones made first.

        Raises RuntimeError for names or shapes that are not the config's.
        """
        with torch.device("meta"):
            model = cls(config)
        # Copies, because what safetensors returns may still lie in its file.
        copies = {name: weight.to(device, dtype, copy=True) for name, weight in weights.items()}
        model.load_state_dict(copies, assign=True)
        return model.to(device)

    def reset_parameters(self, init: InitConfig = STANDARD_INIT) -> None:
        """Normal weights of variance 1/fan-in; what writes to the residual stream is smaller by depth, or zero.

        On the meta device, where there are no numbers, nothing: PyTorch would import its compiler for it, two seconds.
        """
        if self.embed.W_E.is_meta:
            return
        depth = (2 * self.config.n_layers) ** -0.5
        nn.init.normal_(self.embed.W_E, std=init.embedding)
        for block in self.blocks:
            for weight in (block.attn.W_Q, block.attn.W_K, block.attn.W_V, block.mlp.W_gate, block.mlp.W_in):
                nn.init.normal_(weight, std=self.config.d_model**-0.5)
            if init.output == "zero":
                nn.init.zeros_(block.attn.W_O)
                nn.init.zeros_(block.mlp.W_out)
            else:
                nn.init.normal_(block.attn.W_O, std=depth * (self.config.n_heads * self.config.d_head) ** -0.5)
                nn.init.normal_(block.mlp.W_out, std=depth * self.config.d_mlp**-0.5)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.w)

    def forward(
        self,
        prompt: Prompts,
        document_start: Starts | None = None,
        stop_at_layer: int | None = None,
        *,
        return_type: ReturnType | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool = True,
    ) -> Logits | Residual | Loss | tuple[Logits, Loss] | None:
        """Capped logits of a text, of ids [pos] or [batch pos], or of several such prompts.

        `return_type`, `loss_per_token` and `prepend_bos` are TransformerLens's: "loss" is the mean cross-entropy of the
        next tokens in nats, or that of each [batch pos-1]; "both" is the pair. Shorter ones of several prompts are
        filled up at their right, and their filling counts 0. With `stop_at_layer=n` the residual stream [batch pos
        d_model] before block n is returned instead. Raises PromptError for what is no prompt of this model.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type={return_type!r}: use 'logits', 'loss', 'both' or None")
        tokens, lengths = token_batch(self, prompt, prepend_bos)
        if stop_at_layer is not None:
            return self.residual(tokens, document_start, stop_at_layer)
        logits = self.unembed(self.hidden(tokens, document_start))
        if return_type in ("logits", None):
            return logits if return_type else None
        loss = next_token_loss(logits, tokens, lengths, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def hidden(self, tokens: Tokens, document_start: Starts | None = None) -> Residual:
        """The normalised residual stream after the last block: what `unembed` turns into logits."""
        return self.ln_final(self.residual(tokens, document_start))

    def residual(
        self, tokens: Tokens, document_start: Starts | None = None, stop_at_layer: int | None = None
    ) -> Residual:
        """The residual stream after blocks 0 … stop_at_layer - 1 (None: after all of them; negative: from the end)."""
        check_length(self, tokens.shape[1])
        if stop_at_layer is not None and abs(stop_at_layer) > self.config.n_layers:
            raise ValueError(f"stop_at_layer={stop_at_layer}: this model has layers 0 to {self.config.n_layers - 1}")
        x = self.hook_embed(self.embed(tokens))
        for block in list(self.blocks)[:stop_at_layer]:
            x = block(x, document_start)
        return x

    def unembed(self, x: Residual) -> Logits:
        """Tied unembedding, then the soft cap (Gemma 2, arXiv:2408.00118)."""
        logits = einsum(x, self.embed.W_E, "batch pos d_model, vocab d_model -> batch pos vocab")
        return self.config.logit_cap * torch.tanh(logits.float() / self.config.logit_cap)

    @property
    def cfg(self) -> ShardConfig:
        """`config`, as TransformerLens calls it."""
        return self.config

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        return self.embed.W_E.T

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """The layers' weights in one tensor, as are the others below."""
        return torch.stack([block.attn.W_Q for block in self.blocks])

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        return torch.stack([block.attn.W_K for block in self.blocks])

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        return torch.stack([block.attn.W_V for block in self.blocks])

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return torch.stack([block.attn.W_O for block in self.blocks])

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return torch.stack([block.mlp.W_gate for block in self.blocks])

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return torch.stack([block.mlp.W_in for block in self.blocks])

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return torch.stack([block.mlp.W_out for block in self.blocks])

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*tokens d_model"]:
        """What the normalised stream is multiplied with to give the logit of each token, before the cap.

        The final norm's weight is part of it, as in TransformerLens's compatibility mode. A text has to be one token.
        """
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        return self.embed.W_E[ids] * self.ln_final.w

    @property
    def device(self) -> torch.device:
        return self.embed.W_E.device

    @property
    def n_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
