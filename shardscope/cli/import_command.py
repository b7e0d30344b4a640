"""`shardscope import`: a checkpoint from an exported directory, or from the original file."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardscope.checkpoint import save_checkpoint
from shardscope.cli.arguments import add_out, path, read_text
from shardscope.config import ConfigError
from shardscope.interop.huggingface import import_pretrained
from shardscope.interop.original import import_original
from shardscope.model import Shard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=path, metavar="PATH", help="an exported directory, or a .pt file")
    add_out(parser, "the folder that the checkpoint is written to, new or empty", required=True)
    parser.add_argument("--tokenizer", type=path, metavar="FILE", help="tokenizer.json of a .pt file")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a key of a .pt file's config that is not understood and only concerned training; may be repeated",
    )
    parser.add_argument("--bos", metavar="TOKEN", help="the token in it that begins a document, if not <|endoftext|>")
    parser.add_argument("--text", type=path, metavar="FILE", help="a text that decides what is ambiguous in a .pt file")


def run(arguments: argparse.Namespace) -> int:
    source, out = arguments.path, arguments.out
    if not source.exists():
        raise ConfigError(f"{source}: no such file or directory")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; name a new folder")
    model = _exported(arguments) if source.is_dir() else _original(arguments)
    save_checkpoint(out, model, notes={"imported_from": source.name})
    print(f"{out}: {model.n_params:,} parameters")
    return 0


def _exported(arguments: argparse.Namespace) -> Shard:
    for flag in ("tokenizer", "text", "bos", "ignore"):
        if getattr(arguments, flag):
            raise ConfigError(f"{arguments.path} is an exported directory, which needs no --{flag}; leave it out")
    return import_pretrained(arguments.path)


def _original(arguments: argparse.Namespace) -> Shard:
    """The model of an original file; what was decided about it is printed."""
    if arguments.tokenizer is None:
        raise ConfigError(
            f"{arguments.path} holds no vocabulary; pass --tokenizer with the tokenizer.json published beside it"
        )
    text = None if arguments.text is None else read_text(Path(arguments.text), "--text")
    imported = import_original(arguments.path, arguments.tokenizer, text, arguments.bos, arguments.ignore)
    print("\n".join(imported.report))
    return imported.model
