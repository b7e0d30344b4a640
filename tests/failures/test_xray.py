"""The X-ray finds what was planted, blames nothing else, and many interventions at once equal each of them alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import planted
import pytest
import torch
from planted import FIRST, VOCAB, bigram_model, induction_model, plant_induction, plant_previous_token, random_block
from torch.nn import functional as F

from shardscope import Shard, ShardConfig
from shardscope.failures.held_out import held_out_ids, windows
from shardscope.failures.intervals import bootstrap, wilson
from shardscope.failures.loop_xray import (
    Cause,
    Part,
    XrayError,
    find_cause,
    find_onset,
    find_parts,
    find_suspects,
    parts_of,
    replay,
    switched_off,
    try_cures,
    xray,
)
from shardscope.failures.loop_xray.interventions import Interventions, ablation_bank
from shardscope.failures.loop_xray.patching import patch_clean_runs
from shardscope.failures.loop_xray.replay import Replay, breaks
from shardscope.failures.loop_xray.rows import write_tokens
from shardscope.failures.loops import find_loop
from shardscope.generation import Decoder, Generation, SamplingConfig, generate
from shardscope.microscope import attribution
from shardscope.tokenizer import Tokenizer

FEW = 16  # tokens besides three periods; these models fall into another loop at once


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SHORTEST", FEW)


def greedy(model: Shard, prompt: Sequence[int], tokens: int = 60) -> Generation:
    return generate(model, [list(prompt)], SamplingConfig(max_new_tokens=tokens))[0]


def cause_of(model: Shard, generation: Generation, **settings: object) -> Cause:
    onset = find_onset(model, generation)
    return find_cause(model, generation, onset, find_suspects(model, generation, onset), **settings)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- planted circuits


@pytest.mark.slow
@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("seed", range(50))
def test_exactly_the_planted_heads_are_found_in_every_random_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    previous, induction = (0, int(rng.integers(4))), (1, int(rng.integers(4)))
    block = random_block(3 + seed % 10, seed)
    model = induction_model(previous, induction, seed)
    generation = greedy(model, [FIRST, *block, *block])
    onset = find_onset(model, generation)
    cause = find_cause(model, generation, onset, find_suspects(model, generation, onset))
    circuit = {f"L0H{previous[1]}", f"L1H{induction[1]}"}
    assert (onset.onset, onset.first, onset.period) == (0, 1, len(block))
    # Without the head that tells each token its predecessor, a loop of three or four tokens may go on as a variant of
    # itself, which does not count as broken; every longer one ends.
    assert set(cause.alone) <= circuit
    assert f"L1H{induction[1]}" in cause.alone
    assert set(cause.alone) == circuit or len(block) <= 4
    assert len(cause.smallest_set) == 1
    assert set(cause.smallest_set) < circuit
    assert cause.copying.parts == [f"L1H{induction[1]}"]
    assert cause.verdict == "copy"
    others = [part.effect for part in cause.parts if part.name not in circuit]
    assert max(map(abs, others)) < 0.3 < 2 < -max(part.effect for part in cause.parts if part.name in circuit)


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("seed", range(10))
def test_a_loop_that_sits_in_an_mlp_blames_no_head(seed: int) -> None:
    layer, block = seed % 2, random_block(3 + seed, seed)
    following = dict(zip(block, [*block[1:], block[0]], strict=True))
    follows = [following.get(token, block[token % len(block)]) for token in range(VOCAB)]
    model = bigram_model(layer, follows, seed)
    cause = cause_of(model, greedy(model, [FIRST]))
    assert cause.alone == cause.smallest_set == [f"MLP{layer}"]
    assert cause.verdict == "fallback"
    assert cause.copying.broken == 0


@pytest.mark.usefixtures("short_texts")
def test_heads_that_stand_in_for_each_other_are_found_together() -> None:
    model = planted.blank()
    for head in (0, 2):
        plant_previous_token(model, (0, head))
        plant_induction(model, (1, head + 1))
    block = random_block(6, 0)
    cause = cause_of(model, greedy(model, [FIRST, *block, *block]))
    assert cause.alone == []
    assert set(cause.smallest_set) in ({"L0H0", "L0H2"}, {"L1H1", "L1H3"})
    assert cause.smallest is not None
    assert cause.smallest.broken == cause.smallest.starts
    assert set(cause.copying.parts) == {"L1H1", "L1H3"}
    assert cause.verdict == "copy"


@pytest.mark.usefixtures("short_texts")
def test_a_loop_of_a_head_and_an_mlp_is_not_laid_on_heads_alone() -> None:
    block = random_block(5, 1)
    following = dict(zip(block, [*block[1:], block[0]], strict=True))
    model = induction_model((0, 1), (1, 2))
    planted.plant_bigram(model, 0, [following.get(token, token) for token in range(VOCAB)])
    cause = cause_of(model, greedy(model, [FIRST, *block, *block]))
    assert cause.alone == []
    assert len(cause.smallest_set) == 2
    assert "MLP0" in cause.smallest_set
    assert cause.verdict == "fallback"


@pytest.mark.usefixtures("short_texts")
def test_a_head_that_holds_the_loop_back_has_the_other_sign() -> None:
    model = induction_model((0, 1), (1, 2))
    plant_induction(model, (1, 3), share=-0.3)
    block = random_block(6, 2)
    effects = {part.name: part for part in cause_of(model, greedy(model, [FIRST, *block, *block])).parts}
    assert effects["L1H3"].interval.low > 0 > effects["L1H2"].interval.high


@pytest.mark.usefixtures("short_texts")
def test_the_found_heads_bring_the_loop_into_clean_runs() -> None:
    block = random_block(6, 3)
    model = induction_model((0, 1), (1, 2))
    generation = greedy(model, [FIRST, *block, *block])
    clean = torch.randint(VOCAB, (8, 32))
    onset = find_onset(model, generation)
    patching = patch_clean_runs(model, generation, onset, [Part(1, 2)], [Part(1, 0)], clean)
    assert patching.runs > 0
    assert (patching.brought, patching.random_brought) == (patching.runs, 0)
    assert patching.effect_interval.low > 2 > patching.random_effect_interval.high


@pytest.mark.usefixtures("short_texts")
def test_resampled_activations_find_the_same_heads_as_means() -> None:
    block = random_block(6, 4)
    model = induction_model((0, 1), (1, 2))
    cause = cause_of(model, greedy(model, [FIRST, *block, *block]), ablation="resample")
    assert set(cause.alone) == {"L0H1", "L1H2"}
    assert cause.verdict == "copy"


# ----------------------------------------------------------------------------------------------- what cannot be X-rayed


def test_a_text_that_does_not_loop_is_refused_with_one_sentence(tiny_model: Shard) -> None:
    noise = generate(tiny_model, [[1, 2, 3]], SamplingConfig(max_new_tokens=50, temperature=1.0, seed=0))[0]
    with pytest.raises(XrayError, match=r"^the text of 50 tokens does not end in a loop, [^.]*$"):
        xray(tiny_model, noise)


@pytest.mark.parametrize(
    "text", ["1. Go 2. Go 3. Go 4. Go 5. Go 6. Go 7. Go 8. Go", "x7 is x8 is x9 is x10 is x11 is x12 is x13 is"]
)
def test_a_loop_in_which_a_number_changes_is_refused_as_a_counter(
    text: str, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    ids = tuple(tiny_tokenizer.encode(text))
    counting = Generation(
        prompt="", prompt_ids=(1,), ids=ids, text=text, logprobs=(0.0,) * len(ids), stop_reason="length", seed=0
    )
    with pytest.raises(
        XrayError, match=r"^the text ends in a counter, a loop in which a number changes \('[^']+', from token"
    ):
        find_onset(tiny_model, counting)


def test_repetition_that_only_sampling_made_is_refused(tiny_model: Shard) -> None:
    made_up = Generation(
        prompt="", prompt_ids=(1,), ids=(5, 9, 77) * 10, text="", logprobs=(0.0,) * 30, stop_reason="length", seed=0
    )
    with pytest.raises(XrayError, match="greedy decoding leaves it after 10 copies"):
        cause_of(tiny_model, made_up)


def test_a_loop_with_no_room_to_go_on_is_refused() -> None:
    block, model = random_block(12, 0), bigram_model(0, [0] * VOCAB)
    with pytest.raises(XrayError, match="this model's context holds 512; X-ray a loop that begins earlier"):
        Replay(model, [FIRST] * 450 + block * 3, 450, 12)


@pytest.mark.parametrize("name", ["L2H0", "MLP2", "L0H4", "L0", "mlp", "", "L0H0H0"])
def test_a_part_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(
        XrayError, match="is no part of this model; its heads are L0H0 to L1H3, and its MLPs MLP0 to MLP1"
    ):
        find_parts(planted.CONFIG, [name])


def test_parts_have_names_that_find_them() -> None:
    parts = parts_of(planted.CONFIG)
    assert find_parts(planted.CONFIG, [part.name for part in parts]) == parts
    assert find_parts(planted.CONFIG, ["l1h2", "MLP 0"]) == [Part(1, 2), Part(0)]


def test_a_search_for_no_set_is_refused() -> None:
    block, model = random_block(6, 4), induction_model((0, 1), (1, 2))
    with pytest.raises(XrayError, match="max_size=0 leaves no set to search for; use at least 1"):
        cause_of(model, greedy(model, [FIRST, *block, *block]), max_size=0)


# ----------------------------------------------------------------------------------------------------------- the engine


def test_many_interventions_at_once_equal_each_of_them_alone(tiny_model: Shard) -> None:
    """Against the uncached model and plain hooks, for random sets of parts, over several calls of a window each."""
    ids = torch.randint(300, (9,)).tolist() + [7, 8, 9, 10, 11] * 8
    first, period = 9, 5
    rng = np.random.default_rng(0)
    parts = parts_of(tiny_model.config)
    sets = [[parts[i] for i in rng.choice(len(parts), size, replace=False)] for size in (0, 1, 1, 3, 6)]
    bank = ablation_bank(tiny_model, torch.randint(300, (2, 40)))
    played = Replay(tiny_model, ids, first, period, given=2)
    scores = played.scores(sets, bank)
    text = torch.tensor([ids[:first] + played.text[: 2 * period + played.effect]])
    for row, chosen in enumerate(sets):

        def hook(activation: torch.Tensor, hook: object, chosen: list[Part] = chosen) -> torch.Tensor:
            activation = activation.clone()
            for part in chosen:
                if part.layer == hook.layer() and part.head is None and "mlp_out" in hook.name:  # type: ignore[attr-defined]
                    activation[:, first:] = bank.mlp_out[part.layer, 0]
                if part.layer == hook.layer() and part.head is not None and "hook_z" in hook.name:  # type: ignore[attr-defined]
                    activation[:, first:, part.head] = bank.z[part.layer, 0, part.head]
            return activation

        wanted = lambda name: name.endswith(("hook_z", "hook_mlp_out"))  # noqa: E731
        logits = tiny_model.run_with_hooks(text, fwd_hooks=[(wanted, hook)])[0]
        p = logits.softmax(dim=-1)[first + 2 * period - 1 : -1].gather(1, text[0, first + 2 * period :, None])[:, 0]
        np.testing.assert_allclose(scores.log_odds[row], (p / (1 - p)).log().detach().numpy(), rtol=1e-4, atol=1e-4)


def test_a_text_that_leaves_the_loop_is_continued_as_generate_would(tiny_model: Shard) -> None:
    """A row that is not intervened in writes what `generate` writes after the same tokens."""
    ids = [3] + [7, 8, 9] * 3
    played = Replay(tiny_model, ids, 1, 3, given=2)
    scores = played.play([[]], ablation_bank(tiny_model, torch.randint(300, (1, 16))), [[0]])
    text = generate(tiny_model, [ids[:7]], SamplingConfig(max_new_tokens=played.length))[0]
    assert text.ids[:3] != (7, 8, 9)
    lengths = [*range(8, played.length, 8), played.length]
    settled = next((n for n in lengths if (loop := find_loop(text.ids[1:n])) and loop.repeats >= 4), played.length)
    assert scores.outcomes == [[played.outcome(text.ids[:settled])]]


def test_a_row_that_settles_in_a_loop_is_left_there_and_the_others_go_on(tiny_model: Shard) -> None:
    """Each row's text begins as it would be alone, and is whole unless it ends in four copies of a loop."""
    stuck = Shard(tiny_model.config).eval()
    stuck.load_state_dict(tiny_model.state_dict())
    stuck.embed.W_E.data.mul_(20)  # says the last token again and again
    prompts = [[5, 6, 7], [9] * 12, [40, 41, 42, 43, 44]]
    for model, leaves_early in ((stuck, True), (tiny_model, False)):
        nothing = Interventions(model, [[]] * 3, ablation_bank(model, torch.randint(300, (1, 16))))
        written = write_tokens(Decoder(model, 3, 60), nothing, prompts, 40, settled_copies=4)
        for prompt, row in zip(prompts, written, strict=True):
            alone = generate(model, prompt, max_new_tokens=40, stop_at_eos=False).ids
            assert tuple(row) == alone[: len(row)]
            loop = find_loop(row)
            assert len(row) == 40 or (loop is not None and loop.repeats >= 4)
        assert (max(map(len, written)) < 40) == leaves_early


