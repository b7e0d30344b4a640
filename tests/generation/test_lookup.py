"""Guessing ahead changes how often the model is asked, and nothing that it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import A_LOGIT

from shardscope import Shard, load
from shardscope.generation import SamplingConfig, generate
from shardscope.generation.forward import Decoder
from shardscope.generation.lookup import Guesser


def one_by_one_and_guessed(model: Shard, prompt: list[int], new: int, **settings: object):  # type: ignore[no-untyped-def]
    return (
        generate(model, [prompt], SamplingConfig(max_new_tokens=new, lookup=lookup, **settings))[0]  # type: ignore[arg-type]
        for lookup in (False, True)
    )


@pytest.mark.parametrize("prompt", [[5], [1, 2, 3, 1, 2, 3, 1, 2], list(range(40)), [7] * 20], ids=str)
def test_the_text_of_a_tiny_model_stays_the_same_far_past_its_window(tiny_model: Shard, prompt: list[int]) -> None:
    plain, guessed = one_by_one_and_guessed(tiny_model, prompt, 64 - len(prompt), stop_at_eos=False)
    assert guessed.ids == plain.ids
    assert guessed.logprobs == pytest.approx(plain.logprobs, abs=1e-5)
    assert guessed.stop_reason == plain.stop_reason


def test_a_looping_text_of_the_built_in_model_takes_a_fraction_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    prompt = model.tokenizer.encode("Once upon a time, in a small village,", bos=True)
    asked: list[int] = []
    for name in ("attempt", "step"):
        original = getattr(Decoder, name)
        monkeypatch.setattr(
            Decoder, name, lambda self, ids, original=original: (asked.append(len(ids)), original(self, ids))[1]
        )
    plain, guessed = one_by_one_and_guessed(model, prompt, 300)
    assert guessed.ids == plain.ids
    assert len(asked) - 299 < 299 / 4, "the first 299 calls are those of one token at a time"
    assert max(asked) > 8


def test_a_stop_text_and_a_length_end_it_where_they_end_it_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    prompt = model.tokenizer.encode("Once upon a time, in a small village,", bos=True)
    for settings in ({"new": 37}, {"new": 200, "stop": ("street, and saw a man standing in the m",)}):
        plain, guessed = one_by_one_and_guessed(model, prompt, **settings)  # type: ignore[arg-type]
        assert (guessed.ids, guessed.text, guessed.stop_reason) == (plain.ids, plain.text, plain.stop_reason)


def test_a_rejected_guess_leaves_the_ring_as_it_was(tiny_model: Shard) -> None:
    """The window is 8: a wrong guess of seven would overwrite what the next queries still see."""
    prompt = list(range(1, 21))
    decoder, plain = Decoder(tiny_model, 1, 64), Decoder(tiny_model, 1, 64)
    for one in (decoder, plain):
        one.prefill([prompt])
    decoder.attempt([21, 99, 98, 97, 96, 95, 94])
    decoder.settle(1)
    plain.step([21])
    for id in range(22, 40):
        torch.testing.assert_close(decoder.step([id]), plain.step([id]), atol=A_LOGIT, rtol=1e-5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 12))
def test_a_guess_is_what_followed_the_same_tokens_before(ids: list[int], most: int) -> None:
    guesser = Guesser(ids)
    guesser.learn(1, 1)
    guessed = guesser.guess(most)
    assert len(guessed) <= most
    if guessed:
        text = [*ids, *guessed]
        earlier = range(2, len(ids))
        assert any(
            all(text[start + place] == token for place, token in enumerate(guessed))
            and ids[start - 2 : start] == ids[-2:]
            for start in earlier
        )
