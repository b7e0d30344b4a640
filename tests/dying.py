"""Runs `tests/hostile/deaths.py`, for its short form in the suite and the long one of `make hostile`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "hostile" / "deaths.py"


def die(recipe: Path, folder: Path, ways: dict[str, int | str], seed: int = 0) -> dict[str, dict[str, Any]]:
    """For each way to die how many cases were tried, said in a sentence, and lost."""
    words = [f"{way}={cases}" for way, cases in ways.items()]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(recipe), str(folder), *words, "--seed", str(seed)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {each["way"]: each for each in json.loads(done.stdout.splitlines()[-1])}
