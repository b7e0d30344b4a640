from __future__ import annotations

import argparse
import inspect
from itertools import pairwise

import numpy as np
import pytest

from shardscope.evals import ngram
from shardscope.evals.ngram import ByteNGram


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def test_probabilities_follow_witten_and_bell_by_hand() -> None:
    # After "a" came b, b, c: 3 seen, 2 kinds. Among all 7 bytes there are 3 a, 2 b, 1 c, 1 d: 4 kinds.
    model = ByteNGram(as_bytes("ababacd"), order=2)
    unigram_b = 7 / 11 * 2 / 7 + 4 / 11 / 256
    bigram_b = 3 / 5 * 2 / 3 + 2 / 5 * unigram_b
    assert model.bits(as_bytes("ab")).tolist() == pytest.approx([-np.log2(bigram_b)])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_256_probabilities_after_any_history_sum_to_one(order: int) -> None:
    model = ByteNGram(as_bytes("the cat sat on the mat. " * 3), order)
    for history in ("on th", "zzzzz", "cat t"):
        total = sum(2 ** -model.bits(np.array([*history.encode(), byte], dtype=np.uint8))[-1] for byte in range(256))
        assert total == pytest.approx(1)


def test_longer_histories_predict_better() -> None:
    text = as_bytes(inspect.getsource(argparse))
    bits = [ByteNGram(text[: len(text) // 2], order).bits(text[len(text) // 2 :]).sum() for order in (1, 2, 3, 5)]
    assert all(longer < shorter for shorter, longer in pairwise(bits))


def test_counting_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = as_bytes("the cat sat on the mat and the dog sat on the cat. " * 5)
    whole = ByteNGram(text, 5).bits(text)
    monkeypatch.setattr(ngram, "_CHUNK", 37)
    assert ByteNGram(text, 5).bits(text).tolist() == whole.tolist()


def test_other_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="order=8 is not supported; use 1 to 7"):
        ByteNGram(as_bytes("abc"), order=8)
