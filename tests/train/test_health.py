from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shardscope import Shard, ShardConfig
from shardscope.config import load_recipe
from shardscope.data import prepare
from shardscope.tokenizer import Tokenizer
from shardscope.train.health import Health, Trouble, dead_heads, token_entropy, troubles_of
from shardscope.train.sentinel import Singular

ENTROPY = 7.0  # of single tokens, in these curves
STEPS = 1000  # so the window is 100


def learning(step: int) -> float:
    """A usual curve: from log(8192) towards 3 nats."""
    return 3 + 6 * math.exp(-step / 60)


def watch(
    recipe_file: Path,
    loss: Callable[[int], float] = learning,
    norm: Callable[[int], float] = lambda step: 1.0,
    z: Callable[[int], float] = lambda step: 81.0,
    steps: int = STEPS,
    noise: float = 0.03,
) -> tuple[Health, list[tuple[int, Trouble]]]:
    """A whole run of planted curves; returns the trouble found, and at which step it was."""
    recipe = load_recipe(recipe_file, {"schedule.steps": str(STEPS), "schedule.warmup": "0.015"})
    health = Health(recipe, vocab_size=8192, logit_cap=30.0, entropy=ENTROPY)
    rng, found = random.Random(0), []
    for step in range(1, steps + 1):
        values = {"cross_entropy": loss(step) * rng.gauss(1, noise), "grad_norm": norm(step), "z": z(step)}
        found += [(step, trouble) for trouble in health.step(step, values)]
    return health, found


def kinds(found: Iterable[tuple[int, Trouble]]) -> list[str]:
    return [trouble.kind for _, trouble in found]


def test_a_run_that_learns_has_no_trouble(recipe_file: Path) -> None:
    for noise in (0.0, 0.01, 0.05):
        health, found = watch(recipe_file, noise=noise)
        assert found == []
        assert health.active == {}


def test_slow_learning_above_the_entropy_of_tokens_is_no_plateau(recipe_file: Path) -> None:
    assert watch(recipe_file, loss=lambda step: 9 - 0.004 * step, steps=480, noise=0.003)[1] == []


def test_a_run_that_never_learns_more_than_frequencies_is_on_a_plateau(recipe_file: Path) -> None:
    """The curve of shard-54m at a rate of 8e-3: down to the frequencies of tokens, and no further."""
    _, found = watch(recipe_file, loss=lambda step: 7.1 + 2 * math.exp(-step / 10))
    assert kinds(found) == ["plateau"]
    when, trouble = found[0]
    assert when <= 150
    assert "where the frequency of each token alone gives 7.00" in trouble.evidence


def test_leaving_a_plateau_ends_the_trouble(recipe_file: Path) -> None:
    health, found = watch(recipe_file, loss=lambda step: 7.1 if step < 300 else learning(step - 300))
    assert kinds(found) == ["plateau"]
    assert health.active == {}


def test_a_spike_is_named_with_its_first_step_and_passes(recipe_file: Path) -> None:
    health, found = watch(recipe_file, loss=lambda step: learning(step) + (3.0 if 500 <= step < 510 else 0.0))
    ((when, trouble),) = found
    assert (trouble.kind, trouble.step, when) == ("loss spike", 500, 502)
    assert "after 3.0" in trouble.evidence
    assert health.active == {}


def test_two_unusual_batches_are_no_spike(recipe_file: Path) -> None:
    assert watch(recipe_file, loss=lambda step: learning(step) + (4.0 if step in (500, 501, 700) else 0.0))[1] == []


def test_a_loss_that_stays_up_calls_for_action_and_a_short_spike_does_not(recipe_file: Path) -> None:
    up = lambda step: learning(step) + (3.0 if step >= 500 else 0.0)  # noqa: E731
    health, _ = watch(recipe_file, loss=up, steps=505)
    assert health.mendable(505) is None
    health, _ = watch(recipe_file, loss=up, steps=512)
    assert (trouble := health.mendable(512)) is not None
    assert trouble.step == 500


def test_exploding_gradients_and_logits_are_named(recipe_file: Path) -> None:
    _, found = watch(recipe_file, norm=lambda step: 1.0 if step < 600 else 40.0)
    assert [(t.kind, t.step) for _, t in found] == [("exploding gradients", 600)]
    _, found = watch(recipe_file, z=lambda step: 81.0 if step < 600 else 28.0**2)
    assert [(t.kind, t.step) for _, t in found] == [("exploding logits", 600)]
    assert "a logsumexp of 28.0, where 24.0 is high" in found[0][1].evidence


@pytest.mark.parametrize("vocab_size", [300, 8192, 65536])
@pytest.mark.parametrize("cap", [2.0, 5.0, 10.0, 15.0, 30.0, 100.0, 1e4])
def test_logits_explode_under_any_cap_and_those_of_an_untrained_model_do_not(
    recipe_file: Path, cap: float, vocab_size: int
) -> None:
    """Half of all logits at the cap or at 100, which is what rates of 3 and more make of them; and all about 0."""
    for largest, scale, expected in ((min(cap, 100.0), 1e6, ["exploding logits"]), (cap, min(1.0, cap / 4), [])):
        logits = largest * torch.tanh(scale * torch.randn(64, vocab_size, generator=torch.manual_seed(0)) / largest)
        z = logits.logsumexp(dim=1).square().mean().item()
        health = Health(load_recipe(recipe_file), vocab_size, logit_cap=cap, entropy=ENTROPY)
        found = [t for n in range(1, 20) for t in health.step(n, {"cross_entropy": 5.0, "grad_norm": 1.0, "z": z})]
        assert [trouble.kind for trouble in found] == expected


