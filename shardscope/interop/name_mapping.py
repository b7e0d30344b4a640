"""Recognising a Shard's weights under other people's names, by pattern and by shape.

A weight's layer is the first number in its name. Inside a layer its role follows from the words around it (attention
or MLP, q, k, v, o) and from its shape: of three MLP matrices the odd one out writes back to the residual stream, and a
matrix two or three times as large as its partner is several stacked ones. What names and shapes leave open is a
`Choice`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from einops import rearrange
from torch import Tensor

from shardscope.config import ShardConfig
from shardscope.interop.restricted import OriginalError
from shardscope.interop.settings import Seen

_LAYER = re.compile(r"(?:^|[._])(?:blocks?|layers?|h|decoders?|resblocks|blks?|units|stack)\.(\d+)\.(.+)$")
_ANY_NUMBER = re.compile(r"(?:^|\.)(\d+)\.(.+)$")  # where no name has such a word before its number
_WEIGHT = re.compile(r"\.(weight|w|scale|g)$")
# What no matrix of weights is called: the last part of a name, or a table in a module of rotary positions.
_BUFFER = re.compile(
    r"(^|[._])(inv_freq|freqs?(_cis|_cos|_sin)?|cos|sin|cached|cache|mask|tril|position_ids)$"
    r"|(^|\.)(rotary|rope)(_pos)?(_emb(edding)?s?)?\.(?!weight$)[^.]+$"
)
_ATTENTION = re.compile(r"attn|attention|mha|(^|[._])(self_)?(sa|att)([._]|$)")
_MLP = re.compile(r"mlp|ffn|feed_?forward|swiglu|(^|[._])ff([._]|$)")
_MLP_NORM = re.compile(
    r"(ln|norm|rms)_?2|(ffn|mlp|ff|feed_?forward)[._]?(ln|norm|rms)|(ln|norm|rms)_?(ffn|mlp|ff)|post_attention|pre_(ffn|mlp|feed)"
)
_ATTENTION_NORM = re.compile(
    r"(ln|norm|rms)_?1|(attn|attention)[._]?(ln|norm|rms)|(ln|norm|rms)_?(attn|attention)|input_|pre_att|sa_norm"
)
_FUSED_QKV = re.compile(r"qkv|c_attn|query_key_value|in_proj|w_pack")
_FUSED_KV = re.compile(r"(^|[._])(w|to_)?_?kv(_proj)?$")
_ONE_HEAD_MATRIX = re.compile(
    r"(?:^|[._])(?:w_?|to_?|linear_?)?(q|k|v|o|query|key|value|out)(?:_?proj|_?linear)?(?:\.0)?$"
)
_ATTENTION_OUT = re.compile(r"(^|[._])(c_proj|proj|dense|output)$")
# What the matrix that writes to the residual stream is called; the second only where none is called the first.
_MLP_OUT = (re.compile(r"down|c_proj|(^|\.)(w_?o|proj|output)$|4h_to_h"), re.compile(r"out|w_?2|fc_?2|lin(ear)?_?2"))
_HEAD = re.compile(r"head|unembed|output|to_logits|embed_out|ff_out|lm_out|logits|classifier")
_EMBEDDING = re.compile(r"emb|wte|tok")

_OURS = {
    **{"q": "attn.W_Q", "k": "attn.W_K", "v": "attn.W_V", "o": "attn.W_O", "kv": "attn.W_K and W_V"},
    **{"qkv": "attn.W_Q, W_K and W_V", "gate_up": "mlp.W_gate and W_in", "down": "mlp.W_out"},
    **{"ln1.w": "ln1.w", "ln2.w": "ln2.w"},
}

GATE_FIRST, GATE_SECOND = "gate before up", "up before gate"
IN_TURNS = ", row by row"
COLUMNS_FIRST = "matrices stored [in, out]"
HALVES, PAIRS = "RoPE rotates halves", "RoPE rotates neighbouring pairs"
STACKED, PER_HEAD = " stacked", " of each head together"


@dataclass(frozen=True)
class Choice:
    """One way to read what the names leave open, as in Choice("gate before up", HALVES, "qkv", STACKED)."""

    gate: str  # GATE_FIRST or GATE_SECOND, with IN_TURNS behind it where the rows of one matrix alternate
    rope: str
    order: str = ""  # of what one matrix holds: "qkv", "qvk", "kv", "vk"; nothing if q, k and v are apart
    fused: str = ""
    linear: bool = True  # matrices are stored [out, in], as nn.Linear does

    def __str__(self) -> str:
        attention = ", ".join(self.order) + self.fused
        stored = "" if self.linear else COLUMNS_FIRST
        return "; ".join(part for part in (self.gate, self.rope, attention, stored) if part)


@dataclass
class Layer:
    """The weights of one layer by role, each with its name in the file. A role may hold several stacked matrices."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gate_named: bool = False

    def put(self, role: str, name: str, weight: Tensor) -> None:
        if role in self.names:
            raise OriginalError(f"both {self.names[role]} and {name} look like the same weight ({role})")
        self.weights[role], self.names[role] = weight, name


