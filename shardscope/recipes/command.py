"""The command line of a recipe: a TOML file, and a flag for each of its fields."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

from shardscope.config import (
    PRESETS,
    ConfigError,
    Recipe,
    ShardConfig,
    Source,
    load_recipe,
    recipe_fields,
    suggest,
    user_path,
)
from shardscope.model import Shard
from shardscope.processes import Processes, is_main_process
from shardscope.resources import resource
from shardscope.terminal import prepare_output
from shardscope.train import Interrupted, Outcome, TrainingError, train
from shardscope.train.plan import format_plan, plan

# Flags that mean the same in every command of `shardscope`, and the fields that they set here.
SHORT_FLAGS = {"run_dir": "--out", "start_from": "--checkpoint", "train.device": "--device"}
FIELDS = {"model.preset", *(key for key, _, _ in recipe_fields())}


def run_recipe(phase: str, doc: str | None, argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status: 0 when the run finished or paused in good order."""
    summary, _, examples = (doc or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=f"python -m shardscope.recipes.{phase}",
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    prepare_output()
    add_arguments(parser)
    return run(parser.parse_args(argv), phase)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, and a flag for each field of a recipe."""
    parser.usage = f"{parser.prog} RECIPE [--FIELD VALUE ...]"
    parser.epilog = (
        f"{_table_of(Source, 'a source, as in data.sources = [{name = ..., path = ...}]')}\n{parser.epilog or ''}"
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a packaged recipe")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the learning rate, tokens and passes of each source, FLOPs, hours and memory, and read nothing",
    )
    flags = parser.add_argument_group("fields of the recipe", "each flag overrides the file; values are TOML")
    flags.add_argument("--model.preset", metavar="VALUE", help=f"a named architecture: {', '.join(PRESETS)}")
    for key, text, default in recipe_fields():
        shown = "" if default is MISSING or default in ("", None, ()) else f" (default {_plain(default)})"
        names = [f"--{key}", SHORT_FLAGS[key]] if key in SHORT_FLAGS else [f"--{key}"]
        flags.add_argument(*names, dest=key, metavar="VALUE", help=(text + shown).replace("%", "%%"))


def run(arguments: argparse.Namespace, phase: str | None = None) -> int:
    """Train as the parsed command line says; the exit status. The recipe has to be of `phase`, if one is given."""
    try:
        path = find_recipe(arguments.recipe)
        given = {key: word for key, word in vars(arguments).items() if key in FIELDS and word is not None}
        recipe = load_recipe(path, given)
        if phase not in (None, recipe.phase):
            raise ConfigError(
                f"{path}: phase={recipe.phase!r}; run it with python -m shardscope.recipes.{recipe.phase}"
            )
        if arguments.dry_run:
            processes = Processes.of_torchrun()
            found = plan(recipe, processes.size, _model_of_start(recipe, path))
            if processes.main:
                print(format_plan(found))
            return 0
        outcome = train(recipe, probe=partial(_probe, recipe.folder), study=_study)
    except (ConfigError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupted:
        number = interrupted.number if isinstance(interrupted, Interrupted) else signal.SIGINT
        name = signal.Signals(number).name
        print(f"{name} while there was nothing to save; the same command starts again where it was", file=sys.stderr)
        return 128 + number
    if is_main_process():
        print(_closing_words(outcome))
    return 0


def find_recipe(word: str) -> Path:
    """The recipe file that a word names: a file, else a packaged recipe. Raises ConfigError when there is neither."""
    path = Path(word).expanduser() if word.startswith("~/") else Path(word)
    if path.is_file():
        return path
    packaged = {file.stem: file for file in sorted(resource("recipes").glob("*.toml"))}
    if word in packaged:
        return packaged[word]
    near = [*packaged, *(str(file) for file in sorted(path.parent.glob("*.toml")))]
    raise ConfigError(f"{word}: no such file, and no packaged recipe of this name{suggest(word, near)}")


def _model_of_start(recipe: Recipe, path: Path) -> ShardConfig | None:
    """For an anneal whose start is not there yet: the model of the recipe beside its own that will train it."""
    if not recipe.start_from:
        return None
    start = user_path(recipe.start_from.rpartition("@")[0] or recipe.start_from, "start_from").resolve()
    for file in sorted(path.parent.glob("*.toml")):
        with suppress(ConfigError):  # somebody else's file
            other = load_recipe(file)
            if other.model is not None and start.is_relative_to(other.folder.resolve()):  # a run, or a checkpoint in it
                return other.model
    return None


def _probe(run: Path, model: Shard) -> list[dict[str, Any]]:
    from shardscope.failures import sample_card, text_model_of

    samples = sample_card(model, max_new_tokens=128, temperature=0.7, top_p=0.9, seed=0, text_model=text_model_of(run))
    return [
        {"prompt": prompt.text, "output": generation.text, "failure": labels.primary}
        for prompt, generation, labels in samples
    ]


def _study(run: Path, texts: Iterator[str]) -> None:
    from shardscope.failures import keep_with_run

    keep_with_run(run, texts)


def _closing_words(outcome: Outcome) -> str:
    lines = [f"{outcome.status} at step {outcome.step}: {outcome.reason}", f"checkpoint: {outcome.checkpoint}"]
    if outcome.scores:
        when = "" if outcome.evaluated == outcome.step else f", at step {outcome.evaluated}"
        lines += [
            f"held-out {name}{when}: loss {score.loss:.4f} nats/token, {score.bits_per_byte:.4f} bits/byte"
            for name, score in outcome.scores.items()
        ]
    lines += [f"trouble: {trouble}" for trouble in outcome.troubles]
    if outcome.status == "paused early" and any(outcome.reason.startswith(str(one)) for one in outcome.troubles):
        lines.append(
            "the same command pauses again while that lasts; --train.on_trouble report goes on as it is, and rewind "
            "goes back to a checkpoint from before it and halves the rate; another optimizer.lr needs another --run_dir"
        )
    return "\n".join(lines)


def _table_of(kind: type, title: str) -> str:
    lines = [f"  {item.name:<14}{item.metadata['help']}" for item in fields(kind)]
    return "\n".join([f"{title}:", *lines, ""])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
