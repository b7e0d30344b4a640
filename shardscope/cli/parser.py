"""A parser for one command, which imports the command's module only when it is used."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, whose arguments come from the module named by `set_module`, with the first parsing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._module = ""

    def set_module(self, name: str) -> None:
        """The module has `add_arguments(parser)` and `run(arguments) -> int`."""
        self._module = name

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._module:
            module, self._module = import_module(self._module), ""
            self.set_defaults(run=module.run)
            module.add_arguments(self)
        return super().parse_known_args(args, namespace)
