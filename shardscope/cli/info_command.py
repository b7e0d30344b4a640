"""`shardscope info`."""

from __future__ import annotations

import argparse

from shardscope.checkpoint import describe, resolve_checkpoint
from shardscope.cli.arguments import add_checkpoint
from shardscope.train.about import describe_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)


def run(arguments: argparse.Namespace) -> int:
    print(describe(arguments.checkpoint))
    if about := describe_run(resolve_checkpoint(arguments.checkpoint)):
        print(about)
    return 0
