"""What a run's biography costs: the parts of a probe beside a training step, and a training with the default budget.

The text is what every machine has offline, the weights are random: how long a probe takes does not depend on them, but
for the samples, which end where a model ends them. `share` is the time of all probes over that of their training.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardscope.bench.measure import (
    add_shared_arguments,
    at_least_one,
    command_line,
    machine,
    save,
    shown_spread,
    summary,
    table,
    taking_turns,
)
from shardscope.checkpoint import BUILT_IN, TOKENIZER
from shardscope.config import (
    PRESETS,
    DataConfig,
    OptimizerConfig,
    ProbeConfig,
    Recipe,
    ScheduleConfig,
    Source,
    TokenizerConfig,
    TrainConfig,
)
from shardscope.device import pick_device
from shardscope.failures import sample_card
from shardscope.model import Shard
from shardscope.train import train
from shardscope.train.biography_writer import BiographyWriter
from shardscope.train.distributed import World
from shardscope.train.metrics import BIOGRAPHY, read_metrics
from shardscope.train.probes import measure_heads
from shardscope.train.sentinel import singular_values
from shardscope.train.setup import Setup, set_up

SOURCES = tuple(Source(name=name, path=f"builtin:{name}") for name in ("prose", "code", "arithmetic"))
BUDGET = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=tuple(PRESETS), help="default: shard-54m on CUDA, else shard-pico")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="of a training step (default 131072 on CUDA, else 4096)"
    )
    parser.add_argument(
        "--steps", type=int, default=200, metavar="N", help="of the training with the default budget (default 200)"
    )
    add_shared_arguments(parser, runs=5)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises ConfigError for numbers that measure nothing."""
    at_least_one(runs=arguments.runs, steps=arguments.steps)
    cuda = pick_device(arguments.device).type == "cuda"
    model = arguments.model or ("shard-54m" if cuda else "shard-pico")
    tokens = arguments.tokens or (131_072 if cuda else 4_096)
    at_least_one(tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(model, tokens, arguments.steps, arguments.device, Path(folder) / "run")
        report: dict[str, Any] = {
            "command": command_line("biography", arguments, "model", "tokens", "steps", "runs", "device", "out"),
            "machine": machine(pick_device(arguments.device)),
            "model": model,
            "tokens_per_step": recipe.train.batch_size * recipe.data.seq_len,
            **parts_of_a_probe(replace(recipe, run_dir=str(Path(folder) / "parts")), arguments.runs),
            **share_of_a_training(recipe),
        }
    save(report, arguments.out)
    print(shown(report))
    return 0


def recipe_of(model: str, tokens: int, steps: int, device: str, folder: Path) -> Recipe:
    config = PRESETS[model]
    seq_len = min(config.n_ctx, 2048, tokens)
    known = config.vocab_size >= PRESETS["shard-nano"].vocab_size
    return Recipe(
        name="bench-biography",
        phase="pretrain",
        run_dir=str(folder),
        model=config,
        tokenizer=TokenizerConfig(path=str(BUILT_IN / TOKENIZER)) if known else TokenizerConfig(documents=2_000),
        data=DataConfig(sources=SOURCES, seq_len=seq_len),
        optimizer=OptimizerConfig(lr=8e-3),
        schedule=ScheduleConfig(steps=steps, decay=0.0),
        train=TrainConfig(
            batch_size=tokens // seq_len, device=device, eval_every=10**6, sentinel_every=10**6, save_every=10**6
        ),
        probe=ProbeConfig(every=1, budget=BUDGET),
    )


def samples(model: Shard) -> list[dict[str, Any]]:
    """The six prompts as `shardscope train` continues and labels them."""
    return [
        {"prompt": prompt.text, "output": generation.text, "failure": labels.primary}
        for prompt, generation, labels in sample_card(model, max_new_tokens=128)
    ]


def parts_of_a_probe(recipe: Recipe, runs: int) -> dict[str, Any]:
    """Seconds of each part and of a step, which take turns; and the steps between probes that make one percent."""
    with World.join(recipe.train.device) as world:
        setup = set_up(recipe, world, progress=False)
        writer, model = BiographyWriter(setup, samples), setup.model
        step = _step(setup)
        parts: dict[str, Callable[[], object]] = {
            "a training step": step,
            "heads on held-out text": lambda: measure_heads(model, writer.texts, []),
            "induction at the lags": lambda: measure_heads(model, [], writer.repeated),
            "singular values": lambda: singular_values(model),
            "loss by position": lambda: [writer.measure_loss(model, holdout) for holdout in writer.holdouts.values()],
            "samples and labels": lambda: samples(model.eval()),
        }
        for work in parts.values():
            work()
        timings = {name: summary(found) for name, found in taking_turns(parts, runs, world.device).items()}
        writer.close()
    first, *rest = timings
    probe = sum(timings[name].median for name in rest)
    return {
        "rows": [
            {
                "part": name,
                "seconds": timing.median,
                "spread": timing.spread,
                "steps": timing.median / timings[first].median,
            }
            for name, timing in timings.items()
        ],
        "steps_between_probes_at_one_percent": math.ceil(probe / timings[first].median / BUDGET),
    }


def share_of_a_training(recipe: Recipe) -> dict[str, Any]:
    """What all probes of a training with the default budget took of its time, and the largest line in bytes."""
    train(recipe, probe=samples, progress=False)
    lines = read_metrics(recipe.folder, file=BIOGRAPHY)
    times = [line["time"] for line in read_metrics(recipe.folder)]
    spent, whole = sum(line["seconds"] for line in lines), max(times) - min(times)
    return {
        "training_seconds": round(whole, 2),
        "probe_seconds": round(statistics.median(line["seconds"] for line in lines), 4),
        "probes": [line["step"] for line in lines],
        "share": round(spent / whole, 5),
        "largest_line_bytes": max(len(json.dumps(line)) + 1 for line in lines),
    }


def shown(report: dict[str, Any]) -> str:
    """The report as a Markdown table and two sentences."""
    rows = [
        (row["part"], f"{row['seconds'] * 1000:,.1f} ms", shown_spread(row["spread"]), f"{row['steps']:.2f}")
        for row in report["rows"]
    ]
    return "\n".join(
        [
            f"{report['machine']['name']}, torch {report['machine']['torch']}, {report['model']}, "
            f"{report['tokens_per_step']:,} tokens a step",
            "",
            *table(("part", "time", "spread", "steps"), rows),
            "",
            f"One percent of the time is a probe in {report['steps_between_probes_at_one_percent']:,} steps. "
            f"A training of {report['training_seconds']:,.0f} s had {len(report['probes'])} probes, which took "
            f"{report['share']:.2%} of its time; the largest was {report['largest_line_bytes']:,} bytes.",
        ]
    )


def _step(setup: Setup) -> Callable[[], object]:
    """A step of the training, on one batch again and again."""
    tokens = setup.data.mixture.batch(0, 0, 1).tokens.to(setup.world.device)

    def step() -> None:
        setup.gradients(tokens, 1.0)
        setup.optimizer.step(1.0)
        setup.optimizer.zero_grad()

    return step
