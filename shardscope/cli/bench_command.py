"""`shardscope bench`: each benchmark is a module of `shardscope.bench`, imported only when it is run."""

from __future__ import annotations

import argparse

from shardscope.cli.parser import CommandParser

BENCHES = {
    "train": "Training: tokens a second, MFU, memory, beside transformers' model.",
    "biography": "A run's biography: the parts of a probe beside a training step, and their share of a training.",
    "learn": "Learning: held-out bits per byte against tokens and seconds, for a list of recipes.",
    "decode": "Generation: tokens a second beside transformers' generate.",
    "score": "Scoring: ARC questions a second beside lm-eval's own --model hf.",
    "attention": "Attention views of a long prompt beside TransformerLens's cache.",
    "xray": "The X-ray of a loop: seconds to a verdict, interventions in one batch beside one by one.",
    "threads": "Generation on a CPU, idle and with one core taken by another program.",
    "failures": "Failure labels: false alarms on people's text, planted loops, milliseconds.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(metavar="WHAT", required=True, parser_class=CommandParser)
    for what, text in BENCHES.items():
        benches.add_parser(what, help=text, description=text).set_module(f"shardscope.bench.{what}")


def run(arguments: argparse.Namespace) -> int:
    raise AssertionError("a benchmark brings its own function")
