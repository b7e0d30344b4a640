"""`shardscope info`."""

from __future__ import annotations

import argparse

from shardscope.checkpoint import describe, resolve_checkpoint
from shardscope.cli.arguments import add_checkpoint
from shardscope.failures.atlas.records import run_of
from shardscope.failures.text_model import FILE_NAME, has_own
from shardscope.train.about import describe_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)


def run(arguments: argparse.Namespace) -> int:
    print(describe(arguments.checkpoint))
    checkpoint = resolve_checkpoint(arguments.checkpoint)
    whose = f"the run's own ({FILE_NAME})" if has_own(run_of(checkpoint)) else "the one that ships with the package"
    print(f"{'text model':14} {whose}; labels ask it what text looks like")
    if about := describe_run(checkpoint):
        print(about)
    return 0
