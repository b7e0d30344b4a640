"""`shardscope xray`: why a text loops, which heads and MLPs it needs, and what takes the loop away."""

from __future__ import annotations

import argparse
import json
from typing import get_args

from shardscope import load
from shardscope.cli.arguments import add_checkpoint, add_device, add_seed, path, read_text, whole
from shardscope.config import ConfigError
from shardscope.device import pick_device
from shardscope.failures.loop_xray import Ablation, xray
from shardscope.failures.loop_xray.picture import xray_picture
from shardscope.failures.loop_xray.table import xray_table
from shardscope.files import check_writable_file, write_text
from shardscope.generation import SamplingConfig, generate
from shardscope.progress import progress_of_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt whose greedy continuation loops")
    parser.add_argument("--prompt-file", type=path, metavar="FILE", help="a file with the prompt; -: standard input")
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=256, metavar="N", help="tokens of the continuation (default 256)"
    )
    parser.add_argument(
        "--ablation", choices=get_args(Ablation), default="mean",
        help="what stands in for a part that is switched off: its mean over a text, or what it wrote at random places "
        "of that text (default mean)",
    )  # fmt: skip
    parser.add_argument(
        "--max-size",
        type=whole(1),
        default=8,
        metavar="N",
        help="parts of the largest set that is searched (default 8)",
    )
    add_device(parser)
    add_seed(parser, "of the random sets, and of the samples at a temperature (default 0)")
    parser.add_argument("--json", type=path, metavar="FILE", help="where everything that was measured is written")
    parser.add_argument("--picture", type=path, metavar="FILE", help="where a picture is written, as .svg or .html")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.prompt is None) == (arguments.prompt_file is None):
        given = "two prompts are given" if arguments.prompt is not None else "no prompt is given"
        raise ConfigError(f"{given}; pass one with --prompt TEXT or --prompt-file FILE")
    prompt = arguments.prompt
    if prompt is None:
        prompt = read_text(arguments.prompt_file, "--prompt-file")
    if arguments.picture is not None and arguments.picture.suffix not in (".svg", ".html"):
        raise ConfigError(f"--picture {arguments.picture}: a picture is written as .svg or .html; name such a file")
    check_writable_file(arguments.json, "--json")
    check_writable_file(arguments.picture, "--picture")
    model = load(arguments.checkpoint, device=pick_device(arguments.device))
    [generation] = generate(model, [prompt], SamplingConfig(max_new_tokens=arguments.max_new_tokens))
    with progress_of_shares("xray") as progress:
        found = xray(
            model, generation, ablation=arguments.ablation, max_size=arguments.max_size, seed=arguments.seed,
            progress=progress,
        )  # fmt: skip
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(found.to_dict(), indent=1) + "\n")
    if arguments.picture is not None:
        picture = xray_picture(found)
        if arguments.picture.suffix == ".html":
            picture = f'<!doctype html>\n<meta charset="utf-8">\n<title>X-ray of a loop</title>\n{picture}'
        write_text(arguments.picture, picture)
    if arguments.json is None:
        print(xray_table(found))
    return 0
