"""`shardscope report`: what a run has learnt, beside what needs no neural network, and what its text looks like.

Of several runs it sets what they are side by side; of the metrics of `shardscope reproduce` it writes the page.
"""

from __future__ import annotations

import argparse

from shardscope import load
from shardscope.checkpoint import CheckpointError, resolve_checkpoint
from shardscope.cli.arguments import add_checkpoint, add_device, add_out, add_seed, path
from shardscope.config import ConfigError
from shardscope.device import pick_device
from shardscope.evals.compare import side_by_side
from shardscope.evals.report import format_report, held_out_table
from shardscope.failures import card_table, sample_card, text_model_of
from shardscope.failures.atlas.records import run_of
from shardscope.files import check_writable_file
from shardscope.reproduce.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "a run folder, with its recipe and metrics; or the metrics.json of `shardscope reproduce`")
    parser.add_argument("others", nargs="*", type=path, metavar="RUN", help="more runs: all of them side by side")
    parser.add_argument("--ngram", type=int, default=3, metavar="N", help="order of the byte n-gram model (default 3)")
    parser.add_argument(
        "--ngram-bytes", type=int, default=64_000_000, metavar="N",
        help="training text it sees (default 64,000,000)",
    )  # fmt: skip
    add_device(parser)
    add_seed(parser)
    add_out(parser, "of a metrics.json: where the page is written, its pictures in images/ beside it", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    if arguments.checkpoint is None:
        raise CheckpointError("report needs a run; name a folder like runs/shard-pico-anneal")
    if arguments.checkpoint.suffix == ".json":
        if arguments.others:
            raise ConfigError(f"{arguments.checkpoint}: metrics are reported alone; leave {arguments.others[0]} out")
        if arguments.out is None:
            raise ConfigError(f"{arguments.checkpoint}: say with --out where the page is to be written")
        check_writable_file(arguments.out, "--out")
        print(write_report(arguments.checkpoint, arguments.out))
        return 0
    if arguments.out is not None:
        raise ConfigError(f"--out {arguments.out}: only the page about a metrics.json is written; leave it out")
    if arguments.others:
        print(side_by_side([arguments.checkpoint, *arguments.others]))
        return 0
    device = pick_device(arguments.device)
    table = held_out_table(arguments.checkpoint, arguments.ngram, arguments.ngram_bytes)
    print(format_report(table, arguments.ngram), end="\n\n")
    model = load(arguments.checkpoint, device=device)
    text_model = text_model_of(run_of(resolve_checkpoint(arguments.checkpoint)))
    print(card_table(sample_card(model, temperature=0.7, top_p=0.9, seed=arguments.seed, text_model=text_model)))
    return 0
