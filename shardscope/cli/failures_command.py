"""`shardscope failures`: samples, and what goes wrong in each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from shardscope import load
from shardscope.checkpoint import resolve_checkpoint
from shardscope.cli.arguments import add_checkpoint, add_device, add_out, path, read_text
from shardscope.cli.generate_command import add_sampling, sampling
from shardscope.config import ConfigError
from shardscope.device import pick_device
from shardscope.failures import CARD_PROMPTS, CardSample, SuitePrompt, card_table, label, text_model_of
from shardscope.failures.atlas.records import run_of
from shardscope.files import check_writable_file, write_text
from shardscope.generation import generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT",
        help="a prompt of your own instead of the model card's six; may be repeated",
    )  # fmt: skip
    parser.add_argument("--prompt-file", type=path, metavar="FILE", help="a file with one more; -: standard input")
    add_device(parser)
    add_sampling(parser)
    parser.set_defaults(temperature=0.7, top_p=0.9)  # the model card's
    add_out(parser, "where prompts, continuations and labels are written, as lines of JSON", metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    texts, config = list(arguments.prompt), sampling(arguments)
    if arguments.prompt_file is not None:
        texts.append(read_text(arguments.prompt_file, "--prompt-file"))
    prompts = [SuitePrompt(text=text) for text in texts] or list(CARD_PROMPTS)
    if arguments.checkpoint is not None and " " in str(arguments.checkpoint) and not arguments.checkpoint.exists():
        raise ConfigError(f"{arguments.checkpoint}: no such checkpoint; if it is a prompt, pass it with --prompt")
    check_writable_file(arguments.out, "--out")
    model = load(arguments.checkpoint, device=pick_device(arguments.device))
    text_model = text_model_of(run_of(resolve_checkpoint(arguments.checkpoint)))
    generations = generate(model, [prompt.text for prompt in prompts], config)
    samples = [
        CardSample(prompt, generation, label(generation, text_model=text_model))
        for prompt, generation in zip(prompts, generations, strict=True)
    ]
    print(card_table(samples))
    if arguments.out is not None:
        write_text(arguments.out, as_json_lines(samples))
    return 0


def as_json_lines(samples: Sequence[CardSample]) -> str:
    """A line for each sample: prompt, continuation, stop reason, the primary failure, and every flag with its span."""
    return "".join(
        json.dumps(
            {
                "prompt": sample.prompt.text,
                "text": sample.generation.text,
                "stop_reason": sample.generation.stop_reason,
                "failure": sample.labels.primary,
                "flags": [asdict(flag) for flag in sample.labels.flags],
            }
        )
        + "\n"
        for sample in samples
    )
