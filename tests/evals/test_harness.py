"""The model type `shard` against the harness's own `hf` on the same weights, request by request."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from asking import CHOICES, FAILURES, Lm, asked, assert_same_likelihoods, assert_same_texts, choices_of
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from real_items import QUESTIONS, ROOT, real_rows
from rounding import all_nats, nats

from shardscope import load
from shardscope.evals import harness
from shardscope.evals.harness import HarnessError, ShardLM
from shardscope.evals.tasks import worked_gsm8k
from shardscope.generation import score_groups

# ------------------------------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def built_in(built_in_formats: tuple[Path, Path]) -> tuple[ShardLM, HFLM]:
    checkpoint, exported = map(str, built_in_formats)
    return (
        ShardLM(pretrained=checkpoint, device="cpu", batch_size="auto", max_length=512),
        HFLM(pretrained=exported, device="cpu", batch_size=8, max_length=512, dtype="float32"),
    )


@pytest.mark.parametrize("name", ["ai2_arc/ARC-Easy/test.jsonl", "ai2_arc/ARC-Challenge/test.jsonl"])
def test_every_likelihood_of_real_arc_items_is_that_of_hf(built_in: tuple[ShardLM, HFLM], name: str) -> None:
    assert_same_likelihoods(*built_in, choices_of(real_rows(name, 15)))


def test_a_worked_solutions_likelihood_is_that_of_hf_per_token_and_nearer_to_float64(
    built_in: tuple[ShardLM, HFLM],
) -> None:
    """lm-eval adds up hundreds of float32 logarithms; what differs from `hf` over a long answer is its rounding."""
    ours, theirs = built_in
    rows = real_rows("gsm8k/main/test.jsonl", 8)
    pairs = [(f"Question: {row['question']}\nAnswer:", worked_gsm8k(row)) for row in rows]
    found = [value for value, _ in ours.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)]
    expected = [value for value, _ in theirs.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)]
    double, exact, lengths = load(ours.path).double(), [], []
    for pair in pairs:
        context, answer = ours._encode_pair(*pair)
        with torch.no_grad():
            logits = double(torch.tensor([[*context, *answer][:-1]]))[0, len(context) - 1 :].double()
        exact.append(float(logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None]).sum()))
        lengths.append(len(answer))
    assert max(lengths) > 100
    assert found == all_nats(expected, lengths)
    off = [sum(abs(a - b) for a, b in zip(values, exact, strict=True)) for values in (found, expected)]
    assert 3 * off[0] < off[1]


def test_every_answer_to_real_gsm8k_items_is_that_of_hf(built_in: tuple[ShardLM, HFLM]) -> None:
    rows = real_rows("gsm8k/main/test.jsonl", 5)
    shots = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in QUESTIONS)
    prompts = [f"{shots}Question: {row['question']}\nAnswer:" for row in rows]
    kwargs = {"until": ["Question:", "</s>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 40}
    assert_same_texts(*built_in, prompts, kwargs)
    # So many examples that the prompts are cut at the left.
    assert_same_texts(*built_in, [6 * shots + prompt for prompt in prompts[:2]], {**kwargs, "max_gen_toks": 12})


def test_every_metric_is_that_of_hf(
    built_in: tuple[ShardLM, HFLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ROOT / "evals" / "sample"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "choices.yaml").write_text(CHOICES.format(file=sample / "ai2_arc/ARC-Easy/test.jsonl"))
    paths = [str(tmp_path), str(ROOT / "evals")]
    manager = TaskManager(include_path=paths, include_defaults=False, metadata={"eval_data": str(sample)})

    def metrics(lm: Lm) -> dict[str, dict[str, Any]]:
        names = ["choices", "shard_arith", "shard_gsm8k"]
        given = {"limit": 8, "gen_kwargs": "max_gen_toks=16", "bootstrap_iters": 0, "num_fewshot": 0}
        found = simple_evaluate(lm, tasks=names, task_manager=manager, **given)
        assert found is not None
        return found["results"]

    ours, theirs = map(metrics, built_in)
    assert ours == theirs
    assert {"acc,none", "acc_norm,none"} <= ours["choices"].keys()
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= ours["shard_gsm8k"].keys()
    assert 0 < ours["choices"]["acc,none"] < 1
    assert sum(ours["shard_arith"][f"{kind},none"] for kind in ("exact_match", *FAILURES)) == 1


PAIRS = [
    *((f"Question: {q}\nAnswer:", f" {a}") for q, a in QUESTIONS),
    *((f"Question: {q}\nAnswer:", f" {letter}") for q, _ in QUESTIONS for letter in "AB"),
    ("", "a text without a context"),
    ("trailing spaces go to the continuation   ", "42"),
    ("<|endoftext|>written out, it is text", " and no second one is put before it"),
    ("long " * 700, "what is too long is cut at its left"),
    ("one", " token" * 90),
]


def test_likelihoods_are_those_of_hf_for_awkward_requests_too(ours: ShardLM, theirs: HFLM) -> None:
    assert_same_likelihoods(ours, theirs, PAIRS)


ROLLING = [["short", "longer, " * 30], ["far longer than the context, " * 100], ["<|endoftext|>written out", ""]]


@pytest.mark.parametrize("texts", ROLLING)
def test_rolling_likelihoods_are_those_of_hf_where_it_reads_the_begin_of_document_token_once(
    ours: ShardLM, formats: tuple[Path, Path], texts: list[str]
) -> None:
    requests = asked("loglikelihood_rolling", [(text,) for text in texts if text])
    theirs = HFLM(pretrained=str(formats[1]), device="cpu", batch_size=8, add_bos_token=False)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    tokens = [len(ours.tok_encode(text, add_special_tokens=False)) for text in texts if text]
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == all_nats(expected, tokens)


@pytest.mark.parametrize(
    "text", ["Hello world, this is a test.", "a", "\n\n", "  led by spaces", "naïve café 🐑", "<|endoftext|>"]
)
def test_a_document_is_scored_by_its_own_tokens_after_one_begin_of_document_token(
    built_in: tuple[ShardLM, HFLM], text: str
) -> None:
    lm = built_in[0]
    ids = [lm.tokens.bos_id, *lm.tokens.encode(text)]
    with torch.no_grad():
        chances = lm.model(torch.tensor([ids[:-1]]))[0].double().log_softmax(dim=-1)
    expected = float(chances.gather(1, torch.tensor(ids[1:])[:, None]).sum())
    (found,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    assert found == nats(expected, len(ids) - 1)
    if text.startswith("Hello world"):
        assert round(-found / math.log(2) / len(text.encode()), 2) == 1.97


def test_a_document_without_text_has_nothing_to_be_surprised_by(ours: ShardLM) -> None:
    assert ours.loglikelihood_rolling(asked("loglikelihood_rolling", [("",)]), disable_tqdm=True) == [0.0]


# Contexts and continuations that no cut through the tokens of the joint text tells apart.
GLUED = [
    ("at", "ion"),
    ("at", "ions of"),
    ("th", "e"),
    ("Answer: at", "ion"),
    ("e", "\u0301"),
    ("\U0001f468", "\u200d\U0001f469"),
]
BLANK = [
    (" ", "word"),
    ("   ", " word"),
    ("\n", "word"),
    ("\n\n\n", "word"),
    ("\t ", "word"),
    ("", "word"),
    ("", "  "),
    (" ", " "),
]
SPACED = [("Hello", " "), ("Hello", "   "), ("Hello", "\n\n"), ("Hello ", " there"), ("Hello\n", "\n")]


@pytest.mark.parametrize("add_bos_token", [True, False])
@pytest.mark.parametrize("pair", [*GLUED, *BLANK, *SPACED], ids=repr)
def test_every_letter_of_a_continuation_is_scored_once_and_none_of_its_context(
    built_in: tuple[ShardLM, HFLM], pair: tuple[str, str], add_bos_token: bool
) -> None:
    lm = copy.copy(built_in[0])
    lm.add_bos_token = add_bos_token
    context, continuation = pair
    before, after = lm._encode_pair(*pair)
    read = lm.tokens.decode([id for id in before if id != lm.tokens.bos_id])
    assert read == context.rstrip()
    assert read + lm.tokens.decode(after) == context + continuation
    with torch.no_grad():
        chances = lm.model(torch.tensor([[*before, *after][:-1]]))[0, len(before) - 1 :].double().log_softmax(dim=-1)
    expected = float(chances.gather(1, torch.tensor(after)[:, None]).sum())
    ((found, _),) = lm.loglikelihood(asked("loglikelihood", [pair]), disable_tqdm=True)
    assert found == nats(expected, len(after))


def test_a_continuation_that_merges_with_its_context_is_scored_as_its_own_tokens(
    built_in: tuple[ShardLM, HFLM],
) -> None:
    encode = built_in[0].tokens.encode
    assert len(encode("ation")) == 1
    assert built_in[0]._encode_pair("at", "ion") == (encode("at", bos=True), encode("ion"))


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_a_text_that_cannot_be_encoded_names_its_document_and_request(ours: ShardLM, kind: str) -> None:
    half = "half a pair \ud83d"
    arguments = {
        "loglikelihood": ("Question:", half),
        "loglikelihood_rolling": (half,),
        "generate_until": (half, {"until": ["."], "max_gen_toks": 4}),
    }[kind]
    request = Instance(kind, {}, arguments, 2, metadata=("sums", 17, 1))  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match=r"^task sums, document 17, request 2 \(.*\): the text is not valid UTF-8"):
        getattr(ours, kind)([request], disable_tqdm=True)


def test_texts_are_those_of_hf_up_to_the_first_stop_text(ours: ShardLM, theirs: HFLM) -> None:
    prompts = [f"Question: {q}\nAnswer:" for q, _ in QUESTIONS] + ["short", "Question: " + "long " * 120]
    free = assert_same_texts(ours, theirs, prompts, {"until": [], "max_gen_toks": 60, "repetition_penalty": 1.2})
    # Stop texts that really occur, some of them within a token.
    stops = [free[0][7:10], free[2][20:22], free[4][3:5]]
    stopped = assert_same_texts(ours, theirs, prompts, {"until": stops, "max_gen_toks": 60, "repetition_penalty": 1.2})
    assert stopped != free


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_the_begin_of_document_token_follows_hf(formats: tuple[Path, Path], add_bos_token: bool) -> None:
    ours = ShardLM(pretrained=str(formats[0]), device="cpu", add_bos_token=add_bos_token)
    theirs = HFLM(pretrained=str(formats[1]), device="cpu", batch_size=4, add_bos_token=add_bos_token)
    assert_same_likelihoods(ours, theirs, PAIRS)


def test_a_shorter_max_length_cuts_as_hf_does(formats: tuple[Path, Path]) -> None:
    ours = ShardLM(pretrained=str(formats[0]), device="cpu", max_length=40)
    theirs = HFLM(pretrained=str(formats[1]), device="cpu", batch_size=4, max_length=40)
    assert_same_likelihoods(ours, theirs, PAIRS[:-1])
    prompts = [f"Question: {q}\nAnswer:" for q, _ in QUESTIONS]
    assert_same_texts(ours, theirs, prompts, {"until": ["."], "max_gen_toks": 12})


# ------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch_size", [1, 3, "auto", "5"])
def test_answers_do_not_depend_on_the_batch_size(ours: ShardLM, formats: tuple[Path, Path], batch_size: Any) -> None:
    other = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=batch_size, seed=7)
    same = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size="auto", seed=7)
    requests = asked("loglikelihood", PAIRS)
    found = other.loglikelihood(requests, disable_tqdm=True)
    assert found == ours.loglikelihood(requests, disable_tqdm=True)  # to the last bit
    kwargs = {"until": ["."], "do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_gen_toks": 16}
    texts = asked("generate_until", [(f"Question: {q}\nAnswer:", dict(kwargs)) for q, _ in QUESTIONS])
    assert other.generate_until(texts, disable_tqdm=True) == same.generate_until(texts, disable_tqdm=True)


def test_choices_that_share_a_context_are_scored_in_one_call(ours: ShardLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(model: Any, groups: Any, packed: Any) -> Any:
        seen.append(len(groups))
        return score_groups(model, groups, packed)

    monkeypatch.setattr(harness, "score_groups", counting)
    pairs = [(f"Question: {q}\nAnswer:", f" {letter} it is") for q, _ in QUESTIONS for letter in "ABCD"]
    ours.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert seen == [4]  # sixteen requests, four contexts


def sizes_of(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """For each batch to come, how many continuations each of its contexts has."""
    seen: list[list[int]] = []

    def counting(model: Any, groups: Any, packed: Any) -> Any:
        seen.append([len(continuations) for _, continuations in groups])
        return score_groups(model, groups, packed)

    monkeypatch.setattr(harness, "score_groups", counting)
    return seen


def test_documents_without_a_context_do_not_share_a_batch_beyond_its_size(
    formats: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=2)
    seen = sizes_of(monkeypatch)
    documents = [(f"Document {n} tells of sheep, of ice and of light. " * (n % 3 + 1),) for n in range(40)]
    lm.loglikelihood_rolling(asked("loglikelihood_rolling", documents), disable_tqdm=True)
    assert seen == [[1, 1]] * 20


def test_a_context_with_many_continuations_comes_in_pieces(
    formats: tuple[Path, Path], ours: ShardLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("How many sheep?", f" {n} sheep") for n in range(19)] + [
        ("What melts?", " ice"),
        ("What melts?", " lead"),
    ]
    expected = ours.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=1)
    seen = sizes_of(monkeypatch)
    found = lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert sorted(seen) == [[2], [3], [8], [8]]
    assert found == expected


def test_a_batch_that_does_not_fit_is_halved(ours: ShardLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = asked("loglikelihood", PAIRS)
    expected = ours.loglikelihood(requests, disable_tqdm=True)

    def small_memory(most: int) -> Callable[..., Any]:
        def run(model: Any, groups: Any, packed: Any) -> Any:
            if sum(len(continuations) for _, continuations in groups) > most:
                raise torch.OutOfMemoryError
            return score_groups(model, groups, packed)

        return run

    assert any(len([p for p in PAIRS if p[0] == context]) > 1 for context, _ in PAIRS)  # some context is divided

    monkeypatch.setattr(harness, "score_groups", small_memory(1))
    assert ours.loglikelihood(requests, disable_tqdm=True) == expected
    monkeypatch.setattr(harness, "score_groups", small_memory(0))
    with pytest.raises(HarnessError, match="memory runs out on a single request"):
        ours.loglikelihood(requests, disable_tqdm=True)
