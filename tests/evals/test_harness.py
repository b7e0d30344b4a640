"""The model type `shard` against the harness's own `hf` on the same weights, request by request."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.loggers.evaluation_tracker import EvaluationTracker, GeneralConfigTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from real_items import QUESTIONS, ROOT, real_rows
from rounding import all_nats, nats

from shardscope import load
from shardscope.checkpoint import save_checkpoint
from shardscope.config import ConfigError
from shardscope.evals import harness
from shardscope.evals.arith import KINDS
from shardscope.evals.harness import HarnessError, ShardLM
from shardscope.evals.tasks import worked_gsm8k
from shardscope.generation import score_groups
from shardscope.tokenizer import Tokenizer

Lm = ShardLM | HFLM
FAILURES = [kind.replace(" ", "_") for kind in KINDS]


@pytest.fixture(scope="module")
def theirs(formats: tuple[Path, Path]) -> HFLM:
    return HFLM(pretrained=str(formats[1]), device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def ours(formats: tuple[Path, Path]) -> ShardLM:
    return ShardLM(pretrained=str(formats[0]), device="cpu", batch_size="auto")


def asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]  # type: ignore[arg-type]


def choices_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(f"Question: {row['question']}\nAnswer:", f" {text}") for row in rows for text in row["choices"]["text"]]


def assert_same_likelihoods(ours: ShardLM, theirs: HFLM, pairs: list[tuple[str, str]]) -> None:
    found = ours.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    expected = theirs.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    tokens = [len(ours._encode_pair(*pair)[1]) for pair in pairs]
    assert [value for value, _ in found] == all_nats([value for value, _ in expected], tokens)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def assert_same_texts(ours: ShardLM, theirs: HFLM, prompts: list[str], kwargs: dict[str, Any]) -> list[str]:
    def texts(lm: Lm) -> list[str]:
        # A copy for each: the harness adds to the list of stop texts.
        requests = asked("generate_until", [(prompt, json.loads(json.dumps(kwargs))) for prompt in prompts])
        return lm.generate_until(requests, disable_tqdm=True)

    found = texts(ours)
    assert found == texts(theirs)
    return found


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


CHOICES = """\
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


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


ANSWERED = [
    ("loglikelihood", ("Question:", " 42")),
    ("loglikelihood_rolling", ("Some text.",)),
    ("generate_until", ("Question:", {"until": ["."], "max_gen_toks": 5})),
]


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


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("length", [40, 41, 80, 95])
def test_a_continuation_longer_than_max_length_is_the_sum_of_its_windows(
    formats: tuple[Path, Path], length: int, caplog: pytest.LogCaptureFixture
) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size="auto", max_length=40)
    context, answer = [7, 8], [(31 * pos) % 300 for pos in range(length)]
    tokens, expected = [context[-1], *answer], 0.0
    for start in range(0, length, 40):  # the first window is read after one token, every other at its full length
        stop = min(start + 40, length)
        read = tokens[max(0, stop - 40) : stop]
        with torch.no_grad():
            chances = lm.model(torch.tensor([read]))[0].double().log_softmax(dim=-1)[start - stop :]
        expected += float(chances.gather(1, torch.tensor(answer[start:stop])[:, None]).sum())
    short = (None, context, [9])
    found = lm._loglikelihood_tokens([short, (None, context, answer)], disable_tqdm=True)
    assert found[0][0] == nats(lm._loglikelihood_tokens([short], disable_tqdm=True)[0][0], 1)
    assert found[1] == (nats(expected, length), False)
    said = "continuations that do not fit max_length=40 are scored in windows"
    assert (said in [record.message for record in caplog.records]) == (length > 40)