def test_a_period_of_forty_has_room_to_show_that_it_goes_on() -> None:
    config = ShardConfig(vocab_size=64, n_ctx=1024, d_model=16, n_layers=1, n_heads=1, d_head=8, d_mlp=16, window=64)
    block = list(range(40))
    played = Replay(Shard(config), block * 3, 0, 40)
    assert find_loop((block * 3)[:96]) is None  # what 96 new tokens would have said
    assert played.length >= 4 * 40
    late = [50] * 30 + block * 4  # not even when the loop is late
    assert played.outcome(late[: played.length]) == "same loop"


def test_what_a_text_ends_in_is_told_apart() -> None:
    played = Replay(bigram_model(0, [0] * VOCAB), [1, 2, 3, 4] * 6, 0, 4)
    assert played.outcome([9, *[3, 4, 1, 2] * 8]) == "same loop"
    assert played.outcome([1, 2, 3, 4, 1, 2, 3, 5] * 6) == "variant"
    assert played.outcome([7] * 40) == "another loop"
    assert played.outcome(list(range(24))) == "no loop"
    assert [breaks(outcome) for outcome in ("same loop", "variant", "another loop", "no loop")] == [
        False,
        False,
        True,
        True,
    ]


def test_attributions_are_those_of_the_microscope_and_add_up() -> None:
    block, model = random_block(5, 7), induction_model((0, 1), (1, 2))
    generation = greedy(model, [FIRST, *block, *block])
    onset = find_onset(model, generation)
    suspects = find_suspects(model, generation, onset)
    ids = torch.tensor([*generation.prompt_ids, *generation.ids])
    last = onset.first + onset.period * (len(onset.copies) - 1)
    mean = np.zeros(len(suspects.parts))
    for place in range(last - 1, last + onset.period - 1):
        logits = model(ids[None, : place + 1])[0, -1].index_fill(0, ids[place + 1], -torch.inf)
        found = attribution(model, ids, place, int(ids[place + 1]), int(logits.argmax()))
        mean += np.concatenate([found.heads.ravel(), found.mlps]) / onset.period
    np.testing.assert_allclose([part.attribution for part in suspects.parts], mean, rtol=1e-4, atol=1e-5)
    assert suspects.embedding + sum(mean) == pytest.approx(suspects.logit_difference, rel=1e-4)
    best = suspects.by_attention()[0]
    assert best.name == "L1H2"
    assert best.attention_all_copies == pytest.approx(1, abs=0.05)


