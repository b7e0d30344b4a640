"""What a recipe learns: held-out bits per byte against tokens and seconds, for several recipes on the same text.

Tokens a second can be bought with coarser arithmetic or a bigger batch that cost loss; this benchmark asks for the loss
itself. Every run goes through the trainer's own loop, with its data, optimizer, logging and evaluations. Seconds are
those of training: tokens over the median tokens a second of the loop, so compiling and evaluating, which a benchmark
does more often than a run, are left out. What `shardscope bench learn` prints and writes comes from here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shardscope.bench.measure import add_shared_arguments, command_line, machine, save
from shardscope.bench.measure import table as markdown
from shardscope.config import ConfigError, Recipe, load_recipe
from shardscope.device import pick_device
from shardscope.files import whole_file
from shardscope.train import train
from shardscope.train.metrics import read_metrics

TRIAL_STEPS = 40  # of a run that only finds out how many tokens a second there are


@dataclass(frozen=True)
class Point:
    """A held-out evaluation: bits per byte by source, and 'all' of them together."""

    step: int
    tokens: int
    seconds: float
    bits_per_byte: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    recipe: str
    changes: dict[str, str]
    seed: int
    tokens: int
    seconds: float  # of training
    tokens_per_second: float  # median of the loop's log lines
    wall_seconds: float  # everything: preparing, compiling, evaluating, saving
    curve: list[Point]

    @property
    def final(self) -> float:
        return self.curve[-1].bits_per_byte["all"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="pretrain recipes, as in recipes/")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--tokens", type=int, metavar="N", help="tokens of every run (default: the recipe's own steps)")
    amount.add_argument("--seconds", type=float, metavar="S", help="training seconds of every run instead")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a field of every recipe, as in optimizer.lr=4e-3; may be repeated",
    )
    parser.add_argument("--evaluations", type=int, default=5, metavar="N", help="points of the curve (default 5)")
    parser.add_argument("--keep", metavar="DIR", help="keep the runs in this folder (default: a temporary one)")
    add_shared_arguments(parser)
    parser.add_argument("--plot", metavar="FILE", help="where the curves are drawn, as PNG; needs matplotlib")


def run(arguments: argparse.Namespace) -> int:
    """Train, print the table, write the JSON and the picture. Raises ConfigError for recipes that cannot be run."""
    device = pick_device(arguments.device)
    changes = dict(_pair(text) for text in arguments.set)
    if arguments.evaluations < 1:
        raise ConfigError(f"--evaluations {arguments.evaluations}: a curve has at least one point")
    names = [Path(path).stem for path in arguments.recipes]
    if len(set(names)) < len(names):
        raise ConfigError("two recipes share a file name, under which they would be told apart; rename one")
    recipes = {
        name: load_recipe(path, {**changes, "train.device": str(device)})
        for name, path in zip(names, arguments.recipes, strict=True)
    }
    for name, recipe in recipes.items():
        if recipe.phase != "pretrain":
            raise ConfigError(f"{name}: phase={recipe.phase!r}; only a pretraining begins with nothing learnt")
    command = command_line("learn", arguments, "recipes", "tokens", "seconds", "seeds", "set", "evaluations")
    report: dict[str, Any] = {"command": command.replace(" --recipes", ""), **machine(device), "runs": []}
    with ExitStack() as cleanup:
        folder = Path(arguments.keep or cleanup.enter_context(TemporaryDirectory()))
        for seed in arguments.seeds:
            for name, recipe in recipes.items():
                done = learn(
                    replace(recipe, seed=seed), name, changes, folder, arguments.tokens, arguments.seconds,
                    arguments.evaluations,
                )  # fmt: skip
                report["runs"].append(asdict(done))
                save(report, arguments.out)
    print(table(report))
    if arguments.plot:
        draw(report, Path(arguments.plot))
    return 0


def learn(
    recipe: Recipe,
    name: str,
    changes: dict[str, str],
    folder: Path,
    tokens: int | None,
    seconds: float | None,
    evaluations: int,
) -> Run:
    """Train `recipe` on so many tokens or for so many seconds (None, None: its own steps) in a folder of its own."""
    step_tokens = recipe.train.batch_size * recipe.data.seq_len
    if seconds is not None:
        trial = _train(_lasting(recipe, TRIAL_STEPS, 1, folder / f"{name}-seed{recipe.seed}-trial"))
        tokens = round(seconds * trial)
    steps = recipe.schedule.steps if tokens is None else max(1, round(tokens / step_tokens))
    recipe = _lasting(recipe, steps, evaluations, folder / f"{name}-seed{recipe.seed}")
    start = time.perf_counter()
    rate = _train(recipe)
    wall = time.perf_counter() - start
    curve = []
    for line in read_metrics(recipe.folder, "eval"):
        found = {source: value["bits_per_byte"] for source, value in line.items() if isinstance(value, dict)}
        seen = line["step"] * step_tokens
        curve.append(Point(line["step"], seen, round(seen / rate, 2), found))
    return Run(
        recipe=name, changes=changes, seed=recipe.seed, tokens=steps * step_tokens,
        seconds=round(steps * step_tokens / rate, 2), tokens_per_second=round(rate, 1), wall_seconds=round(wall, 1),
        curve=curve,
    )  # fmt: skip


def _lasting(recipe: Recipe, steps: int, evaluations: int, folder: Path) -> Recipe:
    """The recipe for `steps` steps, evaluated so often and saved once, at its end."""
    every = max(1, steps // evaluations)
    return replace(
        recipe,
        run_dir=str(folder),
        schedule=replace(recipe.schedule, steps=steps),
        train=replace(
            recipe.train, eval_every=every, save_every=steps, sentinel_every=steps, sample_every=0,
            log_every=max(1, min(recipe.train.log_every, steps // 5)), loggers=(),
        ),
    )  # fmt: skip


def _train(recipe: Recipe) -> float:
    """Train, and the median of the loop's own tokens a second. Raises ConfigError if it was stopped."""
    outcome = train(recipe)
    if outcome.status != "finished":
        raise ConfigError(f"{recipe.folder}: the run was stopped ({outcome.reason}); nothing to compare")
    rates = [line["tokens_per_second"] for line in read_metrics(recipe.folder, "train")]
    return statistics.median(rates)


