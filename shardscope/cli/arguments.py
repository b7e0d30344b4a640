"""Arguments that mean the same in every command, and the values that they take."""

from __future__ import annotations

import argparse
import codecs
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from shardscope.config import ConfigError

MOST_PROMPT = 2**24  # bytes of a text that a flag names; the longest context takes a hundredth of it
CHECKPOINT = "a checkpoint folder, or a run (its newest checkpoint); default: the built-in model"


class _Once(argparse.Action):
    """A value that may be given by name or by place, but not both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is None:  # not given by place
            return
        if (before := getattr(namespace, self.dest, None)) is not None:
            parser.error(f"two checkpoints are given, {before} and {values}; name one")
        setattr(namespace, self.dest, values)


def add_checkpoint(parser: argparse.ArgumentParser, help: str = CHECKPOINT, *, by_place: bool = True) -> None:
    """`--checkpoint PATH`; where a command takes nothing else by place, PATH alone too."""
    if by_place:
        parser.add_argument("checkpoint", nargs="?", type=path, action=_Once, metavar="CHECKPOINT", help=help)
    same = "the same, by name" if by_place else help
    parser.add_argument("--checkpoint", type=path, action=_Once, metavar="PATH", help=same)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:N, mps, or auto: the best there is (default auto)"
    )


def add_seed(parser: argparse.ArgumentParser, help: str = "of the samples (default 0)") -> None:
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help=help)


def add_out(parser: argparse.ArgumentParser, help: str, metavar: str = "DIR", **settings: Any) -> None:
    parser.add_argument("--out", type=path, metavar=metavar, help=help, **settings)


def path(text: str) -> Path:
    """A path as typed; a leading ~ is the home folder, also where the shell leaves it (`--out=~/here`)."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError("a path cannot hold a NUL character")
    if text != "~" and not text.startswith(("~/", "~\\")):
        return Path(text)  # ~name may as well be the name of a file
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def whole(least: int) -> Callable[[str], int]:
    """The type of a whole number of at least `least`, written as 1000 or 1_000."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; use at least {least}")
        return value

    return number


def escaped(text: str) -> str:
    r"""A text in which \n, \t, \\, \x41 and \u00e9 stand for what they stand for in Python; other backslashes stay."""

    def character(found: re.Match[str]) -> str:
        return codecs.decode(found[0].encode("ascii"), "unicode_escape")

    try:
        return re.sub(r"\\(?:[abfnrtv0\\'\"]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})", character, text)
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{text!r} names a character that does not exist") from None


def read_text(file: Path, flag: str) -> str:
    """The text of a file that `flag` names; `-` is standard input. Raises ConfigError."""
    try:
        # Bytes, so that line ends stay as they are.
        with nullcontext(sys.stdin.buffer) if file == Path("-") else file.open("rb") as opened:
            data = opened.read(MOST_PROMPT + 1)
        if len(data) > MOST_PROMPT:
            raise ConfigError(f"{file}: cannot be read: it is larger than {MOST_PROMPT / 2**20:.0f} MiB")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: cannot be read as UTF-8 text ({error}); {flag} takes the path of a text file"
        ) from None
    if not text:
        raise ConfigError(f"{file}: the file is empty; write at least one character")
    return text
