"""The cuts against transformers' own logits processors, the draw against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shardscope.config import ConfigError
from shardscope.generation import SamplingConfig
from shardscope.generation.sampling import Sampler, draw, penalise, shaped

transformers = pytest.importorskip("transformers")


def random_logits(batch: int = 16, vocab: int = 200) -> Tensor:
    return 4 * torch.randn(batch, vocab, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_temperature_top_k_and_top_p_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits()
    scores = transformers.TemperatureLogitsWarper(temperature)(None, logits.double())
    if top_k:
        scores = transformers.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = transformers.TopPLogitsWarper(top_p)(None, scores)
    ours = shaped(logits, SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p))
    ours = ours / ours.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(ours, scores.softmax(dim=-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits(batch=4)
    prompts = torch.tensor([[3, 3, 5], [0, 1, 2], [199, 7, 7], [9, 9, 9]])
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, prompts, True)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(prompts, logits.clone())
    torch.testing.assert_close(penalise(logits, seen, penalty), theirs)


def test_a_token_is_penalised_from_the_step_after_it_was_generated() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    sampler = Sampler(SamplingConfig(repetition_penalty=2.0), [[0]], [0], logits)
    # 3 wins, then 3 / 2 loses to 2, then 2 / 2 loses to 3 / 2.
    assert [sampler(logits)[0][0] for _ in range(3)] == [1, 2, 1]


def test_the_reported_log_probability_is_the_models_own() -> None:
    logits = random_logits(batch=3)
    config = SamplingConfig(temperature=0.2, top_k=2, repetition_penalty=3.0)
    ids, logprobs = Sampler(config, [[1], [2], [3]], [0, 1, 2], logits)(logits)
    expected = logits.log_softmax(dim=-1)[torch.arange(3), torch.tensor(ids)]
    assert logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]], dtype=torch.float64)
    uniform = [0.0, 0.1999, 0.2, 0.6999, 0.7001, 1 - 2**-53]
    found = [int(draw(probabilities, torch.tensor([u], dtype=torch.float64))) for u in uniform]
    assert found == [0, 0, 2, 2, 3, 3]  # never the two that cannot be drawn


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4000, 4)
    sampler = Sampler(SamplingConfig(temperature=1.0), [[0]] * 4000, list(range(4000)), logits)
    counts = torch.bincount(torch.tensor([id for _ in range(5) for id in sampler(logits)[0]]), minlength=4)
    expected = 20_000 * logits[0].softmax(dim=-1)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 16.3  # the 99.9 % quantile with 3 degrees of freedom


def test_a_sequences_random_numbers_are_its_own_whoever_else_is_in_the_batch() -> None:
    logits = random_logits(batch=3, vocab=50)
    config = SamplingConfig(temperature=1.0)
    together = Sampler(config, [[0]] * 3, [5, 6, 7], logits)
    alone = Sampler(config, [[0]], [6], logits[1:2])
    for step in range(2 * Sampler.BLOCK + 3):
        if step == 30:
            together.keep([1, 2])
        rows = logits if step < 30 else logits[1:]
        row = 1 if step < 30 else 0
        assert together(rows)[0][row] == alone(logits[1:2])[0][0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens=0 must be at least 1"),
        ("temperature", -0.1, r"temperature=-0.1 must be 0 \(greedy\) or above"),
        ("temperature", math.nan, "temperature=nan must be"),
        ("temperature", math.inf, "temperature=inf must be"),
        ("top_k", -1, "top_k=-1 is negative"),
        ("top_p", 0.0, "top_p=0.0 is a probability"),
        ("top_p", 1.5, "top_p=1.5 is a probability"),
        ("repetition_penalty", 0.0, "repetition_penalty=0.0 must lie between 0.01 and 100; 1 switches it off"),
        ("repetition_penalty", 1e-300, "repetition_penalty=1e-300 must lie between"),
        ("repetition_penalty", math.inf, "repetition_penalty=inf must lie between"),
        ("top_p", math.nan, "top_p=nan is a probability"),
        ("stop", ("a", ""), "stop holds an empty string"),
        ("seed", -1, "seed=-1 must lie between"),
    ],
)
def test_an_impossible_choice_is_refused_in_one_sentence(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]
