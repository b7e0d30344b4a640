"""`shardscope bench attention`: how long the microscope takes to open a long prompt, and what it holds meanwhile.

Every measurement is a process of its own on a model with random weights, so that its peak memory is its own; medians
over repeats. TransformerLens's `run_with_cache` reads the same tokens with the same weights in the same run.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from shardscope.bench import measure
from shardscope.bench.measure import seconds_of, synchronize
from shardscope.config import PRESETS, ShardConfig
from shardscope.device import pick_device
from shardscope.microscope.heads import head_scores
from shardscope.microscope.reading import MicroscopeError, read
from shardscope.model import Shard

COMPARED_ROWS = 32  # the last queries of one head of every layer are compared weight by weight
# Seconds until the first map, seconds until all heads, bytes: what a reader should not have to wait for.
TARGETS = {"cpu": (25.0, 60.0, 1e9), "cuda": (1.0, 2.0, 1e9)}
INTERACTION, LESS_MEMORY, FASTER = 0.5, 10.0, 5.0
PATIENCE = 60.0  # seconds: what takes longer is not repeated


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: who reads how many tokens of which model."""

    reader: str  # "microscope", "TransformerLens", or "TransformerLens, patterns only"
    preset: str
    tokens: int
    device: str
    repeats: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `shardscope bench attention`."""
    parser.add_argument("--model", default="shard-54m", choices=sorted(PRESETS), help="preset (default shard-54m)")
    parser.add_argument("--tokens", type=int, default=8192, help="length of the prompt (default 8192)")
    parser.add_argument(
        "--against", type=int, default=2048, help="length TransformerLens reads too (default 2048; 0: leave it out)"
    )
    # What takes longer than PATIENCE seconds is measured once.
    measure.add_shared_arguments(parser, runs=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON; 0. Raises MicroscopeError for lengths the model cannot read."""
    n_ctx = ShardConfig.preset(arguments.model).n_ctx
    for tokens in (arguments.tokens, arguments.against or 1):
        if not 1 <= tokens <= n_ctx:
            raise MicroscopeError(f"{arguments.model} reads 1 to {n_ctx} tokens, not {tokens}")
    measure.at_least_one(runs=arguments.runs)
    device = pick_device(arguments.device)
    results: dict[str, Any] = {"machine": measure.machine(device)}
    rows: np.ndarray | None = None
    for name, reader, tokens in (
        ("long", "microscope", arguments.tokens),
        ("short", "microscope", arguments.against),
        ("whole", "TransformerLens", arguments.against),
        ("patterns", "TransformerLens, patterns only", arguments.against),
    ):
        if tokens == 0:
            break
        print(f"{reader}, {tokens:,} tokens …", file=sys.stderr, flush=True)
        job = Job(reader=reader, preset=arguments.model, tokens=tokens, device=str(device), repeats=arguments.runs)
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
            measured = process.submit(measure_job, job).result()
        found = measured.pop("rows")
        if name == "short":
            rows = found
        elif rows is not None:
            measured["largest_difference"] = float(np.abs(found - rows).max())
        results[name] = measured
        measure.save(results, arguments.out)  # after each, so that what is measured is kept
    print(table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, with what is to be reached beside what was."""
    place, long = results["machine"], results["long"]
    first, overview, memory = TARGETS["cuda" if place["device"].startswith("cuda") else "cpu"]
    n = f"{long['tokens']:,} tokens"
    rows = [
        [f"{n}: first map", f"{long['first_map']:.2f} s", f"{first:g} s"],
        [f"{n}: overview of all {long['heads']} heads", f"{long['overview']:.2f} s", f"{overview:g} s"],
        [f"{n}: peak extra memory", f"{long['peak_bytes'] / 1e9:.2f} GB", f"{memory / 1e9:g} GB"],
        [f"{n}: another head's map", f"{long['another_head']:.3f} s", f"{INTERACTION} s"],
        [f"{n}: an exact tile of 512 × 512", f"{long['tile']:.3f} s", f"{INTERACTION} s"],
    ]
    if "whole" in results:
        rows += _compared(results["short"], results["whole"], "run_with_cache", f"{LESS_MEMORY:g}×", f"{FASTER:g}×")
        rows += _compared(results["short"], results["patterns"], "run_with_cache, patterns only", "–", "–")
    return "\n".join(measure.table([f"{place['name']}, torch {place['torch']}", "measured", "to reach"], rows))


def _compared(
    ours: dict[str, Any], theirs: dict[str, Any], name: str, less_memory: str, faster: str
) -> list[list[str]]:
    """Rows that set TransformerLens's reading of the same tokens beside ours, with what is to be reached."""
    seconds, memory = theirs["seconds"], theirs["peak_bytes"]
    return [
        [f"{ours['tokens']:,} tokens: TransformerLens's {name}", f"{seconds:.2f} s, {memory / 1e9:.2f} GB", "–"],
        ["less memory than that", f"{memory / ours['peak_bytes']:.1f}×", less_memory],
        ["first map, faster by", f"{seconds / ours['first_map']:.1f}×", faster],
        ["all heads scored, faster by", f"{seconds / ours['overview']:.1f}×", "–"],
        ["largest difference of a weight", f"{theirs['largest_difference']:.1e}", "1e-5"],
    ]


# ----------------------------------------------------------------------------------- in a process of its own


def measure_job(job: Job) -> dict[str, Any]:
    """The job's medians and peak, and under "rows" some weights to compare: [layer query key]."""
    torch.manual_seed(0)
    model = Shard(ShardConfig.preset(job.preset)).eval().to(job.device)
    ids = torch.randint(model.config.vocab_size, (job.tokens,), device=job.device)
    reader = _microscope if job.reader == "microscope" else _transformer_lens
    load = os.getloadavg()[0]
    measured = reader(model, ids, job)
    return {**asdict(job), "load_before": round(load, 2), **measured}


def _microscope(model: Shard, ids: torch.Tensor, job: Job) -> dict[str, Any]:
    before = _held(job.device)
    head_scores(read(model, ids[:256]))  # what is loaded or compiled once is not timed; its memory counts
    times: dict[str, list[float]] = {name: [] for name in ("first_map", "overview", "another_head", "tile", "read")}
    layer, n = model.config.n_layers - 1, len(ids)
    side = min(512, n)
    queries, keys = range(n - side, n), range((n - side) // 2, (n + side) // 2)
    core_seconds, peak = [], 0
    for _ in range(job.repeats):
        reading = scores = None  # two of them at once would count twice
        start, worked = perf_counter(), process_time()
        reading = read(model, ids)
        synchronize(model.device)
        times["read"].append(perf_counter() - start)
        shown = reading.layers[layer]
        shown.pooled(0)
        times["first_map"].append(perf_counter() - start)
        drawn = perf_counter()
        scores = head_scores(reading)
        core_seconds.append(process_time() - worked)
        peak = peak or _peak(job.device)  # of the first: later ones also hold what the allocator kept
        # Counted from the prompt: without the map, which an overview does not need.
        times["overview"].append(times["read"][-1] + perf_counter() - drawn)
        times["another_head"].append(seconds_of(partial(shown.pooled, 1), model.device))
        times["tile"].append(seconds_of(partial(shown.tile, 0, queries, keys), model.device))
        if perf_counter() - start > PATIENCE:
            break
    assert reading is not None
    layers = reading.layers
    return {
        "repeats": len(core_seconds),
        "heads": len(scores or ()),
        **{name: median(values) for name, values in times.items()},
        "core_seconds": median(core_seconds),  # of pass, map and overview: what a busy machine cannot stretch as much
        "all_times": times,
        "peak_bytes": peak - before,
        "rows": _last_rows(lambda layer, queries: layers[layer].tile(0, queries, range(n)), model, n),
    }


def _transformer_lens(model: Shard, ids: torch.Tensor, job: Job) -> dict[str, Any]:
    from shardscope.interop.bridge import to_transformer_lens

    bridge = to_transformer_lens(model)
    only: dict[str, Any] = {}
    if job.reader.endswith("patterns only"):
        only["names_filter"] = lambda name: name.endswith("hook_pattern")
    times, n, peak = [], len(ids), 0
    with torch.no_grad():
        before = _held(job.device)
        bridge.run_with_cache(ids[None, :64], **only)
        for _ in range(job.repeats):
            cache = None
            start = perf_counter()
            _, cache = bridge.run_with_cache(ids[None], **only)
            synchronize(model.device)
            times.append(perf_counter() - start)
            peak = peak or _peak(job.device)
            if times[-1] > PATIENCE:
                break
    assert cache is not None
    rows = _last_rows(
        lambda layer, queries: cache["pattern", layer][0, 0, queries.start : queries.stop].float().cpu().numpy(),
        model,
        n,
    )
    return {
        "repeats": len(times),
        "seconds": median(times),
        "all_times": times,
        "peak_bytes": peak - before,
        "rows": rows,
    }


def _last_rows(rows: Callable[[int, range], np.ndarray], model: Shard, n: int) -> np.ndarray:
    queries = range(max(0, n - COMPARED_ROWS), n)
    return np.stack([rows(layer, queries) for layer in range(model.config.n_layers)])


def _held(device: str) -> int:
    """What this process holds now, in bytes: the model. From here on its peak counts."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # no Linux: the most it has held so far
        return _peak(device)
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _peak(device: str) -> int:
    """The most this process has held, in bytes; on CUDA what tensors have held since `_held`."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
