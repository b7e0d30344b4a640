"""Questions of our own, and real evaluation items where they are at hand."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SHARDSCOPE_EVAL_DATA", ROOT / ".." / "shared" / "data" / "eval")).resolve()

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

QUESTIONS = [
    ("What is 23 + 19?", "42"),
    ("Which of these melts when it is left in the sun on a warm day?", "a block of ice from the freezer"),
    ("A farmer has 12 sheep and buys 7 more. How many sheep does the farmer have now?", "12 + 7 = 19, so 19 sheep"),
    ("What does a plant need to make its own food?", "light, water and air"),
]


def real_rows(name: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a real data set; the test is skipped where it is not at hand."""
    file = DATA / name
    if not file.exists():
        pytest.skip(f"{file} is not here; set SHARDSCOPE_EVAL_DATA to a folder that holds {name}")
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]