def test_a_long_continuation_is_greedy_where_all_of_its_windows_are(formats: tuple[Path, Path]) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", max_length=40)
    tokens = [7]
    for _ in range(41):
        with torch.no_grad():
            tokens.append(int(lm.model(torch.tensor([tokens[-40:]]))[0, -1].argmax()))
    for last, greedy in ((tokens[41], True), ((tokens[41] + 1) % 360, False)):
        ((_, found),) = lm._loglikelihood_tokens([(None, [7], [*tokens[1:41], last])], disable_tqdm=True)
        assert found == greedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "runs/nothing-here"}, "runs/nothing-here: no such checkpoint or run"),
        ({"max_length": 513}, r"max_length=513 is out of range \(the model's context is 512\); use 1 to 512"),
        ({"max_length": "long"}, "max_length='long' is not a whole number"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 is out of range; use at least 1"),
        ({"dtype": "int4"}, "dtype=int4 is not supported; use auto, float32"),
        ({"device": "meta"}, "device='meta': Shardscope runs on cpu, cuda and mps"),
        ({"device": "gpu"}, "device='gpu' is not a torch device; use auto, cpu, cuda"),
        ({"max_length": 0}, "max_length=0 is out of range"),
        ({"batch_size": "auto:many"}, "batch_size='auto:many' is not a whole number"),
        ({"batch_size": "auto", "max_batch_size": 0}, "max_batch_size=0 is out of range"),
        ({"add_bos_token": "perhaps"}, "add_bos_token='perhaps' is neither true nor false; use one of true, yes"),
        ({"revision": "main"}, "revision='main' is not known; use pretrained, tokenizer"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json: no such tokenizer file"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(
    formats: tuple[Path, Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ShardLM(**{"pretrained": str(formats[0]), "device": "cpu", **arguments})
    assert isinstance(caught.value, SystemExit)
    assert str(caught.value.code).startswith("error: ")


def test_a_tokenizer_that_does_not_fit_gets_one_sentence(formats: tuple[Path, Path], tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    large = Tokenizer.train([f"{a}{b}{c}" for a in letters for b in letters for c in letters], vocab_size=500)
    large.save(tmp_path / "large.json")
    Tokenizer.train(["abc"], vocab_size=259).save(tmp_path / "small.json")
    for name in ("large", "small"):
        with pytest.raises(
            HarnessError, match=rf"{name}\.json is not the one that .*checkpoint holds; leave tokenizer"
        ):
            ShardLM(pretrained=str(formats[0]), device="cpu", tokenizer=str(tmp_path / f"{name}.json"))
    # A checkpoint without one takes the tokenizer of its size.
    model = load(formats[0])
    model.tokenizer = None
    bare = save_checkpoint(tmp_path / "bare", model)
    with pytest.raises(HarnessError, match=r"bare holds no tokenizer\.json; pass tokenizer=FILE"):
        ShardLM(pretrained=str(bare), device="cpu")
    for name, entries in (("large", 500), ("small", 259)):
        with pytest.raises(
            HarnessError, match=rf"has {entries} entries, the model's vocabulary 360; pass the tokenizer"
        ):
            ShardLM(pretrained=str(bare), device="cpu", tokenizer=str(tmp_path / f"{name}.json"))
    own = formats[0] / "tokenizer.json"
    for folder in (bare, formats[0]):
        assert ShardLM(pretrained=str(folder), device="cpu", tokenizer=str(own)).tok_encode("42", False)


@pytest.mark.parametrize(
    ("words", "first", "size"),
    [("add_bos_token=0", 1, 2), ("add_bos_token=no,batch_size=auto:4", 1, "auto"), ("add_bos_token=True", 0, 2)],
)
def test_arguments_mean_what_the_harness_lets_people_write(
    formats: tuple[Path, Path], words: str, first: int, size: int | str
) -> None:
    given = {"device": "cpu"} if "batch_size" in words else {"device": "cpu", "batch_size": 2}
    lm = ShardLM.create_from_arg_string(f"pretrained={formats[0]},{words}", given)
    assert lm.tok_encode("What") == lm.tokens.encode("What", bos=True)[first:]
    assert lm.batch_size == size


def test_model_args_count_before_the_commands_own_defaults(formats: tuple[Path, Path]) -> None:
    flags = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    given = {"pretrained": str(formats[0]), "batch_size": 4, "max_batch_size": 8, "device": "cpu"}
    words = ",".join(f"{name}={value}" for name, value in given.items())
    for lm in (ShardLM.create_from_arg_string(words, flags), ShardLM.create_from_arg_obj(given, flags)):
        assert (lm.batch_size, lm.max_batch_size, str(lm.device)) == (4, 8, "cpu")


def test_paths_may_look_like_numbers(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(formats[0], tmp_path / "2024")
    shutil.copy(formats[0] / "tokenizer.json", tmp_path / "5")
    monkeypatch.chdir(tmp_path)
    lm = ShardLM.create_from_arg_string("pretrained=2024,tokenizer=5", {"device": "cpu"})
    assert lm.path is not None
    assert lm.path.name == "2024"


def test_arguments_that_are_no_pairs_get_one_sentence(formats: tuple[Path, Path]) -> None:
    with pytest.raises(HarnessError, match="'here' is not key=value"):
        ShardLM.create_from_arg_string("here", {"batch_size": 1, "device": "cpu"})
    lm = ShardLM.create_from_arg_string(f"pretrained={formats[0]},max_length=100", {"batch_size": 4, "device": "cpu"})
    assert (lm.max_length, lm.batch_size) == (100, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_gen_toks": 512}, "max_gen_toks=512 leaves no room for a prompt in max_length=512"),
        ({"num_beams": 4}, "generation argument num_beams=4 is not supported; use until"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 3.0}, "top_p=3.0 is a probability"),
    ],
)
def test_an_impossible_generation_gets_one_sentence(ours: ShardLM, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        ours.generate_until(asked("generate_until", [("Question:", {"until": ["."], **kwargs})]), disable_tqdm=True)


@pytest.mark.parametrize("batch_size", [4, "auto"])
@pytest.mark.parametrize("pair", [("Hello there", ""), ("", "")])
def test_an_empty_continuation_gets_one_sentence(formats: tuple[Path, Path], batch_size: Any, pair: Any) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=batch_size)
    with pytest.raises(HarnessError, match="a continuation adds no token to its context"):
        lm.loglikelihood(asked("loglikelihood", [pair]), disable_tqdm=True)


def test_a_chat_template_gets_one_sentence(ours: ShardLM) -> None:
    with pytest.raises(HarnessError, match="base model without a chat template"):
        ours.apply_chat_template([{"role": "user", "content": "hello"}])


# ------------------------------------------------------------------------------------------------- a model in Python

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
