from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardscope.config import ConfigError, TrainConfig, load_recipe
from shardscope.model.kernels import windowed
from shardscope.train import loss, muon, objective, train

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What was handed to the compiler, which leaves everything as it is."""
    seen: list[object] = []

    def compile(thing: Callable[..., Any], **_: object) -> Callable[..., Any]:
        seen.append(thing)
        return thing

    muon._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", compile)
    yield seen
    muon._compiled.cache_clear()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_compile_off_compiles_nothing_and_on_compiles_blocks_and_optimizer(
    recipe_file: Path, tmp_path: Path, compiled: list[object], name: str
) -> None:
    flags = {"schedule.steps": "2", "optimizer.name": name}
    train(load_recipe(recipe_file, {**flags, "train.compile": "off"}), progress=False)
    assert compiled == []
    on = {"train.compile": "on", "run_dir": str(tmp_path / "on")}
    train(load_recipe(recipe_file, {**flags, **on}), progress=False)
    functions = {thing for thing in compiled if not isinstance(thing, nn.Module)}
    assert functions == ({muon._nesterov, muon._normalised, muon._adam} if name == "muon" else {muon._adam})
    assert sum(isinstance(thing, nn.Module) for thing in compiled) == 3  # two blocks and the last norm


def test_auto_compiles_where_there_is_something_to_compile_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "HAS_TRITON", True)
    assert objective.compiles(TrainConfig(compile="auto"), CUDA)
    assert not objective.compiles(TrainConfig(compile="auto"), CPU)
    assert not objective.compiles(TrainConfig(compile="auto"), torch.device("mps"))
    monkeypatch.setattr(objective, "HAS_TRITON", False)
    assert not objective.compiles(TrainConfig(compile="auto"), CUDA)
    assert objective.compiles(TrainConfig(compile="on"), CPU)
    with pytest.raises(ConfigError, match=r"train.compile=.on. needs Triton on CUDA, which is not installed; use auto"):
        objective.compiles(TrainConfig(compile="on"), CUDA)


class OnCuda(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


def test_no_kernel_of_ours_is_launched_where_triton_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 8, 2, 64, dtype=torch.bfloat16).as_subclass(OnCuda)
    for installed in (False, True):
        for module in (loss, windowed):
            monkeypatch.setattr(module, "HAS_TRITON", installed)
        assert loss._kernel_applies(x) is installed
        assert windowed.applies(x) is installed
