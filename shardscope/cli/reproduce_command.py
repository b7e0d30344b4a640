"""`shardscope reproduce`: the whole reference run, from text to report, each stage done once."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from shardscope.cli.arguments import add_device, add_out, path, whole
from shardscope.config import ConfigError
from shardscope.device import pick_device
from shardscope.evals.suite import check_tasks
from shardscope.reproduce.checks import check, check_machine
from shardscope.reproduce.offer import default_recipes, format_needs, needs, offer
from shardscope.reproduce.pair import CHECKPOINTS, load_pair
from shardscope.reproduce.pipeline import TASKS, Settings, reproduce
from shardscope.reproduce.report import write_report
from shardscope.reproduce.training import Signalled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipes", nargs=2, metavar=("PRETRAIN", "ANNEAL"),
        help="two recipes, as files or names of packaged ones (default: the reference run's)",
    )  # fmt: skip
    add_out(parser, "folder of the runs, the metrics and the report (default runs/reproduce/NAME)")
    parser.add_argument(
        "--data", type=path, metavar="DIR", help="test sets (default: SHARDSCOPE_EVAL_DATA, else the hub)"
    )
    parser.add_argument(
        "--tasks", default=",".join(TASKS), metavar="NAMES", help="with commas; empty: none (default: all of ours)"
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="questions of each task at most (default: all)")
    parser.add_argument("--prompts", type=whole(1), metavar="N", help="prompts of the suite at most (default: all)")
    parser.add_argument(
        "--checkpoints",
        type=whole(2),
        default=CHECKPOINTS,
        metavar="N",
        help=f"in which heads are scored (default {CHECKPOINTS})",
    )
    parser.add_argument("--processes", type=whole(1), default=1, metavar="N", help="GPUs to train on (default 1)")
    parser.add_argument(
        "--price-per-hour", type=_price, metavar="P", help="of the machine: the report then says what it cost"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what it would take")
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run what is not done yet. Without a GPU and without --recipes: say what it would take, and what fits instead."""
    words = arguments.recipes or default_recipes()
    if arguments.processes > 1 and ":" in arguments.device:
        raise ConfigError(
            f"--processes {arguments.processes} trains on a card each, --device {arguments.device} names one; use cuda"
        )
    tasks = _names(arguments.tasks)
    check_tasks(tasks, None)
    device = pick_device(arguments.device)
    if device.type == "cpu" and not arguments.recipes and not arguments.dry_run:
        print(offer(words))
        return 0
    # As it was typed: each process picks its own card of "auto" and "cuda".
    pair = load_pair(words, arguments.out, arguments.device, arguments.checkpoints)
    out, data = pair.pretrain.folder.parent, arguments.data or _data_of_environment()
    check(pair, out, tasks, data, arguments.processes)
    if arguments.dry_run:  # also for another machine than this one
        print(format_needs(needs(pair, arguments.processes)))
        return 0
    check_machine(pair, out, arguments.processes, device)
    settings = Settings(
        device=str(device), processes=arguments.processes,
        tasks=tasks, data=data, limit=arguments.limit, prompts=arguments.prompts,
        price_per_hour=arguments.price_per_hour,
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, _end)
    try:
        metrics = reproduce(pair, out, settings, say=lambda text: print(text, flush=True))
    except KeyboardInterrupt as interrupted:
        number = interrupted.number if isinstance(interrupted, Signalled) else signal.SIGINT
        print(f"{signal.Signals(number).name}; the same command goes on where this one was", file=sys.stderr)
        return 128 + number
    finally:
        signal.signal(signal.SIGTERM, before)
    report = write_report(metrics, out / "report.md")
    print(f"metrics: {metrics}\nreport: {report}")
    return 0


def _end(number: int, frame: object) -> None:
    """SIGTERM ends the work between two trainings, or the measuring, as Ctrl+C does."""
    raise Signalled(number)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _data_of_environment() -> Path | None:
    named = os.environ.get("SHARDSCOPE_EVAL_DATA")
    return Path(named) if named else None


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no price; use a number above 0")
    return value
