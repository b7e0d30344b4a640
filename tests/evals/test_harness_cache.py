"""Answers that come from a cache, and samples that do not: whose they are, and of which question."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from asking import ANSWERED, asked
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from real_items import QUESTIONS

from shardscope import load
from shardscope.evals import harness
from shardscope.evals.harness import HarnessError, ShardLM


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_an_interrupted_evaluation_goes_on_from_the_cache(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=2)
    arguments: list[tuple[Any, ...]] = {
        "loglikelihood": [(f"Question: {q}\nAnswer:", f" {a}") for q, a in QUESTIONS],
        "loglikelihood_rolling": [(q,) for q, _ in QUESTIONS],
        "generate_until": [(q, {"until": ["."], "max_gen_toks": 5}) for q, _ in QUESTIONS],
    }[kind]
    expected = getattr(lm, kind)(asked(kind, arguments))
    name = "generate" if kind == "generate_until" else "score_groups"
    real, calls = getattr(harness, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(harness, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(CachingLM(lm, str(tmp_path / "cache.db")), kind)(asked(kind, arguments))
    # Two of four were done; the second run asks for the others only.
    assert getattr(CachingLM(lm, str(tmp_path / "cache.db")), kind)(asked(kind, arguments)) == expected
    assert calls == [2, 2, 2]


@pytest.mark.parametrize(("kind", "arguments"), ANSWERED)
def test_a_cache_of_other_weights_or_settings_is_refused(
    formats: tuple[Path, Path], tmp_path: Path, kind: str, arguments: tuple[Any, ...]
) -> None:
    model = load(formats[0])
    file = str(tmp_path / "cache.db")
    first = getattr(CachingLM(ShardLM(model), file), kind)(asked(kind, [arguments]))
    assert getattr(CachingLM(ShardLM(str(formats[0]), device="cpu"), file), kind)(asked(kind, [arguments])) == first
    for name, value in {"max_length": 40, "add_bos_token": False, "max_gen_toks": 7}.items():
        with pytest.raises(HarnessError, match=rf"cache\.db holds answers with {name}=.*, now it is {value}; name ano"):
            CachingLM(ShardLM(model, **{name: value}), file)  # type: ignore[arg-type]
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: 0 * x)]
    with model.hooks(hooks), pytest.raises(HarnessError, match="hooks are attached to the model, and a cache cannot"):
        CachingLM(ShardLM(model), file)
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    with pytest.raises(
        HarnessError, match=r"cache\.db holds the answers of other weights than this model's; name anoth"
    ):
        CachingLM(ShardLM(model), file)


def test_weights_edited_after_the_cache_was_opened_are_noticed(formats: tuple[Path, Path], tmp_path: Path) -> None:
    model = load(formats[0])
    cached = CachingLM(ShardLM(model), str(tmp_path / "cache.db"))
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    with pytest.raises(HarnessError, match="holds the answers of other weights"):
        cached.loglikelihood(asked("loglikelihood", [("Question:", " 42")]))


def test_a_cache_that_does_not_say_whose_answers_it_holds_is_refused(ours: ShardLM, tmp_path: Path) -> None:
    cached = CachingLM(copy.copy(ours), str(tmp_path / "cache.db"))
    cached.dbdict.clear()
    cached.dbdict["an older file's answer"] = (-1.0, False)
    with pytest.raises(HarnessError, match=r"cache\.db holds answers but does not say of which model; name another"):
        CachingLM(copy.copy(ours), str(tmp_path / "cache.db"))


@pytest.mark.parametrize(
    "sampling", [{"do_sample": True}, {"temperature": 1.0}, {"do_sample": True, "temperature": 0.8}]
)
def test_samples_are_never_replayed_from_a_cache(
    formats: tuple[Path, Path], tmp_path: Path, sampling: dict[str, Any]
) -> None:
    def texts(seed: int) -> list[str]:
        lm = CachingLM(ShardLM(str(formats[0]), device="cpu", seed=seed), str(tmp_path / "cache.db"))
        kwargs = {"until": ["."], "max_gen_toks": 12, **sampling}
        return lm.generate_until(asked("generate_until", [("Question:", dict(kwargs)) for _ in range(3)]))

    first = texts(1)
    assert texts(1) == first
    assert texts(2) != first


def test_a_sample_depends_on_its_question_not_on_the_process_that_writes_it(
    formats: tuple[Path, Path],
) -> None:
    kwargs = {"until": ["."], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}

    def question(doc_id: int) -> Instance:
        return Instance("generate_until", {}, ("Question:", dict(kwargs)), 0, metadata=("sums", doc_id, 1))

    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=4, seed=3)
    texts = lm.generate_until([question(n) for n in range(6)], disable_tqdm=True)
    assert len(set(texts)) > 1
    # The share of the second of two processes; a run that goes on with the last question.
    assert lm.generate_until([question(n) for n in (1, 3, 5)], disable_tqdm=True) == texts[1::2]
    assert lm.generate_until([question(5)], disable_tqdm=True) == texts[5:]
    # A question that is asked twice gets two samples, the first of them as before.
    again = lm.generate_until([question(5)] * 4, disable_tqdm=True)
    assert again[0] == texts[5]
    assert len(set(again)) > 1


def test_what_is_cut_is_said_once(formats: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", max_length=40)
    long = ["long " * n for n in (60, 70, 80)]
    lm.loglikelihood(asked("loglikelihood", [(text, " 42") for text in long]), disable_tqdm=True)
    lm.generate_until(asked("generate_until", [(text, {"max_gen_toks": 5}) for text in long]), disable_tqdm=True)
    assert [record.message for record in caplog.records if record.name == harness.__name__] == [
        "contexts that do not fit max_length=40 are cut at their left",
        "prompts that do not fit max_length=40 beside max_gen_toks=5 are cut at their left",
    ]
