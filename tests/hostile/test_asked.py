"""What can be asked of a model and of the explorer: the right answer, or one sentence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacks import Count

from shardscope import Shard, generate, score

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(3600)]


def greedy(model: Shard, ids: list[int], most: int) -> list[int]:
    """Without a cache, the model alone."""
    written: list[int] = []
    with torch.no_grad():
        while len(written) < most and len(ids) + len(written) < model.config.n_ctx:
            written.append(int(model([*ids, *written])[0, -1].argmax()))
    return written


def test_prompts_and_choices_at_their_ends(tiny_model: Shard, attack: Callable[[str], Count]) -> None:
    count, rng = attack("numbers"), random.Random(0)
    n_ctx, vocab = tiny_model.config.n_ctx, tiny_model.config.vocab_size
    for number in range(600):
        length = rng.choice((0, 1, 2, 7, 8, 9, n_ctx - 2, n_ctx - 1, n_ctx, n_ctx + 1, 3 * n_ctx))
        ids = [rng.randrange(vocab) for _ in range(length)]
        if ids and rng.random() < 0.1:
            ids[rng.randrange(length)] = rng.choice((-1, vocab, 2**31, 2**63, -(2**40)))
        choices = {
            "max_new_tokens": rng.choice((1, 2, 6, 10**6 if length > n_ctx - 9 else 8, 0, -1)),
            "temperature": rng.choice((0.0, 5e-324, 1e-9, 0.7, 1.0, 1e9, 1e308, -1.0, math.nan, math.inf)),
            "top_p": rng.choice((1.0, 1.0, 0.9, 1e-12, 5e-324, 0.0, 1.5, math.nan)),
            "top_k": rng.choice((0, 0, 1, 5, vocab, 10**9, -1)),
            "repetition_penalty": rng.choice((1.0, 1.0, 0.01, 100.0, 1e-300, 0.0, math.inf)),
            "seed": rng.choice((0, 1, 2**63 - 1, 2**70, -1)),
            "lookup": rng.random() < 0.5,
        }
        with count.attempt(f"{number}: {length} ids, {choices}"):
            found = list(generate(tiny_model, ids, stop_at_eos=False, **choices).ids)  # type: ignore[arg-type]
            assert all(0 <= id < vocab for id in found)
            assert len(found) == min(choices["max_new_tokens"], n_ctx - length)
            one_token = choices["temperature"] <= 1e-9 or choices["top_p"] <= 1e-12 or choices["top_k"] == 1
            if one_token and choices["repetition_penalty"] == 1:
                assert found == greedy(tiny_model, ids, choices["max_new_tokens"])
    assert count.lost == []


def test_scores_at_the_ends_of_the_context(tiny_model: Shard, attack: Callable[[str], Count]) -> None:
    count, rng = attack("scores"), random.Random(1)
    n_ctx, vocab = tiny_model.config.n_ctx, tiny_model.config.vocab_size
    for number in range(200):
        context = [rng.randrange(vocab) for _ in range(rng.choice((0, 1, 5, n_ctx - 2, n_ctx - 1, n_ctx, n_ctx + 1)))]
        ends = [
            [rng.randrange(vocab) for _ in range(rng.choice((0, 1, 1, 2, 3)))] for _ in range(rng.choice((1, 2, 5)))
        ]
        if rng.random() < 0.1:
            ends[0] = [rng.choice((-1, vocab))]
        with count.attempt(f"{number}: {len(context)} and {[len(end) for end in ends]}"):
            for found, end in zip(score(tiny_model, context, ends), ends, strict=True):
                with torch.no_grad():
                    logits = tiny_model([*context, *end])[0].log_softmax(-1)
                places = range(len(context) - 1, len(context) + len(end) - 1)
                expected = sum(float(logits[place, id]) for place, id in zip(places, end, strict=True))
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert count.lost == []


def test_addresses_of_every_page(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, attack: Callable[[str], Count]
) -> None:
    """Random values for random choices; one page after another in this process."""
    pytest.importorskip("streamlit")
    import sys

    from streamlit.testing.v1 import AppTest

    from apps.parts.address import CHOICES

    odd = [
        "", "0", "-1", "99999999999999999999", "1e308", "nan", "inf", "True", "None", "1-2,3-4", "0-9999999,0-9999999",
        "3.1 2.0", "9999.9999", "<script>alert(1)</script>", "[x](javascript:alert(1))", "../../etc/passwd",
        "\x00", "\u202e", "zlib:", "zlib:AAAA", "zlib:eJwrSS0uAQAEXQHB", "a" * 5000, "\ud7ff", "|||", "1_000", "٣",
        " 7 ", "%00", "$\\frac{1}{0}$",
    ]  # fmt: skip
    count, rng = attack("addresses"), random.Random(2)
    monkeypatch.setattr(sys, "argv", ["explorer.py", str(tiny_checkpoint)])
    pages = ("attention", "tokens", "heads", "runs", "failures")
    for number in range(100):
        name = pages[number % len(pages)]
        code = f"from apps import page_{name} as it\nfrom apps.parts import address\naddress.restore()\nit.page()\n"
        page = AppTest.from_string(code, default_timeout=300)
        chosen = {choice: rng.choice(odd) for choice in rng.sample(sorted(CHOICES), rng.choice((1, 2, 5, 12)))}
        chosen.setdefault("tokens", "2")
        for choice, value in {"prompt": "Once upon", "sample_tokens": "2", **chosen}.items():
            page.query_params[choice] = value
        with count.attempt(f"{name}: {chosen}"):
            page.run()
            assert not page.exception, [error.value for error in page.exception]
    assert count.lost == []
