"""Checkpoints: directories that any tool can read, written whole or not at all.

A checkpoint holds `model.safetensors` (TransformerLens's weight names), `config.json`, `tokenizer.json`, and,
when training can go on from it, `optimizer.safetensors` and `state.json`; `manifest.json` has the SHA-256 of each.
A run is a folder with `recipe.json`, `metrics.jsonl` and `checkpoints/step-00001000/`. Nothing in them is code: no
pickles.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from shardscope.config import ConfigError, ShardConfig, suggest_close
from shardscope.device import pick_device
from shardscope.files import file_inside, read_json, regular_file, whole_folder, write_json
from shardscope.manifest import MANIFEST, DamagedError, compared, write_manifest
from shardscope.model import Shard
from shardscope.tensors import read_header, read_tensors, why_no_weights, write_tensors
from shardscope.tokenizer import Tokenizer
from shardscope.visible import on_one_line

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
PARTS = (WEIGHTS, CONFIG, TOKENIZER, OPTIMIZER, STATE)
BUILT_IN = Path(__file__).parent / "builtin"
RUNS = Path("runs")
MOST_STEPS = 2**53  # beyond which a step is no number of a run
Read = TypeVar("Read")


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
        write_manifest(partial, [name for name in PARTS if (partial / name).exists()])
    return Path(folder)


def load(
    path: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = torch.float32,
    verify: bool = True,
) -> Shard:
    """A model in eval mode, with `.config` and `.tokenizer`.

    `path` is a checkpoint or a run (its newest checkpoint). Without it: the built-in checkpoint. `device` auto
    is CUDA, else MPS, else the CPU. `dtype` None keeps the stored one, which is bfloat16 for the built-in checkpoint.
    `verify` compares the files with the checkpoint's manifest, in threads beside the loading; False saves that for very
    large files. Raises CheckpointError, or ConfigError for an absent device.
    """
    place = pick_device(device)
    names = (WEIGHTS, CONFIG, TOKENIZER)

    def read(folder: Path) -> Shard:
        with _compared(folder, names) if verify else nullcontext():
            config = read_config(folder)
            weights = read_weights(folder, config)
            stored = next(iter(weights.values())).dtype
            model = Shard.of_weights(config, weights, dtype or stored, place)
            if os.path.lexists(folder / TOKENIZER):
                model.tokenizer = Tokenizer.load(file_inside(folder, TOKENIZER, CheckpointError))
                if model.tokenizer.vocab_size > config.vocab_size:
                    raise CheckpointError(
                        f"{folder}: the tokenizer has {model.tokenizer.vocab_size} entries but the model only "
                        f"{config.vocab_size}; put the tokenizer.json that the model was trained with beside it"
                    )
        return model.eval()

    return read_newest(lambda: resolve_checkpoint(path), read)


def read_newest(find: Callable[[], Path], read: Callable[[Path], Read]) -> Read:
    """What `read` makes of the checkpoint that `find` finds: of the next one, where a run deletes it meanwhile.

    Raises what `find` raises, and what `read` raises of a checkpoint that is there.
    """
    while True:
        folder = find()
        try:
            found = read(folder)
        except (ConfigError, OSError):
            if folder.exists():
                raise
        else:
            if folder.exists():
                return found


@contextmanager
def _compared(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """`compared` of the manifest, with what to do where a file is not as it was saved."""
    try:
        with compared(folder, names):
            yield
    except DamagedError as error:
        older = [c for c in list_checkpoints(folder.parent.parent) if folder.name.startswith("step-") and c < folder]
        instead = f"the checkpoint before it is {older[-1]}; " if older else ""
        raise CheckpointError(
            f"{error}; {instead}use another copy, or delete {MANIFEST} to take the files as they are"
        ) from None


def resolve_checkpoint(path: str | Path | None = None) -> Path:
    """The checkpoint directory that `path` means (None: the built-in). Raises CheckpointError if there is none."""
    if path is None:
        return BUILT_IN
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no checkpoint can be read there: {error}") from None
    if os.path.lexists(path / WEIGHTS):
        return path
    if checkpoints := list_checkpoints(path):
        return checkpoints[-1]
    if not path.exists():
        near = [str(p) for p in sorted(path.parent.iterdir())] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such checkpoint or run{suggest_close(str(path), near)}")
    raise CheckpointError(f"{path}: neither a checkpoint ({WEIGHTS} is missing) nor a run (it has no whole checkpoint)")


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; also of one that is training and deletes its older ones."""
    while True:
        found = [p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
        whole = [p for p in found if (p / WEIGHTS).exists() and (p / CONFIG).exists()]
        # Where one has gone away meanwhile, the run has saved another, which may not be among them.
        if all(map(os.path.lexists, found)):
            return sorted(whole, key=lambda p: int(p.name.removeprefix("step-")))


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def fingerprint(folder: Path) -> str:
    """SHA-256 of all that decides what a checkpoint computes: the files of its weights, config and tokenizer, in hex.

    The same weights mean something else with another window or another vocabulary. Raises ReadError for what is not a
    file.
    """
    digests = []
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        if os.path.lexists(folder / name):
            with regular_file(folder / name).open("rb") as file:
                digests.append(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint, from its training state, its notes, or its folder's name; None where none says.

    Raises ReadError for a state or notes that cannot be read.
    """
    for file in (folder / STATE, folder / CONFIG):
        if os.path.lexists(file):
            step = read_json(file).get("step")
            if isinstance(step, int) and 0 <= step < MOST_STEPS:
                return step
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else None


def read_config(folder: Path) -> ShardConfig:
    """The architecture in config.json. Raises CheckpointError when it is not a Shard's, or not a possible one."""
    values = read_notes(folder)["model"]
    try:
        return ShardConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def read_notes(folder: Path) -> dict[str, Any]:
    """All of config.json. Raises CheckpointError when it is not a Shard's."""
    notes = read_json(file_inside(folder, CONFIG, CheckpointError), CheckpointError)
    if notes.get("model_type") != "shard" or not isinstance(notes.get("model"), dict):
        raise CheckpointError(
            f"{folder / CONFIG}: model_type={_shown(notes.get('model_type'))!r} is not a Shardscope checkpoint; "
            "use `shardscope import` for other formats"
        )
    return notes


def read_weights(folder: Path, config: ShardConfig) -> dict[str, Tensor]:
    """The weights, checked against the config by name and shape; all are finite floats of 16 bits or more."""
    path = file_inside(folder, WEIGHTS, CheckpointError)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Shard(config).state_dict().items()}
    found = {name: entry.shape for name, entry in read_header(path, CheckpointError).items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: {name[:100]} is {found.get(name, 'missing')}, the config says "
                f"{expected.get(name, 'there is no such weight')}; the file does not belong to this config.json"
            )
    weights = read_tensors(path, CheckpointError)
    if reason := why_no_weights(weights):
        raise CheckpointError(f"{path}: {reason}")
    return weights


def read_training_state(folder: Path) -> TrainingState:
    """The training state beside the weights, compared with the manifest.

    Raises CheckpointError when the checkpoint was saved without one, and when it is not as it was saved.
    """
    if not (folder / STATE).exists():
        raise CheckpointError(f"{folder}: holds no training state ({STATE}); it can be loaded but not trained on")
    with _compared(folder, (STATE, OPTIMIZER)):
        facts = read_facts(folder)
        path = file_inside(folder, OPTIMIZER, CheckpointError)
        optimizer = read_tensors(path, CheckpointError)
        floats = {name: tensor for name, tensor in optimizer.items() if tensor.is_floating_point()}
        if reason := why_no_weights(floats):
            raise CheckpointError(f"{path}: {reason}")
    return TrainingState(step=facts.pop("step"), facts=facts, optimizer=optimizer)


# What the facts in state.json are, where they are there.
_FACTS: dict[str, type] = {
    **dict.fromkeys(("step", "steps", "tokens", "skipped_steps"), int),
    **dict.fromkeys(("phase", "status", "reason"), str),
    **{"seconds": float, "data": dict},
}


def read_facts(folder: Path) -> dict[str, Any]:
    """state.json: `step`, and facts about the run. Raises CheckpointError when one of them is not what it should be."""
    path = file_inside(folder, STATE, CheckpointError)
    facts = read_json(path, CheckpointError)
    for name, kind in _FACTS.items():
        value: Any = facts.get(name, None if name == "step" else kind())
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits or (isinstance(value, int | float) and not 0 <= value < MOST_STEPS):
            raise CheckpointError(f"{path}: {name} is {_shown(value)}, which no run can have")
    named = re.fullmatch(r"step-(\d+)", folder.name)
    if named and int(named[1]) != facts["step"]:
        raise CheckpointError(
            f"{path}: says step {facts['step']}, but its folder is {folder.name}; one of them is wrong"
        )
    return facts


def describe(path: str | Path | None = None) -> str:
    """What a checkpoint or run is, as text: architecture, training, the state of its run, and whether it is whole.

    Compares every file with the manifest. Raises CheckpointError.
    """

    def read(folder: Path) -> dict[str, object]:
        with _compared(folder, PARTS):
            return _described(folder)

    return "\n".join(
        f"{name:14} {value}" for name, value in read_newest(lambda: resolve_checkpoint(path), read).items()
    )


def _described(folder: Path) -> dict[str, object]:
    notes, config = read_notes(folder), read_config(folder)
    kinds = "".join(kind[0].upper() for kind in config.layer_kinds)
    header = read_header(file_inside(folder, WEIGHTS, CheckpointError), CheckpointError)
    facts: dict[str, object] = {
        "checkpoint": folder,
        "parameters": f"{config.n_params:,} ({', '.join(sorted({entry.dtype for entry in header.values()}))})",
        "layers": f"{config.n_layers}, {kinds} (S sliding over {config.window} tokens, G global)",
        "width": f"d_model {config.d_model}, {config.n_heads} heads of {config.d_head}, d_mlp {config.d_mlp}",
        "vocabulary": f"{config.vocab_size:,}, context {config.n_ctx:,}",
        **{_shown(name): _shown(value) for name, value in notes.items() if name not in ("model_type", "model")},
    }
    if os.path.lexists(folder / STATE):
        state = read_facts(folder)
        reason = f" ({_shown(state['reason'])})" if state.get("reason") else ""
        facts["step"] = f"{state['step']:,} of {state.get('steps', state['step']):,}"
        facts["state"] = f"{_shown(state.get('status', 'unknown'))}{reason}"
        if state.get("skipped_steps"):
            facts["skipped steps"] = f"{state['skipped_steps']:,}"
    if os.path.lexists(folder / MANIFEST):
        facts["files"] = f"as they were saved ({MANIFEST})"
    else:
        facts["files"] = f"without {MANIFEST}, so whether they are as they were saved cannot be said"
    return facts


def _shown(value: object, most: int = 200) -> str:
    """A value of an untrusted file for a message or a terminal: on one line, and not without end."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        text = str(value) if isinstance(value, bool) else f"a {type(value).__name__}"
    else:
        text = f"{value:,}" if isinstance(value, int) else str(value)
    text = text if len(text) <= most else text[:most] + "…"
    return on_one_line(text)