def test_the_onset_tells_how_the_loop_feeds_itself() -> None:
    block, model = random_block(5, 8), induction_model((0, 1), (1, 2))
    generation = greedy(model, [FIRST, *block, *block[:2]])
    onset = find_onset(model, generation)
    logits = model(torch.tensor([[*generation.prompt_ids, *generation.ids]]))[0].detach()
    places = range(onset.first + 5, onset.first + 10)  # the second copy
    ids = [*generation.prompt_ids, *generation.ids]
    p = [float(logits[place - 1].softmax(dim=-1)[ids[place]]) for place in places]
    assert onset.copies[1].probability == pytest.approx(np.mean(p), rel=1e-4)
    assert onset.copies[1].least_probability == pytest.approx(min(p), rel=1e-4)
    assert onset.copies[0].probability < 0.5 < 0.9 < onset.copies[2].probability
    assert [reading.copy for reading in onset.lens] == [0, 1, len(onset.copies) - 1]
    assert onset.lens[2].rank[-1] == 0 < onset.lens[2].rank[0]


# ---------------------------------------------------------------------------------------------------------------- cures


def test_cures_say_what_goes_and_what_it_costs() -> None:
    block, model = random_block(6, 5), induction_model((0, 1), (1, 2))
    generation = greedy(model, [FIRST, *block, *block])
    cures = try_cures(model, generation, find_onset(model, generation), ["L1H2", "L0H1"])
    by_remedy = {(cure.remedy, cure.setting): cure for cure in cures}
    assert (by_remedy["none", 0.0].looping, by_remedy["none", 0.0].cost) == (1, 0.0)
    assert by_remedy["temperature", 1.0].cost == pytest.approx(0, abs=1e-6)
    assert by_remedy["temperature", 1.0].texts == 8
    ablated = by_remedy["ablation", 0.0]
    assert ablated.parts == ["L1H2", "L0H1"]
    text = windows(held_out_ids(model), 8, 256)
    with switched_off(model, [Part(1, 2), Part(0, 1)], ablation_bank(model, text)):
        logits = model(text[:, :-1]).detach()
    assert ablated.loss == pytest.approx(float(F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())), rel=1e-5)
    assert ablated.cost == pytest.approx(ablated.loss - by_remedy["none", 0.0].loss)


