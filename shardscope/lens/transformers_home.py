"""A Shard in transformers: a directory that stock `AutoModelForCausalLM` and `AutoTokenizer` load, and the way back.

Hugging Face's VaultGemma computes a Shard if three things are arranged: its embedding is multiplied by
sqrt(d_model), so `embed_tokens` holds E / sqrt(d_model) and the tied E is stored once more as `lm_head`; its norms
multiply by 1 + weight, so they hold w - 1; and its attention cap is off while the cap on the logits stays.

Coming back, E is read from `lm_head` and is exact. In float32 (w - 1) + 1 gives back every w of at least 1/2, bit for
bit, but rounds smaller ones; `shardscope.safetensors` beside the weights keeps the norms as they were. The stock
loader never reads it, and the importer believes an entry only if it still maps to the stored w - 1, so weights that
were trained further in transformers win.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from torch import Tensor

from shardscope.checkpoint import WEIGHTS, load, read_json, read_tensors, written_whole
from shardscope.config import ConfigError, ShardConfig
from shardscope.lens.model_card import model_card
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast, VaultGemmaConfig, VaultGemmaForCausalLM

EXACT_NORMS = "shardscope.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HomeError(ConfigError):
    """A model that cannot be brought to or from another library without changing it; the message says why."""


def export_pretrained(model: Shard | str | Path | None, folder: str | Path, dtype: str = "float32") -> Path:
    """Write `folder` for stock transformers: weights in `dtype`, config, generation config, tokenizer, model card.

    `model` is a Shard, a checkpoint or a run (None: the newest run). Raises HomeError when `folder` is in use, when
    `dtype` is unknown, or when VaultGemma cannot express the architecture.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HomeError(f"{folder} exists and is not empty; name a new folder")
    if dtype not in DTYPES:
        raise HomeError(f"dtype={dtype!r} cannot be exported; use one of {', '.join(DTYPES)}")
    shard = model if isinstance(model, Shard) else load(model)
    config = vaultgemma_config(shard.config, dtype, _special_id(shard))
    with written_whole(folder) as partial:
        save_file(to_vaultgemma(shard, DTYPES[dtype]), partial / WEIGHTS, metadata={"format": "pt"})
        save_file(_norms(shard), partial / EXACT_NORMS, metadata={"layer_pattern": shard.config.layer_pattern})
        config.save_pretrained(partial)
        _generation_config(_special_id(shard)).save_pretrained(partial)
        if shard.tokenizer is not None:
            pretrained_tokenizer(shard.tokenizer, shard.config.n_ctx, padding_side="left").save_pretrained(partial)
        (partial / "README.md").write_text(model_card(shard.config, dtype), encoding="utf-8")
    return folder


def import_pretrained(folder: str | Path) -> Shard:
    """The Shard in a directory that `export_pretrained` wrote, or that transformers saved after loading one.

    In float32 the weights return bit for bit. Raises HomeError when the directory holds no Shard.
    """
    folder = Path(folder)
    values = read_json(folder / "config.json")
    side, pattern = _read_side_file(folder / EXACT_NORMS)
    config = shard_config(values, pattern, where=str(folder / "config.json"))
    weights = from_vaultgemma(read_tensors(folder / WEIGHTS), config, side, where=str(folder / WEIGHTS))
    model = Shard(config).to(weights["embed.W_E"].dtype)
    model.load_state_dict(weights)
    if (folder / "tokenizer.json").exists():
        model.tokenizer = native_tokenizer(folder / "tokenizer.json")
    return model.eval()


def to_transformers(model: Shard, dtype: str = "float32") -> VaultGemmaForCausalLM:
    """A stock VaultGemma in memory, on copies of the weights, in eval mode."""
    from transformers import VaultGemmaForCausalLM

    module: Any = VaultGemmaForCausalLM(vaultgemma_config(model.config, dtype))
    module.to(DTYPES[dtype]).load_state_dict(to_vaultgemma(model, DTYPES[dtype]))
    return module.to(model.device).eval()


# ------------------------------------------------------------------------------------------------ the config


def vaultgemma_config(config: ShardConfig, dtype: str = "float32", special_id: int = 0) -> VaultGemmaConfig:
    """The VaultGemma that computes this architecture. Raises HomeError if there is none."""
    from transformers import VaultGemmaConfig

    if config.d_model % config.n_heads:
        raise HomeError(
            f"VaultGemma wants d_model to be a multiple of n_heads, this model has d_model={config.d_model} and "
            f"n_heads={config.n_heads}; such a Shard stays in Shardscope"
        )
    return VaultGemmaConfig(
        architectures=["VaultGemmaForCausalLM"],
        dtype=dtype,
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        head_dim=config.d_head,
        hidden_activation="silu",
        max_position_embeddings=config.n_ctx,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        query_pre_attn_scalar=config.d_head,
        sliding_window=config.window,
        layer_types=["sliding_attention" if kind == "sliding" else "full_attention" for kind in config.layer_kinds],
        final_logit_softcapping=config.logit_cap,
        attn_logit_softcapping=None,
        tie_word_embeddings=False,
        bos_token_id=special_id,
        eos_token_id=special_id,
        pad_token_id=special_id,
    )


