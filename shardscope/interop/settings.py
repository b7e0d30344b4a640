"""What somebody else's config says of a Shard, under whatever names.

Every key is either a setting of the architecture that is understood, one that only concerns training, or one that says
that something is off which a Shard does not have. A key that is none of these could change what the model computes: it
is refused by name, and not passed over.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardscope.config import ConfigError, ShardConfig
from shardscope.interop.restricted import OriginalError, Settings, shown

_NAMES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("spellings.toml").read_text(encoding="utf-8"))
_SPELLINGS: dict[str, list[str]] = _NAMES["spellings"]
_LAYERS, _OTHER, _TRAINING = _NAMES["layers"], _NAMES["other"], _NAMES["training"]
_ALLOWED: dict[str, list[Any]] = {key: group["values"] for group in _NAMES["allowed"] for key in group["keys"]}
_UNDERSTOOD = {
    *(name for names in _SPELLINGS.values() for name in names),
    *(*_LAYERS["pattern"], *_LAYERS["global_every"], *_OTHER["qk_norm"], *_OTHER["key_value_heads"]),
    *_OTHER["shown_by_weights"],
}
_NUMBERS = {"rope_base", "norm_eps", "logit_cap"}  # the other settings are whole numbers
_SEEN_IN_WEIGHTS = {"vocab_size", "d_model", "n_layers", "d_head", "d_mlp"}
# The length that a run trained on counts only where no longer context is stated.
_TRAINED_LENGTH = {"seq_len", "seq_length", "sequence_len", "sequence_length"}
_PATTERNS = {"gemma4": "SG", "all_global": "G"}
_KIND_WORDS = {**dict.fromkeys(_LAYERS["sliding"], "S"), **dict.fromkeys(_LAYERS["global"], "G")}
# Being without one of these would be another model; without any other key it is the one that a Shard is.
_NEEDED = {"causal", "is_causal", "pre_norm", "prenorm", "use_rope", "gated_mlp", "use_swiglu", "swiglu", "use_glu"}


@dataclass(frozen=True)
class Seen:
    """What the weights say for themselves."""

    vocab_size: int
    d_model: int
    n_layers: int
    d_mlp: int
    attention: int  # heads times their width
    n_heads: int | None = None  # where the heads have an axis of their own


def read_settings(values: Mapping[str, Any], seen: Seen, ignore: Collection[str] = ()) -> tuple[ShardConfig, list[str]]:
    """The architecture, and lines on what was not stated and what was passed over.

    What the config does not say is taken from the weights, else from the published model. `ignore` are keys that the
    user knows not to matter. Raises OriginalError for a key that is not understood and could matter, and where config
    and weights disagree.
    """
    values = _flat(values, ignore)
    if values.get("engram_enabled"):
        raise OriginalError(
            "engram_enabled=True: the memory bank is not part of a Shard; only checkpoints without it are read"
        )
    found: dict[str, Any] = {"layer_pattern": _pattern(values, seen.n_layers)}
    found |= _stated(values, seen, all_global=set(found["layer_pattern"]) == {"G"})
    found |= {"qk_norm": True} if any(values.get(key) is True for key in _OTHER["qk_norm"]) else {}
    strange = [f"{key}={shown(value)}" for key, value in values.items() if not _harmless(key, value, found, seen)]
    if strange:
        raise OriginalError(
            f"the file's config says {', '.join(strange[:8])}{' and more' if len(strange) > 8 else ''}, which is not "
            "understood and could change what the model computes; if it only concerned training, pass --ignore with "
            "the key"
        )
    shown_by_weights = {"vocab_size": seen.vocab_size, "d_model": seen.d_model, "n_layers": seen.n_layers}
    for ours, size in shown_by_weights.items():
        if found.setdefault(ours, size) != size:
            raise OriginalError(f"the file's config says {ours}={found[ours]}, its weights show {size}")
    found.setdefault("d_mlp", seen.d_mlp)
    if seen.n_heads is not None:
        found.setdefault("n_heads", seen.n_heads)
    if "d_head" in found and "n_heads" not in found:
        found["n_heads"] = max(1, seen.attention // found["d_head"])
    if "n_heads" in found:
        found.setdefault("d_head", max(1, seen.attention // found["n_heads"]))
    for key in _OTHER["key_value_heads"]:
        if (kv_heads := values.get(key)) is not None and not (
            _is_number(kv_heads, whole=True) and kv_heads == found.get("n_heads")
        ):
            raise OriginalError(
                f"{key}={shown(kv_heads)} for {found.get('n_heads')} query heads; a Shard has as many of both"
            )
    found["window"] = min(found.get("window", 1024), found.get("n_ctx", 8192))
    try:
        config = ShardConfig.from_dict(found)
    except ConfigError as error:
        raise OriginalError(f"the file's config does not describe a Shard: {error}") from None
    unstated = [
        f"{name} {value}" for name, value in config.to_dict().items() if name in _SPELLINGS and name not in found
    ]
    lines = [f"not stated, taken from the published model: {', '.join(unstated)}"] if unstated else []
    if there := sorted(set(ignore) & values.keys()):
        lines.append(f"passed over as you asked: {', '.join(there)}")
    return config, lines


def _flat(values: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    """The config without the tables that it may be sorted into."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        value = value.values if isinstance(value, Settings) else value
        if key in ignore:
            flat[key] = None
        elif isinstance(value, dict) and (key in _OTHER["tables"] or key in _OTHER["rope_tables"]):
            inner = {str(name): part for name, part in value.items()}
            if key in _OTHER["rope_tables"]:
                inner = _rope_table(key, inner)
            for name, part in inner.items():
                if name in flat and flat[name] != part:
                    raise OriginalError(f"the file's config says {name} twice, {shown(flat[name])} and {shown(part)}")
                flat[name] = part
        else:
            flat[key] = value
    return flat


