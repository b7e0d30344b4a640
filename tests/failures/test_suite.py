"""The suite: its gold answers are right, its retrieval prompts lie as far apart as they say, and files are checked."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from shardscope import Shard
from shardscope.config import ConfigError
from shardscope.failures import CARD_PROMPTS, for_model, label, load_suite
from shardscope.failures.answers import implied_answer
from shardscope.failures.prompts import Retrieval, SuitePrompt, planted, retrieval_text
from shardscope.tokenizer import Tokenizer

SUITE = load_suite()


def test_the_suite_is_the_cards_six_and_two_hundred_of_our_own() -> None:
    assert SUITE[:6] == list(CARD_PROMPTS)
    assert len(SUITE) >= 200
    skills = Counter(prompt.skill for prompt in SUITE)
    assert skills.keys() >= {"arithmetic", "code", "facts", "stories", "copying", "retrieval", "explaining", "proofs"}
    assert {prompt.domain for prompt in SUITE} == {"math", "code", "prose"}
    assert len({prompt.id for prompt in SUITE}) == len(SUITE)
    texts = [prompt.text for prompt in SUITE if prompt.text]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("prompt", [p for p in SUITE if p.operation], ids=lambda prompt: prompt.id)
def test_the_gold_of_every_sum_is_its_result(prompt: SuitePrompt) -> None:
    a, b = prompt.operands
    result = {"add": a + b, "subtract": a - b, "multiply": a * b, "divide": a / b}[prompt.operation]
    assert prompt.gold == (str(int(result)),)
    assert result == int(result)
    assert implied_answer(prompt.text) in (None, prompt.gold[0])
    # The right answer is no failure, one that is off by seven is.
    assert label(f" {prompt.gold[0]}.", prompt=prompt.text).primary == "no flag"
    assert "wrong" in {flag.failure for flag in label(f" {int(prompt.gold[0]) + 7}.", prompt=prompt.text).flags}


@pytest.mark.parametrize("prompt", [p for p in SUITE if p.gold and not p.operation], ids=lambda prompt: prompt.id)
def test_every_right_answer_is_taken_and_its_lack_is_wrong(prompt: SuitePrompt) -> None:
    for gold in prompt.gold:
        assert "wrong" not in {
            f.failure for f in label(f" {gold}\n", prompt=prompt.text, domain=prompt.domain, gold=prompt.gold).flags
        }
    other = label(" quartz and nothing but quartz", prompt=prompt.text, domain=prompt.domain, gold=prompt.gold)
    assert "wrong" in {flag.failure for flag in other.flags if not flag.suspect}


@pytest.mark.parametrize("distance", [40, 100, 300])
def test_the_question_comes_as_far_after_the_fact_as_asked(tiny_tokenizer: Tokenizer, distance: int) -> None:
    fact, question = "The key is under the mat.", "The key is under the"
    text = retrieval_text(fact, question, distance, tiny_tokenizer)
    assert text.startswith(fact)
    assert text.endswith(f" {question}")
    after = len(tiny_tokenizer.encode(text[len(fact) :]))
    assert after <= distance
    assert "mat" not in text[len(fact) :]
    longest = max(
        len(tiny_tokenizer.encode(f" {part}.")) for part in retrieval_text("", "", 5000, tiny_tokenizer).split(".")
    )
    assert after > distance - longest
    assert text == retrieval_text(fact, question, distance, tiny_tokenizer)


def test_retrieval_prompts_are_written_for_the_models_window_and_context(
    tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    asked = SuitePrompt(
        text="", id="a", retrieval=Retrieval(fact="It is red.", question="It is", windows=1.0), gold=("red",)
    )
    far = replace(asked, retrieval=Retrieval(fact="It is red.", question="It is", windows=999))
    (written,) = for_model([asked, far], tiny_model)
    assert written.text.startswith("It is red.")
    assert written.gold == ("red",)
    tiny_model.tokenizer = None
    with pytest.raises(ConfigError, match="no tokenizer"):
        for_model([asked], tiny_model)


def test_a_users_file_needs_nothing_but_prompts(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Ünten"}\n\n{"prompt": "2 + 2 =", "domain": "math", "gold": ["4", "four"]}\n')
    first, second = load_suite(file)
    assert (first.text, first.id, first.domain, first.skill, first.gold) == ("Ünten", "mine-1", "prose", "mine", ())
    assert (second.domain, second.gold) == ("math", ("4", "four"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: cannot be read as JSON"),
        ("[" * 100_000, "line 2: cannot be read as JSON: it is nested too deeply"),
        ("[1]", "line 2: holds list, not an object"),
        ("{}", "line 2: holds no prompt"),
        ('{"prompt": ""}', "line 2: holds no prompt"),
        ('{"prompt": 3}', "line 2: prompt=3 must be a text"),
        ('{"promt": "a"}', "line 2: unknown key 'promt'; did you mean 'prompt'"),
        ('{"prompt": "a", "domain": "music"}', "line 2: domain='music' is unknown; use math, code, prose"),
        ('{"prompt": "a", "gold": 4}', "line 2: gold=4 must be a text, or a list of texts"),
        ('{"prompt": "a", "gold": [" "]}', "none of them empty"),
        ('{"prompt": "a", "operands": [1.5]}', r"operands=\[1.5\] must be whole numbers"),
        ('{"prompt": "b", "id": "mine-1"}', "line 2: id='mine-1' stands on an earlier line"),
        ('{"fact": "a", "windows": 1}', "needs fact, question and windows"),
        ('{"fact": "a", "question": "b", "windows": 1, "prompt": "c"}', "and no prompt"),
        ('{"fact": "a", "question": "b", "windows": true}', "windows=True must be a number above 0"),
        ('{"fact": "a", "question": "b", "windows": 1e999}', "windows=inf must be a number above 0"),
        ('{"fact": "", "question": "b", "windows": 1}', "fact and question must not be empty"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=message):
        load_suite(file)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    for name, message in (
        ("empty", "holds no prompt"),
        ("latin", "cannot be read as UTF-8"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_suite(tmp_path / f"{name}.jsonl")


def test_between_a_fact_and_its_question_whole_pieces_fill_the_distance_and_never_exceed_it() -> None:
    fact, question = [1, 2, 3], [1, 2]
    for distance in range(2, 12):
        exact = planted(fact, ([7] for _ in range(99)), question, distance)
        assert exact == [*fact, *[7] * (distance - 2), *question]
        whole = planted(fact, ([7, 8, 9] for _ in range(99)), question, distance)
        assert whole == [*fact, *[7, 8, 9] * ((distance - 2) // 3), *question]
    assert planted(fact, [], question, 9) == [*fact, *question]
