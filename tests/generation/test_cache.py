"""The cache changes what is computed, never the result: every position, every window, every way of feeding it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rounding import A_LOGIT
from torch import Tensor

from shardscope import Shard, ShardConfig
from shardscope.generation import Decoder, forward
from shardscope.generation.cache import held_positions

CLOSE = {"rtol": 1e-5, "atol": A_LOGIT}


def tokens_of(length: int, vocab: int = 300, seed: int = 0) -> list[int]:
    return torch.randint(1, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def uncached(model: Shard, tokens: list[int]) -> Tensor:
    """[pos vocab]"""
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0]


def watch(model: Shard) -> None:
    """A hook that changes nothing sends the decoder through the hook points."""
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: None)


@pytest.mark.parametrize("watched", [False, True], ids=["packed", "through the hooks"])
def test_token_by_token_gives_the_uncached_logits_at_every_position_of_the_context(
    tiny_model: Shard, watched: bool
) -> None:
    tokens = tokens_of(tiny_model.config.n_ctx)  # eight times the window
    expected = uncached(tiny_model, tokens)
    if watched:
        watch(tiny_model)
    decoder = Decoder(tiny_model, 1, len(tokens))
    found = [decoder.prefill([tokens[:1]])] + [decoder.step([token]) for token in tokens[1:]]
    torch.testing.assert_close(torch.cat(found), expected, **CLOSE)


@pytest.mark.parametrize("watched", [False, True], ids=["packed", "through the hooks"])
def test_normalised_queries_and_keys_are_cached_normalised(tiny_model: Shard, watched: bool) -> None:
    config = replace(tiny_model.config, qk_norm=True, qk_gain=1.2)
    model = Shard.of_weights(config, tiny_model.state_dict(), torch.float32)
    if watched:
        watch(model)
    tokens = tokens_of(20)
    decoder = Decoder(model, 1, len(tokens))
    found = [decoder.prefill([tokens[:9]])] + [decoder.step([token]) for token in tokens[9:]]
    torch.testing.assert_close(torch.cat(found), uncached(model, tokens)[8:], **CLOSE)


@pytest.mark.parametrize("watched", [False, True], ids=["packed", "through the hooks"])
@pytest.mark.parametrize("pieces", [[8] * 8, [1, 7, 8, 3, 1, 8, 2, 8, 8, 8, 8, 2], [5, 1, 1, 8, 8, 8, 8, 8, 8, 8, 1]])
def test_chunks_of_any_length_give_the_uncached_logits_at_every_position(
    tiny_model: Shard, pieces: list[int], watched: bool
) -> None:
    tokens = tokens_of(sum(pieces))
    expected = uncached(tiny_model, tokens)
    if watched:
        watch(tiny_model)
    decoder, found, first = Decoder(tiny_model, 1, len(tokens)), [], 0
    for piece in pieces:
        hidden = decoder.hidden(torch.tensor([tokens[first : first + piece]]), [piece])
        found.append(decoder.logits(hidden)[0])
        first += piece
    torch.testing.assert_close(torch.cat(found), expected, **CLOSE)


@pytest.mark.slow
def test_the_whole_context_of_8192_and_the_windows_edge_at_1024() -> None:
    torch.manual_seed(0)
    model = Shard(ShardConfig(vocab_size=300, n_ctx=8192, d_model=32, n_layers=2, n_heads=2, d_head=16, d_mlp=32))
    model = model.eval()
    with torch.no_grad():
        model.embed.W_E.mul_(5)
    tokens = tokens_of(8192)
    expected = uncached(model, tokens)
    decoder = Decoder(model, 1, 8192)
    found, first = [], 0
    # Single steps across the edge of the window and to the end of the context, chunks between.
    for piece in [512, 500, *[1] * 40, *[512] * 13, 456, *[1] * 28]:
        hidden = decoder.hidden(torch.tensor([tokens[first : first + piece]]), [piece])
        found.append(decoder.logits(hidden)[0])
        first += piece
    assert first == 8192
    torch.testing.assert_close(torch.cat(found), expected, **CLOSE)


@pytest.mark.parametrize("watched", [False, True], ids=["packed", "through the hooks"])
def test_unequal_prompts_in_one_batch_give_what_each_gives_alone(tiny_model: Shard, watched: bool) -> None:
    prompts = [tokens_of(length, seed=length) for length in (3, 29, 8, 17, 1)]
    following = [tokens_of(12, seed=100 + row) for row in range(len(prompts))]
    expected = torch.stack(
        [
            uncached(tiny_model, [*prompt, *next_])[len(prompt) - 1 :]
            for prompt, next_ in zip(prompts, following, strict=True)
        ]
    )
    if watched:
        watch(tiny_model)
    decoder = Decoder(tiny_model, len(prompts), 48)
    found = [decoder.prefill(prompts)]
    found += [decoder.step([tokens[step] for tokens in following]) for step in range(12)]
    torch.testing.assert_close(torch.stack(found, dim=1), expected, **CLOSE)


def test_rows_of_unlike_lengths_are_read_in_groups_without_much_padding(tiny_model: Shard) -> None:
    lengths = [8] * 12 + [1] * 60 + [5] * 16
    decoder = Decoder(tiny_model, len(lengths), 16)
    pieces = list(decoder.feed([tokens_of(length, seed=row) for row, length in enumerate(lengths)]))
    assert sorted(row for piece in pieces for row in piece.rows) == list(range(len(lengths)))
    assert [sum(piece.counts) for piece in pieces] == [60, 80, 96]
    for piece in pieces:
        for index, row in enumerate(piece.rows):
            assert piece.counts[index] == lengths[row]
            expected = tiny_model.hidden(torch.tensor([tokens_of(lengths[row], seed=row)]))[0, -1]
            torch.testing.assert_close(piece.hidden[index, piece.counts[index] - 1], expected, **CLOSE)


def test_dropping_sequences_leaves_the_others_as_they_were(tiny_model: Shard) -> None:
    prompts = [tokens_of(length, seed=length) for length in (5, 20, 11)]
    decoder = Decoder(tiny_model, 3, 40)
    decoder.prefill(prompts)
    decoder.keep([2, 1])
    found = decoder.step([7, 9])
    expected = torch.stack([uncached(tiny_model, [*prompts[2], 7])[-1], uncached(tiny_model, [*prompts[1], 9])[-1]])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_ring_holds_the_last_positions_each_in_the_slot_of_its_remainder() -> None:
    held = held_positions(torch.tensor([0, 2, 4, 6]), size=4, slots=4)
    assert held.clamp(min=-1).tolist() == [[-1, -1, -1, -1], [0, 1, -1, -1], [0, 1, 2, 3], [4, 5, 2, 3]]


def test_a_sliding_layer_keeps_no_more_than_its_window_and_a_global_layer_everything(tiny_model: Shard) -> None:
    cache = Decoder(tiny_model, 2, 60).cache
    assert [layer.keys.shape[2] for layer in cache.layers] == [8, 60, 8, 60]
    assert [layer.values.shape[2] for layer in cache.layers] == [8, 60, 8, 60]


def test_a_watched_pattern_has_its_keys_in_the_order_of_the_positions(tiny_model: Shard) -> None:
    tokens = tokens_of(21)
    _, cache = tiny_model.run_with_cache(torch.tensor([tokens]))
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: object) -> None:
        seen[hook.name] = value.clone()  # type: ignore[attr-defined]

    names = [
        f"blocks.{layer}.attn.hook_{kind}" for layer in (0, 1) for kind in ("attn_scores", "pattern", "z", "rot_k")
    ]
    for name in names:
        tiny_model.add_hook(name, keep)
    decoder = Decoder(tiny_model, 1, 21)
    decoder.prefill([tokens[:-1]])
    decoder.step(tokens[-1:])
    for name in names:
        of_last_query = cache[name][:, :, -1:] if name.endswith(("scores", "pattern")) else cache[name][:, -1:]
        torch.testing.assert_close(seen[name], of_last_query, **CLOSE)


def test_a_hook_that_replaces_an_activation_steers_cached_decoding_too(tiny_model: Shard) -> None:
    tokens = tokens_of(12)
    before = uncached(tiny_model, tokens)[-1]
    tiny_model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * 0)
    expected = uncached(tiny_model, tokens)[-1]
    decoder = Decoder(tiny_model, 1, 12)
    decoder.prefill([tokens[:-1]])
    torch.testing.assert_close(decoder.step(tokens[-1:])[0], expected, **CLOSE)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_more_positions_at_once_than_the_window_are_refused(tiny_model: Shard) -> None:
    with pytest.raises(ValueError, match="9 new positions at once; a chunk holds at most 8"):
        Decoder(tiny_model, 1, 20).hidden(torch.tensor([tokens_of(9)]), [9])


def test_rows_that_lie_one_after_the_other_are_written_as_one_block_and_others_where_they_belong(
    tiny_model: Shard,
) -> None:
    window, prompt = tiny_model.config.window, tokens_of(5)
    decoder = Decoder(tiny_model, 3, 40)
    decoder.prefill([prompt, prompt, prompt])
    alike = decoder.cache.spans([1, 1, 1], 1)[0].block
    assert alike == (slice(0, 3), slice(None), slice(5, 6))
    assert decoder.cache.spans([2, 2], 2, [0, 2])[0].block is None  # a row between them takes no part
    assert decoder.cache.spans([2, 2], 2, [2, 1])[0].block is None  # they change places
    assert decoder.cache.spans([2, 1, 2], 2)[0].block is None  # the second is padded
    assert decoder.cache.spans([window - 4] * 3, window - 4)[0].block is None  # it passes the end of the ring
    # Row by row, each with tokens of its own: what one call does for all, three calls do as well.
    texts = [tokens_of(2, seed=seed) for seed in range(3)]
    pieces = list(decoder.feed(texts))
    apart = Decoder(tiny_model, 3, 40)
    apart.prefill([prompt, prompt, prompt])
    for row in (2, 0, 1):
        apart.hidden(torch.tensor([texts[row]]), [2], [row])
    assert [piece.rows for piece in pieces] == [[0, 1, 2]]
    for together, single in zip(decoder.cache.layers, apart.cache.layers, strict=True):
        torch.testing.assert_close(together.keys, single.keys, **CLOSE)
        torch.testing.assert_close(together.values, single.values, **CLOSE)


def test_no_call_has_more_tokens_than_fit_the_processors_cache_and_the_logits_stay_the_same(
    tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tokens_of(length, seed=length) for length in (7, 8, 8, 3, 8, 6, 8)]
    expected = Decoder(tiny_model, len(prompts), 20).prefill(prompts)
    monkeypatch.setitem(forward.AT_ONCE, "cpu", 20)
    pieces = list(Decoder(tiny_model, len(prompts), 20).feed(prompts))
    assert sorted(row for piece in pieces for row in piece.rows) == list(range(7))
    assert max(piece.hidden.shape[0] * piece.hidden.shape[1] for piece in pieces) <= 20
    found = Decoder(tiny_model, len(prompts), 20).prefill(prompts)
    torch.testing.assert_close(found, expected, **CLOSE)
