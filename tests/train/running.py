"""Runs of the tests' recipes: here, or in a process of their own that can be stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shardscope.checkpoint import list_checkpoints
from shardscope.config import load_recipe
from shardscope.train import train
from shardscope.train.metrics import read_metrics


def run(path: Path, **overrides: str):
    return train(load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()}), progress=False)


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder, "train")}


def start(path: Path, phase: str = "pretrain", *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"shardscope.recipes.{phase}", str(path), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    while max(losses(folder), default=0) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def forget_all_after(step: int, folder: Path) -> None:
    """As if the run had been killed when its newest checkpoint was the one of that step."""
    for checkpoint in list_checkpoints(folder):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
