"""Every choice of a model or a run, as frozen dataclasses that cannot exist in a wrong state.

`ShardConfig` describes a model, `Recipe` a training run. Recipes are TOML files that state only their
choices; `load_recipe` merges a file with overrides given as dotted keys and validates the result once.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dacite

LayerKind = Literal["sliding", "global"]
_KIND_BY_LETTER: dict[str, LayerKind] = {"S": "sliding", "G": "global"}


class ConfigError(ValueError):
    """A config or recipe that states something impossible; the message says what, what is allowed, and where."""


def choice(default: Any = MISSING, *, help: str) -> Any:
    """A dataclass field whose `help` is what `--help` prints for it."""
    if isinstance(default, (list, dict)) or callable(default):
        return field(default_factory=default, metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# Above these a number is a mistake: no run takes as many steps or sees as many documents, and products of two such
# rates, shares or caps still fit into float32.
_LARGEST_COUNT, _LARGEST_NUMBER = 2**53, 1e12


def _require_usable_numbers(config: Any, where: str) -> None:
    """Every number in a dataclass, however deep, is finite and of a size that can be counted to."""
    for item in fields(config):
        value = getattr(config, item.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_dataclass(part):
                _require_usable_numbers(part, f"{where}{item.name}.")
            elif isinstance(part, float):
                _require(math.isfinite(part), f"{where}{item.name}={value!r} must be finite")
                _require(abs(part) <= _LARGEST_NUMBER, f"{where}{item.name}={value!r} is above {_LARGEST_NUMBER:g}")
            elif isinstance(part, int):
                _require(abs(part) <= _LARGEST_COUNT, f"{where}{item.name}={_shown(value)} is above {_LARGEST_COUNT}")


def _shown(value: Any) -> str:
    """`repr` for a message: of a long value the beginning only."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a number of too many digits"
    return text if len(text) <= 120 else text[:120] + "…"


def _require_no_control_characters(field_name: str, path: str) -> None:
    _require(
        not re.search(r"[\x00-\x1f\x7f]", path),
        f"{field_name}={path!r} holds a control character; TOML reads \\t and \\n in double quotes as tab and newline, "
        "so write a path with backslashes in 'single quotes'",
    )


def user_path(text: str, field_name: str) -> Path:
    """The path that a person wrote, `~` and $VARIABLES replaced. Raises ConfigError where they mean nothing here."""
    expanded = os.path.expandvars(text)
    _require(
        not re.search(r"\$(\w+|\{\w+\})", expanded) or os.path.exists(expanded),
        f"{field_name}={text!r} needs an environment variable that is not set; export it, or write the folder itself",
    )
    _require("\0" not in expanded, f"{field_name}={text!r} holds a NUL, which no file name can")
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        home = expanded.partition("/")[0]
        raise ConfigError(
            f"{field_name}={text!r}: this machine knows no home folder {home!r}; write the folder itself"
        ) from None


# --------------------------------------------------------------------------------------------- the model