def shard_config(values: dict[str, Any], pattern: str | None = None, where: str = "config.json") -> ShardConfig:
    """The Shard that a VaultGemma's config.json describes. Raises HomeError naming the first key that does not fit.

    `pattern` is how the Shard wrote its layer pattern; it counts if it means the same layers.
    """
    required: dict[str, Any] = {
        "model_type": "vaultgemma",
        "hidden_activation": "silu",
        "attn_logit_softcapping": None,
        "tie_word_embeddings": False,
        "num_key_value_heads": values.get("num_attention_heads"),
        "query_pre_attn_scalar": values.get("head_dim"),
    }
    for key, wanted in required.items():
        if values.get(key, "missing") != wanted:
            raise HomeError(f"{where}: {key}={values.get(key, 'missing')!r}, but a Shard needs {wanted!r}")
    if values.get("attention_bias"):
        raise HomeError(f"{where}: attention_bias=True, but a Shard has no biases")
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type") != "default":
        raise HomeError(f"{where}: rope_type={rope.get('rope_type')!r}, but a Shard's positions need 'default'")
    letters = "".join("S" if kind == "sliding_attention" else "G" for kind in values["layer_types"])
    if letters[-1] != "G":
        raise HomeError(f"{where}: the last layer is sliding, but a Shard's last layer is global")
    try:
        described = ShardConfig(
            vocab_size=values["vocab_size"],
            n_ctx=values["max_position_embeddings"],
            d_model=values["hidden_size"],
            n_layers=values["num_hidden_layers"],
            n_heads=values["num_attention_heads"],
            d_head=values["head_dim"],
            d_mlp=values["intermediate_size"],
            layer_pattern=letters,
            window=values["sliding_window"],
            rope_base=float(rope["rope_theta"]),
            norm_eps=values["rms_norm_eps"],
            logit_cap=values["final_logit_softcapping"],
        )
    except KeyError as error:
        raise HomeError(f"{where}: {error.args[0]} is missing") from None
    if pattern is not None:
        as_written = ShardConfig.from_dict({**described.to_dict(), "layer_pattern": pattern})
        if as_written.layer_kinds == described.layer_kinds:
            return as_written
    return described


# ----------------------------------------------------------------------------------------------- the weights

_LINEARS = {
    "self_attn.q_proj": ("attn.W_Q", "head d_model d_head -> (head d_head) d_model"),
    "self_attn.k_proj": ("attn.W_K", "head d_model d_head -> (head d_head) d_model"),
    "self_attn.v_proj": ("attn.W_V", "head d_model d_head -> (head d_head) d_model"),
    "self_attn.o_proj": ("attn.W_O", "head d_head d_model -> d_model (head d_head)"),
    "mlp.gate_proj": ("mlp.W_gate", "d_model d_mlp -> d_mlp d_model"),
    "mlp.up_proj": ("mlp.W_in", "d_model d_mlp -> d_mlp d_model"),
    "mlp.down_proj": ("mlp.W_out", "d_mlp d_model -> d_model d_mlp"),
}
_NORMS = {"input_layernorm": "ln1", "pre_feedforward_layernorm": "ln2"}


def _names(config: ShardConfig) -> dict[str, tuple[str, str | None]]:
    """VaultGemma's name to (ours, how to rearrange ours into it; None: a norm). The embeddings are not among them."""
    names: dict[str, tuple[str, str | None]] = {"model.norm.weight": ("ln_final.w", None)}
    for layer in range(config.n_layers):
        for theirs, (ours, pattern) in _LINEARS.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = (f"blocks.{layer}.{ours}", pattern)
        for theirs, ours in _NORMS.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = (f"blocks.{layer}.{ours}.w", None)
    return names


