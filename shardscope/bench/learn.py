"""What a recipe learns: held-out bits per byte against tokens and seconds, for several recipes on the same text.

Tokens a second can be bought with coarser arithmetic or a bigger batch that cost loss; this benchmark asks for the loss
itself. Every run goes through the trainer's own loop, with its data, optimizer, logging and evaluations. Seconds are
those of training: tokens over the median tokens a second of the loop, so compiling and evaluating, which a benchmark
does more often than a run, are left out. What `shardscope bench learn` prints and writes comes from here.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch

from shardscope.bench.measure import add_shared_arguments, at_least_one, command_line, machine, save
from shardscope.bench.measure import table as markdown
from shardscope.bench.variants import Variant, read_variants
from shardscope.config import ConfigError, Recipe, suggest
from shardscope.device import pick_device
from shardscope.files import check_writable_file, read_json, whole_file
from shardscope.train import train
from shardscope.train.health import troubles_of
from shardscope.train.metrics import read_metrics
from shardscope.train.objective import compiles
from shardscope.train.run import RECIPE

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
    troubles: list[str] = field(default_factory=list)  # that a run had: it may not have learnt for that reason

    @property
    def final(self) -> float:
        return self.curve[-1].bits_per_byte["all"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE", help="pretrain recipes, or lists of variants as in recipes/ablations/"
    )
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
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of all variants, train only those of these names")
    parser.add_argument("--evaluations", type=int, default=5, metavar="N", help="points of the curve (default 5)")
    parser.add_argument("--keep", metavar="DIR", help="keep the runs in this folder (default: a temporary one)")
    add_shared_arguments(parser)
    parser.add_argument("--plot", metavar="FILE", help="where the curves are drawn, as PNG; needs matplotlib")


def run(arguments: argparse.Namespace) -> int:
    """Train, print the table, write the JSON and the picture. Raises ConfigError for recipes that cannot be run."""
    device = pick_device(arguments.device)
    changes = dict(_pair(text) for text in arguments.set)
    at_least_one(
        evaluations=arguments.evaluations, **({} if arguments.tokens is None else {"tokens": arguments.tokens})
    )
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise ConfigError(f"--seconds {arguments.seconds:g} trains nothing; use a number above 0")
    if twice := next((seed for seed in arguments.seeds if arguments.seeds.count(seed) > 1), None):
        raise ConfigError(f"--seeds: {twice} is named twice, and would learn the same twice; name different ones")
    if arguments.plot:
        check_writable_file(Path(arguments.plot), "--plot")
        if find_spec("matplotlib") is None:
            raise ConfigError("--plot needs matplotlib; pip install matplotlib")
    variants = _only(read_variants(arguments.recipes, changes, str(device)), arguments.only)
    command = command_line("learn", arguments, "recipes", "tokens", "seconds", "seeds", "set", "only", "evaluations")
    report: dict[str, Any] = {"command": command.replace(" --recipes", ""), **machine(device), "runs": []}
    with ExitStack() as cleanup:
        folder = Path(arguments.keep or cleanup.enter_context(TemporaryDirectory()))
        for seed in arguments.seeds:
            for variant in variants:
                done = learn(variant, seed, folder, arguments.tokens, arguments.seconds, arguments.evaluations)
                report["runs"].append(asdict(done))
                save(report, arguments.out)
    print(table(report))
    for one in report["runs"]:
        for trouble in one["troubles"]:
            print(f"{one['recipe']}, seed {one['seed']}: {trouble}")
    if arguments.plot:
        draw(report, Path(arguments.plot))
    return 0


def _only(variants: list[Variant], names: Sequence[str] | None) -> list[Variant]:
    """Those of the names, in their order; all without names. Raises ConfigError for a name that none has."""
    if names is None:
        return variants
    found = {variant.name: variant for variant in variants}
    for name in names:
        if name not in found:
            raise ConfigError(f"--only {name!r}: no such variant{suggest(name, found)}")
    return [found[name] for name in names]


def learn(
    variant: Variant, seed: int, folder: Path, tokens: int | None, seconds: float | None, evaluations: int
) -> Run:
    """Train a variant on so many tokens or for so many seconds (None, None: its own steps) in a folder of its own."""
    recipe, place = replace(variant.recipe, seed=seed), folder / f"{variant.file_name}-seed{seed}"
    step_tokens = _step_tokens(recipe)
    if seconds is not None:
        trial = _train(_lasting(recipe, TRIAL_STEPS, 1, place.with_name(f"{place.name}-trial")))
        tokens = round(seconds * trial)
    tokens = recipe.schedule.steps * step_tokens if tokens is None else tokens
    parts = [(recipe, place, tokens * variant.tokens * (1 - variant.share))]
    if variant.anneal is not None:
        anneal = replace(variant.anneal, seed=seed, start_from=str(place))
        parts.append((anneal, place.with_name(f"{place.name}-anneal"), tokens * variant.tokens * variant.share))
    curve: list[Point] = []
    troubles: list[str] = []
    seen, lasted, start = 0, 0.0, time.perf_counter()
    for part, where, amount in parts:
        steps = max(1, round(amount / _step_tokens(part)))
        part = _lasting(part, steps, evaluations, where)
        _refuse_another(part)
        rate = _train(part)
        for line in read_metrics(where, "eval"):
            found = {source: value["bits_per_byte"] for source, value in line.items() if isinstance(value, dict)}
            now = line["step"] * _step_tokens(part)
            if line["step"] or not seen:  # what an anneal begins with stands there already
                curve.append(Point(line["step"], seen + now, round(lasted + now / rate, 2), found))
        troubles += [str(trouble) for trouble, _ in troubles_of(read_metrics(where, "event"))]
        seen, lasted = seen + steps * _step_tokens(part), lasted + steps * _step_tokens(part) / rate
    return Run(
        recipe=variant.name, changes=variant.changes, seed=seed, tokens=seen, seconds=round(lasted, 2),
        tokens_per_second=round(seen / lasted, 1), wall_seconds=round(time.perf_counter() - start, 1), curve=curve,
        troubles=troubles,
    )  # fmt: skip


def _step_tokens(recipe: Recipe) -> int:
    return recipe.train.batch_size * recipe.data.seq_len


def _lasting(recipe: Recipe, steps: int, evaluations: int, folder: Path) -> Recipe:
    """The recipe for `steps` steps, evaluated so often and saved once, at its end, which it comes to in any case."""
    every = max(1, steps // evaluations)
    return replace(
        recipe,
        run_dir=str(folder),
        schedule=replace(recipe.schedule, steps=steps),
        train=replace(
            recipe.train, eval_every=every, save_every=steps, sentinel_every=steps, sample_every=0,
            on_trouble="report", log_every=max(1, min(recipe.train.log_every, steps // 5)), loggers=(),
        ),
    )  # fmt: skip


def _refuse_another(recipe: Recipe) -> None:
    """Raises ConfigError where the folder holds a run of another length: one that went on has warmed up otherwise."""
    if (recipe.folder / RECIPE).exists():
        steps = read_json(recipe.folder / RECIPE, ConfigError).get("schedule", {}).get("steps")
        if steps != recipe.schedule.steps:
            raise ConfigError(
                f"{recipe.folder}: holds a run of {steps} steps, and this one has {recipe.schedule.steps}; give --keep "
                "another folder"
            )


def _train(recipe: Recipe) -> float:
    """Train, and the median of the loop's own tokens a second. Raises ConfigError if it was stopped."""
    if compiles(recipe.train, pick_device(recipe.train.device)):
        # The compiler keeps eight versions of a function: of a list of many shapes it would leave the rest uncompiled.
        torch.compiler.reset()
    outcome = train(recipe)
    if outcome.status != "finished":
        raise ConfigError(f"{recipe.folder}: the run was stopped ({outcome.reason}); nothing to compare")
    rates = [line["tokens_per_second"] for line in read_metrics(recipe.folder, "train")]
    return median(rates)


