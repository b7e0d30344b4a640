"""`shardscope atlas`: how often a run fails in which way, at each of its checkpoints, before and after an anneal."""

from __future__ import annotations

import argparse
import json
from typing import Any

from shardscope.cli.arguments import add_checkpoint, add_device, add_seed, path, whole
from shardscope.device import pick_device
from shardscope.failures.atlas import AtlasSettings, changes, make_atlas, rates
from shardscope.failures.atlas.picture import atlas_picture
from shardscope.failures.atlas.records import Atlas
from shardscope.failures.atlas.table import atlas_table
from shardscope.failures.prompts import load_suite
from shardscope.files import check_writable_file, write_bytes, write_text
from shardscope.progress import progress_of_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, "a run, whose checkpoints are all sampled, or one checkpoint; default: the built-in model")
    parser.add_argument("others", nargs="*", type=path, metavar="RUN", help="more runs to set beside it: its anneal")
    parser.add_argument("--prompts", type=path, metavar="FILE", help="prompts as lines of JSON (default: the suite)")
    parser.add_argument(
        "--temperatures", type=temperatures, default=(0.0, 0.7, 1.0), metavar="T,T,…",
        help="at which every prompt is sampled; 0 is greedy, which needs no seeds (default 0,0.7,1)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole(1), default=2, metavar="N", help="samples of a prompt at each temperature (default 2)"
    )
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=256, metavar="N", help="tokens of each sample (default 256)"
    )
    add_device(parser)
    add_seed(parser)
    parser.add_argument("--json", type=path, metavar="FILE", help="where rates, intervals and changes are written")
    parser.add_argument("--png", type=path, metavar="FILE", help="where heat maps of failure by step are written")


def temperatures(text: str) -> tuple[float, ...]:
    """Numbers between commas; what numbers they may be is for AtlasSettings to say."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; write them as in 0,0.7,1") from None


def run(arguments: argparse.Namespace) -> int:
    check_writable_file(arguments.json, "--json")
    check_writable_file(arguments.png, "--png")
    settings = AtlasSettings(
        prompts=tuple(load_suite(arguments.prompts)),
        temperatures=arguments.temperatures,
        seeds=arguments.seeds,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
    )
    device = pick_device(arguments.device)
    with progress_of_shares("atlas") as progress:
        atlas = make_atlas([arguments.checkpoint, *arguments.others], settings, device=device, progress=progress)
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(as_json(atlas), indent=1) + "\n")
    if arguments.png is not None:
        write_bytes(arguments.png, atlas_picture(atlas))
    if arguments.json is None:
        print(atlas_table(atlas))
    return 0


def as_json(atlas: Atlas) -> dict[str, Any]:
    """The settings (prompts by their ids), what was sampled, every rate with its interval, and every change."""
    settings = atlas.settings
    return {
        "settings": {**settings.to_dict(), "prompts": [prompt.id for prompt in settings.prompts]},
        "digest": settings.digest,
        "left_out": list(atlas.left_out),
        "checkpoints": [
            {
                "run": column.run,
                "step": column.step,
                "path": str(column.checkpoint),
                "fingerprint": column.fingerprint,
                "samples": len(column.samples),
            }
            for column in atlas.columns
        ],
        "rates": [rate.to_dict() for rate in rates(atlas)],
        "changes": [change.to_dict() for change in changes(atlas)],
    }
