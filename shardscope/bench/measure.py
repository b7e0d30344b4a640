"""What all benchmarks share: how they time, what spread means, what they say of the machine, how they report.

A time is the median of its runs. Its spread is half the interquartile range over that median, so one disturbed run
moves neither. Ways that are compared take turns, so that what slows the machine slows all of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardscope.config import ConfigError
from shardscope.files import check_writable_file, write_json
from shardscope.progress import progress_bar


@dataclass(frozen=True)
class Timing:
    """The median of some runs in seconds, and half their interquartile range over it (None for a single run)."""

    median: float
    spread: float | None


def summary(seconds: Sequence[float]) -> Timing:
    median = statistics.median(seconds)
    if len(seconds) < 2:
        return Timing(median, None)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, round((high - low) / 2 / median, 4))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock reads its time and not the host's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def taking_turns(ways: Mapping[str, Callable[[], object]], runs: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each run of each way; every round runs all of them. What has to be warm is warm already."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with progress_bar(desc="measuring", total=runs * len(ways), unit="run") as bar:
        for _ in range(runs):
            for name, work in ways.items():
                seconds[name].append(seconds_of(work, device))
                bar.update()
    return seconds


def machine(device: torch.device) -> dict[str, Any]:
    """Where and when something was measured, and with which code."""
    cuda = device.type == "cuda"
    return {
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if cuda else f"{os.cpu_count()} {_cpu_name()} cores",
        "threads": torch.get_num_threads(),
        "load": None if cuda or not hasattr(os, "getloadavg") else round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }


def add_shared_arguments(parser: argparse.ArgumentParser, *, runs: int | None = None) -> None:
    """`--device`, `--out` and, where a benchmark repeats itself, `--runs`, with the same meaning in each."""
    if runs is not None:
        parser.add_argument(
            "--runs", type=int, default=runs, metavar="N", help=f"measured runs of each (default {runs})"
        )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:N, mps, or auto: the best there is (default auto)"
    )
    add_out(parser)


def add_out(parser: argparse.ArgumentParser) -> None:
    """`--out`, whose file can be written or is refused before anything is measured."""
    parser.add_argument("--out", type=_file_to_write, metavar="FILE", help="where the numbers are written, as JSON")


def _file_to_write(text: str) -> str:
    try:
        check_writable_file(Path(text), "--out")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def at_least_one(**numbers: int) -> None:
    """Raises ConfigError for a number of runs, questions or tokens that measures nothing; names are the flags'."""
    for flag, number in numbers.items():
        if number < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} {number} measures nothing; use at least 1")


def command_line(what: str, arguments: argparse.Namespace, *flags: str) -> str:
    """The command that asks for this again: `shardscope bench WHAT` with those of the flags that have a value."""
    words = ["shardscope", "bench", what]
    for flag in flags:
        if value := getattr(arguments, flag):
            words.append("--" + flag.replace("_", "-"))
            words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def export(checkpoint: str | Path, folder: Path) -> Path:
    """The checkpoint as stock transformers reads it, by way of the public command. Raises ConfigError."""
    command = [sys.executable, "-m", "shardscope.cli", "export", str(checkpoint), "--out", str(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigError(done.stderr.strip().removeprefix("error: "))
    return folder


def save(report: Mapping[str, Any], out: str | None) -> None:
    """Write the report where `--out` says, if anywhere."""
    if out:
        write_json(out, dict(report), indent=1)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, as lines: the first column is text, the others are numbers."""
    ruler = "|".join(["", "---", *["---:"] * (len(header) - 1), ""])
    return [f"| {' | '.join(header)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def shown_spread(spread: float | None) -> str:
    """A spread in a table; a dash where it was not measured."""
    return "–" if spread is None else f"±{spread:.1%}"


def _commit() -> str | None:
    """The commit of the checkout that this runs from, with + for changes; None without one."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*here, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + "+" * bool(changes.stdout.strip())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