# The largest of each size, and why. A config may come from a stranger: one that no machine could hold is refused
# before memory is asked for, or a million blocks are built.
_LARGEST: dict[str, tuple[int, str]] = {
    "vocab_size": (2**16, "token shards hold 16-bit ids"),
    "n_ctx": (2**20, "the table of rotary angles has a row for each position"),
    "n_layers": (2**10, "no Shard is that deep"),
    **dict.fromkeys(("d_model", "n_heads", "d_head", "d_mlp"), (2**16, "no Shard is that wide")),
    "window": (2**20, "no layer sees past the context"),
}


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
        False, help="queries and keys are divided by their root mean square, without learned scales (the card: off)"
    )
    qk_gain: float = choice(1.0, help="what normalised queries and keys are multiplied by, each; needs qk_norm")

    def __post_init__(self) -> None:
        for name, (largest, why) in _LARGEST.items():
            value = getattr(self, name)
            _require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"model.{name}={_shown(value)} is not a positive whole number",
            )
            _require(value <= largest, f"model.{name}={_shown(value)} is above {largest}; {why}")
        _require_usable_numbers(self, "model.")
        for name in ("rope_base", "norm_eps", "logit_cap", "qk_gain"):
            _require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)!r} must be above 0")
        _require(
            self.qk_norm or self.qk_gain == 1.0,
            f"model.qk_gain={self.qk_gain} belongs to normalised queries and keys; set model.qk_norm = true",
        )
        unknown = sorted(set(self.layer_pattern) - set(_KIND_BY_LETTER))
        _require(
            bool(self.layer_pattern) and not unknown,
            f"model.layer_pattern={self.layer_pattern!r} has unknown layer kinds {unknown}; "
            "use S (sliding) and G (global), as in 'SG'",
        )
        _require(self.d_head % 2 == 0, f"model.d_head={self.d_head} is odd; RoPE rotates pairs, so use an even width")
        _require(
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
        base = {} if name is None else cls.preset(name).to_dict()
        config: ShardConfig = _build(cls, {**base, **values}, where="model")
        return config


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


# ---------------------------------------------------------------------------------------------- the recipe


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    path: str = choice("", help="an existing tokenizer.json; empty: train one on the data")
    documents: int = choice(100_000, help="documents a new tokenizer is trained on, drawn from all sources")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One stream of documents of the mixture."""

    name: str = choice(help="short name, used in logs and metrics")
    path: str = choice(
        help="file, folder or glob of .txt/.jsonl/.json/.parquet (.gz .bz2 .xz .zst .zip), "
        "'hf:owner/dataset[:config]', 'builtin:NAME'; ~ and $VARIABLES are replaced"
    )
    weight: float = choice(1.0, help="share of the training sequences drawn from this source, relative to the others")
    holdout: str = choice("", help="a path of held-out documents; empty: one document in a hundred is held out")
    text: str = choice(
        "text",
        help="the field of a row that holds the document ('text', 'meta.body'), or a text with fields in braces, "
        "as in '{question} {answer}'",
    )
    split: str = choice("train", help="split of a Hugging Face dataset")
    documents: int = choice(0, help="read at most this many documents; 0: all")
    tokens: int = choice(0, help="about how many tokens it holds, for --dry-run before it was read; 0: unknown")
    cut: Literal["auto", "marker", "line", "paragraph", "file"] = choice(
        "auto",
        help="how a text file is cut into documents: at lines that hold the marker alone, and long text at empty lines "
        "(auto); wherever the marker stands; at every line; at empty lines; not at all (file)",
    )
    marker: str = choice("<|endoftext|>", help="what separates the documents of a text file; see cut")

    def __post_init__(self) -> None:
        _require(bool(self.name), "data.sources: a source has an empty name; give it one, as in name = 'prose'")
        for field_name in ("path", "holdout"):
            _require_no_control_characters(f"data.sources.{self.name}: {field_name}", getattr(self, field_name))
        _require(0 <= self.weight < math.inf, f"data.sources.{self.name}: weight={self.weight}; use a number from 0 on")
        _require(
            self.documents >= 0, f"data.sources.{self.name}: documents={self.documents} is negative; use 0 for all"
        )
        _require(self.tokens >= 0, f"data.sources.{self.name}: tokens={self.tokens} is negative; use 0 where unknown")
        _require(bool(self.text), f"data.sources.{self.name}: text is empty; name the field that holds the document")
        _require(
            bool(self.marker.strip()) or self.cut not in ("auto", "marker"),
            f"data.sources.{self.name}: marker={self.marker!r} is empty; name what separates documents",
        )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Scored questions that no training document may repeat."""

    name: str = choice(help="short name, used in logs and metrics")
    path: str = choice(help="as a source's path: the questions, one a row")
    text: str = choice("*", help="as a source's text; '*': every text in the row")
    split: str = choice("test", help="split of a Hugging Face dataset")

    def __post_init__(self) -> None:
        _require(bool(self.name), "data.benchmarks: one has an empty name; give it one, as in name = 'arc'")
        _require_no_control_characters(f"data.benchmarks.{self.name}: path", self.path)
        _require(bool(self.text), f"data.benchmarks.{self.name}: text is empty; '*' takes every text in a row")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[Source, ...] = choice(tuple, help="the mixture: tables of name, path, weight …")
    seq_len: int = choice(2048, help="tokens of a training sequence")
    on_malformed: Literal["skip", "fail"] = choice(
        "fail", help="a malformed line is counted and reported with file and line, then skipped, or ends the run"
    )
    max_document_bytes: int = choice(
        64_000_000, help="a longer document is malformed; reading takes up to ten times as much memory"
    )
    overlap: Literal["count", "drop", "ignore"] = choice(
        "count",
        help="training documents that repeat held-out text or benchmark questions (the same text, or 13 words in a "
        "row) are counted and reported, left out, or not looked for",
    )
    benchmarks: tuple[Benchmark, ...] = choice(tuple, help="scored questions to keep out: tables of name, path, text …")
    cache_dir: str = choice("", help="where tokenized shards are kept; empty: ~/.cache/shardscope/tokens")
    mask_documents: bool = choice(False, help="attention does not cross document boundaries")

    def __post_init__(self) -> None:
        _require(len(self.sources) > 0, "data.sources is empty; name at least one source of documents")
        names = [source.name for source in self.sources]
        doubled = sorted({name for name in names if names.count(name) > 1})
        _require(not doubled, f"data.sources: the names {doubled} are used twice; every source needs its own")
        scored = [benchmark.name for benchmark in self.benchmarks]
        _require(len(set(scored)) == len(scored), f"data.benchmarks: a name of {scored} is used twice")
        _require(sum(source.weight for source in self.sources) > 0, "data.sources: every weight is 0; raise one")
        _require(self.max_document_bytes >= 1, f"data.max_document_bytes={self.max_document_bytes} must be at least 1")
        _require(self.seq_len >= 2, f"data.seq_len={self.seq_len} is too short; use at least 2 tokens")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["muon", "adamw"] = choice(
        "muon", help="muon: Muon for the block matrices, AdamW for the rest; adamw: AdamW for everything"
    )
    lr: float = choice(3e-4, help="peak learning rate of Muon (of AdamW, if that is the optimizer)")
    adamw_ratio: float = choice(0.25, help="AdamW's rate beside Muon, as a share of lr")
    momentum: float = choice(0.95, help="Muon's Nesterov momentum")
    momentum_start: float = choice(0.0, help="Muon's momentum at the first step; 0: the same throughout")
    momentum_warmup: float = choice(0.0, help="share of the steps over which it rises from there, linearly")
    newton_schulz: Literal["deepseek-v4", "polar-express"] = choice(
        "deepseek-v4", help="coefficients of Muon's iteration: ten steps as published, or five of the Polar Express"
    )
    neuron_beta: float = choice(
        0.0, help="NorMuon: decay of the second moment that evens out Muon's update over neurons; 0: off"
    )
    weight_decay: float = choice(0.1, help="decoupled weight decay of the Muon matrices")
    betas: tuple[float, float] = choice((0.9, 0.95), help="AdamW's betas")
    clip: float = choice(1.0, help="largest global norm of the gradient; 0: no clipping")
    z_loss: float = choice(1e-4, help="weight of mean(logsumexp(capped logits)^2)")

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optimizer.lr={self.lr} must be above 0")
        _require(self.adamw_ratio > 0, f"optimizer.adamw_ratio={self.adamw_ratio} must be above 0")
        for name in ("momentum", "momentum_start", "neuron_beta"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
        _require(
            0 <= self.momentum_warmup <= 1, f"optimizer.momentum_warmup={self.momentum_warmup} is a share; use 0 to 1"
        )
        _require(all(0 <= b < 1 for b in self.betas), f"optimizer.betas={self.betas} must lie in [0, 1)")
        for name in ("weight_decay", "clip", "z_loss"):
            _require(
                getattr(self, name) >= 0, f"optimizer.{name}={getattr(self, name)} is negative; use 0 to switch off"
            )


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The weights that training begins with."""

    embedding: float = choice(0.02, help="standard deviation of the embedding")
    output: Literal["scaled", "zero"] = choice(
        "scaled",
        help="W_O and W_out: scaled, smaller the deeper the model; zero, so that every block begins as the identity",
    )

    def __post_init__(self) -> None:
        _require(self.embedding > 0, f"init.embedding={self.embedding} must be above 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    steps: int = choice(1000, help="optimizer steps of the whole run")
    kind: Literal["wsd", "cosine"] = choice("wsd", help="wsd: rise, hold, fall; cosine: the ablation")
    warmup: float = choice(0.015, help="share of the steps over which the rate rises linearly from 0")
    decay: float = choice(
        0.2, help="share of the steps over which a wsd rate falls; 0: it never falls (a stable phase)"
    )
    shape: Literal["sqrt", "linear"] = choice("sqrt", help="how a wsd rate falls: 1 - sqrt(x), or 1 - x")

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"schedule.steps={self.steps} must be at least 1")
        for name in ("warmup", "decay"):
            _require(0 <= getattr(self, name) <= 1, f"schedule.{name}={getattr(self, name)} is a share; use 0 to 1")
        _require(
            self.warmup + self.decay <= 1,
            f"schedule.warmup={self.warmup} and schedule.decay={self.decay} overlap; their sum may not pass 1",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: int = choice(64, help="sequences of one optimizer step, over all devices")
    micro_batch: int = choice(0, help="sequences a device holds at once; 0: the whole batch")
    device: str = choice("auto", help="auto (CUDA, then Apple's MPS, then CPU), or a torch device")
    dtype: Literal["auto", "float32", "bfloat16"] = choice(
        "auto", help="arithmetic of the matmuls; auto: bfloat16 on CUDA"
    )
    compile: Literal["auto", "on", "off"] = choice("auto", help="torch.compile; auto: on CUDA")
    cuda_graphs: bool = choice(
        True,
        help="replay forward and backward as a CUDA graph, on one compiled GPU; false saves the memory that an "
        "evaluation cannot share with it",
    )
    parallel: Literal["ddp", "fsdp"] = choice(
        "ddp",
        help="several processes: ddp, each holds all weights; fsdp, each holds a share of weights, gradients and "
        "optimizer state (FSDP2), for models that outgrow one GPU",
    )
    fp8: bool = choice(
        False, help="MLP matmuls in 8-bit floats, on Hopper and Ada GPUs; docs/training.md shows what it costs"
    )
    log_every: int = choice(10, help="steps between lines of metrics.jsonl")
    eval_every: int = choice(250, help="steps between held-out evaluations")
    eval_tokens: int = choice(100_000, help="held-out tokens of each source in an evaluation")
    sample_every: int = choice(0, help="steps between probe samples of the card's six prompts; 0: never")
    sentinel_every: int = choice(1000, help="steps between looks at the singular values of every Muon matrix")
    save_every: int = choice(500, help="steps between checkpoints")
    keep: int = choice(3, help="newest checkpoints kept beside the last; 0: all")
    max_minutes: float = choice(0.0, help="wall-clock budget of this start of the run; 0: none")
    grace_seconds: float = choice(30.0, help="time to save and leave after SIGTERM or SIGINT")
    max_bad_steps: int = choice(10, help="steps in a row with a non-finite loss or gradient before the run stops")
    on_trouble: Literal["report", "pause", "rewind"] = choice(
        "report",
        help="a plateau, or a loss spike or explosion that stays: report it, pause the run, or go back to the last "
        "checkpoint before it and on at half the rate (three times at most)",
    )
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = choice((), help="where metrics go beside metrics.jsonl")

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "log_every",
            "eval_every",
            "eval_tokens",
            "sentinel_every",
            "save_every",
            "max_bad_steps",
        ):
            _require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("micro_batch", "sample_every", "keep", "max_minutes", "grace_seconds"):
            _require(getattr(self, name) >= 0, f"train.{name}={getattr(self, name)} is negative; use 0 or more")
        _require(
            self.micro_batch == 0 or self.batch_size % self.micro_batch == 0,
            f"train.micro_batch={self.micro_batch} does not divide train.batch_size={self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run: pretrain from nothing, or anneal from a checkpoint of the stable phase."""

    name: str = choice(help="name of the run")
    phase: Literal["pretrain", "anneal"] = choice(help="pretrain starts from nothing, anneal from a checkpoint")
    run_dir: str = choice("", help="folder of the run; empty: runs/NAME")
    start_from: str = choice("", help="anneal: the checkpoint or run to start from")
    seed: int = choice(0, help="decides the initial weights and the order of the data")
    model: ShardConfig | None = choice(
        None, help="the architecture (a preset and changes to it); an anneal takes its checkpoint's"
    )
    init: InitConfig = choice(InitConfig, help="the weights a pretraining begins with")
    tokenizer: TokenizerConfig = choice(TokenizerConfig, help="the vocabulary")
    data: DataConfig = choice(help="the mixture of sources")
    optimizer: OptimizerConfig = choice(OptimizerConfig, help="the optimizer")
    schedule: ScheduleConfig = choice(ScheduleConfig, help="the learning rate over time")
    train: TrainConfig = choice(TrainConfig, help="the loop")

    def __post_init__(self) -> None:
        _require(bool(self.name), "name is empty; name the run")
        _require(
            re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", self.name) is not None and self.name.strip(".") != "",
            f"name={_shown(self.name)} names no folder; use up to 100 characters, none of them / or \\ "
            "(run_dir says where the folder lies)",
        )
        for field_name in ("run_dir", "start_from"):
            _require_no_control_characters(field_name, getattr(self, field_name))
        _require(self.seed >= 0, f"seed={_shown(self.seed)} is negative; use 0 or more")
        _require_usable_numbers(self, "")
        if self.phase == "pretrain":
            _require(self.model is not None, "a pretrain recipe needs [model], as in preset = 'shard-nano'")
            _require(not self.start_from, "start_from belongs to an anneal; a pretrain starts from nothing")
        else:
            _require(bool(self.start_from), "an anneal needs start_from: the checkpoint or run folder it continues")
            _require(self.model is None, "an anneal takes its checkpoint's architecture; remove [model]")
        if self.model is not None:
            _require(
                self.data.seq_len <= self.model.n_ctx,
                f"data.seq_len={self.data.seq_len} is longer than model.n_ctx={self.model.n_ctx}",
            )

    @property
    def folder(self) -> Path:
        """Where the run lies. Raises ConfigError for a `run_dir` that means nothing on this machine."""
        return user_path(self.run_dir or f"runs/{self.name}", "run_dir")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """From plain data (a TOML file, a run's recipe.json). Raises ConfigError that names the key."""
        values = dict(values)
        if isinstance(values.get("model"), Mapping):
            values["model"] = ShardConfig.from_dict(values["model"])
        recipe: Recipe = _build(cls, values, where="")
        return recipe


def load_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a TOML file, with `overrides` (dotted key to TOML value, as text) put over it.

    Raises ConfigError with the file, the key, what was found and what is allowed.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such recipe{suggest(str(path), near)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: cannot be read as TOML: it is nested too deeply") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not TOML, or a number of 5,000 digits
        hint = "; write a path with backslashes in 'single quotes'" if re.search(r"\\|escape|hex", str(error)) else ""
        raise ConfigError(f"{path}: cannot be read as TOML: {error}{hint}") from None
    for key, text in (overrides or {}).items():
        _put(values, key.split("."), _override(key, text))
    try:
        return Recipe.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def toml_value(text: str) -> Any:
    """A command-line word as TOML reads it; a word that is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _override(key: str, text: str) -> Any:
    """A command-line word as the field `key` means it: for a text the word itself, for anything else a TOML value."""
    value = toml_value(text)
    hint = _hints_by_key().get(key)
    if hint is str or get_origin(hint) is Literal:
        return value if isinstance(value, str) else text  # 2024 and 2024-05-01 may be names
    if get_origin(hint) is tuple and isinstance(value, str) and "\\" in text:
        return toml_value(text.replace("\\", "\\\\"))  # a list of paths as Windows writes them
    return value


@cache
def _hints_by_key(kind: type = Recipe, prefix: str = "") -> dict[str, Any]:
    """The type of every field by its dotted key."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        nested = _nested(hint)
        found |= {prefix + name: hint} if nested is None else _hints_by_key(nested, f"{prefix}{name}.")
    return found


def _nested(hint: Any) -> type | None:
    """The dataclass that a field holds, if it holds one; not of those in a list."""
    kinds = [h for h in (hint, *get_args(hint)) if isinstance(h, type) and is_dataclass(h)]
    return kinds[0] if kinds and get_origin(hint) is not tuple else None


def recipe_fields(kind: type = Recipe, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, help, default) of every field that a command line can override."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        nested = _nested(hints[item.name])
        if nested is not None:
            yield from recipe_fields(nested, f"{prefix}{item.name}.")
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        yield prefix + item.name, item.metadata["help"], default


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for a near miss, else the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key!r} is a single value, not a table")
    values[keys[-1]] = value


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """`kind` from plain data. An unknown key or a wrong type is an error that names the key."""
    prefix = f"{where}." if where else ""
    _refuse_unknown_keys(kind, values, prefix)
    try:
        return dacite.from_dict(kind, dict(values), dacite.Config(cast=[tuple], type_hooks={float: _float}))
    except dacite.MissingValueError as error:
        raise ConfigError(f"{prefix}{error.field_path} is missing; every {kind.__name__} needs it") from None
    except dacite.WrongTypeError as error:
        allowed = getattr(error.field_type, "__name__", None) or str(error.field_type)
        if get_origin(error.field_type) is Literal:
            allowed = " or ".join(repr(option) for option in get_args(error.field_type))
        raise ConfigError(f"{prefix}{error.field_path}={_shown(error.value)} is not allowed; use {allowed}") from None


def _refuse_unknown_keys(kind: type, values: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown key {prefix}{key}{suggest(key, hints)}")
        if get_origin(hints[key]) is tuple and not isinstance(value, (list, tuple)):
            shown = _shown(value)
            raise ConfigError(f"{prefix}{key}={shown} is not a list; write it in brackets, as in [{shown}]")
        nested = next((h for h in (hints[key], *get_args(hints[key])) if is_dataclass(h)), None)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(nested, type) and isinstance(item, Mapping):
                _refuse_unknown_keys(nested, item, f"{prefix}{key}.")


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf  # which no field allows
