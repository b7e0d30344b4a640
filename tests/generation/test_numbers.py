"""The edges of what can be asked: the same answer on every path to the next token, or one sentence."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from shardscope import Shard, ShardConfig, generate, score, stream
from shardscope.config import ConfigError
from shardscope.generation import NotFiniteError, SamplingConfig, score_groups
from shardscope.microscope import MicroscopeError, ablation_effect, attribution, logit_lens, read
from shardscope.model import PromptError

NEW = 8


def uncached(model: Shard, ids: list[int]) -> list[int]:
    written: list[int] = []
    with torch.no_grad():
        for _ in range(min(NEW, max(model.config.n_ctx - len(ids), 1))):
            written.append(int(model([*ids, *written])[0, -1].argmax()))
    return written[: model.config.n_ctx - len(ids)]


def by(**choices: Any) -> Callable[[Shard, list[int]], list[int]]:
    return lambda model, ids: list(generate(model, ids, max_new_tokens=NEW, stop_at_eos=False, **choices).ids)


def watched(model: Shard, ids: list[int]) -> list[int]:
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: None)]):
        return by()(model, ids)


def in_a_batch(model: Shard, ids: list[int]) -> list[int]:
    prompts = [[7] * 9, ids, [5]]
    return list(generate(model, prompts, max_new_tokens=NEW, stop_at_eos=False)[1].ids)


PATHS = {
    "without a cache": uncached,
    "cached": by(lookup=False),
    "guessing ahead": by(lookup=True),
    "through the hooks": watched,
    "in a batch": in_a_batch,
    "as a stream": lambda model, ids: [
        event.id for event in stream(model, ids, max_new_tokens=NEW, stop_at_eos=False) if event.id is not None
    ],
    "at the smallest temperature": by(temperature=5e-324),
    "at a tiny temperature": by(temperature=1e-9),
    "at a top-p that only the likeliest passes": by(temperature=1.0, top_p=1e-12),
    "at top-k 1": by(temperature=2.0, top_k=1),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 62, 63, 64])
def test_every_path_writes_the_same_greedy_text_up_to_the_end_of_the_context(
    tiny_model: Shard, path: str, length: int
) -> None:
    ids = [(7 * place + 3) % 300 for place in range(length)]
    written = PATHS[path](tiny_model, ids)
    assert len(written) == min(NEW, 64 - length)
    assert written == uncached(tiny_model, ids)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "in a batch"])
@pytest.mark.parametrize("ids", [[], [1] * 65, [3, -1], [3, 300]], ids=["none", "too many", "-1", "V"])
def test_every_path_refuses_what_is_no_prompt_in_one_sentence(tiny_model: Shard, path: str, ids: list[int]) -> None:
    with pytest.raises(PromptError) as error:
        PATHS[path](tiny_model, ids)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_writes_and_scores(tiny_model: Shard, dtype: torch.dtype) -> None:
    expected = score(tiny_model, [1, 2, 3], [[4, 5], [6]])
    narrow = tiny_model.to(dtype)
    assert score(narrow, [1, 2, 3], [[4, 5], [6]]) == pytest.approx(expected, rel=0.03)
    for path in PATHS.values():
        assert len(path(narrow, [1, 2, 3])) == NEW


# ------------------------------------------------------------------------------------- logits that are no numbers


def broken(model: Shard, how: str) -> Shard:
    with torch.no_grad():
        if how == "one weight is NaN":
            model.blocks[1].mlp.W_out[3, 4] = math.nan
        elif how == "one weight is infinite":
            model.blocks[0].attn.W_V[1, 2, 3] = math.inf
        elif how == "the embedding is NaN":
            model.embed.W_E[5] = math.nan
        else:
            model.ln_final.w.fill_(1e38)
            model.embed.W_E.mul_(1e38)
    return model


BROKEN = ["one weight is NaN", "one weight is infinite", "the embedding is NaN"]
SAYS = "the model's (logits|activations) are not finite"


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("path", [path for path in PATHS if path != "without a cache"])
def test_a_model_that_computes_no_numbers_is_one_sentence_on_every_path(tiny_model: Shard, path: str, how: str) -> None:
    with pytest.raises(NotFiniteError, match="the model's logits are not finite: a weight"):
        PATHS[path](broken(tiny_model, how), [5, 6, 7])


@pytest.mark.parametrize("how", BROKEN)
def test_a_model_that_computes_no_numbers_is_not_scored_or_looked_into(tiny_model: Shard, how: str) -> None:
    model = broken(tiny_model, how)
    for call in (
        lambda: score(model, [5, 6], [[5], [6, 7]]),
        lambda: score_groups(model, [([5, 6], [[5], [6, 7]]), ([1], [[2]])]),
        lambda: generate(model, [5, 6], temperature=1.0),
        lambda: generate(model, [5, 6], temperature=0.8, top_p=0.9, top_k=5, repetition_penalty=1.2),
        lambda: logit_lens(model, [5, 6, 7]),
        lambda: attribution(model, [5, 6, 7]),
        lambda: ablation_effect(model, [5, 6, 7], [(3, 1)]),
        lambda: read(model, [5, 6, 7]),
    ):
        with pytest.raises((NotFiniteError, MicroscopeError), match=SAYS) as error:
            call()
        assert "\n" not in str(error.value)
    assert not any(point.watched for point in model.hook_dict.values())


def test_an_extreme_config_computes_numbers_or_says_so(tiny_config: ShardConfig) -> None:
    for change in ({"rope_base": 1e-300}, {"norm_eps": 1e30}, {"logit_cap": 1e30}, {"rope_base": 1e300}):
        try:
            model = Shard(dataclasses.replace(tiny_config, **change)).eval()
        except ConfigError:
            continue
        with suppress(NotFiniteError):
            assert len(generate(model, [1, 2, 3], max_new_tokens=3, stop_at_eos=False).ids) == 3


# ---------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": math.nan}, "temperature=nan must be 0"),
        ({"top_p": 0}, "top_p=0 is a probability; use a value above 0"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty=1e-300 must lie between 0.01 and 100"),
        ({"max_new_token": 4}, "there is no sampling option 'max_new_token'; did you mean 'max_new_tokens'"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_one_sentence(tiny_model: Shard, choice: dict[str, Any], says: str) -> None:
    for call in (generate, stream):
        with pytest.raises(ConfigError, match=says):
            call(tiny_model, [1, 2], **choice)


def test_choices_of_another_type_are_one_sentence() -> None:
    """In a process of its own, because here a type checker would speak first."""
    code = """
