"""A Shard that is evaluated as it is in memory: edited, under hooks, through `simple_evaluate`."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from asking import ANSWERED, CHOICES, asked
from lm_eval import simple_evaluate
from lm_eval.loggers.evaluation_tracker import EvaluationTracker, GeneralConfigTracker
from lm_eval.tasks import TaskManager
from real_items import ROOT
from rounding import all_nats

from shardscope import load
from shardscope.evals.harness import HarnessError, ShardLM

HEAD = "blocks.0.attn.hook_z"


def without_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
    z = z.clone()
    z[:, :, 1] = 0
    return z


def answers_of(lm: ShardLM) -> list[Any]:
    return [getattr(lm, kind)(asked(kind, [arguments]), disable_tqdm=True) for kind, arguments in ANSWERED]


def test_a_shard_in_memory_is_scored_as_its_checkpoint_is(formats: tuple[Path, Path], ours: ShardLM) -> None:
    lm = ShardLM(pretrained=load(formats[0]))
    assert answers_of(lm) == answers_of(ours)
    assert lm.get_model_info()["model_checkpoint"] == "a Shard in memory"
    by_dict = ShardLM.create_from_arg_obj({"pretrained": lm.model}, {"batch_size": 2})
    assert by_dict.model is lm.model


def test_an_edit_of_the_weights_counts_from_the_next_call_on(formats: tuple[Path, Path]) -> None:
    lm = ShardLM(load(formats[0]))
    before = answers_of(lm)
    with torch.no_grad():  # each of the places from which packed weights are copied
        lm.model.blocks[0].attn.W_Q.mul_(-1)
        lm.model.W_U.mul_(0.5)
    assert answers_of(lm) == answers_of(ShardLM(lm.model))
    assert answers_of(lm)[:2] != before[:2]


def test_hooks_ablate_heads_while_lm_eval_asks(formats: tuple[Path, Path]) -> None:
    model = load(formats[0])
    lm = ShardLM(model)
    whole = answers_of(lm)
    with model.hooks([(HEAD, without_head)]):
        hooked = answers_of(lm)
    assert answers_of(lm) == whole
    with torch.no_grad():  # the same head, taken out of the weights
        model.blocks[0].attn.W_O[1] = 0
    edited = answers_of(lm)
    tokens = [len(lm.tok_encode(text, add_special_tokens=False)) for text in (" 42", "Some text.")]
    assert [hooked[0][0][0], *hooked[1]] == all_nats([edited[0][0][0], *edited[1]], tokens)
    assert hooked[2] == edited[2]
    assert hooked[:2] != whole[:2]


def test_simple_evaluate_takes_a_shard_also_while_a_head_is_ablated(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sample = ROOT / "evals" / "sample"
    (tmp_path / "choices.yaml").write_text(CHOICES.format(file=sample / "ai2_arc/ARC-Easy/test.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = load(formats[0])

    def logprobs(lm: Any) -> list[float]:
        found = simple_evaluate(lm, tasks=["choices"], task_manager=manager, limit=3, bootstrap_iters=0)
        assert found is not None
        return [answer[0][0] for row in found["samples"]["choices"] for answer in row["resps"]]

    plain = logprobs(ShardLM(model))
    assert plain == logprobs(ShardLM(str(formats[0]), device="cpu"))
    with model.hooks([(HEAD, without_head)]):
        assert logprobs(ShardLM(model)) != pytest.approx(plain, rel=1e-4)


def test_the_pages_example_in_python_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^    from lm_eval import .*?(?=^\S)", page, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    exec(textwrap.dedent(example), {})
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "meta"}, "device='meta': Shardscope runs on cpu"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16, but the Shard has torch.float32; convert it before, or leave dtype"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json: no such tokenizer file"),
    ],
)
def test_what_does_not_fit_a_shard_in_memory_gets_one_sentence(
    formats: tuple[Path, Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(HarnessError, match=message):
        ShardLM(load(formats[0]), **arguments)


def test_a_shard_without_a_tokenizer_gets_one_sentence(formats: tuple[Path, Path]) -> None:
    model = load(formats[0])
    model.tokenizer = None
    with pytest.raises(HarnessError, match=r"the Shard has no tokenizer; set model\.tokenizer, or pass tokenizer=FILE"):
        ShardLM(model)
    assert ShardLM(model, tokenizer=str(formats[0] / "tokenizer.json")).tok_encode("42", False)


@pytest.mark.parametrize(("kind", "arguments"), ANSWERED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_computes_no_numbers_gets_one_sentence(
    formats: tuple[Path, Path], kind: str, arguments: tuple[Any, ...], value: float
) -> None:
    lm = ShardLM(load(formats[0]))
    with torch.no_grad():
        lm.model.ln_final.w.fill_(value)
    with pytest.raises(HarnessError, match="the model's logits are not finite"):
        getattr(lm, kind)(asked(kind, [arguments]), disable_tqdm=True)


def test_arguments_that_name_no_model_get_the_name_of_the_one_evaluated(formats: tuple[Path, Path]) -> None:
    arguments: dict[str, Any] = {}
    ShardLM.create_from_arg_obj(arguments, {"device": "cpu"})
    assert arguments == {"pretrained": "shardscope/builtin"}
    arguments = {"max_length": 64, "device": "cpu"}
    ShardLM.create_from_arg_obj(arguments)
    assert GeneralConfigTracker._get_model_name(arguments) == "shardscope/builtin"
    named = {"pretrained": str(formats[0]), "device": "cpu"}
    ShardLM.create_from_arg_obj(named)
    assert named["pretrained"] == str(formats[0])


@pytest.mark.parametrize(
    ("how", "folder"),
    [
        ("by name", "shardscope__builtin"),
        ("by name, in words", "shardscope__builtin"),
        ("by path", "CHECKPOINT"),
        ("with a cache", "CHECKPOINT"),
        ("in memory", "Shard-in-memory"),
        ("named in model_args", "someone__else"),
    ],
)
def test_results_of_simple_evaluate_land_in_a_folder_of_the_models_name(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, folder: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sample = ROOT / "evals" / "sample"
    (tmp_path / "choices.yaml").write_text(CHOICES.format(file=sample / "ai2_arc/ARC-Easy/test.jsonl"))
    given: dict[str, Any] = {
        "by name": {"model": "shard", "device": "cpu"},
        "by name, in words": {"model": "shard", "device": "cpu", "model_args": "max_length=256"},
        "by path": {"model": ShardLM(str(formats[0]), device="cpu")},
        "with a cache": {"model": ShardLM(str(formats[0]), device="cpu"), "use_cache": str(tmp_path / "answers")},
        "in memory": {"model": ShardLM(load(formats[0]))},
        "named in model_args": {"model": ShardLM(load(formats[0])), "model_args": {"pretrained": "someone/else"}},
    }[how]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    run = {"tasks": ["choices"], "task_manager": manager, "limit": 1, "bootstrap_iters": 0}
    found = simple_evaluate(**given, evaluation_tracker=tracker, **run)
    assert found is not None
    tracker.save_results_aggregated(results=found, samples=found["samples"])
    name = str(formats[0]).replace("/", "__") if folder == "CHECKPOINT" else folder
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
