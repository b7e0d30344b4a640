"""What a run says when the machine under it fails, and that the same command takes it to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError

from shardscope.config import load_recipe
from shardscope.train import Outcome, TrainingError, train
from shardscope.train.loop import Loop
from shardscope.train.metrics import read_metrics

FAILURES: dict[str, tuple[Callable[[], Exception], str]] = {
    "memory of the GPU": (
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore about it"),
        r"no memory is left \(CUDA out of memory\. Tried to allocate 2 GiB\); lower train\.micro_batch or the model",
    ),
    "memory of the host": (lambda: MemoryError("cannot hold it"), r"no memory is left \(cannot hold it\)"),
    "GPU": (
        lambda: torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for it"),
        r"the GPU failed \(CUDA error: unspecified launch failure\)",
    ),
    "another process": (
        lambda: DistBackendError("NCCL error: remote process exited\nmore about it"),
        r"another process was lost \(NCCL error: remote process exited\)",
    ),
}


def trained(recipe: Path, folder: Path) -> Outcome:
    return train(load_recipe(recipe, {"run_dir": str(folder)}), progress=False)


@pytest.mark.parametrize(("what", "step"), [*((what, 13) for what in FAILURES), ("GPU", 3)])
def test_a_failing_machine_is_one_sentence_and_the_same_command_continues(
    what: str, step: int, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure, sentence = FAILURES[what]
    take_step = Loop._take_step

    def fail(loop: Loop, batch: object) -> bool:
        if loop.step == step:
            raise failure()
        return take_step(loop, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_take_step", fail)
        with pytest.raises(TrainingError, match=sentence) as told:
            trained(recipe_file, tmp_path / "failing")
    intact = "step-00000010, is whole" if step > 10 else "no checkpoint had been saved yet"
    assert intact in str(told.value)
    assert "\n" not in str(told.value)
    assert trained(recipe_file, tmp_path / "failing").status == "finished"
    assert [line["step"] for line in read_metrics(tmp_path / "failing", "train")] == list(range(1, 21))