from shardscope.config import ConfigError
from shardscope.generation import SamplingConfig

for choice, says in (
    ({"max_new_tokens": 2.5}, "sampling: max_new_tokens=2.5 is not a whole number"),
    ({"max_new_tokens": True}, "sampling: max_new_tokens=True is not a whole number"),
    ({"max_new_tokens": "4"}, "sampling: max_new_tokens='4' is not a whole number"),
    ({"top_k": 1.0}, "sampling: top_k=1.0 is not a whole number"),
    ({"seed": None}, "sampling: seed=None is not a whole number"),
    ({"temperature": "hot"}, "sampling: temperature='hot' is not a number"),
    ({"top_p": None}, "sampling: top_p=None is not a number"),
    ({"stop_at_eos": 1}, "sampling: stop_at_eos=1 is not True or False"),
    ({"stop": "."}, "sampling: stop='.' is not a tuple of texts"),
    ({"stop": (1,)}, "sampling: stop=(1,) is not a tuple of texts"),
):
    try:
        SamplingConfig(**choice)
    except ConfigError as error:
        assert str(error).startswith(says), error
    else:
        raise AssertionError(choice)
SamplingConfig(temperature=1, top_p=1, repetition_penalty=2)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_a_penalty_at_its_ends_and_every_token_seen_still_choose_a_token(tiny_model: Shard) -> None:
    for penalty in (0.01, 100.0):
        for temperature in (0.0, 1e-9, 1.0):
            config = SamplingConfig(max_new_tokens=4, temperature=temperature, repetition_penalty=penalty)
            assert len(generate(tiny_model, list(range(60)), config).ids) == 4
