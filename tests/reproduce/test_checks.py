"""What a later stage could not do costs one sentence before anything is made, and so it does with --dry-run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_reproduction import SAMPLE, command, make_recipes
from tiny_run import WORDS

from shardscope.cli import main
from shardscope.evals.suite import GROUP, NAMES
from shardscope.reproduce.checks import check_machine
from shardscope.reproduce.pair import load_pair
from shardscope.tokenizer import Tokenizer

TASK_MANAGER = pytest.importorskip("lm_eval.tasks").TaskManager


@pytest.fixture(params=[[], ["--dry-run"]], ids=["run", "dry-run"])
def refused(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command says on its way to status 1, having made nothing; recipes may be changed before."""

    def ask(*words: str, pretrain: tuple[str, str] = ("", ""), anneal: tuple[str, str] = ("", "")) -> str:
        recipes = make_recipes(tmp_path)
        for file, (before, after) in zip(recipes, (pretrain, anneal), strict=True):
            text = Path(file).read_text()
            assert before in text
            Path(file).write_text(text.replace(before, after, 1))
        there = sorted(tmp_path.rglob("*"))
        assert main([*command(recipes, tmp_path / "out", ""), *words, *request.param]) == 1
        assert sorted(tmp_path.rglob("*")) == there
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return ask


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("shard_arc", "--tasks shard_arc: no such task; did you mean 'shard_arith'?"),
        ("shard_arc_easy, shard_gsm8", "--tasks shard_gsm8: no such task; did you mean 'shard_gsm8k'?"),
        ("hellaswag", "--tasks hellaswag: no such task; known: shard_arc_challenge, "),
        ("arc_easy", "--tasks arc_easy: no such task; did you mean 'shard_arc_easy'?"),
        ("shard", "--tasks shard: a group of tasks; name the tasks themselves"),
        ("shard_arith,shard", "--tasks shard: a group of tasks; name the tasks themselves"),
    ],
)
def test_names_that_are_no_tasks(refused: Callable[..., str], names: str, sentence: str) -> None:
    assert sentence in refused("--tasks", names)


def test_names_of_tasks_are_known_without_lm_eval_and_are_its_own() -> None:
    manager = TASK_MANAGER(include_path=str(SAMPLE.parent), include_defaults=False)
    assert sorted(manager.all_tasks) == sorted([*NAMES, GROUP])


def test_the_same_task_twice_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = make_recipes(tmp_path)
    assert main([*command(recipes, tmp_path / "out", " shard_arith,shard_arith ,"), "--dry-run"]) == 0
    assert "together: " in capsys.readouterr().out


@pytest.mark.parametrize("lacking", ["ai2_arc", "ai2_arc/ARC-Easy/test.jsonl"])
def test_test_sets_that_are_not_there(refused: Callable[..., str], tmp_path: Path, lacking: str) -> None:
    assert "--data nowhere: no such folder" in refused("--data", "nowhere")
    data = tmp_path / "test sets"
    shutil.copytree(SAMPLE, data)
    place = data / lacking
    (shutil.rmtree if place.is_dir() else Path.unlink)(place)
    assert "ARC-Easy/test.jsonl: no such file" in refused("--data", str(data), "--tasks", "shard_arc_easy")