@dataclass
class SortedWeights:
    """A state dict sorted into roles."""

    embedding: Tensor
    final_norm: Tensor
    layers: list[Layer]
    names: dict[str, str]  # our name for a part outside the layers, to the file's
    ignored: list[str]
    linear: tuple[bool, ...]  # whether matrices may be stored [out, in], as nn.Linear does, or [in, out]

    def seen(self) -> Seen:
        """The sizes that the weights show."""
        first, (vocab_size, d_model) = self.layers[0].weights, self.embedding.shape
        d_mlp = (first["first"].numel() if "first" in first else first["gate_up"].numel() // 2) // d_model
        heads = first["q"].shape[0] if "q" in first and first["q"].ndim == 3 else None
        return Seen(vocab_size, d_model, len(self.layers), d_mlp, first["o"].numel() // d_model, heads)

    def choices(self) -> Iterator[Choice]:
        """Every way to read it that names and shapes allow."""
        first = self.layers[0]
        gates = [GATE_FIRST] if first.gate_named else [GATE_FIRST, GATE_SECOND]
        if "gate_up" in first.weights:
            gates += [gate + IN_TURNS for gate in gates]
        orders = ["qkv", "qvk"] if "qkv" in first.weights else ["kv", "vk"] if "kv" in first.weights else [""]
        fused = [STACKED, PER_HEAD] if orders != [""] else [""]
        return (Choice(*parts) for parts in product(gates, [HALVES, PAIRS], orders, fused, self.linear))

    def state(self, config: ShardConfig, choice: Choice) -> dict[str, Tensor]:
        """Our state dict under one choice. Raises OriginalError when a shape does not fit the config."""
        state = {"embed.W_E": self.embedding, "ln_final.w": self.final_norm}
        for index, layer in enumerate(self.layers):
            for name, weight in _layer_state(layer, config, choice).items():
                state[f"blocks.{index}.{name}"] = weight
        return {name: weight.contiguous().clone() for name, weight in state.items()}

    def describe(self, choice: Choice) -> list[str]:
        """The mapping, one line a weight; the layers are named alike, so the first stands for all."""
        lines = [f"{ours} <- {theirs}" for ours, theirs in self.names.items()]
        gate, up = ("first", "second") if choice.gate.startswith(GATE_FIRST) else ("second", "first")
        ours_of = {**_OURS, gate: "mlp.W_gate", up: "mlp.W_in"}
        lines += [f"blocks.0.{ours_of[role]} <- {theirs}" for role, theirs in self.layers[0].names.items()]
        if others := range(1, len(self.layers)):
            lines.append(f"blocks.1{f' … blocks.{others[-1]}' if len(others) > 1 else ''}: likewise")
        lines.append(f"read as: {choice}")
        if self.ignored:
            lines.append(f"not weights, ignored: {', '.join(self.ignored)}")
        return lines


def read_spelling(weights: Mapping[str, Tensor]) -> SortedWeights:
    """Sort a state dict into roles. Raises OriginalError with what could not be placed, or claims one place twice."""
    outside: dict[str, Tensor] = {}
    inside: dict[int, dict[str, tuple[str, Tensor]]] = {}
    prefixes: dict[str, str] = {}
    ignored: list[str] = []
    pattern = _LAYER if any(map(_LAYER.search, weights)) else _ANY_NUMBER
    for name, weight in weights.items():
        if _is_buffer(name, weight):
            ignored.append(name)
        elif match := pattern.search(name):
            prefixes.setdefault(name[: match.start(1)], name)
            if len(prefixes) > 1:
                raise OriginalError(f"two stacks of layers, as in {' and '.join(prefixes.values())}; a Shard has one")
            layer, suffix = inside.setdefault(int(match[1]), {}), _WEIGHT.sub("", match[2].lower())
            if suffix in layer:
                raise OriginalError(f"both {layer[suffix][0]} and {name} look like the same weight ({suffix})")
            layer[suffix] = (name, weight)
        else:
            outside[name] = weight
    if sorted(inside) != list(range(len(inside))) or not inside:
        raise OriginalError(f"the names show layers {sorted(inside)}, not 0 to n-1; found {_some(weights)}")

    lost: list[str] = []
    names, embedding, final_norm = _read_outside(outside, lost)
    d_model = embedding.shape[1] if embedding is not None else 0
    layers = [_read_layer(inside[index], d_model, lost) for index in range(len(inside))]
    missing = [role for role, part in (("embedding", embedding), ("final norm", final_norm)) if part is None]
    if lost or missing or embedding is None or final_norm is None:
        found = f"cannot place {len(lost)} weights: {_some(lost)}" if lost else f"finds no {' and no '.join(missing)}"
        raise OriginalError(f"the importer {found}; a Shard is an embedding, norms, q, k, v, o and a SwiGLU per layer")
    if uneven := [index for index in inside if inside[index].keys() != inside[0].keys()]:
        raise OriginalError(f"layer {uneven[0]} is spelled differently from layer 0; a Shard's layers are alike")
    down, first = layers[0].weights["down"], layers[0].weights.get("first", layers[0].weights.get("gate_up"))
    assert first is not None
    square = first.shape == down.shape and first.shape[0] == first.shape[1]
    linear = (True, False) if square else (first.shape[1] == d_model and down.shape[0] == d_model,)
    return SortedWeights(embedding, final_norm, layers, names, ignored, linear)


def _is_buffer(name: str, weight: Tensor) -> bool:
    return (
        not weight.is_floating_point()
        or bool(_BUFFER.search(name.lower()))
        or (name.endswith("attn.bias") and weight.ndim == 4)
    )


def _read_outside(outside: dict[str, Tensor], lost: list[str]) -> tuple[dict[str, str], Tensor | None, Tensor | None]:
    names: dict[str, str] = {}
    embedding = norm = head = None
    for name, weight in outside.items():
        short = name.lower()
        if weight.ndim == 1 and re.search(r"norm|ln|rms", short) and norm is None:
            names["ln_final.w"], norm = name, weight
        elif weight.ndim == 2 and _HEAD.search(short) and head is None:
            names["unembedding (tied)"], head = name, weight
        elif weight.ndim == 2 and _EMBEDDING.search(short) and embedding is None:
            names["embed.W_E"], embedding = name, weight
        else:
            lost.append(f"{name} {tuple(weight.shape)}")
    if head is not None and embedding is not None:
        same_way = head if head.shape == embedding.shape else head.T
        if same_way.shape != embedding.shape or not torch.equal(same_way, embedding):
            raise OriginalError(
                f"{names['unembedding (tied)']} differs from {names['embed.W_E']}; a Shard ties the two"
            )
    return names, embedding, norm


def _read_layer(weights: dict[str, tuple[str, Tensor]], d_model: int, lost: list[str]) -> Layer:
    layer = Layer()
    mlp: dict[str, tuple[str, Tensor]] = {}
    attention: list[tuple[str, Tensor]] = []
    for suffix, (name, weight) in weights.items():
        role = _role(suffix, weight)
        if role == "mlp":
            mlp[suffix] = (name, weight)
        elif role == "attention":
            attention.append((name, weight))
        elif role is None:
            lost.append(f"{name} {tuple(weight.shape)}")
        else:
            layer.put(role, name, weight)
    _read_attention(layer, attention, lost)
    _read_mlp(layer, mlp, lost)
    for needed in (("ln1.w",), ("ln2.w",), ("o",), ("q", "qkv"), ("k", "kv", "qkv"), ("v", "kv", "qkv")):
        if not lost and not any(role in layer.names for role in needed):
            raise OriginalError(f"a layer lacks {needed[0]}; it has {_some(name for name, _ in weights.values())}")
    return layer


def _role(suffix: str, weight: Tensor) -> str | None:
    """What a weight inside a layer is; 'mlp' and 'attention' for matrices that are told apart together."""
    if suffix.endswith("bias"):
        return None
    if weight.ndim == 1:
        if _MLP_NORM.search(suffix):
            return "ln2.w"
        return "ln1.w" if _ATTENTION_NORM.search(suffix) else None
    if weight.ndim not in (2, 3):
        return None
    if _MLP.search(suffix) and not _ATTENTION.search(suffix):
        return "mlp"
    if _FUSED_QKV.search(suffix):
        return "qkv"
    if _FUSED_KV.search(suffix):
        return "kv"
    if (match := _ONE_HEAD_MATRIX.search(suffix)) and (_ATTENTION.search(suffix) or match[1] != "out"):
        return match[1][0]
    return "attention" if _ATTENTION.search(suffix) else "mlp"


def _read_attention(layer: Layer, matrices: list[tuple[str, Tensor]], lost: list[str]) -> None:
    """Of attention matrices that only shapes tell apart: one three times as large as the other holds q, k and v."""
    matrices = sorted(matrices, key=lambda item: -item[1].numel())
    known = layer.weights.get("o")
    if matrices and not layer.names.keys() & {"q", "k", "v", "kv", "qkv"}:
        partner = known if len(matrices) == 1 else matrices[1][1]
        if partner is not None and matrices[0][1].numel() == 3 * partner.numel():
            layer.put("qkv", *matrices.pop(0))
    if len(matrices) == 1 and known is None and layer.names.keys() & {"q", "qkv"}:
        layer.put("o", *matrices.pop(0))
    lost.extend(f"{name} {tuple(weight.shape)}" for name, weight in matrices)


def _read_mlp(layer: Layer, mlp: dict[str, tuple[str, Tensor]], lost: list[str]) -> None:
    """Tell gate, up and down apart: two are alike, and the one that is not writes back to the residual stream."""
    matrices = [(suffix, name, weight) for suffix, (name, weight) in sorted(mlp.items())]
    if len(matrices) == 2:
        (one, two) = sorted(matrices, key=lambda item: item[2].numel())
        if two[2].numel() == 2 * one[2].numel():
            layer.put("down", one[1], one[2])
            layer.put("gate_up", two[1], two[2])
            return
    if len(matrices) == 3:
        shapes = [tuple(weight.shape) for _, _, weight in matrices]
        odd = [index for index, shape in enumerate(shapes) if shapes.count(shape) == 1]
        if not odd:  # square: only a name can tell
            called = [[n for n, (suffix, _, _) in enumerate(matrices) if name.search(suffix)] for name in _MLP_OUT]
            odd = called[0] or called[1]
        if len(odd) == 1:
            _, name, weight = matrices.pop(odd[0])
            layer.put("down", name, weight)
            named = ["gate" in suffix for suffix, _, _ in matrices]
            layer.gate_named = sum(named) == 1
            matrices.sort(key=lambda item: "gate" not in item[0])
            layer.put("first", matrices[0][1], matrices[0][2])
            layer.put("second", matrices[1][1], matrices[1][2])
            return
    lost.extend(f"{name} {tuple(weight.shape)}" for _, name, weight in matrices)


def _layer_state(layer: Layer, config: ShardConfig, choice: Choice) -> dict[str, Tensor]:
    parts = {role: w if choice.linear or w.ndim != 2 else w.T for role, w in layer.weights.items()}
    heads = config.n_heads
    try:
        for fused in ("qkv", "kv"):
            if fused in parts:
                order = "(head n dh) d -> n (head dh) d" if choice.fused == PER_HEAD else "(n rest) d -> n rest d"
                sizes = {"n": len(fused), "head": heads} if choice.fused == PER_HEAD else {"n": len(fused)}
                parts |= zip(choice.order, rearrange(parts[fused], order, **sizes), strict=True)
        if "gate_up" in parts:
            rows = "(d_mlp two) d -> two d_mlp d" if choice.gate.endswith(IN_TURNS) else "(two d_mlp) d -> two d_mlp d"
            parts["first"], parts["second"] = rearrange(parts["gate_up"], rows, two=2)
        gate, up = parts["first"], parts["second"]
        if choice.gate.startswith(GATE_SECOND):
            gate, up = up, gate
        state = {
            "ln1.w": parts["ln1.w"],
            "ln2.w": parts["ln2.w"],
            "attn.W_Q": _for_halves(_into_heads(parts["q"], heads), choice),
            "attn.W_K": _for_halves(_into_heads(parts["k"], heads), choice),
            "attn.W_V": _into_heads(parts["v"], heads),
            "attn.W_O": rearrange(parts["o"], "d (head dh) -> head dh d", head=heads)
            if parts["o"].ndim == 2
            else parts["o"],
            "mlp.W_gate": gate.T,
            "mlp.W_in": up.T,
            "mlp.W_out": parts["down"].T,
        }
    except Exception as error:  # einops says in many ways that a shape does not divide
        raise OriginalError(
            f"{layer.names} does not fit {heads} heads: {str(error).strip().splitlines()[-1]}"
        ) from None
    return state


def _into_heads(weight: Tensor, heads: int) -> Tensor:
    return weight if weight.ndim == 3 else rearrange(weight, "(head dh) d -> head d dh", head=heads)


def _for_halves(weight: Tensor, choice: Choice) -> Tensor:
    """Channels reordered so that rotating halves does what rotating neighbouring pairs did."""
    if choice.rope == HALVES:
        return weight
    return rearrange(weight, "head d (pair two) -> head d (two pair)", two=2)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
