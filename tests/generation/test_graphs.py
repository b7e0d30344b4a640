"""The step that becomes a CUDA graph, run here without one: the tokens of the ordinary path, past every window."""

from __future__ import annotations

import pytest
import torch

from shardscope import Shard
from shardscope.generation import Decoder, SamplingConfig, engine, generate
from shardscope.generation.graphs import STEPS, graph_steps
from shardscope.generation.sampling import Sampler
from shardscope.tokenizer import Tokenizer

PROMPTS = [list(range(1, length + 1)) for length in (3, 19, 1, 8)]


WAYS = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "seed": 3},
    "penalised": {"repetition_penalty": 1.3},
    "all at once": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
}


@pytest.mark.parametrize("way", WAYS)
def test_its_steps_give_the_tokens_and_log_probabilities_of_the_ordinary_path(tiny_model: Shard, way: str) -> None:
    config = SamplingConfig(max_new_tokens=1 + 2 * STEPS, stop_at_eos=False, **WAYS[way])
    expected = generate(tiny_model, PROMPTS, config)
    decoder = Decoder(tiny_model, len(PROMPTS), 64)
    logits = decoder.prefill(PROMPTS)
    sampler = Sampler(config, PROMPTS, range(config.seed, config.seed + len(PROMPTS)), logits)
    chosen, _ = sampler(logits)
    ids, logprobs = [chosen], []
    for more, their_logprobs in graph_steps(decoder, torch.tensor(chosen), 2 * STEPS, sampler):
        ids.append(more)
        logprobs.append(their_logprobs)
    assert len(logprobs) == 2 * STEPS
    for row, generation in enumerate(expected):
        assert [step[row] for step in ids] == list(generation.ids)
        assert [step[row] for step in logprobs] == pytest.approx(generation.logprobs[1:], abs=1e-5)


@pytest.mark.parametrize("temperatures", [None, (0.0, 0.8, 0.0, 1.5)], ids=["greedy", "each its own temperature"])
@pytest.mark.parametrize("stop", [(), ("e",)])
def test_generation_by_graphs_is_generation(
    tiny_model: Shard,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    stop: tuple[str, ...],
    temperatures: tuple[float, ...] | None,
) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    config = SamplingConfig(max_new_tokens=50, stop=stop)  # some rows meet the end of the context, some a stop text
    expected = generate(tiny_model, PROMPTS, config, temperatures=temperatures)
    monkeypatch.setattr(engine, "_graphable", lambda model, config: True)
    for ours, theirs in zip(generate(tiny_model, PROMPTS, config, temperatures=temperatures), expected, strict=True):
        assert (ours.ids, ours.text, ours.stop_reason) == (theirs.ids, theirs.text, theirs.stop_reason)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", WAYS)
def test_a_captured_graph_gives_the_tokens_of_the_cpu(tiny_model: Shard, way: str) -> None:
    config = SamplingConfig(max_new_tokens=40, stop_at_eos=False, **WAYS[way])
    expected = [generation.ids for generation in generate(tiny_model, PROMPTS, config)]
    assert [generation.ids for generation in generate(tiny_model.cuda(), PROMPTS, config)] == expected
