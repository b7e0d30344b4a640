"""The biography that a run writes, and how it is read."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardscope import load
from shardscope.checkpoint import checkpoint_folder
from shardscope.config import ConfigError, load_recipe
from shardscope.files import ReadError
from shardscope.train import train
from shardscope.train.biography import biography_of, read_biography
from shardscope.train.biography_writer import BiographyWriter
from shardscope.train.metrics import BIOGRAPHY, read_metrics
from shardscope.train.muon import as_matrix, split_parameters
from shardscope.train.probes import measure_heads

UNLIMITED = {"probe.every": "5", "probe.budget": "1"}


def samples(model: Any) -> list[dict[str, str]]:
    return [{"prompt": "one", "output": " a a a a", "failure": "loop"}, {"prompt": "b", "output": "c", "failure": "ok"}]


def run(path: Path, **more: str) -> None:
    train(load_recipe(path, {**UNLIMITED, "train.keep": "0", **more}), probe=samples, progress=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    """As they were written, but for the clock."""
    return [
        {key: value for key, value in line.items() if key not in ("time", "seconds", "sample_seconds")}
        for line in read_metrics(folder, file=BIOGRAPHY)
    ]


def test_a_probe_says_everything_about_heads_matrices_positions_and_samples(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    folder = tmp_path / "run"
    found = read_biography(folder)
    assert found is not None
    assert found.steps.tolist() == [0, 5, 10, 15, 20]
    assert found.kinds == ("sliding", "global")
    assert found.window == 8
    lags = [f"induction {lag}" for lag in (4, 8, 12)]  # half, one and one and a half windows; 8 is the window
    assert {*lags} <= found.heads.keys()
    assert {"previous", "duplicate", "induction", "sink", "entropy", "reach"} == found.heads.keys() - {*lags}
    assert all(scores.shape == (5, 2, 2) and np.isfinite(scores).all() for scores in found.heads.values())
    assert (found.heads["reach"][:, 0] == 0).all()
    assert (found.heads["reach"][:, 1] > 0).all()
    assert found.edges.tolist() == [0, 1, 2, 4, 8, 16, 32]
    assert found.loss.keys() == {"one", "two"}
    past, within = found.past_and_within("one")
    np.testing.assert_allclose(found.mean_loss["one"], (24 * past + 8 * within) / 32, rtol=0.05)
    assert found.share_of("loop").tolist() == [0.5] * 5
    # What is written is what the checkpoints hold, and what its last step changed.
    after, before = (split_parameters(load(checkpoint_folder(folder, step)))[0] for step in (20, 15))
    for name, numbers in found.matrices.items():
        exact = torch.linalg.svdvals(as_matrix(name, after[name].detach()).double())
        expected = [exact[-1].item(), exact[0].item(), (exact.square().sum() / exact[0] ** 2).item()]
        np.testing.assert_allclose(numbers[-1, :3], expected, rtol=1e-4, atol=1e-6)
        five_steps = (after[name] - before[name]).norm().item()
        assert five_steps / 5 * 0.9 <= numbers[-1, 3] <= 2 * five_steps, name
    assert np.isnan(next(iter(found.matrices.values()))[0, 3]), "before the first step nothing had changed"


def test_the_size_of_an_update_is_what_the_last_step_changed(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, **{"train.save_every": "1", "schedule.steps": "3", "probe.every": "3"})
    found = read_biography(tmp_path / "run")
    assert found is not None
    assert found.steps.tolist() == [0, 3]
    after, before = (split_parameters(load(checkpoint_folder(tmp_path / "run", step)))[0] for step in (3, 2))
    for name, numbers in found.matrices.items():
        assert numbers[-1, 3] == pytest.approx((after[name] - before[name]).norm().item(), rel=1e-3)


def test_probing_changes_nothing_that_is_learned(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    run(recipe_file, run_dir=str(tmp_path / "plain"), **{"probe.every": "0"})
    losses = [[line["loss"] for line in read_metrics(tmp_path / name, "train")] for name in ("run", "plain")]
    assert losses[0] == losses[1]
    assert not (tmp_path / "plain" / BIOGRAPHY).exists()


def test_after_a_kill_each_probe_step_is_there_once_and_says_the_same(recipe_file: Path, tmp_path: Path) -> None:
    """Killed in the middle of a line, right after its checkpoint, and three steps later."""
    run(recipe_file, run_dir=str(tmp_path / "whole"))
    for number, where in enumerate(("half a line", "before a line", "later")):
        folder = tmp_path / f"killed-{number}"
        child = os.fork()
        if child == 0:
            try:
                _die(recipe_file, folder, where)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, where
        run(recipe_file, run_dir=str(folder))
        whole, killed = lines(tmp_path / "whole"), lines(folder)
        assert [line["step"] for line in killed] == [0, 5, 10, 15, 20], where
        for ours, theirs in zip(killed, whole, strict=True):
            if ours["step"] == 10 and where != "later":  # what the step before the start changed is not known
                for line in (ours, theirs):
                    line["matrices"] = {name: numbers[:3] for name, numbers in line["matrices"].items()}
            assert ours == theirs, where


def _die(recipe_file: Path, folder: Path, where: str) -> None:
    write, step = BiographyWriter.write, BiographyWriter.prepare

    def torn(self: BiographyWriter, at: int) -> None:
        if at == 10 and where == "half a line":
            self.file._file.write('{"kind": "probe", "step": 10, "hea')
            self.file._file.flush()
        if at == 10 and where != "later":
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, at)

    def prepare(self: BiographyWriter, at: int) -> None:
        if at == 13 and where == "later":
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, at)

    BiographyWriter.write, BiographyWriter.prepare = torn, prepare  # type: ignore[method-assign]
    run(recipe_file, run_dir=str(folder))


def test_a_run_that_goes_back_writes_the_probes_of_the_steps_that_it_takes_again(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file)
    newer = [checkpoint_folder(tmp_path / "run", step) for step in (15, 20)]
    for checkpoint in newer:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    run(recipe_file)
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize(
    "first_samples", [6.0, 60.0], ids=["samples of one price", "a compiler before the first samples"]
)
def test_probes_stay_within_their_share_of_the_time(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_samples: float
) -> None:
    """By a clock of our own: a step takes a second, measuring four, samples six; a fifth of the time is for both."""
    clock = [0.0]
    monkeypatch.setattr("shardscope.train.biography_writer.time.perf_counter", lambda: clock[0])
    prepare, taken = BiographyWriter.prepare, []

    def a_second_later(self: BiographyWriter, step: int) -> None:
        clock[0] += 1
        prepare(self, step)

    def for_four(self: BiographyWriter, model: Any, updates: Any) -> dict[str, Any]:
        clock[0] += 4
        return {"measured": True}

    def for_six(model: Any) -> list[dict[str, str]]:
        clock[0] += 6.0 if taken else first_samples
        taken.append(clock[0])
        return samples(model)

    monkeypatch.setattr(BiographyWriter, "prepare", a_second_later)
    monkeypatch.setattr(BiographyWriter, "_measure", for_four)
    few = {"probe.every": "5", "probe.budget": "0.2", "schedule.steps": "200", "train.save_every": "200"}
    train(load_recipe(recipe_file, few), probe=for_six, progress=False)
    logged = read_metrics(tmp_path / "run", file=BIOGRAPHY)
    steps = [line["step"] for line in logged]
    assert (steps[0], steps[-1]) == (0, 200), "the beginning and the end are always there"
    measuring = [line["seconds"] - line["sample_seconds"] for line in logged]
    assert sum(measuring) <= 0.1 * clock[0]
    assert len(steps) >= 5, "samples take nothing from what is measured"
    sampled = [line["step"] for line in logged if "samples" in line]
    assert 0 not in sampled, "an untrained model has nothing to say"
    if first_samples == 6:
        assert sum(line["sample_seconds"] for line in logged) <= 0.1 * clock[0]
        assert sampled[-1] == 200
        assert len(sampled) >= 3
    else:
        assert len(sampled) == 1


def test_loading_the_kernels_of_a_gpu_is_no_part_of_a_probes_price(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of our own: the first measuring of a start takes a minute, every other one four seconds."""
    clock, measured = [0.0], [0]
    monkeypatch.setattr("shardscope.train.biography_writer.time.perf_counter", lambda: clock[0])
    begin, prepare = BiographyWriter.__init__, BiographyWriter.prepare

    def on_a_gpu(self: BiographyWriter, *arguments: Any) -> None:
        begin(self, *arguments)
        self._cold = True

    def a_second_later(self: BiographyWriter, step: int) -> None:
        clock[0] += 1
        prepare(self, step)

    def for_four(self: BiographyWriter, model: Any, updates: Any) -> dict[str, Any]:
        clock[0] += 4 if measured[0] else 60
        measured[0] += 1
        return {"measured": True}

    monkeypatch.setattr(BiographyWriter, "__init__", on_a_gpu)
    monkeypatch.setattr(BiographyWriter, "prepare", a_second_later)
    monkeypatch.setattr(BiographyWriter, "_measure", for_four)
    few = {"probe.every": "5", "probe.budget": "0.2", "probe.samples": "false", "schedule.steps": "100"}
    train(load_recipe(recipe_file, few), progress=False)
    logged = read_metrics(tmp_path / "run", file=BIOGRAPHY)
    assert [line["seconds"] for line in logged] == [4] * len(logged)
    assert len(logged) == measured[0] - 1 >= 5