def table(report: dict[str, Any]) -> str:
    """A Markdown table, a row for each recipe: medians over the seeds, and half the range of the last column."""
    runs = [Run(**{**values, "curve": [Point(**point) for point in values["curve"]]}) for values in report["runs"]]
    sources = [name for name in runs[0].curve[-1].bits_per_byte if name != "all"]
    rows = []
    for name in dict.fromkeys(one.recipe for one in runs):
        mine = [one for one in runs if one.recipe == name]
        last = [one.curve[-1].bits_per_byte for one in mine]
        finals = [found["all"] for found in last]
        spread = f" ± {(max(finals) - min(finals)) / 2:.4f}" if len(finals) > 1 else ""
        rows.append(
            [
                name,
                str(len(mine)),
                f"{mine[0].tokens:,}",
                f"{_median(mine, 'tokens_per_second'):,.0f}",
                f"{_median(mine, 'seconds'):.0f}",
                *(f"{statistics.median(found[source] for found in last):.3f}" for source in sources),
                f"{statistics.median(finals):.4f}{spread}",
            ]
        )
    return "\n".join(markdown(["recipe", "seeds", "tokens", "tokens/s", "seconds", *sources, "all"], rows))


def draw(report: dict[str, Any], path: Path) -> None:
    """Bits per byte over all sources against seconds of training, a line for each run."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"--plot needs matplotlib ({error}); pip install matplotlib") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training", ylabel="held-out bits per byte, all sources")
    for one in report["runs"]:
        points = [point for point in one["curve"] if point["step"] > 0]
        axes.plot(
            [point["seconds"] for point in points],
            [point["bits_per_byte"]["all"] for point in points],
            marker="o",
            markersize=3,
            label=f"{one['recipe']}, seed {one['seed']}",
        )
    axes.legend()
    axes.grid(alpha=0.3)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text!r}: write KEY=VALUE, as in optimizer.lr=4e-3")
    return key, value


def _median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(getattr(one, name) for one in runs)
