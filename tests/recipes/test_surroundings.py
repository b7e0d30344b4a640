"""Training where little is as usual: no home folder, a user without a name, a terminal of plain ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardscope.train.metrics import read_metrics

# A container that runs as a number: nobody has written down who that is.
NOBODY = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of such a place."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOBODY)
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[2])])
    left_out = ("HOME", "USER", "LOGNAME", "LANG", "PYTHONUTF8")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": path, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}


def train(recipe: Path, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "shardscope.recipes.pretrain", str(recipe), "--schedule.steps", "2", *flags],
        capture_output=True, check=False, env=environment, cwd=recipe.parent,
    )  # fmt: skip


def test_a_run_needs_no_home_no_user_and_no_more_than_ascii(
    recipe_file: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    done = train(recipe_file, bare, "--name", "lauf-ünf", "--run_dir", str(tmp_path / "läufe" / "→"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stderr.isascii()
    assert b"finished at step 2" in done.stdout
    assert len(read_metrics(tmp_path / "läufe" / "→", "train")) == 2


def test_without_a_home_a_path_that_needs_one_is_one_sentence(recipe_file: Path, bare: dict[str, str]) -> None:
    for flags in (
        ("--run_dir", "~/runs/x"),
        ("--data.cache_dir", "''"),
        ("--tokenizer.path", "~nouser/bpe.json"),
    ):
        done = train(recipe_file, bare, *flags)
        last = done.stderr.decode().splitlines()[-1]
        assert done.returncode == 1
        assert last.startswith("error: ")
        assert "this machine knows no home folder '~" in last
        assert "Traceback" not in done.stderr.decode()
