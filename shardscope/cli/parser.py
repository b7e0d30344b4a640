"""A parser for one command, which imports the command's module only when it is used."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from shardscope.config import suggest_close


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, whose arguments come from the module named by `set_module`, with the first parsing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._module = ""
        # argparse would say "invalid int value".
        self.register("type", int, partial(_read_as, int, "a whole number"))
        self.register("type", float, partial(_read_as, float, "a number"))

    def set_module(self, name: str) -> None:
        """The module has `add_arguments(parser)` and `run(arguments) -> int`."""
        self._module = name

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._module:
            module, self._module = import_module(self._module), ""
            self.set_defaults(run=module.run)
            module.add_arguments(self)
        known, others = super().parse_known_args(args, namespace)
        if others:  # argparse would say so with the usage of all of `shardscope`
            self.error(f"unrecognized arguments: {' '.join(others)}{self._near_miss(others[0])}")
        return known, others

    def _near_miss(self, word: str) -> str:
        """The flag that `--top_p` or `--max-tokens 3` probably means."""
        flag = word.partition("=")[0]
        return suggest_close(flag, self._option_string_actions) if flag.startswith("-") else ""


def _read_as(kind: Callable[[str], float], name: str, text: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
