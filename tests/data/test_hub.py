"""Datasets of the Hugging Face hub, by a folder laid out like one: parquet and JSON lines, splits, configurations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardscope.config import DataConfig, Source
from shardscope.data import prepare
from shardscope.tokenizer import Tokenizer

DataOf = Callable[..., DataConfig]
CARD = """---
configs:
- config_name: {name}
  data_files:
  - split: train
    path: {name}/train-*
  - split: test
    path: {name}/test-*
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: Callable[..., list[str]]) -> Path:
    """Two datasets: pages of the web in parquet shards, and questions with choices in JSON lines."""
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    web, arc = tmp_path / "owner" / "web", tmp_path / "owner" / "arc"
    for folder, name in ((web, "sample"), (arc, "Easy")):
        (folder / name).mkdir(parents=True)
        (folder / "README.md").write_text(CARD.format(name=name))
    texts = sentences(300)
    for number, part in enumerate((texts[:120], texts[120:])):
        rows = pyarrow.table({"text": part, "url": ["https://example.org"] * len(part)})
        parquet.write_table(rows, web / "sample" / f"train-{number:05d}-of-00002.parquet", row_group_size=50)
    parquet.write_table(
        pyarrow.table({"text": texts[:3], "url": ["x"] * 3}), web / "sample" / "test-00000-of-00001.parquet"
    )
    rows = [
        {
            "question": f"Which is {n}?",
            "choices": {"text": [f"not {n}", f"it is {n}"], "label": ["A", "B"]},
            "answerKey": "B",
        }
        for n in range(200)
    ]
    for split in ("train", "test"):
        (arc / "Easy" / f"{split}-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "owner"


def test_a_mixture_of_datasets_is_read_and_read_again_to_the_same_batches(
    hub: Path, data_of: DataOf, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = data_of(
        Source(name="web", path=f"hf:{hub}/web:sample", weight=0.8),
        Source(
            name="arc",
            path=f"hf:{hub}/arc:Easy",
            text="Question: {question}\nAnswer: {choices.text[answerKey]}",
            weight=0.2,
            documents=150,
        ),
    )

    def prepared(cache: str):  # type: ignore[no-untyped-def]
        return prepare(
            replace(data, cache_dir=cache), small_tokenizer, batch_size=4, seed=3, eval_tokens=100, progress=False
        )

    first = prepared(str(tmp_path / "one"))
    assert sum(len(side.starts) for side in first.shards["web"][:2]) == 300
    assert sum(len(side.starts) for side in first.shards["arc"][:2]) == 150
    text = small_tokenizer.decode(first.shards["arc"].train.ids(0))
    assert text.startswith("Question: Which is ")
    assert "?\nAnswer: it is " in text
    # Another machine, or this one after its cache was lost, goes on with the same batches.
    again = prepared(str(tmp_path / "two"))
    assert again.fingerprints == first.fingerprints
    for step in (0, 7, 1000):
        assert torch.equal(again.mixture.batch(step).tokens, first.mixture.batch(step).tokens)