def test_every_remedy_writes_what_generate_writes_with_it() -> None:
    """Though all remedies are rows of one batch, and the ablated row is one of them."""
    block, model = random_block(6, 5), induction_model((0, 1), (1, 2))
    generation = greedy(model, [FIRST, *block, *block])
    for cure in try_cures(model, generation, find_onset(model, generation), ["L1H2"], seed=3):
        if cure.remedy == "repetition penalty":
            choices = {"repetition_penalty": cure.setting}
        else:
            choices = {"temperature": cure.setting, "seed": 3}
        off = find_parts(model.config, cure.parts)
        with switched_off(model, off, ablation_bank(model, windows(held_out_ids(model), 8, 256))):
            alone = generate(model, generation.prompt_ids, max_new_tokens=len(cure.ids), **choices)
        assert tuple(cure.ids) == alone.ids


def test_a_switched_off_set_changes_what_is_generated() -> None:
    block, model = random_block(6, 6), induction_model((0, 1), (1, 2))
    prompt = [FIRST, *block, *block]
    bank = ablation_bank(model, torch.randint(VOCAB, (2, 64)))
    with switched_off(model, find_parts(model.config, ["L1H2"]), bank):
        without = greedy(model, prompt)
    assert greedy(model, prompt).ids[:6] == tuple(block) != without.ids[:6]


