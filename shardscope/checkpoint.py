"""Checkpoints: directories that any tool can read, written whole or not at all.

A checkpoint holds `model.safetensors` (TransformerLens's weight names), `config.json`, `tokenizer.json`, and,
when training can go on from it, `optimizer.safetensors` and `state.json`. A run is a folder with `recipe.json`,
`metrics.jsonl` and `checkpoints/step-00001000/`. Nothing in them is code: no pickles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from shardscope.config import ConfigError, ShardConfig, suggest
from shardscope.device import pick_device
from shardscope.files import read_json, whole_folder, write_json, write_tensors
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
BUILT_IN = Path(__file__).parent / "builtin"
RUNS = Path("runs")


class CheckpointError(ConfigError):
    """A checkpoint that is not there, not whole, or not a Shard; the message says which and where."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a run needs to go on: the step it is at, plain facts about the run, and the optimizer's tensors."""

    step: int
    facts: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    folder: str | Path,
    model: Shard | Mapping[str, Tensor],
    *,
    config: ShardConfig | None = None,
    tokenizer: Tokenizer | None = None,
    state: TrainingState | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint so that `folder` either holds all of it or does not exist.

    `model` may be a state dict, with `config` beside it. `notes` go into config.json for people to read.
    """
    if isinstance(model, Shard):
        config, tokenizer, weights = model.config, tokenizer or model.tokenizer, model.state_dict()
    else:
        weights = dict(model)
    if config is None:
        raise CheckpointError("a state dict alone does not say its architecture; pass config= beside it")
    with whole_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, weights)
        write_json(partial / CONFIG, {"model_type": "shard", "model": config.to_dict(), **(notes or {})})
        if tokenizer is not None:
            tokenizer.save(partial / TOKENIZER)
        if state is not None:
            write_tensors(partial / OPTIMIZER, state.optimizer)
            write_json(partial / STATE, {"step": state.step, **state.facts})
    return Path(folder)


def load(
    path: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = torch.float32,
) -> Shard:
    """A model in eval mode, with `.config` and `.tokenizer`.

    `path` is a checkpoint or a run (its newest checkpoint). Without it: the built-in checkpoint if one ships, else
    the newest run under `runs/`. `device` auto is CUDA, else MPS, else the CPU. `dtype` None keeps the stored one,
    which is bfloat16 for the built-in checkpoint. Raises CheckpointError, or ConfigError for an absent device.
    """
    place = pick_device(device)
    folder = resolve_checkpoint(path)
    config = read_config(folder)
    weights = read_weights(folder, config)
    stored = next(iter(weights.values())).dtype
    model = Shard.of_weights(config, weights, dtype or stored, place)
    if (folder / TOKENIZER).exists():
        model.tokenizer = Tokenizer.load(folder / TOKENIZER)
        if model.tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has {model.tokenizer.vocab_size} entries but the model only "
                f"{config.vocab_size}; put the tokenizer.json that the model was trained with beside it"
            )
    return model.eval()


def resolve_checkpoint(path: str | Path | None = None) -> Path:
    """The checkpoint directory that `path` means. Raises CheckpointError when there is none."""
    if path is None:
        if (BUILT_IN / WEIGHTS).exists():
            return BUILT_IN
        runs = [run for run in RUNS.glob("*") if list_checkpoints(run)] if RUNS.is_dir() else []
        if not runs:
            raise CheckpointError(
                "no checkpoint was named, none ships with this version, and there is no run under runs/; "
                "name one, or train one with `make demo`"
            )
        return list_checkpoints(max(runs, key=lambda run: list_checkpoints(run)[-1].stat().st_mtime))[-1]
    path = Path(path)
    if (path / WEIGHTS).exists():
        return path
    if checkpoints := list_checkpoints(path):
        return checkpoints[-1]
    if not path.exists():
        near = [str(p) for p in sorted(path.parent.iterdir())] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such checkpoint or run{suggest(str(path), near)}")
    raise CheckpointError(f"{path}: neither a checkpoint ({WEIGHTS} is missing) nor a run (it has no whole checkpoint)")


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    whole = [p for p in found if (p / WEIGHTS).exists() and (p / CONFIG).exists()]
    return sorted(whole, key=lambda p: int(p.name.removeprefix("step-")))


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def read_config(folder: Path) -> ShardConfig:
    """The architecture in config.json. Raises CheckpointError when it is not a Shard's, or not a possible one."""
    values = read_notes(folder)["model"]
    try:
        return ShardConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def read_notes(folder: Path) -> dict[str, Any]:
    """All of config.json. Raises CheckpointError when it is not a Shard's."""
    notes = read_json(folder / CONFIG, CheckpointError)
    if notes.get("model_type") != "shard" or not isinstance(notes.get("model"), dict):
        raise CheckpointError(
            f"{folder / CONFIG}: model_type={notes.get('model_type')!r} is not a Shardscope checkpoint; "
            "use `shardscope import` for other formats"
        )
    return notes


def read_weights(folder: Path, config: ShardConfig) -> dict[str, Tensor]:
    """The weights, checked against the config by name and shape."""
    weights = read_tensors(folder / WEIGHTS)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Shard(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} is {found.get(name, 'missing')}, the config says "
                f"{expected.get(name, 'there is no such weight')}; the file does not belong to this config.json"
            )
    return weights


def read_training_state(folder: Path) -> TrainingState:
    """The training state beside the weights. Raises CheckpointError when the checkpoint was saved without one."""
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder}: holds no training state ({STATE}); it can be loaded but not trained on")
    facts = read_json(folder / STATE, CheckpointError)
    return TrainingState(step=facts.pop("step"), facts=facts, optimizer=read_tensors(folder / OPTIMIZER))


def read_metadata(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to (dtype, shape) of every tensor in a safetensors file, without reading the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None


def describe(path: str | Path | None = None) -> str:
    """What a checkpoint or run is, as text: architecture, training, and the state of its run."""
    folder = resolve_checkpoint(path)
    notes, config = read_notes(folder), read_config(folder)
    kinds = "".join(kind[0].upper() for kind in config.layer_kinds)
    dtypes = sorted({dtype for dtype, _ in read_metadata(folder / WEIGHTS).values()})
    facts = {
        "checkpoint": folder,
        "parameters": f"{config.n_params:,} ({', '.join(dtypes)})",
        "layers": f"{config.n_layers}, {kinds} (S sliding over {config.window} tokens, G global)",
        "width": f"d_model {config.d_model}, {config.n_heads} heads of {config.d_head}, d_mlp {config.d_mlp}",
        "vocabulary": f"{config.vocab_size:,}, context {config.n_ctx:,}",
        **{name: value for name, value in notes.items() if name not in ("model_type", "model")},
    }
    if (folder / STATE).exists():
        state = read_json(folder / STATE, CheckpointError)
        reason = f" ({state['reason']})" if state.get("reason") else ""
        facts["step"] = f"{state['step']:,} of {state.get('steps', state['step']):,}"
        facts["state"] = f"{state.get('status', 'unknown')}{reason}"
        if state.get("skipped_steps"):
            facts["skipped steps"] = state["skipped_steps"]
    facts = {name: f"{value:,}" if isinstance(value, int) else value for name, value in facts.items()}
    return "\n".join(f"{name:14} {value}" for name, value in facts.items())
