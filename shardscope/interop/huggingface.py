"""A Shard in transformers: a directory that stock `AutoModelForCausalLM` and `AutoTokenizer` load, and the way back.

Hugging Face's VaultGemma computes a Shard if three things are arranged: its embedding is multiplied by
sqrt(d_model), so `embed_tokens` holds E / sqrt(d_model) and the tied E is stored once more as `lm_head`; its norms
multiply by 1 + weight, so they hold w - 1; and its attention cap is off while the cap on the logits stays.

Coming back, E is read from `lm_head` and is exact. In float32 (w - 1) + 1 gives back every w of at least 1/2, bit for
bit, but rounds smaller ones; `shardscope.safetensors` beside the weights keeps the norms as they were. The stock
loader never reads it, and the importer believes an entry only if it still maps to the stored w - 1, so norms that
were changed in transformers win.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from tokenizers import Tokenizer as Backend
from torch import Tensor

from shardscope.checkpoint import WEIGHTS, load
from shardscope.config import ConfigError, ShardConfig
from shardscope.files import file_inside, read_json, whole_folder, write_text
from shardscope.interop.model_card import model_card
from shardscope.interop.rounding import DTYPES, compare_greedy_texts
from shardscope.model import Shard
from shardscope.tensors import metadata_of, read_tensors, why_no_weights, write_tensors
from shardscope.tokenizer import Tokenizer, TokenizerError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast, VaultGemmaConfig, VaultGemmaForCausalLM

EXACT_NORMS = "shardscope.safetensors"


class InteropError(ConfigError):
    """A model that cannot be brought to or from another library without changing it; the message says why."""


def export_pretrained(
    model: Shard | str | Path | None,
    folder: str | Path,
    dtype: str = "float32",
    report: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write `folder` for stock transformers: weights in `dtype`, config, generation config, tokenizer, model card.

    `model` is a Shard, a checkpoint or a run (None: the built-in model). Where `dtype` is narrower than the model's,
    the greedy texts of twenty prompts are compared, and what changed is reported and put on the card. Raises
    InteropError when `folder` is in use, when `dtype` is unknown, or when VaultGemma cannot express the architecture.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InteropError(f"{folder} exists and is not empty; name a new folder")
    if dtype not in DTYPES:
        raise InteropError(f"dtype={dtype!r} cannot be exported; use one of {', '.join(DTYPES)}")
    shard = model if isinstance(model, Shard) else load(model, device="cpu")
    config = vaultgemma_config(shard.config, dtype, _special_id(shard))
    weights, note = to_vaultgemma(shard, DTYPES[dtype]), ""
    if torch.finfo(DTYPES[dtype]).eps > torch.finfo(shard.embed.W_E.dtype).eps:
        note = compare_greedy_texts(shard, to_transformers(shard, dtype)).sentence(dtype)
        report(note)
    with whole_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, weights, {"format": "pt"})
        write_tensors(partial / EXACT_NORMS, _norms(shard), {"layer_pattern": shard.config.layer_pattern})
        config.save_pretrained(partial)
        _generation_config(_special_id(shard)).save_pretrained(partial)
        if shard.tokenizer is not None:
            pretrained_tokenizer(shard.tokenizer, shard.config.n_ctx, padding_side="left").save_pretrained(partial)
        write_text(partial / "README.md", model_card(shard.config, dtype, note))
    return folder


def import_pretrained(folder: str | Path) -> Shard:
    """The Shard in a directory that `export_pretrained` wrote, or that transformers saved after loading one.

    Of a float32 export the weights return bit for bit; mixed dtypes become the widest of them. Raises InteropError when
    the directory holds no Shard, CheckpointError when a file of it cannot be read.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise InteropError(
            f"{folder}: not an exported directory, it holds no config.json; name one that transformers saved"
        )
    values = read_json(file_inside(folder, "config.json", InteropError), InteropError)
    side, pattern = _read_side_file(folder / EXACT_NORMS)
    config = shard_config(values, pattern, where=str(folder / "config.json"))
    weights = from_vaultgemma(_read_weights(folder), config, side, where=str(folder / WEIGHTS))
    if reason := why_no_weights(weights):
        raise InteropError(f"{folder / WEIGHTS}: {reason}")
    widest = reduce(torch.promote_types, {weight.dtype for weight in weights.values()})
    model = Shard.of_weights(config, weights, widest)
    if (folder / "tokenizer.json").exists():
        model.tokenizer = native_tokenizer(folder / "tokenizer.json")
        if model.tokenizer.vocab_size > config.vocab_size:
            raise InteropError(
                f"{folder}: tokenizer.json has {model.tokenizer.vocab_size} entries, config.json only "
                f"vocab_size={config.vocab_size}"
            )
    return model.eval()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a directory, in one file or in the several that an index lists."""
    if os.path.lexists(folder / WEIGHTS):
        return read_tensors(file_inside(folder, WEIGHTS, InteropError), InteropError)
    index = folder / f"{WEIGHTS}.index.json"
    if not os.path.lexists(index):
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        instead = f"; it has {', '.join(others[:4])}, so save it again as safetensors" if others else ""
        raise InteropError(f"{folder}: has neither {WEIGHTS} nor {index.name}{instead}")
    places = read_json(file_inside(folder, index.name, InteropError), InteropError).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name for name in places.values()
    ):
        raise InteropError(f"{index}: its weight_map does not say in which file of the folder each weight is")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        found = read_tensors(file_inside(folder, name, InteropError), InteropError)
        if odd := sorted(part for part in found if places.get(part) != name):
            raise InteropError(f"{folder / name}: holds {odd[0][:100]}, which {index.name} does not place there")
        weights |= found
    if lacking := sorted(places.keys() - weights.keys()):
        raise InteropError(f"{index}: lists {lacking[0][:100]} in {places[lacking[0]]}, which does not hold it")
    return weights


def to_transformers(model: Shard, dtype: str = "float32") -> VaultGemmaForCausalLM:
    """A stock VaultGemma in memory, on copies of the weights, in eval mode."""
    from transformers import VaultGemmaForCausalLM

    module: Any = VaultGemmaForCausalLM(vaultgemma_config(model.config, dtype))
    module.to(DTYPES[dtype]).load_state_dict(to_vaultgemma(model, DTYPES[dtype]))
    return module.to(model.device).eval()


# ------------------------------------------------------------------------------------------------ the config


def vaultgemma_config(config: ShardConfig, dtype: str = "float32", special_id: int = 0) -> VaultGemmaConfig:
    """The VaultGemma that computes this architecture. Raises InteropError if there is none."""
    if config.qk_norm:
        raise InteropError(
            "this model normalises queries and keys (model.qk_norm), which no stock model of transformers does with "
            "norms before each part alone and capped logits; it opens in TransformerLens, or stays in Shardscope"
        )
    return config_without_qk_norm(config, dtype, special_id)


def config_without_qk_norm(config: ShardConfig, dtype: str = "float32", special_id: int = 0) -> VaultGemmaConfig:
    """The VaultGemma that computes all but the normalisation of queries and keys. Raises InteropError."""
    from transformers import VaultGemmaConfig

    if config.d_model % config.n_heads:
        raise InteropError(
            f"VaultGemma needs a d_model that is a multiple of n_heads, and this model has d_model={config.d_model} "
            f"and n_heads={config.n_heads}; such a Shard stays in Shardscope"
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


_WHOLE_NUMBERS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_ctx",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "head_dim": "d_head",
    "intermediate_size": "d_mlp",
    "sliding_window": "window",
}
_NUMBERS = {"rms_norm_eps": "norm_eps", "final_logit_softcapping": "logit_cap"}
_LETTERS = {"sliding_attention": "S", "full_attention": "G"}


def shard_config(values: dict[str, Any], pattern: str | None = None, where: str = "config.json") -> ShardConfig:
    """The Shard that a VaultGemma's config.json describes. Raises InteropError naming the first key that does not fit.

    `pattern` is how the Shard wrote its layer pattern; it counts if it means the same layers.
    """

    def require(fits: bool, key: str, wanted: str) -> None:
        if not fits:
            found = repr(values[key]) if key in values else "missing"
            raise InteropError(f"{where}: {key} is {found}, but a Shard needs {wanted}")

    kind = values.get("model_type")
    if kind == "shard":
        raise InteropError(f"{where}: is a checkpoint of Shardscope already; there is nothing to import")
    require(kind == "vaultgemma", "model_type", "'vaultgemma'")
    exact: dict[str, Any] = {"hidden_activation": "silu", "attn_logit_softcapping": None, "tie_word_embeddings": False}
    for key, wanted in exact.items():
        require(key in values and values[key] == wanted, key, repr(wanted))
    for key in ("attention_bias", "use_bidirectional_attention"):
        require(not values.get(key), key, "false")
    for key in _WHOLE_NUMBERS:
        value = values.get(key)
        require(isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31, key, "a whole number")
    for key in _NUMBERS:
        require(_is_positive(values.get(key)), key, "a number above 0")
    for key, same in (("num_key_value_heads", "num_attention_heads"), ("query_pre_attn_scalar", "head_dim")):
        require(values.get(key) == values[same], key, f"{values[same]}, as {same}")

    rope = values.get("rope_parameters")
    fits = isinstance(rope, dict) and rope.get("rope_type") == "default" and _is_positive(rope.get("rope_theta"))
    require(fits, "rope_parameters", "{'rope_type': 'default', 'rope_theta': a number above 0}")
    assert isinstance(rope, dict)
    kinds, n_layers = values.get("layer_types"), values["num_hidden_layers"]
    fits = isinstance(kinds, list) and len(kinds) == n_layers and all(kind in list(_LETTERS) for kind in kinds)
    require(fits, "layer_types", f"{n_layers} of {' and '.join(_LETTERS)}, one for each of num_hidden_layers")
    assert isinstance(kinds, list)
    require(kinds[-1] == "full_attention", "layer_types", "full_attention in the last layer")

    described = {ours: values[theirs] for theirs, ours in {**_WHOLE_NUMBERS, **_NUMBERS}.items()}
    described |= {"rope_base": rope["rope_theta"], "layer_pattern": "".join(_LETTERS[kind] for kind in kinds)}
    try:
        config = ShardConfig.from_dict(described)
    except ConfigError as error:
        raise InteropError(f"{where}: does not describe a Shard: {error}") from None
    if pattern is not None and set(pattern) <= {"S", "G"} and pattern:
        as_written = ShardConfig.from_dict({**described, "layer_pattern": pattern})
        if as_written.layer_kinds == config.layer_kinds:
            return as_written
    return config


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e15


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
    """Our state dict from VaultGemma's. Raises InteropError when a weight is missing, extra, misshapen, or untied."""
    names, shapes = _names(config), _vaultgemma_shapes(config)
    if odd := sorted(shapes.keys() ^ weights.keys()):
        raise InteropError(f"{where}: {odd[0]} is {'missing' if odd[0] in shapes else 'no weight of a Shard'}")
    for name, weight in weights.items():
        if tuple(weight.shape) != shapes[name]:
            raise InteropError(f"{where}: {name} is {tuple(weight.shape)}, config.json says {shapes[name]}")
        if not weight.is_floating_point() or weight.dtype.itemsize == 1:
            raise InteropError(
                f"{where}: {name} holds {weight.dtype}, but a Shard's weights are floats of 16 bits or more"
            )
    embedding = weights["lm_head.weight"]
    _check_tied(embedding, weights["model.embed_tokens.weight"], config, where)
    converted = {"embed.W_E": embedding}
    for theirs, (ours, pattern) in names.items():
        stored = weights[theirs]
        if pattern is None:
            converted[ours] = _norm_weight(stored, (exact_norms or {}).get(ours))
        else:
            ours_axes, their_axes = pattern.split(" -> ")
            sizes = {"head": config.n_heads} if "(" in pattern else {}
            converted[ours] = rearrange(stored, f"{their_axes} -> {ours_axes}", **sizes).contiguous()
    return converted


