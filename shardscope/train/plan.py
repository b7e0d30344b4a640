"""What a recipe would take, said before anything is downloaded or trained: `--dry-run`.

The rate over time and the tokens drawn from each source are exact. How large a source is that was never read, how long
the run takes and how much memory it needs are estimates, and the text says of what.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from shardscope.checkpoint import CheckpointError, read_config
from shardscope.config import ConfigError, Recipe, ShardConfig, Source, user_path
from shardscope.data import ReadLog, dealt, documents, files_of, kind_of, located
from shardscope.device import pick_device
from shardscope.tokenizer import Tokenizer
from shardscope.train.flops import flops_per_token
from shardscope.train.run import find_stable, may_yet_come
from shardscope.train.schedule import lr_factor, phase_of
from shardscope.train.setup import require_even_batch

# A training step reaches this share of the rate of a bare matrix product (docs/training.md, "MFU, matmul").
_SHARE_OF_MATMUL = {"cuda": 0.48, "mps": 0.4, "cpu": 0.6}
# Text of so many bytes is in one byte of a file, about.
_PACKED = {".gz": 3.0, ".zip": 3.0, ".zst": 3.2, ".bz2": 4.0, ".xz": 4.3, ".parquet": 2.0}
_POINTS = 11


@dataclass(frozen=True)
class SourceNeed:
    """What the run draws from one source; `size` is about how many tokens it holds, None where nobody knows."""

    name: str
    tokens: int
    size: int | None

    @property
    def passes(self) -> float | None:
        return self.tokens / self.size if self.size else None


@dataclass(frozen=True)
class Plan:
    """What a run would take. The last four are None for an anneal of a model that is not known yet."""

    rates: list[tuple[int, float, str]]  # step, learning rate, phase
    tokens: int
    sources: list[SourceNeed]
    device: torch.device
    flops: float | None
    hours: float | None
    memory: float | None  # bytes on each device
    n_params: int | None


def plan(recipe: Recipe, processes: int = 1, model: ShardConfig | None = None) -> Plan:
    """Reckon a recipe on so many processes; `model` is that of an anneal whose start is not there yet.

    Raises ConfigError for a recipe that cannot be run, as with a source or a checkpoint that is not there.
    """
    require_even_batch(recipe, processes)
    _require_its_files(recipe)
    steps, rows = recipe.schedule.steps, recipe.schedule.steps * recipe.train.batch_size
    device, model = pick_device(recipe.train.device), _model(recipe) or model
    drawn = dealt([source.weight for source in recipe.data.sources], rows)
    if model and recipe.data.seq_len > model.n_ctx:
        raise ConfigError(
            f"data.seq_len={recipe.data.seq_len} is longer than the context of the model, which is {model.n_ctx}; "
            "lower data.seq_len"
        )
    vocabulary = model.vocab_size if model else ShardConfig().vocab_size
    sources = [
        SourceNeed(source.name, count * recipe.data.seq_len, _size(located(source), vocabulary))
        for source, count in zip(recipe.data.sources, drawn, strict=True)
    ]
    tokens = rows * recipe.data.seq_len
    places = sorted({round(n * (steps - 1) / (_POINTS - 1)) for n in range(_POINTS)})
    lr, schedule = recipe.optimizer.lr, recipe.schedule
    rates = [(step, lr * lr_factor(step, schedule), phase_of(step, schedule)) for step in places]
    if model is None:
        return Plan(rates, tokens, sources, device, None, None, None, None)
    flops = tokens * flops_per_token(model, recipe.data.seq_len)
    rate = matmul_rate(device) * _SHARE_OF_MATMUL.get(device.type, 0.4)
    micro_batch = recipe.train.micro_batch or math.ceil(recipe.train.batch_size / processes)
    memory = memory_needed(model, micro_batch * recipe.data.seq_len, halves=device.type == "cuda")
    return Plan(rates, tokens, sources, device, flops, flops / rate / processes / 3600, memory, model.n_params)


def format_plan(found: Plan) -> str:
    """A plan as text, in ASCII."""
    peak = max(rate for _, rate, _ in found.rates)
    lines = ["learning rate (Muon's, or AdamW's if that is the optimizer):"]
    for step, rate, phase in found.rates:
        lines.append(f"  step {step:>9,}  {rate:9.2e}  {phase:6}  {'#' * round(40 * rate / peak)}".rstrip())
    width = max(6, *(len(source.name) for source in found.sources))
    lines += ["", f"{'source':{width}}  {'tokens drawn':>16}  {'holds about':>16}  {'passes':>7}"]
    for source in found.sources:
        size = f"{source.size:,}" if source.size else "unknown"
        passes = f"{source.passes:.2f}" if source.passes is not None else "?"
        lines.append(f"{source.name:{width}}  {source.tokens:>16,}  {size:>16}  {passes:>7}")
    lines += [f"{'all':{width}}  {found.tokens:>16,}", ""]
    if found.flops is None or found.hours is None or found.memory is None:
        lines.append("FLOPs, hours, memory: unknown, because the checkpoint of start_from is not there yet")
    else:
        lines += [
            f"{found.n_params:,} parameters, {found.flops:.3g} FLOPs",
            f"about {_duration(found.hours)} on this machine ({_name(found.device)}), by a matrix product timed now",
            f"about {found.memory / 1e9:.1f} GB of memory{_of_memory(found.device)}; "
            "a smaller train.micro_batch takes less",
        ]
    return "\n".join(lines)


def memory_needed(model: ShardConfig, tokens: int, halves: bool) -> float:
    """Bytes for weights, gradients, optimizer state and what a step of `tokens` keeps for its backward pass.

    A block keeps its residual stream, normed inputs, queries, keys, values, their mix, and the SwiGLU's three vectors.
    """
    kept = 8 * model.d_model + 4 * model.n_heads * model.d_head + 3 * model.d_mlp
    return 16.0 * model.n_params + tokens * model.n_layers * kept * (2.0 if halves else 4.0)


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a bare matrix product, measured in a moment: bfloat16 on CUDA, float32 elsewhere."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for it
        times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times)[2]


def _model(recipe: Recipe) -> ShardConfig | None:
    if recipe.model is not None:
        return recipe.model
    try:
        return read_config(find_stable(recipe.start_from))
    except CheckpointError:
        if may_yet_come(recipe.start_from):
            return None
        raise


def _require_its_files(recipe: Recipe) -> None:
    """What is on this machine and small is looked for, so that its lack is not first noticed after a download."""
    if recipe.tokenizer.path:
        Tokenizer.load(user_path(recipe.tokenizer.path, "tokenizer.path"))
    paths = [located(source).holdout for source in recipe.data.sources if source.holdout]
    if recipe.data.overlap != "ignore":
        paths += [benchmark.path for benchmark in recipe.data.benchmarks]
    for path in paths:
        if kind_of(path) == "files":
            files_of(path)


def _size(source: Source, vocabulary: int) -> int | None:
    """About how many tokens a source holds, without reading it if it is elsewhere."""
    if source.tokens:
        return source.tokens
    bytes_per_token = 0.3 * math.log2(vocabulary)
    kind = kind_of(source.path)
    if kind == "hf":
        return None
    if kind == "builtin":
        characters = sum(len(document.text) for document in documents(source, ReadLog("skip", quiet=True)))
        return int(characters / bytes_per_token)
    return int(sum(_text_bytes(source.path)) / bytes_per_token)


def _text_bytes(path: str) -> Iterator[float]:
    for file in files_of(path):
        yield file.stat().st_size * _PACKED.get(file.suffix, 1.0)


def _duration(hours: float) -> str:
    if hours < 1 / 40:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.0f} hours"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _of_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
    try:
        return f" of {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, OSError, ValueError):
        return ""