def table(report: dict[str, Any], speeds: bool = True) -> str:
    """A Markdown table, a row for each recipe: medians of speed and time, means of what was learnt over the seeds.

    The last column has the sample's standard deviation, where there is more than one seed. Without `speeds`, for runs
    that shared a GPU, nothing is said of time.
    """
    runs = _runs(report)
    sources = [name for name in runs[0].curve[-1].bits_per_byte if name != "all"]
    rows = []
    for name in dict.fromkeys(one.recipe for one in runs):
        mine = [one for one in runs if one.recipe == name]
        last = [one.curve[-1].bits_per_byte for one in mine]
        finals = [found["all"] for found in last]
        spread = f" ± {stdev(finals):.4f}" if len(finals) > 1 else ""
        rows.append(
            [
                name,
                str(len(mine)),
                f"{mine[0].tokens:,}",
                *([f"{_median(mine, 'tokens_per_second'):,.0f}", f"{_median(mine, 'seconds'):.0f}"] if speeds else []),
                *(f"{fmean(found[source] for found in last):.3f}" for source in sources),
                f"{fmean(finals):.4f}{spread}",
            ]
        )
    timing = ["tokens/s", "seconds"] if speeds else []
    return "\n".join(markdown(["recipe", "seeds", "tokens", *timing, *sources, "all"], rows))


def draw(report: dict[str, Any], path: Path, speeds: bool = True) -> None:
    """A picture of bits per byte over all sources: on the left while training, on the right at the end, seed by seed.

    Curves are means over the seeds, between the lowest and the highest of them; a recipe has one color on both sides.
    Without `speeds` they stand against tokens, not seconds.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    runs = _runs(report)
    names = list(dict.fromkeys(one.recipe for one in runs))
    figure = Figure(figsize=(12, max(4.0, 1.5 + 0.32 * len(names))), layout="constrained")
    curves, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for place, name in enumerate(names):
        mine, color = [one for one in runs if one.recipe == name], palette[place % len(palette)]
        points = list(zip(*([point for point in one.curve if point.step > 0] for one in mine), strict=False))
        across = [fmean(p.seconds if speeds else p.tokens / 1e6 for p in same) for same in points]
        found = [[point.bits_per_byte["all"] for point in same] for same in points]
        curves.plot(across, list(map(fmean, found)), marker="o", markersize=3, color=color)
        curves.fill_between(across, list(map(min, found)), list(map(max, found)), color=color, alpha=0.2, linewidth=0)
        finals = [one.final for one in mine]
        ends.plot(finals, [place] * len(finals), "o", color=color, alpha=0.5)
        ends.plot(fmean(finals), place, "|", color=color, markersize=16, markeredgewidth=2)
    curves.set_xlabel("seconds of training" if speeds else "million tokens")
    curves.set_ylabel("held-out bits per byte, all sources")
    ends.set_yticks(range(len(names)), names)
    ends.invert_yaxis()
    ends.yaxis.tick_right()
    ends.set_xlabel("at the end; bars are means over the seeds")
    for axes in (curves, ends):
        axes.grid(alpha=0.3)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _runs(report: dict[str, Any]) -> list[Run]:
    return [Run(**{**values, "curve": [Point(**point) for point in values["curve"]]}) for values in report["runs"]]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text!r}: write KEY=VALUE, as in optimizer.lr=4e-3")
    return key, value


def _median(runs: Sequence[Run], name: str) -> float:
    return median(getattr(one, name) for one in runs)
