"""The table and the picture on docs/xray.md, made anew: python tests/failures/xray_page.py

The command is the page's own, run in the checkout's folder. The speeds are those of docs/benchmarks/xray-cpu.json.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from shardscope.bench import xray as bench

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "xray.md"
COMMAND = re.compile(r"^    (shardscope xray .*)$", flags=re.MULTILINE)
TABLE = re.compile(r"(?<=<!-- xray -->\n).*?(?=<!-- /xray -->)", flags=re.DOTALL)

SPEEDS = re.compile(r"(?<=<!-- speeds -->\n).*?(?=<!-- /speeds -->)", flags=re.DOTALL)
REPORT = ROOT / "docs" / "benchmarks" / "xray-cpu.json"


def speeds() -> str:
    """The table of the last benchmark."""
    return bench.table(json.loads(REPORT.read_text(encoding="utf-8"))) + "\n"


def command() -> list[str]:
    """The words of the page's command, without `shardscope`."""
    [line] = COMMAND.findall(PAGE.read_text(encoding="utf-8"))
    return shlex.split(line)[1:]


def fill() -> None:
    run = [sys.executable, "-m", "shardscope.cli", *command(), "--device", "cpu"]
    table = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    page = TABLE.sub(lambda _: f"```text\n{table}```\n", PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(SPEEDS.sub(lambda _: speeds(), page), encoding="utf-8")


if __name__ == "__main__":
    fill()
