"""A Shard in TransformerLens: a `TransformerBridge` over the same weights.

TransformerLens 4 wraps a model that transformers runs and replaces its parts by components with hook points. The
model here is transformers' VaultGemma, whose computation a Shard's is, with two parts exchanged: the embedding is not
scaled, and the norms multiply by `w` instead of by `1 + w`. The stock VaultGemma adapter refuses compatibility mode
because TransformerLens's weight folding follows Gemma's scaled embedding, offset norms and post-norms; without the
first two this is the folding that a Llama gets, which is exact.

Embedding, unembedding, norms, W_O and the MLP share their storage with the Shard: changing one changes the other.
W_Q, W_K and W_V are copies, because `head d_model d_head` and a linear layer's `(head d_head) d_model` have no
common strides. Compatibility mode folds into copies of its own, so the Shard never changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import ArchitectureAdapter, BlockBridge, EmbeddingBridge, TransformerBridge
from transformer_lens.model_bridge.generalized_components import (
    RMSNormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import VaultGemmaForCausalLM
from transformers.models.vaultgemma.modeling_vaultgemma import VaultGemmaRotaryEmbedding

from shardscope.checkpoint import load
from shardscope.interop.huggingface import config_without_qk_norm, pretrained_tokenizer
from shardscope.model import Shard

ARCHITECTURE = "ShardForCausalLM"


def to_transformer_lens(model: Shard | str | Path | None = None) -> TransformerBridge:
    """`model` as a TransformerBridge, in eval mode; a Shard, a checkpoint, a run (None: the built-in model).

    Hook names and shapes are TransformerLens's. With a tokenizer, text is tokenized with the begin-of-document token
    in front. Raises CheckpointError or ConfigError; the bridge raises ValueError for more tokens than fit the context.
    """
    shard = model if isinstance(model, Shard) else load(model)
    if shard.tokenizer is None:
        tokenizer = None
    else:
        tokenizer = pretrained_tokenizer(shard.tokenizer, shard.config.n_ctx, padding_side="right")
    # An installed Shardscope is found through its entry point; this also serves a checkout that is only imported.
    # In this order: TransformerLens warns of an entry point whose name is already taken.
    ArchitectureAdapterFactory.discover_entry_points()
    ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, ShardArchitectureAdapter)
    module = shared_module(shard)
    bridge = build_bridge_from_module(
        module, ARCHITECTURE, hf_config=module.config, tokenizer=tokenizer, model_name="shard"
    )
    bridge.eval()
    return bridge


class ShardArchitectureAdapter(ArchitectureAdapter):
    """Where TransformerLens finds a Shard's parts in `shared_module`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._set_rms_rotary_defaults()
        self.weight_processing_conversions = {**self._qkvo_weight_conversions()}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "rotary_emb": RotaryEmbeddingBridge(name="model.rotary_emb"),
            "blocks": BlockBridge(
                name="model.layers",
                config=self.cfg,
                submodules={
                    "ln1": RMSNormalizationBridge(name="input_layernorm", config=self.cfg),
                    "ln2": RMSNormalizationBridge(name="pre_feedforward_layernorm", config=self.cfg),
                    "attn": self._qkvo_attention_bridge(
                        extra_submodules={
                            # Only a Shard with `qk_norm` has them.
                            name: RMSNormalizationBridge(name=name, config=self.cfg, optional=True)
                            for name in ("q_norm", "k_norm")
                        }
                    ),
                    "mlp": self._gated_mlp(),
                },
            ),
            "ln_final": RMSNormalizationBridge(name="model.norm", config=self.cfg),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }


class PlainRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight in float32, under the parameter name that TransformerLens looks for."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = _shared(weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight.float()).to(x.dtype)


def shared_module(shard: Shard) -> VaultGemmaForCausalLM:
    """A VaultGemma with plain norms and an unscaled embedding that computes with the Shard's own weights."""
    config = config_without_qk_norm(shard.config)
    config.architectures = [ARCHITECTURE]
    config._attn_implementation = "eager"
    with torch.device("meta"):
        module = VaultGemmaForCausalLM(config)
    eps, device = shard.config.norm_eps, shard.embed.W_E.device

    module.model.embed_tokens = nn.Embedding(shard.config.vocab_size, shard.config.d_model, device="meta")
    module.model.embed_tokens.weight = module.lm_head.weight = _shared(shard.embed.W_E)
    module.model.rotary_emb = VaultGemmaRotaryEmbedding(config).to(device)
    module.model.norm = PlainRMSNorm(shard.ln_final.w, eps)
    layer: Any
    block: Any
    for layer, block in zip(module.model.layers, shard.blocks, strict=True):
        layer.input_layernorm = PlainRMSNorm(block.ln1.w, eps)
        layer.pre_feedforward_layernorm = PlainRMSNorm(block.ln2.w, eps)
        attn, mlp = layer.self_attn, layer.mlp
        for linear, heads in ((attn.q_proj, "W_Q"), (attn.k_proj, "W_K"), (attn.v_proj, "W_V")):
            linear.weight = _shared(
                rearrange(getattr(block.attn, heads), "head d_model d_head -> (head d_head) d_model").contiguous()
            )
        attn.o_proj.weight = _shared(rearrange(block.attn.W_O, "head d_head d_model -> d_model (head d_head)"))
        for linear, weight in ((mlp.gate_proj, "W_gate"), (mlp.up_proj, "W_in"), (mlp.down_proj, "W_out")):
            linear.weight = _shared(getattr(block.mlp, weight).T)
        if shard.config.qk_norm:
            gain = torch.full((shard.config.d_head,), shard.config.qk_gain, device=device, dtype=shard.embed.W_E.dtype)
            attn.q_norm, attn.k_norm = PlainRMSNorm(gain, eps), PlainRMSNorm(gain, eps)
    module.register_forward_pre_hook(_refuse_what_does_not_fit, with_kwargs=True)
    return module.eval()


def _refuse_what_does_not_fit(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """VaultGemma would go on past the positions that the model was built for; a Shard does not."""
    tokens = args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    seen = kwargs.get("past_key_values")
    total = (0 if tokens is None else tokens.shape[1]) + (0 if seen is None else seen.get_seq_length())
    if total > module.config.max_position_embeddings:
        raise ValueError(
            f"{total} tokens do not fit this model's context of {module.config.max_position_embeddings}; "
            "pass fewer, or a model with a larger n_ctx"
        )


def _shared(weight: Tensor) -> nn.Parameter:
    """A parameter on the same storage, with a gradient of its own."""
    return nn.Parameter(weight.detach())
