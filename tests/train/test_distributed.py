"""Two processes, of gloo on one CPU or of NCCL on two GPUs: each way of sharing the work gives the losses of one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardscope.checkpoint import list_checkpoints
from shardscope.config import load_recipe
from shardscope.tensors import read_tensors
from shardscope.train import train
from shardscope.train.metrics import read_metrics

# The numbers of a step are read one step late, as on a GPU.
SCRIPT = """
import sys
from shardscope.train import step_monitor
from shardscope.recipes.command import run_recipe
step_monitor.LAG["cpu"] = 1
sys.exit(run_recipe("pretrain", "", sys.argv[1:]))
"""
# The context has room for the probe's prompts and samples.
FLAGS = {"model.n_ctx": "256", "train.eval_every": "3", "train.sample_every": "20"}


def run_on_two(recipe: Path, folder: Path, parallel: str, flags: dict[str, str] = FLAGS) -> None:
    script = recipe.parent / "two.py"
    script.write_text(SCRIPT)
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
         str(recipe), *words, "--run_dir", str(folder), "--train.parallel", parallel],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def run_alone(recipe: Path, folder: Path, flags: dict[str, str] = FLAGS) -> None:
    train(load_recipe(recipe, {**flags, "run_dir": str(folder)}), progress=False)


def forget_all_after(step: int, folder: Path) -> None:
    """As if the run had been killed after its checkpoint of that step."""
    for checkpoint in list_checkpoints(folder):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def numbers(folder: Path) -> list[float]:
    held_out = {line["step"]: line["all"]["loss"] for line in read_metrics(folder, "eval")}
    losses = {line["step"]: line["loss"] for line in read_metrics(folder, "train")}
    assert list(losses) == list(range(1, 21))
    return [*losses.values(), *held_out.values()]


def assert_same_weights(ours: Path, theirs: Path) -> None:
    (*_, our_last), (*_, their_last) = list_checkpoints(ours), list_checkpoints(theirs)
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, expected = read_tensors(our_last / name), read_tensors(their_last / name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_give_the_losses_of_one_whichever_began(recipe_file: Path, tmp_path: Path) -> None:
    alone, whole, shared = tmp_path / "alone", tmp_path / "ddp", tmp_path / "fsdp"
    run_alone(recipe_file, alone)
    expected = pytest.approx(numbers(alone), rel=1e-4)  # twenty steps carry on what each rounds

    # Begun by one process, ended by two that each hold all weights.
    shutil.copytree(alone, whole)
    forget_all_after(10, whole)
    run_on_two(recipe_file, whole, "ddp")
    assert numbers(whole) == expected
    assert_same_weights(whole, alone)

    # Begun by two that share the weights, ended by one.
    run_on_two(recipe_file, shared, "fsdp")
    assert numbers(shared) == expected
    assert_same_weights(shared, alone)
    assert len(read_metrics(shared, "sample")) == 6
    assert [line["step"] for line in read_metrics(shared, "sentinel")] == [10, 20]
    forget_all_after(10, shared)
    run_alone(recipe_file, shared)
    assert numbers(shared) == expected
    starts = [line for line in read_metrics(shared, "event") if line["event"] == "start"]
    assert [(line["processes"], line["resumed_at"]) for line in starts] == [(2, 0), (1, 10)]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_gpus_give_the_losses_of_one(recipe_file: Path, tmp_path: Path, dtype: str) -> None:
    flags = {**FLAGS, "train.device": "cuda", "train.dtype": dtype}
    run_alone(recipe_file, tmp_path / "alone", flags)
    expected = pytest.approx(numbers(tmp_path / "alone"), abs=5e-4 if dtype == "float32" else 5e-3)
    for parallel in ("ddp", "fsdp"):
        run_on_two(recipe_file, tmp_path / parallel, parallel, flags)
        assert numbers(tmp_path / parallel) == expected

    # Begun by two that share the weights, ended by one, which holds all of them.
    forget_all_after(10, tmp_path / "fsdp")
    run_alone(recipe_file, tmp_path / "fsdp", flags)
    assert numbers(tmp_path / "fsdp") == expected
