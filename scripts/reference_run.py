"""docs/reference-run.md and its pictures, from the committed metrics of a run: `python scripts/reference_run.py`.

The metrics are what `shardscope reproduce` collected (docs/reference/shard-pico-run.json says of which run).
"""

from __future__ import annotations

import json
from pathlib import Path

from shardscope.config import ConfigError
from shardscope.files import read_json
from shardscope.reproduce.report import PUBLISHED, write_report

DOCS = Path(__file__).resolve().parents[1] / "docs"
METRICS = DOCS / "reference" / "shard-pico-run.json"
LEARNING = DOCS / "benchmarks" / "learn-h100.json"


def preface() -> str:
    """How far the published size was trained so far, where the metrics are of another one."""
    if read_json(METRICS, ConfigError)["model"]["n_params"] == PUBLISHED:
        return ""
    tokens = max(run["tokens"] for run in json.loads(LEARNING.read_text(encoding="utf-8"))["runs"])
    return (
        f"The published size itself has so far been trained to {tokens / 1e6:.0f} M tokens only, in [the learning "
        "bench](learning.md). On a machine with a GPU, `make reproduce` runs all of this for it."
    )


def write(page: Path = DOCS / "reference-run.md") -> Path:
    return write_report(METRICS, page, preface())


if __name__ == "__main__":
    print(write())
