"""`shardscope explore`: Streamlit on the explorer, wherever it is installed."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from shardscope.checkpoint import BUILT_IN, RUNS, resolve_checkpoint
from shardscope.cli.arguments import add_checkpoint, path, whole
from shardscope.config import ConfigError
from shardscope.resources import resource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=whole(1), default=8501, metavar="N", help="of the local server (default 8501)")
    parser.add_argument(
        "--runs", nargs="+", type=path, metavar="DIR", help="folders whose checkpoints are listed (default runs/)"
    )
    add_checkpoint(parser, "a checkpoint or run to open first (default: the built-in model)", by_place=False)


def run(arguments: argparse.Namespace) -> int:
    """Become the server; it runs until Ctrl+C."""
    folders = folders_of(arguments.checkpoint, arguments.runs)
    if arguments.port > 65535:
        raise ConfigError(f"--port {arguments.port} is not a port; use 1 to 65535")
    for package in ("streamlit", "altair", "pandas"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    sys.stdout.flush()
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(resource("apps") / "explorer.py")),
        *(f"--server.port={arguments.port}", "--browser.gatherUsageStats=false"),
        *("--server.enableXsrfProtection=true", "--"),
        *map(str, folders),
    ]
    # In the place of this process, so that a signal ends the server itself, and without the memory of PyTorch twice.
    os.execv(sys.executable, command)


def folders_of(checkpoint: Path | None, runs: list[Path] | None) -> list[Path]:
    """What the explorer lists, the first to be opened first. Raises ConfigError for a folder that is not there."""
    for folder in runs or []:
        if not folder.is_dir():
            raise ConfigError(f"--runs {folder}: no such folder; name folders that hold runs or checkpoints")
    if checkpoint is not None:
        checkpoint = resolve_checkpoint(checkpoint)
    return [*([checkpoint] if checkpoint else [BUILT_IN] if runs is None else []), *(runs or [RUNS])]