def _vaultgemma_shapes(config: ShardConfig) -> dict[str, tuple[int, ...]]:
    """VaultGemma's names and shapes, worked out without taking memory for them."""
    width, heads, d_mlp = config.d_model, config.n_heads * config.d_head, config.d_mlp
    layer: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (heads, width)),
        **{"self_attn.o_proj": (width, heads), "mlp.down_proj": (width, d_mlp)},
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (d_mlp, width)),
        **dict.fromkeys(_NORMS, (width,)),
    }
    ends = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (config.vocab_size, width))
    layers = {f"model.layers.{n}.{part}.weight": s for n in range(config.n_layers) for part, s in layer.items()}
    return {"model.norm.weight": (width,), **ends, **layers}


def _embed_scale(config: ShardConfig, dtype: torch.dtype) -> float:
    """What VaultGemma multiplies the embedding by: sqrt(d_model), rounded to the dtype it runs in."""
    return float(torch.tensor(config.d_model**0.5).to(dtype))


def _check_tied(embedding: Tensor, embed_tokens: Tensor, config: ShardConfig, where: str) -> None:
    """Both ends hold one embedding, up to the rounding of the narrowest dtype that they have been through."""
    through = [embed_tokens.dtype]
    for narrow in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(narrow).to(weight.dtype), weight) for weight in (embedding, embed_tokens)):
            through.append(narrow)
    scaled = [(embed_tokens.float() * _embed_scale(config, dtype), 4 * torch.finfo(dtype).eps) for dtype in through]
    if not any(torch.allclose(back, embedding.float(), rtol=eps, atol=1e-12) for back, eps in scaled):
        raise InteropError(
            f"{where}: embed_tokens times sqrt({config.d_model}) is not lm_head, but a Shard has one embedding for "
            "both ends, and transformers trains the two apart; keep both frozen to bring the rest back"
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
    return read_tensors(path, InteropError), metadata_of(path, InteropError).get("layer_pattern")


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
    values = {**read_json(path, InteropError), "post_processor": None, "padding": None, "truncation": None}
    try:
        return Tokenizer(Backend.from_str(json.dumps(values)))
    except TokenizerError as error:
        raise InteropError(f"{path}: {error}") from None
    except Exception as error:  # the library raises bare Exception
        raise InteropError(f"{path}: not a tokenizer.json of the tokenizers library: {error}") from None


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