def _rope_table(key: str, inner: dict[str, Any]) -> dict[str, Any]:
    """`{"rope_type": "default", "rope_theta": …}`: nothing but a base. Anything that stretches angles is refused."""
    kind = inner.pop("rope_type", inner.pop("type", "default"))
    factor = inner.pop("factor", 1)
    if kind != "default" or factor != 1:
        raise OriginalError(
            f"{key} says type {shown(kind)}, factor {shown(factor)}; a Shard does not scale its positions"
        )
    return {"rope_base" if name in _SPELLINGS["rope_base"] else f"{key}.{name}": value for name, value in inner.items()}


def _stated(values: Mapping[str, Any], seen: Seen, all_global: bool) -> dict[str, Any]:
    """Our settings that the config states under any of their names."""
    found: dict[str, Any] = {}
    for ours, spellings in _SPELLINGS.items():
        optional = ours in _SEEN_IN_WEIGHTS or (ours == "window" and all_global)
        stated = {name: values[name] for name in spellings if name in values}
        stated = {name: value for name, value in stated.items() if not (value is None and optional)}
        if ours == "d_mlp" and stated.get("hidden_dim") == seen.d_model != seen.d_mlp:
            del stated["hidden_dim"]  # some call the width of the stream so
        for name, value in stated.items():
            if not _is_number(value, whole=ours not in _NUMBERS):
                kind = "number" if ours in _NUMBERS else "whole number"
                raise OriginalError(
                    f"the file's config says {name}={shown(value)}; a Shard needs a {kind} above 0 there"
                )
        if ours == "n_ctx" and any(name not in _TRAINED_LENGTH for name in stated):
            stated = {name: value for name, value in stated.items() if name not in _TRAINED_LENGTH}
        if ours == "vocab_size" and stated.get("padded_vocab_size") == seen.vocab_size:
            stated = {"padded_vocab_size": seen.vocab_size}
        if len(set(stated.values())) > 1:
            raise OriginalError(f"the file's config says {' and '.join(f'{k}={v}' for k, v in stated.items())}")
        if stated:
            found[ours] = next(iter(stated.values()))
    return found


def _pattern(values: Mapping[str, Any], n_layers: int) -> str:
    """The layer pattern, from a name, letters, a list of kinds, or how often a layer is global."""
    found = {}
    for key in _LAYERS["pattern"]:
        if (value := values.get(key)) is None:
            continue
        kinds = [_KIND_WORDS.get(part) if isinstance(part, str) else None for part in value] if value and isinstance(
            value, str | list | tuple) else [None]  # fmt: skip
        if isinstance(value, str) and value in _PATTERNS:
            found[key] = _PATTERNS[value]
        elif isinstance(value, str) and value in _KIND_WORDS:
            found[key] = _KIND_WORDS[value]
        elif all(kinds) and (isinstance(value, str) or len(kinds) == n_layers):
            found[key] = "".join(kind or "" for kind in kinds)
        else:
            raise OriginalError(f"{key}={shown(value)} is unknown; known: {', '.join(_PATTERNS)}")
    for key in _LAYERS["global_every"]:
        every = values.get(key)
        if every is not None:
            if not _is_number(every, whole=True) or every > 1024:
                raise OriginalError(f"{key}={shown(every)}; a Shard needs a whole number above 0 there")
            found[key] = "S" * (every - 1) + "G"
    if values.get("use_sliding_window") is False:
        found["use_sliding_window"] = "G"
    kinds_of = {(pattern * n_layers)[: n_layers - 1] + "G" for pattern in found.values()}
    if len(kinds_of) > 1:
        raise OriginalError(f"the file's config says {' and '.join(f'{k}={shown(values[k])}' for k in found)}")
    for key, pattern in found.items():
        if isinstance(values[key], list | tuple) and pattern[-1] != "G":
            raise OriginalError(f"{key} ends with a sliding layer; the last layer of a Shard is global")
    return min(found.values(), key=len, default="SG")


def _harmless(key: str, value: object, found: Mapping[str, Any], seen: Seen) -> bool:
    """Whether a key is understood, or says nothing that a Shard does not do."""
    if value is None or (isinstance(value, str | list | tuple | dict | set) and not value):
        return True
    if value is False:
        return key not in _NEEDED
    if key in _UNDERSTOOD:
        return True
    if key in _ALLOWED:
        return isinstance(value, str | int | float) and value in _ALLOWED[key]
    d_head = found.get("d_head") or seen.attention / found.get("n_heads", 1)
    if key in _OTHER["d_head_again"]:
        return value == d_head
    if key in _OTHER["score_scale"]:
        return isinstance(value, int | float) and abs(value - d_head**-0.5) < 1e-6
    if key in _OTHER["rope_base_again"]:
        return value == found.get("rope_base")
    words = set(re.split(r"[_.]", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))
    only_training = not words.isdisjoint(_TRAINING["alone"]) and words.isdisjoint(_TRAINING["architecture"])
    return only_training or not words.isdisjoint(_TRAINING["always"]) or value == 0


def _is_number(value: object, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < 1e15
