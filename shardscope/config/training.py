"""How a run learns: first weights, optimizer, schedule and loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardscope.config.errors import require
from shardscope.config.fields import choice


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
        require(self.lr > 0, f"optimizer.lr={self.lr} must be above 0")
        require(self.adamw_ratio > 0, f"optimizer.adamw_ratio={self.adamw_ratio} must be above 0")
        for name in ("momentum", "momentum_start", "neuron_beta"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
        require(
            0 <= self.momentum_warmup <= 1, f"optimizer.momentum_warmup={self.momentum_warmup} is a share; use 0 to 1"
        )
        require(all(0 <= b < 1 for b in self.betas), f"optimizer.betas={self.betas} must lie in [0, 1)")
        for name in ("weight_decay", "clip", "z_loss"):
            require(
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
        require(self.embedding > 0, f"init.embedding={self.embedding} must be above 0")


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
        require(self.steps >= 1, f"schedule.steps={self.steps} must be at least 1")
        for name in ("warmup", "decay"):
            require(0 <= getattr(self, name) <= 1, f"schedule.{name}={getattr(self, name)} is a share; use 0 to 1")
        require(
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
    sample_every: int = choice(0, help="steps between samples of the model card's six prompts; 0: never")
    sentinel_every: int = choice(1000, help="steps between measurements of the singular values of every Muon matrix")
    save_every: int = choice(500, help="steps between checkpoints")
    keep: int = choice(3, help="newest checkpoints kept beside the last; 0: all")
    max_minutes: float = choice(0.0, help="wall-clock budget of this command, in minutes; 0: none")
    grace_seconds: float = choice(30.0, help="seconds to save and exit after SIGTERM or SIGINT")
    max_bad_steps: int = choice(10, help="steps in a row with a non-finite loss or gradient before the run stops")
    on_trouble: Literal["report", "pause", "rewind"] = choice(
        "report",
        help="a plateau, or a loss spike or explosion that stays: report it, pause the run, or return to the last "
        "checkpoint before it and continue at half the rate (three times at most)",
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
            require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("micro_batch", "sample_every", "keep", "max_minutes", "grace_seconds"):
            require(getattr(self, name) >= 0, f"train.{name}={getattr(self, name)} is negative; use 0 or more")
        require(
            self.micro_batch == 0 or self.batch_size % self.micro_batch == 0,
            f"train.micro_batch={self.micro_batch} does not divide train.batch_size={self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is written of every head and matrix while training: the run's biography.jsonl."""

    every: int = choice(50, help="steps between probes of every head and matrix, in biography.jsonl; 0: never")
    budget: float = choice(
        0.01,
        help="largest share of the run's time for probes, half of it for samples; what would exceed it is left out; "
        "1: no limit",
    )
    tokens: int = choice(
        0, help="held-out tokens, of all sources together, for the loss by position; 0: an eighth of a step's"
    )
    lags: tuple[int, ...] = choice(
        (), help="distances at which induction is scored; empty: 8, and half, one and one and a half windows"
    )
    samples: bool = choice(True, help="with labelled samples of the card's six prompts")

    def __post_init__(self) -> None:
        require(self.every >= 0, f"probe.every={self.every} is negative; use 0 for no probes")
        require(
            0 < self.budget <= 1,
            f"probe.budget={self.budget} is a share above 0 and up to 1; set probe.every = 0 for no probes",
        )
        require(self.tokens >= 0, f"probe.tokens={self.tokens} is negative; use 0 for an eighth of a step's")
        require(
            all(lag >= 2 for lag in self.lags) and len(set(self.lags)) == len(self.lags),
            f"probe.lags={list(self.lags)} must be different distances of at least 2 tokens",
        )
