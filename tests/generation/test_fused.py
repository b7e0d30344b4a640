"""The fused decoding step, its kernels run by Triton's interpreter, against the plain step and `generate`."""

from __future__ import annotations

import pytest
import torch

from shardscope import Shard
from shardscope.config import PRESETS
from shardscope.generation import SamplingConfig, generate
from tests.interpreter import interpreted

CHOICES: dict[str, dict[str, float]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "penalised and cut": {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.2},
}
PREPARE = """
from shardscope import Shard, ShardConfig
from shardscope.generation import Decoder, SamplingConfig, fused, generate
from shardscope.generation.graphs import PlainStep
from shardscope.generation.sampling import Sampler

# Widths that are no powers of two, and a window that the longer prompt fills.
config = ShardConfig(vocab_size=61, d_model=24, n_layers=3, n_heads=2, d_head=16, d_mlp=40, n_ctx=200, window=70)
model = Shard(config).eval()
with torch.no_grad():
    for block in model.blocks:  # which then say more than the embedding alone
        block.mlp.W_out.mul_(4)
        block.attn.W_O.mul_(4)
STEPS = 7
GREEDY = SamplingConfig(max_new_tokens=1 + STEPS, stop_at_eos=False, lookup=False)

def steps_of(make, lengths, config=GREEDY):
    prompts = [[(7 * row + 3 * place) % 61 for place in range(length)] for row, length in enumerate(lengths)]
    decoder = Decoder(model, len(prompts), 130)
    logits = decoder.prefill(prompts)
    sampler = Sampler(config, prompts, range(len(prompts)), logits)
    first = torch.tensor(sampler(logits)[0])
    length = torch.tensor(decoder.cache.lengths, dtype=torch.int32)
    step = make(decoder.packed, decoder.cache.layers, first, length, STEPS, sampler)
    step.uniforms.copy_(sampler.next_uniforms(STEPS))
    with torch.inference_mode():
        for _ in range(STEPS):
            step()
    held = [tensor for layer in decoder.cache.layers for tensor in (layer.keys, layer.values)]
    return step, held, prompts

def written(prompts, config=GREEDY):
    done = generate(model, prompts, config)
    return [list(generation.ids[1:]) for generation in done]
"""
CLAIM = """
config = SamplingConfig(max_new_tokens=1 + STEPS, stop_at_eos=False, lookup=False, **CHOICES)
plain, plain_held, prompts = steps_of(PlainStep, LENGTHS, config)
expected = written(prompts, config)
step, held, _ = steps_of(fused.FusedStep, LENGTHS, config)
assert step.few == FEW
assert len({token for row in expected for token in row}) > 3, "a text that says something"
assert step.tokens.T.tolist() == plain.tokens.T.tolist() == expected
torch.testing.assert_close(step.logprobs, plain.logprobs, atol=1e-4, rtol=1e-5)
torch.testing.assert_close(held, plain_held, atol=1e-5, rtol=1e-5)
assert step.length.tolist() == [length + STEPS for length in LENGTHS]
"""


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize(
    ("lengths", "few"), [((3, 64), True), ((3, 64, 1, 8, 30), False)], ids=["few rows", "many rows"]
)
def test_it_writes_the_tokens_log_probabilities_keys_and_values_of_the_plain_step(
    lengths: tuple[int, ...], few: bool, choices: dict[str, float]
) -> None:
    interpreted(PREPARE + f"LENGTHS, FEW, CHOICES = {lengths}, {few}, {choices}" + CLAIM)


BROKEN = """
with torch.no_grad():
    model.blocks[0].mlp.W_out.fill_(float("nan"))
for lengths in ((3,), (3, 4, 1, 8, 9)):
    step, _, _ = steps_of(fused.FusedStep, lengths)
    assert step.logprobs.isnan().all()
    assert ((step.tokens >= 0) & (step.tokens < 61)).all()
"""


@pytest.mark.slow
def test_logits_that_are_not_numbers_choose_a_token_that_exists() -> None:
    interpreted(PREPARE + "STEPS = 2" + BROKEN)


CAP = """
from shardscope.model.kernels import decode

logits = torch.cat([torch.linspace(-20, 20, 57), torch.zeros(7)])[torch.randperm(64)][None]
for cap in (5.0, 30.0, 1e4, 1e8):
    found = decode.Found(1, 64, 8, logits.device)
    decode.Launcher(1, chained=False).likeliest(logits, found, cap)
    true = (cap * torch.tanh(logits.double() / cap)).view(8, 8).max(dim=1).values
    torch.testing.assert_close(found.best[0].double(), true, atol=2e-5, rtol=1e-5)
"""


def test_the_cap_is_exact_however_high() -> None:
    interpreted(CAP)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_on_a_gpu_it_writes_the_text_of_the_cpu_past_the_window(rows: int, choices: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = Shard(PRESETS["shard-nano"]).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.W_out.mul_(4)
    prompts = [[(7 * row + 3 * place) % 8192 for place in range(230 + row)] for row in range(rows)]
    config = SamplingConfig(max_new_tokens=60, stop_at_eos=False, lookup=False, **choices)
    expected = generate(model, prompts, config)
    for ours, theirs in zip(generate(model.cuda(), prompts, config), expected, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
