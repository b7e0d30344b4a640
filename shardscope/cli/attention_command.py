"""`shardscope attention`: what the microscope sees of one prompt, as files that need nothing to be looked at."""

from __future__ import annotations

import argparse

from shardscope import load
from shardscope.checkpoint import resolve_checkpoint
from shardscope.cli.arguments import add_checkpoint, add_device, add_out, path, read_text
from shardscope.device import pick_device
from shardscope.files import check_writable_folder
from shardscope.microscope.export import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--prompt-file", required=True, type=path, metavar="FILE", help="UTF-8 text to look at; -: standard input"
    )
    add_out(parser, "folder that the files are written to", required=True)
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    text = read_text(arguments.prompt_file, "--prompt-file")
    check_writable_folder(arguments.out, "--out")
    model = load(arguments.checkpoint, device=pick_device(arguments.device))
    last = ""

    def progress(share: float, words: str) -> None:
        nonlocal last
        if words != last:
            print(f"{share:4.0%}  {words}", flush=True)
        last = words

    name = str(arguments.checkpoint or resolve_checkpoint().name)
    for written in export(model, text, arguments.out, name, progress):
        files = [file for file in (written, *written.glob("*")) if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"{written}  {size / 1000:,.0f} kB{f' in {len(files)} files' if written.is_dir() else ''}")
    return 0