def to_vaultgemma(model: Shard, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """VaultGemma's state dict in `dtype`, on the CPU."""
    weights = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    embedding = weights["embed.W_E"]
    converted = {
        "model.embed_tokens.weight": embedding / _embed_scale(model.config, dtype),
        "lm_head.weight": embedding.clone(),
    }
    for theirs, (ours, pattern) in _names(model.config).items():
        converted[theirs] = weights[ours] - 1 if pattern is None else rearrange(weights[ours], pattern)
    return {name: tensor.to(dtype).contiguous() for name, tensor in converted.items()}


def from_vaultgemma(
    weights: dict[str, Tensor],
    config: ShardConfig,
    exact_norms: dict[str, Tensor] | None = None,
    where: str = "weights",
) -> dict[str, Tensor]:
    """Our state dict from VaultGemma's. Raises HomeError when a weight is missing, extra, misshapen, or untied."""
    names = _names(config)
    expected = {*names, "lm_head.weight", "model.embed_tokens.weight"}
    if odd := sorted(expected ^ weights.keys()):
        raise HomeError(f"{where}: {odd[0]} is {'missing' if odd[0] in expected else 'no weight of a Shard'}")
    embedding = weights["lm_head.weight"]
    _check_tied(embedding, weights["model.embed_tokens.weight"], config, where)
    heads = {"head": config.n_heads}
    converted = {"embed.W_E": embedding}
    for theirs, (ours, pattern) in names.items():
        stored = weights[theirs]
        if pattern is None:
            converted[ours] = _norm_weight(stored, (exact_norms or {}).get(ours))
        else:
            ours_axes, their_axes = pattern.split(" -> ")
            sizes = heads if "(" in pattern else {}
            converted[ours] = rearrange(stored, f"{their_axes} -> {ours_axes}", **sizes).contiguous()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Shard(config).state_dict().items()}
    for name, shape in shapes.items():
        if converted[name].shape != shape:
            raise HomeError(f"{where}: {name} would be {tuple(converted[name].shape)}, config.json says {tuple(shape)}")
    return converted


def _embed_scale(config: ShardConfig, dtype: torch.dtype) -> float:
    """What VaultGemma multiplies the embedding by: sqrt(d_model), rounded to the dtype it runs in."""
    return float(torch.tensor(config.d_model**0.5).to(dtype))


def _check_tied(embedding: Tensor, embed_tokens: Tensor, config: ShardConfig, where: str) -> None:
    back = embed_tokens.float() * _embed_scale(config, embed_tokens.dtype)
    rounding = 4 * torch.finfo(embed_tokens.dtype).eps
    if back.shape != embedding.shape or not torch.allclose(back, embedding.float(), rtol=rounding, atol=1e-12):
        raise HomeError(
            f"{where}: embed_tokens times sqrt({config.d_model}) is not lm_head, but a Shard has one embedding for "
            "both ends; untied fine-tuning cannot come back"
        )


def _norm_weight(stored: Tensor, exact: Tensor | None) -> Tensor:
    """1 + stored, or the exact weight if it is the one that `stored` was rounded from."""
    if exact is not None and exact.shape == stored.shape and torch.equal((exact.float() - 1).to(stored.dtype), stored):
        return exact.to(stored.dtype)
    return (1 + stored.float()).to(stored.dtype)


def _norms(model: Shard) -> dict[str, Tensor]:
    state = model.state_dict()
    return {
        ours: state[ours].detach().cpu().clone() for ours, pattern in _names(model.config).values() if pattern is None
    }


def _read_side_file(path: Path) -> tuple[dict[str, Tensor], str | None]:
    if not path.exists():
        return {}, None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        pattern = (file.metadata() or {}).get("layer_pattern")
    return read_tensors(path), pattern


# --------------------------------------------------------------------------------------- tokens and generation


def pretrained_tokenizer(tokenizer: Tokenizer, n_ctx: int, padding_side: str) -> PreTrainedTokenizerFast:
    """The same vocabulary for transformers, the begin-of-document token in front, as every trained document had it.

    The special token's literal text in a prompt stays ordinary text, as in Shardscope.
    """
    from transformers import PreTrainedTokenizerFast

    special = tokenizer.backend.id_to_token(tokenizer.bos_id)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        name_or_path="shardscope",  # TransformerLens asks for one
        bos_token=special,
        eos_token=special,
        pad_token=special,
        add_bos_token=True,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=n_ctx,
        padding_side=padding_side,
    )


def native_tokenizer(path: Path) -> Tokenizer:
    """Our tokenizer from a tokenizer.json that transformers wrote: without what it adds around the text."""
    values = {**read_json(path), "post_processor": None, "padding": None, "truncation": None}
    return Tokenizer(Backend.from_str(json.dumps(values)))


def _special_id(model: Shard) -> int:
    return model.tokenizer.bos_id if model.tokenizer is not None else 0


def _generation_config(special_id: int) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=special_id,
        eos_token_id=special_id,
        pad_token_id=special_id,
        do_sample=False,
    )
