from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardscope import Shard, checkpoint, load
from shardscope.cli import main
from shardscope.config import load_recipe
from shardscope.generation import SamplingConfig, generate
from shardscope.train import train


@pytest.fixture
def run_folder(recipe_file: Path, tmp_path: Path) -> Path:
    train(load_recipe(recipe_file, {"model.n_ctx": "128"}), progress=False)
    return tmp_path / "run"


def test_generate_prints_the_prompt_and_what_the_library_generates(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tiny_checkpoint), "Once upon", "--max-new-tokens", "12"]) == 0
    [expected] = generate(load(tiny_checkpoint), ["Once upon"], SamplingConfig(max_new_tokens=12))
    assert capsys.readouterr().out.rstrip("\n") == ("Once upon" + expected.text).rstrip("\n")


def test_generate_draws_the_same_text_from_the_same_seed(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(seed: int) -> str:
        flags = ["--temperature", "1.5", "--max-new-tokens", "20", "--seed", str(seed)]
        assert main(["generate", str(tiny_checkpoint), "Once", *flags]) == 0
        return capsys.readouterr().out

    assert sample(1) == sample(1) != sample(2)


def test_info_shows_what_a_checkpoint_is(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "sliding" in shown
    assert f"{load(tiny_checkpoint).n_params:,}" in shown


def test_info_shows_a_run_that_was_paused_early(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(load_recipe(recipe_file, {"train.max_minutes": "0.0001"}), progress=False)
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "paused early" in capsys.readouterr().out


def test_the_report_shows_loss_baseline_and_the_six_prompts_with_flags(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_folder)]) == 0
    shown = capsys.readouterr().out
    for source in ("one", "two", "all"):
        assert re.search(rf"^{source} .*\d\.\d{{4}}", shown, re.MULTILINE)
    assert "3-gram" in shown
    for prompt in ("The capital of France is", "To compute 12 plus 7", "Question: What is 23", "def fibonacci"):
        assert prompt in shown


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["info", "runs/nowhere"], "no such checkpoint or run"),
        (["generate", "runs/nowhere", "Once"], "no such checkpoint or run"),
        (["generate", "a", "b", "c"], "quote the prompt"),
        (["generate", "CHECKPOINT", "Once", "--top-p", "2"], "top_p"),
        (["report", "runs/nowhere"], "not a run with a checkpoint"),
        (["export", "runs/nowhere", "out"], "no such checkpoint or run"),
        (["import", "runs/nowhere", "--out", "out"], "runs/nowhere"),
    ],
)
def test_a_mistake_costs_one_sentence_and_status_1(
    command: list[str], sentence: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_checkpoint) if word == "CHECKPOINT" else word for word in command]) == 1
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_the_installed_command_says_its_mistakes_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardscope.cli", "info", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "guest", "extra"),
    [
        (["bench", "score"], "lm_eval", "eval"),
        (["bench", "decode", "--model", "shard-pico"], "transformers", "interop"),
        (["eval"], "lm_eval", "eval"),
        (["export", "out"], "transformers", "interop"),
    ],
    ids=["bench score", "bench decode", "eval", "export"],
)
def test_a_missing_guest_is_one_sentence_with_the_extra_that_brings_it(
    words: list[str],
    guest: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever it is missed: when the command's flags are read, or only when it works."""
    monkeypatch.chdir(tmp_path)
    # Another test may have brought the guest in, or our module that receives it.
    for name in [name for name in sys.modules if name.split(".")[0] == guest or name == "shardscope.evals.harness"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, guest, None)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: this command needs more packages"), error
    assert guest in error
    assert f"pip install 'shardscope[{extra}]'" in error


def test_export_without_a_checkpoint_takes_the_newest_run_where_no_model_is_built_in(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "BUILT_IN", tmp_path / "none")
    newest = checkpoint.checkpoint_folder(tmp_path / "runs" / "mine", 3)
    newest.parent.mkdir(parents=True)
    tiny_checkpoint.rename(newest)
    assert main(["export", "out"]) == 0
    from shardscope.interop import import_pretrained

    exported, ours = import_pretrained("out"), load(newest)
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), ours.parameters(), strict=True))
    assert main(["export", "runs/mine"]) == 1, "a folder that holds something is never written to"


def test_every_command_shows_examples_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("generate", "info", "report", "export", "import", "verify", "bench"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"  shardscope {command}" in capsys.readouterr().out


def test_importing_the_package_and_loading_a_model_leave_the_compiler_and_the_guests_alone() -> None:
    """The compiler's machinery alone takes two seconds; `import shardscope` may cost half of one over torch."""
    program = """
import sys, torch
before = set(sys.modules)
import shardscope
shardscope.load()
heavy = {"torch._dynamo", "torch._inductor", "sympy", "transformers", "transformer_lens", "lm_eval", "streamlit",
         "pandas", "datasets", "triton"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_the_public_names_are_these() -> None:
    import shardscope

    assert {"Shard", "ShardConfig", "load"} <= set(shardscope.__all__)
    assert shardscope.Shard is Shard
