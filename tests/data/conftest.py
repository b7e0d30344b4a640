"""Small sources on disk for the data room's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shardscope.config import DataConfig, Source
from shardscope.tokenizer import Tokenizer

TEXT = "the model reads a window of text and learns where each word belongs in the sentence"


def make_sentences(count: int, word: str = "prose") -> list[str]:
    """Different short documents."""
    words = TEXT.split()
    return [
        f"{word} {n}: " + " ".join(words[(n * k) % len(words)] for k in range(1, 9)) + " é🙂." for n in range(count)
    ]


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(make_sentences(200), 320)


@pytest.fixture
def sentences() -> Callable[..., list[str]]:
    """sentences(count, word): different short documents that begin with the word."""
    return make_sentences


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, texts: list[str]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def data_of(tmp_path: Path) -> Callable[..., DataConfig]:
    """A DataConfig over paths or sources, with its own cache."""

    def build(*sources: Path | Source, **changes: object) -> DataConfig:
        made = tuple(s if isinstance(s, Source) else Source(name=s.name.split(".")[0], path=str(s)) for s in sources)
        return DataConfig(**{"sources": made, "seq_len": 32, "cache_dir": str(tmp_path / "cache"), **changes})

    return build
