"""`shardscope export`: the checkpoint as stock transformers loads it."""

from __future__ import annotations

import argparse

from shardscope.cli.arguments import add_checkpoint, add_out
from shardscope.interop.huggingface import export_pretrained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add_out(parser, "the folder to write, new or empty", required=True)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default float32")


def run(arguments: argparse.Namespace) -> int:
    folder = export_pretrained(arguments.checkpoint, arguments.out, arguments.dtype, report=print)
    print(f"{folder}: load it with AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained")
    return 0
