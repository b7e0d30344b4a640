"""What a person read, against what the rules say; the table in docs/failures.md is made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardscope.config import ConfigError
from shardscope.failures import ORDER
from shardscope.failures.agreement import agreement, agreement_table, read_samples

ROOT = Path(__file__).parents[2]
SAMPLES = read_samples(ROOT / "evals/hand-labelled.jsonl")


def test_two_hundred_samples_of_two_models_were_read() -> None:
    assert len(SAMPLES) == 200
    models = {sample.model for sample in SAMPLES}
    assert models == {"shard-nano", "shard-pico", "shard-pico-step-140"}
    assert {label for sample in SAMPLES for label in sample.labels} == {*ORDER} - {"early end"}
    assert any(not sample.labels for sample in SAMPLES)


def test_the_documentation_shows_their_precision_and_recall() -> None:
    found = agreement(SAMPLES)
    assert agreement_table(found) in (ROOT / "docs/failures.md").read_text(encoding="utf-8")
    by_label = {one.failure: one for one in found}
    for failure in ("loop", "wrong", "digits"):
        one = by_label[failure]  # type: ignore[index]
        assert one.both / one.by_rule > 0.8, failure
        assert one.both / one.by_hand > 0.7, failure


def sample(text: list[str], labels: list[str]) -> dict[str, object]:
    return {
        "model": "m",
        "prompt": "Once",
        "tokens": text,
        "domain": "prose",
        "gold": [],
        "stop_reason": "length",
        "labels": labels,
    }


def test_precision_and_recall_are_those_of_the_definition(tmp_path: Path) -> None:
    file = tmp_path / "read.jsonl"
    loop = [" to", " and", " fro"] * 12
    rows = [sample(loop, ["loop"]), sample(loop, []), sample([" The", " end"], ["loop"]), sample([" The"], [])]
    file.write_text("\n".join(map(json.dumps, rows)))
    one = next(one for one in agreement(read_samples(file)) if one.failure == "loop")
    assert (one.by_hand, one.by_rule, one.both) == (2, 2, 1)
    # Wilson's interval of 1 in 2.
    assert one.precision == one.recall == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert "| loop | 2 | 2 | 1 | 50 % (9–91) | 50 % (9–91) | 50 % |" in agreement_table([one])


def test_a_file_that_holds_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "read.jsonl"
    for content, message in (
        ("{}", "not a file of samples"),
        ("[", "line 1: cannot be read as JSON"),
        (json.dumps(sample([], ["bad"])), "bad"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_samples(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_samples(tmp_path / "none.jsonl")
