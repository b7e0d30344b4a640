from __future__ import annotations

import argparse
import inspect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from shardscope.config import ConfigError
from shardscope.evals import ngram
from shardscope.evals.ngram import FALLBACK_DISCOUNTS, ByteNGram, KneserNey, WordNGram

TEXT = inspect.getsource(argparse).encode()


def as_bytes(text: str | bytes) -> np.ndarray:
    return np.frombuffer(text if isinstance(text, bytes) else text.encode(), dtype=np.uint8)


def slow_probability(text: Sequence[int], order: int, symbols: int, history: Sequence[int], symbol: int) -> float:
    """Chen & Goodman 1999, equations 24 to 26, written as they stand there."""
    grams = [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, order + 1)]
    counts: list[dict[tuple[int, ...], int]] = []
    for n in range(1, order + 1):
        if n == order:
            counts.append(dict(grams[n - 1]))
        else:
            before: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
            for longer in grams[n]:
                before[longer[1:]].add(longer[0])
            counts.append({gram: len(before[gram]) for gram in grams[n - 1]})

    def of_order(n: int, history: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / symbols
        shorter = of_order(n - 1, history[1:])
        followers = {gram[-1]: count for gram, count in counts[n - 1].items() if gram[:-1] == history}
        total = sum(followers.values())
        if not total:
            return shorter
        one, two, three, four = (sum(c == k for c in counts[n - 1].values()) for k in (1, 2, 3, 4))
        discounts = FALLBACK_DISCOUNTS
        if one and two and three:
            y = one / (one + 2 * two)
            estimated = (1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three)
            if all(0 <= d <= k for k, d in enumerate(estimated, 1)):
                discounts = estimated

        def discount(count: int) -> float:
            return 0.0 if count == 0 else discounts[min(count, 3) - 1]

        count = followers.get(symbol, 0)
        left = sum(discount(c) for c in followers.values()) / total
        return (count - discount(count)) / total + left * shorter

    longest = tuple(history)[max(0, len(history) - order + 1) :]
    return of_order(len(longest) + 1, longest)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_chen_and_goodmans_equations(order: int) -> None:
    rng = np.random.default_rng(0)
    text = rng.choice(6, size=400, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]).tolist()
    asked = rng.integers(0, 7, 40).tolist()  # 6 never occurs
    bits = KneserNey(np.array(text), 7, order).bits(np.array(asked))
    expected = [
        -np.log2(slow_probability(text, order, 7, asked[max(0, i - order + 1) : i], asked[i]))
        for i in range(len(asked))
    ]
    assert bits.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 9])
def test_the_256_probabilities_after_any_history_sum_to_one(order: int) -> None:
    model = ByteNGram(as_bytes("the cat sat on the mat. " * 3 + "a dog and a log"), order)
    for history in ("on th", "zzzzz", "cat t", ""):
        total = sum(2 ** -model.bits(np.array([*history.encode(), byte], dtype=np.uint8))[-1] for byte in range(256))
        assert total == pytest.approx(1, abs=1e-5)


def test_a_table_and_a_sort_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ByteNGram(as_bytes(TEXT[:30_000]), 5).bits(as_bytes(TEXT))
    monkeypatch.setattr(ngram, "_DENSE", 0)
    assert ByteNGram(as_bytes(TEXT[:30_000]), 5).bits(as_bytes(TEXT)).tolist() == whole.tolist()


def test_longer_histories_predict_better() -> None:
    text = as_bytes(TEXT)
    bits = [ByteNGram(text[: len(text) // 2], order).bits(text[len(text) // 2 :]).sum() for order in (1, 2, 3, 5)]
    assert all(longer < shorter for shorter, longer in pairwise(bits))


def test_words_predict_better_than_bytes_where_the_words_are_known() -> None:
    text = as_bytes(TEXT)
    seen, held_out = text[: len(text) * 3 // 4], text[len(text) * 3 // 4 :]
    assert WordNGram(seen).bits(held_out) < ByteNGram(seen, 5).bits(held_out).sum()


def test_a_word_never_seen_costs_its_spelling_and_no_infinity() -> None:
    model = WordNGram(as_bytes("the cat sat on the mat. " * 20 + "the quagga sat on the zebu. "))
    known, unknown = model.bits(as_bytes("the cat sat")), model.bits(as_bytes("the xylophone sat"))
    assert known < 20 < unknown < 200
    assert 0 < model.bits(as_bytes("\u6f22\u5b57 \n\t 123 \x00")) < 500


@pytest.mark.parametrize("text", ["", "a", "ab"])
def test_a_text_shorter_than_the_order_still_gives_a_distribution(text: str) -> None:
    model = ByteNGram(as_bytes(text), 5)
    assert sum(2 ** -model.bits(np.array([97, byte], dtype=np.uint8))[-1] for byte in range(256)) == pytest.approx(1)
    assert WordNGram(as_bytes(text)).bits(as_bytes("abc")) > 0
    assert model.bits(as_bytes("")).tolist() == []


@pytest.mark.parametrize("order", [0, 17])
def test_other_orders_are_refused_in_one_sentence(order: int) -> None:
    with pytest.raises(ConfigError, match=f"order {order} is not supported; use 1 to 16"):
        ByteNGram(as_bytes("abc"), order)
