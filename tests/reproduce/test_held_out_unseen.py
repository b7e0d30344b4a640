"""scripts/held_out_unseen.py: which tokens of held-out text stand word for word in text that was trained on."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "held_out_unseen.py"
WORDS = [f"word{number}" for number in range(40)]
COPIED = WORDS[10:24]  # fourteen of them


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


class Shard(SimpleNamespace):
    """Token shards whose tokens are the words, each with a space before it; token 0 begins a document."""

    def __len__(self) -> int:
        return len(self.tokens)


PIECES = [b"", *(f" {word}".encode() for word in [*WORDS, *(word.upper() + "," for word in COPIED), "other"])]


def shard_of(*documents: list[int]) -> Shard:
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    return Shard(tokens=np.array([token for document in documents for token in (0, *document)]), starts=starts)


def seen_in(script: dict[str, Any], train: Shard, overlapping: list[int]) -> list[int]:
    """The tokens of a held-out text of two documents that were seen; the second one is all WORDS."""
    held_out = shard_of([len(PIECES) - 1] * 3, list(range(1, 41)))
    seen_tokens: Callable[..., Any] = script["seen_tokens"]
    found = seen_tokens(held_out, train, np.array(overlapping, np.int64), script["Texts"](PIECES))
    return np.flatnonzero(found).tolist()


def test_thirteen_words_in_a_row_are_seen_whatever_their_case_and_punctuation(script: dict[str, Any]) -> None:
    copy = [41 + number for number in range(len(COPIED))]
    other = [len(PIECES) - 1] * 5
    begins = 5 + 10  # three other words and two tokens that begin documents stand before WORDS
    found = seen_in(script, shard_of(other, other + copy + other), [1])
    assert found == list(range(begins, begins + len(COPIED)))


def test_twelve_words_or_a_document_that_does_not_overlap_are_not(script: dict[str, Any]) -> None:
    assert seen_in(script, shard_of([11 + number for number in range(12)]), [0]) == []
    assert seen_in(script, shard_of(list(range(1, 41))), []) == []
