"""The pictures of docs/learning.md, drawn from docs/benchmarks: python scripts/learning_pictures.py [FOLDER]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shardscope.bench.learn import draw

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = {"ablations-nano-h100": False}  # benchmark: whether its runs had a GPU of their own, so that seconds count


def main(folder: Path = DOCS / "images") -> None:
    for name, speeds in PICTURES.items():
        report = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
        draw(report, folder / f"{name}.png", speeds)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
