"""The table and the picture on docs/xray.md, made anew: python tests/failures/xray_page.py

The command is the page's own, run in the checkout's folder. The speeds are those of docs/benchmarks/xray-*.json.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from shardscope.bench import xray as bench

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "xray.md"
COMMAND = re.compile(r"^    (shardscope xray .*)$", flags=re.MULTILINE)
TABLE = re.compile(r"(?<=<!-- xray -->\n).*?(?=<!-- /xray -->)", flags=re.DOTALL)

SPEEDS = re.compile(r"(?<=<!-- speeds -->\n).*?(?=<!-- /speeds -->)", flags=re.DOTALL)
REPORTS = {place: ROOT / "docs" / "benchmarks" / f"xray-{place}.json" for place in ("cpu", "h100")}


def rows(place: str) -> list[dict[str, Any]]:
    """What was measured there."""
    found: list[dict[str, Any]] = json.loads(REPORTS[place].read_text(encoding="utf-8"))["rows"]
    return found


def speeds() -> str:
    """The tables of the last benchmarks."""
    reports = (json.loads(report.read_text(encoding="utf-8")) for report in REPORTS.values())
    return "\n".join(bench.table(report) + "\n" for report in reports)


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