@pytest.mark.usefixtures("short_texts")
def test_the_whole_xray_is_plain_data_in_any_dtype() -> None:
    block, model = random_block(6, 5), induction_model((0, 1), (1, 2)).to(torch.bfloat16)
    told: list[float] = []
    found = xray(model, greedy(model, [FIRST, *block, *block]), progress=lambda done, words: told.append(done))
    data = json.loads(json.dumps(found.to_dict()))
    assert data == found.to_dict()
    assert (data["onset"], data["period"], data["verdict"]) == (0, 6, "copy")
    assert data["smallest_set"] == found.smallest_set != []
    assert {"name", "effect", "interval", "broken"} < set(data["cause"]["parts"][0])
    assert len(data["cause"]["parts"]) == len(parts_of(model.config))
    assert data["random_control"]["interval"][1] < data["cause"]["smallest"]["interval"][0]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


# ------------------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(("hits", "trials"), [(0, 8), (8, 8), (3, 16), (1, 1), (45, 96)])
def test_wilson_intervals_are_scipys(hits: int, trials: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_bootstrap_intervals_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(size=(3, 40)) * [[1], [5], [0]] + [[0], [2], [7]]
    low, high = bootstrap(values, samples=4000)
    for row in range(2):
        theirs = stats.bootstrap((values[row],), np.mean, n_resamples=4000, method="percentile", rng=1)
        width = values[row].std() / 40**0.5
        assert low[row] == pytest.approx(theirs.confidence_interval.low, abs=0.15 * width)
        assert high[row] == pytest.approx(theirs.confidence_interval.high, abs=0.15 * width)
    assert (low[2], high[2]) == pytest.approx((7, 7))