def test_a_folder_that_cannot_be(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--out" in (said := refused("--out", str(tmp_path / "file" / "out")))
    assert "is not a folder" in said


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("two.jsonl", "three.jsonl"), "three.jsonl"),
        (('two.jsonl"', 'two.jsonl", holdout = "nowhere.jsonl"'), "nowhere.jsonl"),
        (('two.jsonl"', '$NOT_SET_HERE/two.jsonl"'), "needs an environment variable that is not set"),
        (("sources = [", 'benchmarks = [{ name = "asked", path = "asked.jsonl" }]\nsources = ['), "asked.jsonl"),
    ],
    ids=lambda change: change[1] if isinstance(change, tuple) else "",
)
def test_what_either_phase_cannot_read_or_hold(
    refused: Callable[..., str], phase: str, change: tuple[str, str], sentence: str
) -> None:
    said = refused(**{phase: change})
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_a_batch_that_the_processes_cannot_share(refused: Callable[..., str], phase: str) -> None:
    said = refused("--processes", "2", **{phase: ("batch_size = 4", "batch_size = 5")})
    assert f"tiny-{phase}.toml: train.batch_size=5 cannot be divided among 2 processes" in said


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_lags_of_the_biography_that_the_sequences_have_no_room_for(refused: Callable[..., str], phase: str) -> None:
    said = refused(**{phase: ("[train]", "[probe]\nlags = [60]\n[train]")})
    assert f"tiny-{phase}.toml: probe.lags" in said


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_a_logger_that_is_not_installed(
    refused: Callable[..., str], phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardscope.reproduce.checks.find_spec", lambda name: None)
    said = refused(**{phase: ("log_every = 1", 'log_every = 1\nloggers = ["wandb"]')})
    assert f"tiny-{phase}.toml: train.loggers names 'wandb', which is not installed; pip install" in said


@pytest.mark.parametrize("refused", [[]], indirect=True, ids=["run"])
class TestWhatThisMachineLacks:
    """It ends a run, and no dry run, which may be for another machine."""

    @pytest.mark.parametrize("phase", ["pretrain", "anneal"])
    def test_memory(self, refused: Callable[..., str], phase: str) -> None:
        said = refused(**{phase: ("batch_size = 4", "batch_size = 1_000_000_000_000")})
        assert f"tiny-{phase}.toml: the tokens of a batch take" in said

    def test_gpus(self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr("shardscope.cli.reproduce_command.pick_device", lambda name: torch.device("cuda"))
        said = refused("--processes", "4", "--device", "cuda")
        assert "--processes 4: GPUs on this machine: 1; use 1 at most" in said

    def test_room_on_the_disk(self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
        assert "4 checkpoints take about 0.0 GB, and 0.0 GB are free there; free some" in refused()


def test_checkpoints_that_are_there_need_no_more_room(reproduced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [str(reproduced.parent / f"tiny-{phase}.toml") for phase in ("pretrain", "anneal")]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    check_machine(load_pair(recipes, reproduced, "cpu", 4), reproduced, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("decay = 0", "decay = 0.2"), "the pretraining ends in its decay, and an anneal starts from the stable phase"),
        (("decay = 0", 'decay = 0\nkind = "cosine"'), "the pretraining ends in its decay"),
    ],
)
def test_a_pretraining_that_no_anneal_can_start_from(
    refused: Callable[..., str], change: tuple[str, str], sentence: str
) -> None:
    assert f"tiny-pretrain.toml: schedule: {sentence}" in refused(pretrain=change)


def test_a_tokenizer_that_is_not_there_or_too_large(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    said = refused(pretrain=("[data]", f'[tokenizer]\npath = "{file}"\n[data]'))
    assert "large.json" in said
    Tokenizer.train(["the cat sat on the mat with all of its friends, and they sang in " + WORDS] * 9, 310).save(file)
    said = refused(pretrain=("[data]", f'[tokenizer]\npath = "{file}"\n[data]\n'))
    assert "tokenizer.path: the tokenizer has " in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("seq_len = 64", "seq_len = 256"), "data.seq_len=256 is longer than the model's context, model.n_ctx=192"),
        (("lr = 1e-2", 'lr = 1e-2\nname = "adamw"'), "optimizer.name='adamw', and the pretraining has 'muon'"),
    ],
)
def test_an_anneal_that_does_not_fit_its_pretraining(
    refused: Callable[..., str], change: tuple[str, str], sentence: str
) -> None:
    assert f"tiny-anneal.toml: {sentence}" in refused(anneal=change)


def test_an_anneal_that_lies_there_without_its_pretraining(
    refused: Callable[..., str], reproduced: Path, tmp_path: Path
) -> None:
    shutil.copytree(reproduced / "anneal", tmp_path / "out" / "anneal")
    assert "anneal: holds an anneal, and no pretraining lies beside it; delete it" in refused()
