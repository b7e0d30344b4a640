"""The architecture of a Shard, every size of it, and the named ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from shardscope.config.errors import ConfigError, require, shown, suggest
from shardscope.config.fields import choice, require_usable_numbers
from shardscope.config.plain_data import build

LayerKind = Literal["sliding", "global"]
_KIND_BY_LETTER: dict[str, LayerKind] = {"S": "sliding", "G": "global"}


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """The architecture of a Shard. The defaults are the published Shard-40m-v1 (preset `shard-54m`)."""

    vocab_size: int = choice(8192, help="entries of the vocabulary")
    n_ctx: int = choice(8192, help="longest sequence, in tokens")
    d_model: int = choice(512, help="width of the residual stream")
    n_layers: int = choice(12, help="number of blocks")
    n_heads: int = choice(8, help="attention heads of a layer")
    d_head: int = choice(64, help="width of one head; even, because RoPE rotates pairs")
    d_mlp: int = choice(2048, help="hidden width of the SwiGLU MLP")
    layer_pattern: str = choice(
        "SG", help="S sliding, G global; tiled over the depth, the last layer is always G ('G' alone: all global)"
    )
    window: int = choice(1024, help="positions a sliding layer sees, its own included")
    rope_base: float = choice(10_000.0, help="base of the rotary frequencies")
    norm_eps: float = choice(1e-6, help="added to the mean square inside RMSNorm")
    logit_cap: float = choice(30.0, help="logits are cap * tanh(logits / cap)")
    qk_norm: bool = choice(
        False,
        help="queries and keys are divided by their root mean square, without learned scales (the model card: off)",
    )
    qk_gain: float = choice(1.0, help="gain that multiplies normalised queries and keys; needs qk_norm")

    def __post_init__(self) -> None:
        for name, (largest, why) in _LARGEST.items():
            value = getattr(self, name)
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"model.{name}={shown(value)} is not a positive whole number",
            )
            require(value <= largest, f"model.{name}={shown(value)} is above {largest}; {why}")
        require_usable_numbers(self, "model.")
        for name in ("rope_base", "norm_eps", "logit_cap", "qk_gain"):
            require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)!r} must be above 0")
        require(
            self.qk_norm or self.qk_gain == 1.0,
            f"model.qk_gain={self.qk_gain} belongs to normalised queries and keys; set model.qk_norm = true",
        )
        unknown = sorted(set(self.layer_pattern) - set(_KIND_BY_LETTER))
        require(
            bool(self.layer_pattern) and not unknown,
            f"model.layer_pattern={self.layer_pattern!r} has unknown layer kinds {unknown}; "
            "use S (sliding) and G (global), as in 'SG'",
        )
        require(self.d_head % 2 == 0, f"model.d_head={self.d_head} is odd; RoPE rotates pairs, so use an even width")
        require(
            self.window <= self.n_ctx,
            f"model.window={self.window} is longer than model.n_ctx={self.n_ctx}; no layer sees past the context",
        )

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer, first to last."""
        tiled = [self.layer_pattern[layer % len(self.layer_pattern)] for layer in range(self.n_layers)]
        return tuple(_KIND_BY_LETTER[letter] for letter in [*tiled[:-1], "G"])

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer the number of positions it sees, its own included; None: all of them."""
        return tuple(self.window if kind == "sliding" else None for kind in self.layer_kinds)

    @property
    def n_params(self) -> int:
        """Parameters of the whole model; the embedding is tied and counts once."""
        attention = 4 * self.d_model * self.n_heads * self.d_head
        mlp = 3 * self.d_model * self.d_mlp
        norms = (2 * self.n_layers + 1) * self.d_model
        return self.vocab_size * self.d_model + self.n_layers * (attention + mlp) + norms

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ShardConfig:
        """One of the named architectures, with any field changed."""
        if name not in PRESETS:
            raise ConfigError(f"unknown model preset {name!r}{suggest(name, PRESETS)}")
        return replace(PRESETS[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShardConfig:
        """From plain data; `preset` may name the architecture that the other keys then change."""
        values = dict(values)
        name = values.pop("preset", None)
        if not isinstance(name, str | None):
            raise ConfigError(f"model.preset={shown(name)} is not allowed; use one of {', '.join(PRESETS)}")
        base = {} if name is None else cls.preset(name).to_dict()
        config: ShardConfig = build(cls, {**base, **values}, where="model")
        return config


# The largest of each size, and why. A config may be untrusted: one that no machine could hold is refused
# before memory is asked for, or a million blocks are built.
_LARGEST: dict[str, tuple[int, str]] = {
    "vocab_size": (2**16, "token shards hold 16-bit ids"),
    "n_ctx": (2**20, "the table of rotary angles has a row for each position"),
    "n_layers": (2**10, "no Shard is that deep"),
    **dict.fromkeys(("d_model", "n_heads", "d_head", "d_mlp"), (2**16, "no Shard is that wide")),
    "window": (2**20, "no layer sees past the context"),
}

PRESETS: dict[str, ShardConfig] = {
    # The published model.
    "shard-54m": ShardConfig(),
    # A GPU trains it in minutes; 7.2 M parameters keep the bf16 weights under 16 MB.
    "shard-nano": ShardConfig(n_ctx=2048, d_model=256, n_layers=6, n_heads=4, d_mlp=768, window=256),
    # A laptop's CPU trains it in minutes.
    "shard-pico": ShardConfig(
        vocab_size=1024, n_ctx=512, d_model=128, n_layers=4, n_heads=4, d_head=32, d_mlp=384, window=64
    ),
}
