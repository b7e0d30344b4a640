"""`shardscope generate`: the prompt, and what the model continues it with, as it is written."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

from shardscope import load
from shardscope.cli.arguments import add_checkpoint, add_device, escaped, path, read_text
from shardscope.config import ConfigError
from shardscope.device import pick_device
from shardscope.generation import SamplingConfig, stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="the text to continue, quoted")
    parser.add_argument("--prompt-file", type=path, metavar="FILE", help="a file with the prompt; -: standard input")
    add_checkpoint(parser, by_place=False)
    add_device(parser)
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of SamplingConfig, with its own help."""
    hints = get_type_hints(SamplingConfig)
    for item in fields(SamplingConfig):
        flag, text = f"--{item.name.replace('_', '-')}", item.metadata["help"]
        default = item.default if item.default is not MISSING else None
        if hints[item.name] is bool:
            state = "on" if default else "off"
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=f"{text} (default {state})"
            )
        elif isinstance(default, int | float):
            parser.add_argument(
                flag, type=hints[item.name], default=default, metavar="N", help=f"{text} (default {default:g})"
            )
        else:
            help = rf"{text}; \n is a line end; may be repeated"
            parser.add_argument(flag, action="append", type=escaped, default=[], metavar="TEXT", help=help)


def sampling(arguments: argparse.Namespace) -> SamplingConfig:
    choices = {item.name: getattr(arguments, item.name) for item in fields(SamplingConfig)}
    return SamplingConfig(**{**choices, "stop": tuple(choices["stop"])})


def run(arguments: argparse.Namespace) -> int:
    prompt, config = _prompt(arguments.words, arguments.prompt_file), sampling(arguments)
    model = load(arguments.checkpoint, device=pick_device(arguments.device))
    print(prompt, end="", flush=True)
    for event in stream(model, prompt, config):
        print(event.text, end="", flush=True)
    print()
    return 0


def _prompt(words: list[str], file: Path | None) -> str:
    """The prompt, given as one word or in a file. Raises ConfigError, also for a word that looks like a path."""
    if file is not None:
        if words:
            raise ConfigError(f"a prompt is given twice, as {words[0]!r} and in --prompt-file {file}; leave one out")
        return read_text(file, "--prompt-file")
    if len(words) != 1:
        found = f"{len(words)} prompts are given" if words else "no prompt is given"
        raise ConfigError(f"{found}; quote one text, and name a model with --checkpoint")
    [prompt] = words
    if looks_like_a_path(prompt):
        raise ConfigError(
            f"{prompt!r} looks like a path, not like a text to continue; name a model with --checkpoint {prompt}, "
            "or pass such a text with --prompt-file"
        )
    return prompt


def looks_like_a_path(word: str) -> bool:
    """Whether somebody who types this as the only word means a file or a folder: `runs/typo`, `~/model`, `exported`."""
    if not word or any(character.isspace() for character in word):
        return False
    try:
        there = Path(word).exists()
    except (OSError, ValueError):
        there = False
    return there or "/" in word or "\\" in word or word.startswith("~")
