"""`shardscope report`: what a run has learnt, beside what needs no neural network, and what its text looks like."""

from __future__ import annotations

import argparse

from shardscope import load
from shardscope.checkpoint import CheckpointError
from shardscope.cli.arguments import add_checkpoint, add_device, add_seed, path
from shardscope.device import pick_device
from shardscope.evals.compare import side_by_side
from shardscope.evals.report import format_report, held_out_table
from shardscope.failures import card_table, sample_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "a run folder, with its recipe and metrics")
    parser.add_argument("others", nargs="*", type=path, metavar="RUN", help="more runs: all of them side by side")
    parser.add_argument("--ngram", type=int, default=3, metavar="N", help="order of the byte n-gram model (default 3)")
    parser.add_argument(
        "--ngram-bytes", type=int, default=64_000_000, metavar="N",
        help="training text it sees (default 64,000,000)",
    )  # fmt: skip
    add_device(parser)
    add_seed(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.checkpoint is None:
        raise CheckpointError("report needs a run; name a folder like runs/shard-pico-anneal")
    if arguments.others:
        print(side_by_side([arguments.checkpoint, *arguments.others]))
        return 0
    device = pick_device(arguments.device)
    table = held_out_table(arguments.checkpoint, arguments.ngram, arguments.ngram_bytes)
    print(format_report(table, arguments.ngram), end="\n\n")
    model = load(arguments.checkpoint, device=device)
    print(card_table(sample_card(model, temperature=0.7, top_p=0.9, seed=arguments.seed)))
    return 0
