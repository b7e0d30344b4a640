"""Requests as the harness makes them, and answers compared with those of its own `hf`."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rounding import all_nats

from shardscope.evals.arith import KINDS
from shardscope.evals.harness import ShardLM

Lm = ShardLM | HFLM
FAILURES = [kind.replace(" ", "_") for kind in KINDS]
ANSWERED = [
    ("loglikelihood", ("Question:", " 42")),
    ("loglikelihood_rolling", ("Some text.",)),
    ("generate_until", ("Question:", {"until": ["."], "max_gen_toks": 5})),
]
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
