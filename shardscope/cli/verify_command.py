"""`shardscope verify`: the parity certificate of a checkpoint; status 1 where a library is out of bounds."""

from __future__ import annotations

import argparse

from shardscope import load
from shardscope.cli.arguments import add_checkpoint
from shardscope.interop.parity import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)


def run(arguments: argparse.Namespace) -> int:
    certificate = verify(load(arguments.checkpoint, device="cpu"))
    print("\n".join(certificate.lines()))
    return 0 if certificate.passed else 1
