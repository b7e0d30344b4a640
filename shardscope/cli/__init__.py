"""The `shardscope` command: it reads argv, calls the library, and prints what comes back."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from shardscope.cli.commands import COMMANDS
from shardscope.cli.missing import missing_package
from shardscope.cli.parser import CommandParser
from shardscope.config import ConfigError
from shardscope.openmp import wait_briefly
from shardscope.terminal import prepare_output


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. A mistake of the user's is one sentence on stderr and status 1."""
    wait_briefly()
    prepare_output()
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        return status
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (ConfigError, ImportError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, ImportError):
        return missing_package(error)
    if _is_out_of_memory(error):
        return f"the device has no memory left ({str(error).partition('.')[0]}); free some, or use --device cpu"
    if isinstance(error, OSError) and not isinstance(error, ConfigError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    return str(error)


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # --help does without it
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _parser() -> CommandParser:
    from shardscope import __version__

    parser = CommandParser(
        prog="shardscope",
        description="Train a small language model, score it, and look inside it.",
        epilog="CHECKPOINT is a checkpoint folder or a run, whose newest checkpoint counts; without one it is the\n"
        "built-in model. --checkpoint, --out, --device and --seed mean the same in every command.",
    )
    parser.add_argument("--version", action="version", version=f"shardscope {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in COMMANDS:
        examples = "\n".join(f"  shardscope {example}" for example in command.examples)
        sub = commands.add_parser(
            command.name, help=command.help, description=command.help, epilog=f"examples:\n{examples}"
        )
        sub.set_module(command.module)
    return parser
