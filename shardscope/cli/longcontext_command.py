"""`shardscope longcontext`: how far back a model retrieves a fact, which heads fetch it, and its loss by position."""

from __future__ import annotations

import argparse
import json

from shardscope import load
from shardscope.cli.arguments import add_checkpoint, add_device, add_seed, path, whole
from shardscope.device import pick_device
from shardscope.failures.retrieval import SAMPLES, long_context, long_context_table
from shardscope.files import check_writable_file, write_text
from shardscope.progress import progress_of_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--distance", type=whole(1), action="append", metavar="N",
        help="tokens from the fact to the question; may be repeated (default 64, 128, … up to the context)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=whole(1), default=SAMPLES, metavar="N", help=f"facts at each distance (default {SAMPLES})"
    )
    parser.add_argument(
        "--heads", action=argparse.BooleanOptionalAction, default=True, help="also without single global heads"
    )
    add_device(parser)
    add_seed(parser, "of the facts and the text around them (default 0)")
    parser.add_argument("--json", type=path, metavar="FILE", help="where the curves are written")


def run(arguments: argparse.Namespace) -> int:
    check_writable_file(arguments.json, "--json")
    model = load(arguments.checkpoint, device=pick_device(arguments.device))
    with progress_of_shares("longcontext") as progress:
        found = long_context(
            model, distances=arguments.distance, samples=arguments.samples, heads=arguments.heads, seed=arguments.seed,
            progress=progress,
        )  # fmt: skip
    if arguments.json is None:
        print(long_context_table(found))
    else:
        write_text(arguments.json, json.dumps(found.to_dict(), indent=1) + "\n")
    return 0
