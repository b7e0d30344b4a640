"""`shardscope info`."""

from __future__ import annotations

import argparse

from shardscope.checkpoint import describe
from shardscope.cli.arguments import add_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)


def run(arguments: argparse.Namespace) -> int:
    print(describe(arguments.checkpoint))
    return 0