def test_prompts_that_do_not_fit_the_model_do_not_end_its_training(
    recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def too_long(model: Any) -> list[dict[str, str]]:
        raise ConfigError("prompt 2: 33 tokens do not fit")

    train(load_recipe(recipe_file, {**UNLIMITED, "probe.every": "10"}), probe=too_long, progress=False)
    found = read_biography(tmp_path / "run")
    assert found is not None
    assert found.samples == [[], [], []]
    assert [record.message for record in caplog.records if "biography" in record.message] == [
        "the biography goes without samples: prompt 2: 33 tokens do not fit"
    ]


def test_without_samples_and_with_lags_of_ones_own(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, **{"probe.samples": "false", "probe.lags": "[3, 20]", "probe.every": "20"})
    found = read_biography(tmp_path / "run")
    assert found is not None
    assert found.samples == [[], []]
    assert {name for name in found.heads if name.startswith("induction ")} == {"induction 3", "induction 20"}
    assert np.isnan(found.share_of("loop")).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("every", "-1", r"probe\.every=-1 is negative; use 0 for no probes"),
        ("budget", "0", r"probe\.budget=0\.0 is a share above 0 and up to 1; set probe\.every = 0 for no probes"),
        ("budget", "1.5", r"probe\.budget=1\.5 is a share"),
        ("budget", "nan", r"probe\.budget=nan"),
        ("tokens", "-5", r"probe\.tokens=-5 is negative"),
        ("lags", "[1]", r"probe\.lags=\[1\] must be different distances of at least 2 tokens"),
        ("lags", "[4, 4]", r"probe\.lags=\[4, 4\] must be different"),
        ("lags", "8", r"probe\.lags=8 is not a list"),
        ("samples", "3", r"probe\.samples=3 is not allowed"),
        ("evry", "3", r"unknown key probe\.evry; did you mean 'every'\?"),
    ],
)
def test_a_bad_choice_is_one_sentence(recipe_file: Path, field: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(recipe_file, {f"probe.{field}": value})
    assert "\n" not in str(error.value)


def test_a_lag_that_the_sequences_have_no_room_for_is_one_sentence(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"probe\.lags: 25 is too far for data\.seq_len=32; use at most 24"):
        run(recipe_file, **{"probe.lags": "[4, 25]"})


def test_how_it_is_probed_may_change_when_a_run_goes_on(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, **{"schedule.steps": "10"})
    run(recipe_file, **{"probe.every": "4", "probe.lags": "[6]"})
    found = read_biography(tmp_path / "run")
    assert found is not None
    assert found.steps.tolist() == [0, 5, 10, 12, 16, 20]
    assert np.isnan(found.heads["induction 6"][:3]).all()
    assert np.isfinite(found.heads["induction 6"][3:]).all()


# ------------------------------------------------------------------------------------------------ reading


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A probe of two layers of two heads, as the writer writes it."""
    return {
        "kind": "probe", "step": step, "time": 1.0, "seconds": 0.1, "window": 4, "kinds": ["sliding", "global"],
        "heads": {"sink": [[0.1, 0.2], [0.3, step / 100]]}, "matrices": {"W": [0.1, 2.0, 3.0, None]},
        "positions": [0, 4, 8], "loss": {"prose": {"mean": 3.0, "by_position": [4.0, 2.0]}},
        "samples": [{"prompt": "a", "output": "b", "failure": "loop"}],
    } | changes  # fmt: skip


def test_lines_become_arrays_over_the_probes() -> None:
    found = biography_of([line(0), line(10), line(30, samples=[])])
    assert found is not None
    assert found.steps.tolist() == [0, 10, 30]
    assert found.heads["sink"][:, 1, 1].tolist() == [0, 0.1, 0.3]
    assert [values[0].tolist() for values in found.past_and_within("prose")] == [2.0, 4.0]
    assert found.share_of("loop")[:2].tolist() == [1, 1]
    assert np.isnan(found.share_of("loop")[2])


@pytest.mark.parametrize(
    "broken",
    [
        {"heads": {}},
        {"heads": {"sink": [[0.1, 0.2], [0.3]]}},
        {"heads": {"sink": [["0.1", "0.2"], ["0.3", "0.4"]]}},
        {"heads": [1, 2]},
        {"heads": {"sink": [[0.1, 0.2]]}},
        {"kinds": ["sliding", "other"]},
        {"kinds": 7},
        {"window": "4"},
        {"window": 0},
        {"positions": [0, 8, 4]},
        {"positions": [0, 4, 1e300]},
        {"positions": "048"},
        {"matrices": {"W": [1.0, 2.0]}},
        {"matrices": None},
        {"loss": {"prose": {"mean": 3.0, "by_position": [4.0]}}},
        {"loss": {"prose": 3.0}},
        {"samples": [1]},
        {"samples": [{"prompt": "a"}]},
    ],
)
def test_a_line_that_is_no_probe_is_left_out(broken: dict[str, Any]) -> None:
    found = biography_of([line(0), line(10, **broken), line(20)])
    assert found is not None
    assert found.steps.tolist() == [0, 20]
    assert biography_of([line(0, **broken)]) is None


def test_a_number_that_was_not_finite_is_a_gap() -> None:
    found = biography_of([line(0), line(10, heads={"sink": [[0.1, None], [0.3, 0.4]]})])
    assert found is not None
    assert np.isnan(found.heads["sink"][1, 0, 1])


def test_a_run_without_a_biography_has_none_and_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    assert read_biography(tmp_path) is None
    os.mkfifo(tmp_path / BIOGRAPHY)
    began = time.monotonic()
    with pytest.raises(ReadError, match=r"biography\.jsonl: cannot be read: it is a pipe, not a file"):
        read_biography(tmp_path)
    assert time.monotonic() - began < 30


def test_a_cut_off_last_line_is_left_out(tmp_path: Path) -> None:
    text = json.dumps(line(0)) + "\n" + json.dumps(line(10)) + "\n"
    (tmp_path / BIOGRAPHY).write_text(text + json.dumps(line(20))[:60])
    found = read_biography(tmp_path)
    assert found is not None
    assert found.steps.tolist() == [0, 10]


def test_a_probe_of_the_published_model_is_far_below_a_megabyte() -> None:
    """Numbers of five digits for 96 heads, 84 matrices and five sources; six samples of 128 long tokens."""
    scores = {f"score {n}": [[0.012345] * 8] * 12 for n in range(10)}
    matrices = {f"blocks.{n}.attn.W_Q": [0.012345, 123.45, 123.45, 0.12345] for n in range(84)}
    losses = {f"source {n}": {"mean": 2.3456, "by_position": [2.3456] * 16} for n in range(5)}
    texts = [{"prompt": "p" * 100, "output": "o" * 128 * 16, "failure": "no flag"}] * 6
    assert len(json.dumps(line(0, heads=scores, matrices=matrices, loss=losses, samples=texts))) < 60_000


def test_heads_are_measured_without_leaving_a_hook_behind(tiny_model: Any) -> None:
    measure_heads(tiny_model, [torch.arange(20)], [])
    assert not any(getattr(module, "watched", False) for module in tiny_model.modules())