def test_held_out_text_that_is_learned_worse_than_before_is_named_until_it_is_not(recipe_file: Path) -> None:
    health = Health(load_recipe(recipe_file), 300, 30.0, ENTROPY)
    told = [
        [str(trouble) for trouble in health.evaluation(step, bits)]
        for step, bits in ((0, 2.0), (50, 2.09), (100, 1.5), (150, math.nan), (200, 1.57), (250, 1.6), (300, 1.7))
    ]
    expected = "rising held-out loss since step 100: 1.600 bits per byte, after 1.500"
    assert told == [[], [], [], [], [], [expected], []]
    assert health.mendable(300) is None
    assert health.evaluation(350, 1.49) == []
    assert health.active == {}


def test_evaluations_are_remembered_over_a_restart(recipe_file: Path) -> None:
    lines = [
        {"kind": "eval", "step": step, "all": {"bits_per_byte": bits}}
        for step, bits in ((0, 2.0), (50, 1.2), (100, None), (150, "low"))
    ]
    health = Health(load_recipe(recipe_file), 300, 30.0, ENTROPY)
    health.resume([*lines, {"kind": "eval", "step": 170, "all": 3}, {"kind": "eval", "step": 180}], ())
    assert [trouble.step for trouble in health.evaluation(200, 1.3)] == [50]


def test_steps_without_finite_numbers_are_left_to_the_loop(recipe_file: Path) -> None:
    assert watch(recipe_file, loss=lambda step: math.nan if step % 7 == 0 else learning(step), steps=400)[1] == []


def test_a_matrix_that_explodes_and_a_dead_head_are_named(recipe_file: Path) -> None:
    health = Health(load_recipe(recipe_file), 300, 30.0, ENTROPY)
    good, bad = Singular("blocks.0.mlp.W_in", 0.1, 30.0, 9.0), Singular("blocks.1.mlp.W_out", 0.1, 4000.0, 1.0)
    assert health.matrices(100, [good], []) == []
    exploding, dead = health.matrices(200, [good, bad, Singular("x", math.nan, math.nan, math.nan)], ["L1H0"])
    assert str(exploding) == (
        "exploding weights since step 200: largest singular values: blocks.1.mlp.W_out (4e+03), x (nan)"
    )
    assert str(dead) == "dead heads since step 200: L1H0"
    assert health.matrices(300, [good], ["L1H0"]) == []
    assert list(health.active) == ["dead heads"]
    assert health.mendable(10_000) is None


def test_a_head_is_dead_when_its_output_has_vanished(tiny_model: Shard) -> None:
    assert dead_heads(tiny_model) == []
    with torch.no_grad():
        tiny_model.blocks[2].attn.W_O[1] = 0
        tiny_model.blocks[0].attn.W_V[3] *= 1e-3
    assert dead_heads(tiny_model) == ["L0H3", "L2H1"]


def test_the_norm_of_a_heads_output_is_that_of_the_product(tiny_model: Shard) -> None:
    from shardscope.train.health import _output_norms

    attention = tiny_model.blocks[0].attn
    products = attention.W_V @ attention.W_O
    torch.testing.assert_close(
        _output_norms(attention.W_V, attention.W_O), torch.linalg.matrix_norm(products), rtol=1e-4, atol=0
    )


def test_a_model_whose_outputs_begin_at_zero_has_no_dead_heads() -> None:
    config = ShardConfig(vocab_size=30, n_ctx=16, d_model=16, n_layers=2, n_heads=2, d_head=8, d_mlp=24, window=4)
    model = Shard(config)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O.zero_()
    assert dead_heads(model) == []


def test_the_entropy_of_tokens_is_that_of_the_mixture(recipe_file: Path) -> None:
    recipe, tokenizer = load_recipe(recipe_file), Tokenizer.train(["the cat sees a dog"] * 9, 270)
    data = prepare(
        replace(recipe.data), tokenizer, batch_size=4, seed=0, eval_tokens=100, phase="pretrain", progress=False
    )
    one, two = (
        np.bincount(data.shards[name].train.tokens, minlength=270) / len(data.shards[name].train.tokens)
        for name in ("one", "two")
    )
    mixed = (2 * one + two) / 3
    expected = -sum(p * math.log(p) for p in mixed if p > 0)
    assert token_entropy(data) == pytest.approx(expected, rel=1e-5)


def test_the_log_tells_of_trouble_and_of_its_end() -> None:
    lines = [
        {"kind": "event", "step": 0, "event": "start"},
        {"kind": "event", "step": 502, "event": "trouble", "trouble": "loss spike", "since": 500, "evidence": "high"},
        {"kind": "event", "step": 510, "event": "over", "trouble": "loss spike"},
        {"kind": "event", "step": 802, "event": "trouble", "trouble": "loss spike", "since": 800, "evidence": "higher"},
    ]
    assert troubles_of(lines) == [
        (Trouble("loss spike", 500, "high"), 510),
        (Trouble("loss spike", 800, "higher"), None),
    ]
