"""Whole generations: against uncached greedy decoding and transformers' generate, in batches, as streams."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from shardscope import Shard
from shardscope.config import ConfigError
from shardscope.generation import Generation, GenerationError, SamplingConfig, generate, stream
from shardscope.model import PromptError
from shardscope.tokenizer import Tokenizer

PROMPTS = ["Once upon a time", "The capital of France is", "2", "def fibonacci(n):\n    return"]
SAMPLED = SamplingConfig(max_new_tokens=24, temperature=1.0, top_p=0.95, top_k=100, repetition_penalty=1.1, seed=3)


@pytest.fixture
def talker(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> Shard:
    tiny_model.tokenizer = tiny_tokenizer
    return tiny_model


def greedy_without_cache(model: Shard, ids: list[int], steps: int) -> list[int]:
    ids = list(ids)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-steps:]


def test_greedy_is_the_argmax_of_uncached_logits(talker: Shard) -> None:
    config = SamplingConfig(max_new_tokens=20, stop_at_eos=False)
    for generation in generate(talker, PROMPTS[1:3], config):
        expected = greedy_without_cache(talker, list(generation.prompt_ids), len(generation.ids))
        assert list(generation.ids) == expected
        with torch.no_grad():
            logits = talker(torch.tensor([[*generation.prompt_ids, *generation.ids]]))[0]
        own = logits.log_softmax(dim=-1)[len(generation.prompt_ids) - 1 : -1]
        expected_logprobs = own.gather(1, torch.tensor(generation.ids)[:, None])[:, 0]
        assert generation.logprobs == pytest.approx(expected_logprobs.tolist(), abs=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_and_penalised_text_is_that_of_transformers_generate(
    talker: Shard, tmp_path: Path, penalty: float
) -> None:
    transformers = pytest.importorskip("transformers")
    from shardscope.interop import export_pretrained

    stock = transformers.AutoModelForCausalLM.from_pretrained(export_pretrained(talker, tmp_path / "out"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    config = SamplingConfig(max_new_tokens=40, repetition_penalty=penalty)
    for prompt, ours in zip(PROMPTS[:3], generate(talker, PROMPTS[:3], config), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        assert inputs.input_ids[0].tolist() == list(ours.prompt_ids)
        room = min(40, talker.config.n_ctx - len(ours.prompt_ids))
        theirs = stock.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=room,
            repetition_penalty=penalty,
        )[0, len(ours.prompt_ids) :].tolist()
        assert list(ours.ids) == [id for id in theirs if id != tokenizer.eos_token_id]


@pytest.mark.parametrize("config", [SamplingConfig(max_new_tokens=24), SAMPLED], ids=["greedy", "sampled"])
def test_a_sequence_does_not_depend_on_its_batch(talker: Shard, config: SamplingConfig) -> None:
    together = generate(talker, PROMPTS, config, seeds=[11, 12, 13, 14])
    backwards = generate(talker, PROMPTS[::-1], config, seeds=[14, 13, 12, 11])[::-1]
    for prompt, seed, one, other in zip(PROMPTS, (11, 12, 13, 14), together, backwards, strict=True):
        alone = generate(talker, prompt, config, seeds=[seed])
        assert one.ids == other.ids == alone.ids
        assert one.text == alone.text
        assert one.seed == alone.seed == seed


def test_seeds_are_counted_from_the_configs_and_differ(talker: Shard) -> None:
    generations = generate(talker, ["Once"] * 3, SAMPLED)
    assert [generation.seed for generation in generations] == [3, 4, 5]
    assert len({generation.ids for generation in generations}) == 3
    assert generate(talker, "Once", SAMPLED, seeds=[4]).ids == generations[1].ids


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_each_sequence_of_a_batch_may_have_its_own_temperature(talker: Shard, top_p: float) -> None:
    temperatures, seeds = [0.0, 0.7, 1.4, 0.0, 0.7], [5, 5, 5, 6, 6]
    config = SamplingConfig(max_new_tokens=20, top_p=top_p, temperature=0.3)
    together = generate(talker, ["Once upon"] * 5, config, seeds=seeds, temperatures=temperatures)
    for temperature, seed, one in zip(temperatures, seeds, together, strict=True):
        alone = generate(talker, "Once upon", config, temperature=temperature, seed=seed)
        assert one.ids == alone.ids
        assert one.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    assert together[0].ids == together[3].ids, "the greedy ones have no seed"
    assert len({one.ids for one in together}) == 4


def test_a_batch_of_more_tokens_than_a_chunk_reads_long_and_short_prompts(talker: Shard) -> None:
    prompts = [list(range(1, length + 1)) for length in (50, 3, 17, 33)]
    config = SamplingConfig(max_new_tokens=10, stop_at_eos=False)
    for prompt, generation in zip(prompts, generate(talker, prompts, config), strict=True):
        assert list(generation.ids) == greedy_without_cache(talker, prompt, 10)


# ---------------------------------------------------------------------------------------------------- ends


def planted(model: Shard, ids: list[int]) -> None:
    """From now on the model says `ids`, one after the other, whatever stands before: its last norm is overruled."""
    with torch.no_grad():
        model.embed.W_E.copy_(6 * torch.nn.functional.normalize(model.embed.W_E, dim=1))
    rows = iter(4 * model.embed.W_E.detach()[ids])
    model.add_hook("ln_final.hook_normalized", lambda value, hook: next(rows).expand_as(value))


def say(model: Shard, text: str, config: SamplingConfig, then: list[int] | None = None) -> Generation:
    assert model.tokenizer is not None
    planted(model, [*model.tokenizer.encode(text), *(then or [])])
    return generate(model, "Once", config)


def test_the_end_token_ends_a_text_and_is_not_part_of_it(talker: Shard) -> None:
    assert talker.tokenizer is not None
    done = say(talker, " a time", SamplingConfig(max_new_tokens=50), then=[talker.tokenizer.eos_id])
    assert (done.text, done.stop_reason) == (" a time", "eos")
    assert talker.tokenizer.decode(done.ids) == " a time"
    assert talker.tokenizer.eos_id not in done.ids


def test_the_end_token_may_be_ignored(talker: Shard) -> None:
    assert talker.tokenizer is not None
    eos = talker.tokenizer.eos_id
    config = SamplingConfig(max_new_tokens=3, stop_at_eos=False)
    planted(talker, [eos, eos, eos])
    done = generate(talker, "Once", config)
    assert (done.ids, done.text, done.stop_reason) == ((eos,) * 3, "", "length")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ((" of",), "The capital"),
        (("tal of Fra",), "The capi"),  # begins and ends within tokens
        (("nowhere", "France is", "France"), "The capital of "),  # the earliest wins
        (("T",), ""),
    ],
)
def test_a_stop_text_ends_the_text_before_it_wherever_the_tokens_are_cut(
    talker: Shard, stop: tuple[str, ...], text: str
) -> None:
    done = say(talker, "The capital of France is Paris", SamplingConfig(max_new_tokens=50, stop=stop))
    assert (done.text, done.stop_reason) == (text, "stop")


def test_a_text_that_only_begins_like_a_stop_text_is_given_back(talker: Shard) -> None:
    said = "The capital of"
    assert talker.tokenizer is not None
    length = len(talker.tokenizer.encode(said))
    done = say(talker, said, SamplingConfig(max_new_tokens=length, stop=("of France",)))
    assert (done.text, done.stop_reason) == (said, "length")


def test_a_full_context_ends_a_sequence(talker: Shard) -> None:
    n_ctx = talker.config.n_ctx
    config = SamplingConfig(max_new_tokens=100, stop_at_eos=False)
    short, full = generate(talker, [[5] * (n_ctx - 4), [5] * n_ctx], config)
    assert (len(short.ids), short.stop_reason) == (4, "context")
    assert (full.ids, full.text, full.stop_reason) == ((), "", "context")


# --------------------------------------------------------------------------------------------------- streams


def test_the_stream_is_the_generation_piece_by_piece(talker: Shard) -> None:
    expected = generate(talker, PROMPTS, SAMPLED)
    events = list(stream(talker, PROMPTS, SAMPLED))
    for row, generation in enumerate(expected):
        mine = [event for event in events if event.row == row]
        assert tuple(event.id for event in mine if event.id is not None) == generation.ids
        assert "".join(event.text for event in mine) == generation.text
        assert [event.stop_reason for event in mine if event.stop_reason] == [generation.stop_reason]
        assert mine[-1].stop_reason is not None


def test_a_stream_gives_tokens_before_the_generation_has_ended(talker: Shard) -> None:
    events = stream(talker, "Once upon", SamplingConfig(max_new_tokens=50, stop_at_eos=False))
    first, second = next(events), next(events)
    assert first.id is not None
    assert second.stop_reason is None


def test_a_character_cut_by_tokens_arrives_whole(talker: Shard) -> None:
    assert talker.tokenizer is not None
    ids = talker.tokenizer.encode("é漢🙂")
    assert len(ids) == 9  # each byte is a token of its own
    planted(talker, ids)
    texts = [event.text for event in stream(talker, "Once", SamplingConfig(max_new_tokens=9))]
    assert texts == ["", "é", "", "", "漢", "", "", "", "🙂"]


def test_bytes_that_never_become_a_character_are_replaced_as_the_tokenizer_does(talker: Shard) -> None:
    assert talker.tokenizer is not None
    ids = talker.tokenizer.encode("漢")[:2] + talker.tokenizer.encode("a🙂")[:-1]
    planted(talker, ids)
    done = generate(talker, "Once", SamplingConfig(max_new_tokens=len(ids)))
    assert done.text == talker.tokenizer.decode(ids)
    assert "\ufffd" in done.text


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "the prompt is empty: it holds no token"),
        ([[]], "prompt 0: the prompt is empty"),
        ([[1], [300]], "prompt 1: token id 300 is outside the vocabulary of 300; ids run from 0 to 299"),
        ([[1] * 65], "prompt 0: 65 tokens do not fit this model's context of 64; pass at least 1 fewer"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_named(talker: Shard, prompts: list[list[int]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generate(talker, prompts)
    with pytest.raises(PromptError, match=message):  # before the first event is asked for
        stream(talker, prompts)


def test_texts_and_stop_texts_need_a_tokenizer(tiny_model: Shard) -> None:
    with pytest.raises(PromptError, match="text becomes ids through a tokenizer, and this model has none"):
        generate(tiny_model, "Once")
    with pytest.raises(GenerationError, match="stop texts need a tokenizer"):
        generate(tiny_model, [[1]], SamplingConfig(stop=(".",)))
    assert len(generate(tiny_model, [[1]], SamplingConfig(max_new_tokens=4))[0].ids) == 4


def test_ids_that_the_tokenizer_lacks_add_no_text(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> None:
    """A model whose vocabulary was padded, say to a multiple of 64."""
    padded = Shard(dataclasses.replace(tiny_model.config, vocab_size=320), tiny_tokenizer).eval()
    with torch.no_grad():
        padded.embed.W_E[:300] = 0.01 * tiny_model.embed.W_E
        padded.embed.W_E[300:] = torch.randn(20, 32)
    once = tiny_tokenizer.encode("Once", bos=True)
    (by_ids,) = generate(padded, [[*once, 310]], SamplingConfig(max_new_tokens=1))
    assert by_ids.prompt == "Once"
    (found,) = generate(padded, ["Once"], SamplingConfig(max_new_tokens=20, temperature=2.0))
    assert max(found.ids) >= 300
    assert found.text == tiny_tokenizer.decode([id for id in found.ids if id < 300])


def test_every_prompt_needs_its_seed(talker: Shard) -> None:
    with pytest.raises(GenerationError, match="1 seeds for 2 prompts"):
        generate(talker, ["a", "b"], seeds=[1])
    with pytest.raises(GenerationError, match="3 temperatures for 2 prompts"):
        generate(talker, ["a", "b"], temperatures=[0, 1, 2])
    with pytest.raises(ConfigError, match="temperature=-1 must be 0"):
        generate(talker, ["a", "b"], temperatures=[0, -1])
