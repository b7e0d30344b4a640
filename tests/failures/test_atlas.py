"""The atlas of planted models: rates worked out by hand, intervals that are SciPy's, nothing sampled twice."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_text import CLEAN, HALF, LOOPING, SENTENCE, planted_run, speaker

from shardscope import Shard
from shardscope.checkpoint import BUILT_IN, list_checkpoints, load, save_checkpoint
from shardscope.config import ConfigError
from shardscope.failures.atlas import (
    ROWS,
    Atlas,
    AtlasError,
    AtlasSettings,
    Rate,
    built_in_atlas,
    changes,
    list_atlases,
    make_atlas,
    rates,
    read_atlas,
    sample_prompts,
    sampling,
)
from shardscope.failures.atlas.records import SETTINGS, column_lines, parse_column
from shardscope.failures.atlas.sampling import cache_bytes, relabelled
from shardscope.failures.intervals import difference
from shardscope.failures.prompts import Retrieval, SuitePrompt
from shardscope.files import WriteError
from shardscope.generation import Decoder, generate
from shardscope.tokenizer import Tokenizer

PROMPTS = (
    *(
        SuitePrompt(id=f"sum-{n}", text=f"What is {n} + {42 - n}? Answer:", domain="math", gold=("42",))
        for n in (2, 20)
    ),
    SuitePrompt(id="no-gold", text="Say a number:", domain="math"),
    *(SuitePrompt(id=f"prose-{word}", text=f"The {word} is") for word in ("moon", "sea", "wind", "sun", "sky")),
    *(SuitePrompt(id=f"code-{sign}", text=f"x = 2 {sign}", domain="code") for sign in "+-"),
)
PLANTED = AtlasSettings(prompts=PROMPTS, temperatures=(0.0, 1.0), seeds=2, max_new_tokens=26)  # 3 samples a prompt
GREEDY = replace(PLANTED, temperatures=(0.0,))  # 1 sample a prompt
SAMPLES = {"all": 30, "math": 9, "prose": 15, "code": 6}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A run that loops at step 10, loops only after a colon at step 20, and is clean at step 30; and its atlas."""
    run = planted_run(tmp_path_factory.mktemp("planted") / "run", tiny_tokenizer, {10: LOOPING, 20: HALF, 30: CLEAN})
    make_atlas([run], PLANTED, device="cpu")
    return run


@pytest.fixture
def atlas(sampled: Path) -> Atlas:
    return read_atlas(sampled)


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> Path:
    """A copy with its atlas, to be changed."""
    return shutil.copytree(sampled, tmp_path / "run")


def rate_of(atlas: Atlas, step: int, domain: str, failure: str, temperature: float | None = None) -> Rate:
    [found] = [
        rate
        for rate in rates(atlas)
        if (rate.step, rate.domain, rate.failure, rate.temperature) == (step, domain, failure, temperature)
    ]
    return found


# ------------------------------------------------------------------------------------------------------- rates


def test_planted_loops_are_counted_by_step_and_domain(atlas: Atlas) -> None:
    assert [column.step for column in atlas.columns] == [10, 20, 30]
    loops = {
        step: {
            domain: (rate.fired, rate.samples) for domain in SAMPLES for rate in [rate_of(atlas, step, domain, "loop")]
        }
        for step in (10, 20, 30)
    }
    assert loops[10] == {domain: (samples, samples) for domain, samples in SAMPLES.items()}
    assert loops[20] == {"all": (9, 30), "math": (9, 9), "prose": (0, 15), "code": (0, 6)}
    assert loops[30] == {domain: (0, samples) for domain, samples in SAMPLES.items()}
    for failure in ("no end", "loop"):
        assert rate_of(atlas, 20, "all", failure).fired == 9
    assert rate_of(atlas, 30, "math", "early end").fired == 3, "where no answer was asked for, 42 alone is too short"
    assert rate_of(atlas, 30, "all", "no flag").fired == 27
    assert rate_of(atlas, 20, "prose", "no flag").fired == 15


def test_a_temperature_counts_its_own_samples_and_greedy_text_counts_once(atlas: Atlas) -> None:
    assert (rate_of(atlas, 20, "math", "loop", 0.0).fired, rate_of(atlas, 20, "math", "loop", 0.0).samples) == (3, 3)
    assert (rate_of(atlas, 20, "math", "loop", 1.0).fired, rate_of(atlas, 20, "math", "loop", 1.0).samples) == (6, 6)
    assert len(atlas.columns[0].samples) == 10 * (1 + 2)


def test_a_failure_is_only_counted_where_it_can_be_seen(atlas: Atlas) -> None:
    wrong = rate_of(atlas, 10, "all", "wrong")
    assert (wrong.fired, wrong.suspected, wrong.samples) == (0, 6, 6), (
        "two sums, three samples of each, cut at the limit"
    )
    assert rate_of(atlas, 10, "math", "digits").samples == 9
    for domain in ("prose", "code"):
        assert rate_of(atlas, 10, domain, "digits").samples == 0
        assert rate_of(atlas, 10, domain, "digits").rate is None
        assert rate_of(atlas, 10, domain, "wrong").samples == 0


def test_the_intervals_are_those_of_scipy(atlas: Atlas) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = [rate for rate in rates(atlas) if rate.samples]
    assert {rate.failure for rate in found} == set(ROWS)
    for rate in found:
        theirs = stats.binomtest(rate.fired, rate.samples).proportion_ci(confidence_level=0.95, method="wilson")
        assert rate.interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(
    ("later", "earlier", "published"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0000)),
        ((10, 10), (0, 10), (0.6075, 1.0000)),
    ],
)
def test_the_interval_of_a_difference_is_the_published_one(
    later: tuple[int, int], earlier: tuple[int, int], published: tuple[float, float]
) -> None:
    """Newcombe (1998), Statistics in Medicine 17:873, table II, method 10."""
    assert difference(*earlier, *later) == pytest.approx(published, abs=5e-5)
    assert difference(*later, *earlier) == pytest.approx((-published[1], -published[0]), abs=5e-5)


def test_an_anneal_is_set_beside_its_pretraining(atlas: Atlas, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    before = planted_run(tmp_path / "before", tiny_tokenizer, {5: CLEAN, 10: LOOPING})
    after = planted_run(tmp_path / "after", tiny_tokenizer, {3: LOOPING, 6: HALF})
    both = make_atlas([before, after], GREEDY, device="cpu")
    assert [(column.run, column.step) for column in both.columns] == [
        ("before", 5), ("before", 10), ("after", 3), ("after", 6),
    ]  # fmt: skip
    found = {
        (change.after.domain, change.after.failure): change
        for change in changes(both)
        if change.after.temperature is None
    }
    loops = found["all", "loop"]
    assert (loops.before.run, loops.before.step, loops.after.run, loops.after.step) == ("before", 10, "after", 6)
    assert loops.difference == pytest.approx(3 / 10 - 1)
    assert loops.verdict == "rarer"
    assert found["prose", "loop"].verdict == "rarer"
    assert found["prose", "no flag"].verdict == "more often"
    assert found["math", "loop"].verdict == "undecided"
    assert ("prose", "digits") not in found
    assert changes(make_atlas([planted_run(tmp_path / "one", tiny_tokenizer, {1: CLEAN})], GREEDY, device="cpu")) == []
    assert {(one.before.step, one.after.step) for one in changes(atlas)} == {(10, 30)}, "of one run: its first and last"


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    paths = [planted_run(tmp_path / place / "run", tiny_tokenizer, {1: CLEAN}) for place in ("a", "b")]
    assert [column.run for column in make_atlas(paths, GREEDY, device="cpu").columns] == list(map(str, paths))


def test_a_prompt_that_one_model_has_no_room_for_counts_nowhere(
    tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    long = SuitePrompt(id="long", text="The sea and the wind and the sky and the moon " * 2 + "is")
    settings = replace(GREEDY, prompts=(*PROMPTS[:2], long))
    roomy = planted_run(tmp_path / "roomy", tiny_tokenizer, {1: CLEAN})
    assert len(tiny_tokenizer.encode(long.text)) + 40 < 128, "fits the planted models"
    cramped = save_checkpoint(
        tmp_path / "cramped" / "checkpoints" / "step-00000002", tiny_model, tokenizer=tiny_tokenizer
    )
    atlas = make_atlas([roomy, cramped.parents[1]], settings, device="cpu")
    assert atlas.left_out == ("long",)
    assert [rate_of(atlas, step, "all", "loop").samples for step in (1, 2)] == [2, 2]


# ---------------------------------------------------------------------------------------------------- sampling


def test_a_sample_is_what_generate_writes_alone(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> None:
    """Whatever its batch: other prompts, temperatures, seeds."""
    tiny_model.tokenizer = tiny_tokenizer
    settings = AtlasSettings(prompts=PROMPTS[::4], temperatures=(0.7, 0.0, 1.5), seeds=2, seed=3, max_new_tokens=12)
    samples, left_out = sample_prompts(tiny_model, settings)
    assert left_out == ()
    assert [(sample.prompt, sample.temperature, sample.seed) for sample in samples] == [
        (settings.prompts[number].id, temperature, seed) for number, temperature, seed in settings.rows()
    ]
    texts = {prompt.id: prompt.text for prompt in PROMPTS}
    for sample in samples:
        alone = generate(
            tiny_model, texts[sample.prompt], max_new_tokens=12, temperature=sample.temperature, seed=sample.seed
        )
        assert (sample.ids, sample.text, sample.stop_reason) == (alone.ids, alone.text, alone.stop_reason)
    assert len({sample.seed for sample in samples}) == 2 * len(settings.prompts), "each prompt has seeds of its own"


@pytest.mark.parametrize("rows", [1, 7])
def test_batches_of_any_size_give_the_same_samples(
    rows: int, tiny_model: Shard, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    settings = AtlasSettings(prompts=PROMPTS[::4], temperatures=(0.0, 0.9), seeds=2, max_new_tokens=8)
    whole = sample_prompts(tiny_model, settings)
    monkeypatch.setitem(sampling.MOST_ROWS, "cpu", rows)
    assert sample_prompts(tiny_model, settings) == whole


def test_a_batch_holds_every_temperature_and_seed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def watched(*arguments: object, temperatures: list[float], **choices: object) -> object:
        batches.append(temperatures)
        return sampling_stream(*arguments, temperatures=temperatures, **choices)

    sampling_stream = sampling.stream
    monkeypatch.setattr(sampling, "stream", watched)
    sample_prompts(load(run, device="cpu"), PLANTED)
    assert [sorted(batch) for batch in batches] == [[0.0] * 10 + [1.0] * 20]


def test_the_memory_that_a_batch_is_planned_with_is_the_caches(tiny_model: Shard) -> None:
    decoder = Decoder(tiny_model, 1, 50)
    real = sum(layer.keys.numel() * 4 + layer.values.numel() * 4 for layer in decoder.cache.layers)
    assert cache_bytes(tiny_model.config, 50, 4) == pytest.approx(real, rel=0.5)


def test_progress_rises_to_the_end(run: Path) -> None:
    seen: list[tuple[float, str]] = []
    make_atlas([run], GREEDY, device="cpu", progress=lambda share, words: seen.append((share, words)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert list(dict.fromkeys(words for _, words in seen)) == ["step-00000010", "step-00000020", "step-00000030"]


def test_nothing_is_sampled_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "load", lambda *_, **__: pytest.fail("a checkpoint was sampled again"))
    assert make_atlas([run], PLANTED, device="cpu") == read_atlas(run)


def test_other_weights_and_other_settings_are_sampled_anew(
    run: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = []
    really_load = sampling.load
    monkeypatch.setattr(sampling, "load", lambda path, **kind: sampled.append(path.name) or really_load(path, **kind))
    save_checkpoint(run / "checkpoints" / "step-00000020", speaker(CLEAN, tiny_tokenizer))
    again = make_atlas([run], PLANTED, device="cpu")
    assert sampled == ["step-00000020"]
    assert rate_of(again, 20, "all", "loop").fired == 0
    make_atlas([run], GREEDY, device="cpu")
    assert sampled == ["step-00000020", "step-00000010", "step-00000020", "step-00000030"]
    assert {settings.digest for settings in list_atlases(run)} == {PLANTED.digest, GREEDY.digest}


def test_samples_are_labelled_anew_where_a_rule_has_changed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_atlas(run)
    file = run / "atlas" / PLANTED.digest / "step-00000010.jsonl"
    head, *lines = file.read_text().splitlines()
    unlabelled = [json.dumps({**json.loads(line), "flags": []}) for line in lines]
    monkeypatch.setattr(sampling, "sample_prompts", lambda *_, **__: pytest.fail("a checkpoint was sampled again"))
    file.write_text("\n".join([head, *unlabelled]) + "\n")
    assert make_atlas([run], PLANTED, device="cpu") != whole, "the same rules: labels are read as they are"
    file.write_text("\n".join([json.dumps({**json.loads(head), "rules": "those before"}), *unlabelled]) + "\n")
    assert make_atlas([run], PLANTED, device="cpu") == whole
    assert read_atlas(run) == whole


def test_what_was_sampled_before_an_interruption_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "atlas")
    really = sampling.sample_prompts
    calls: list[int] = []

    def interrupted(*arguments: object, **choices: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return really(*arguments, **choices)

    monkeypatch.setattr(sampling, "sample_prompts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_atlas([run], GREEDY, device="cpu")
    assert [column.step for column in read_atlas(run).columns] == [10, 20]
    calls.clear()
    assert len(make_atlas([run], GREEDY, device="cpu").columns) == 3
    assert len(calls) == 1


def test_a_file_that_was_cut_off_is_sampled_anew_or_named(run: Path) -> None:
    whole = read_atlas(run)
    file = run / "atlas" / PLANTED.digest / "step-00000020.jsonl"
    file.write_text("")
    assert make_atlas([run], PLANTED, device="cpu") == whole
    file.write_text(file.read_text().rpartition('{"prompt"')[0])
    with pytest.raises(AtlasError, match=r"step-00000020\.jsonl: not the samples .* does not fit the 29 others"):
        read_atlas(run)


def test_a_checkpoint_alone_is_one_column(run: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    alone = save_checkpoint(tmp_path / "alone", speaker(CLEAN, tiny_tokenizer))
    assert [(column.run, column.step) for column in make_atlas([alone], GREEDY, device="cpu").columns] == [("alone", 0)]
    assert (alone / "atlas" / GREEDY.digest / SETTINGS).exists()
    of_the_run = list_checkpoints(run)[1]
    assert [column.step for column in make_atlas([of_the_run], GREEDY, device="cpu").columns] == [20]
    assert [column.step for column in read_atlas(run, GREEDY).columns] == [20]


# ------------------------------------------------------------------------------------------------------ records


def test_a_sample_comes_back_from_its_file_as_it_was(atlas: Atlas, sampled: Path) -> None:
    column = atlas.columns[1]
    strange = replace(column.samples[0], text='\u2028 \x85 \x0b \u202e é \ufffd "\n', ids=(0, 299))
    column = replace(column, samples=(strange, *column.samples[1:]))
    text = "".join(column_lines(column))
    assert parse_column(text, "here", sampled, "run") == column
    assert json.loads(text.split("\n")[1])["failure"] == column.samples[0].primary == "loop"


def test_settings_come_back_and_each_of_them_counts() -> None:
    found = Retrieval(fact="The key is red.", question="The key is", windows=1.5)
    settings = replace(PLANTED, prompts=(*PROMPTS, SuitePrompt(id="far", text="", retrieval=found)))
    assert AtlasSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert replace(settings, temperatures=(0, 1)).digest == settings.digest
    others = [
        replace(settings, prompts=PROMPTS), replace(settings, temperatures=(0.0,)), replace(settings, seeds=3),
        replace(settings, seed=1), replace(settings, max_new_tokens=41),
    ]  # fmt: skip
    assert len({settings.digest, *(other.digest for other in others)}) == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("not JSON", "line 1: cannot be read as JSON"),
        ("[]", "not the samples of a checkpoint"),
        ('{"format": 2}', "not the samples of a checkpoint"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1, "samples": 0, "step": -1, "fingerprint": "", "left_out": []}', "step=-1"),
        ('{"format": 1, "samples": 0, "step": true, "fingerprint": "", "left_out": []}', "step=True"),
        ('{"format": 1, "samples": 1, "step": 1, "fingerprint": "", "left_out": []}\n{}', "'flags'"),
        ('{"format": 1, "samples": 1, "step": 1, "fingerprint": "", "left_out": []}\n5', "not the samples"),
    ],
    ids=lambda value: value[:24],
)
def test_samples_that_are_none_are_one_sentence(run: Path, spoil: str, message: str) -> None:
    (run / "atlas" / PLANTED.digest / "step-00000020.jsonl").write_text(spoil)
    with pytest.raises(AtlasError) as raised:
        read_atlas(run)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": float("nan")}, {"temperature": True}, {"temperature": -1}, {"seed": -1}, {"ids": [1.5]},
        {"ids": [-1]}, {"text": 5}, {"stop_reason": "tired"}, {"flags": [{"failure": "loop"}]},
        {"flags": [{"failure": "bad", "kind": "", "start": 0, "end": 1, "suspect": False}]}, {"prompt": None},
    ],
    ids=lambda change: json.dumps(change)[:40],
)  # fmt: skip
def test_a_sample_with_something_else_in_it_is_refused(run: Path, change: dict[str, object]) -> None:
    file = run / "atlas" / PLANTED.digest / "step-00000020.jsonl"
    head, first, rest = file.read_text().split("\n", 2)
    file.write_text("\n".join([head, json.dumps({**json.loads(first), **change}), rest]))
    with pytest.raises(AtlasError, match="delete it and sample again"):
        read_atlas(run)


def test_a_pipe_in_the_place_of_samples_is_not_waited_for(run: Path) -> None:
    file = run / "atlas" / PLANTED.digest / "step-00000020.jsonl"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(AtlasError, match="it is a pipe"):
        read_atlas(run)
    with pytest.raises(AtlasError, match="is not a file, and samples are to be written there"):
        make_atlas([run], PLANTED, device="cpu")


def test_settings_of_a_stranger_are_left_out(run: Path, tmp_path: Path) -> None:
    for name, text in {"a": "[]", "b": "{}", "c": json.dumps(replace(PLANTED, seed=9).to_dict())}.items():
        (run / "atlas" / name).mkdir()
        (run / "atlas" / name / SETTINGS).write_text(text)
    assert list_atlases(run) == [PLANTED]
    with pytest.raises(AtlasError, match=r"no atlas was made of it; make one with `shardscope atlas "):
        read_atlas(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temperatures": ()}, "temperatures is empty"),
        ({"temperatures": (-0.5,)}, "temperature -0.5 must be 0 (greedy) or above"),
        ({"temperatures": (float("nan"),)}, "temperature nan must be 0"),
        ({"temperatures": (float("inf"),)}, "temperature inf must be 0"),
        ({"temperatures": (1, 1.0)}, "a temperature is given twice"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must lie between"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"prompts": ()}, "prompts is empty"),
        ({"prompts": (PROMPTS[0], PROMPTS[0])}, "two prompts have the same id"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_are_one_sentence(choices: dict[str, object], message: str) -> None:
    with pytest.raises(AtlasError) as raised:
        AtlasSettings(**choices)
    assert message in str(raised.value)


def test_what_cannot_be_sampled_is_one_sentence(
    run: Path, tmp_path: Path, tiny_model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no such checkpoint or run"):
        make_atlas([tmp_path / "nowhere"], PLANTED)
    with pytest.raises(AtlasError, match="is named twice"):
        make_atlas([run, tmp_path / "." / "run"], PLANTED)
    with pytest.raises(AtlasError, match=r"none of the 10 prompts and 128 new tokens fit .* context of 128"):
        make_atlas([run], replace(PLANTED, max_new_tokens=128), device="cpu")
    mute = save_checkpoint(tmp_path / "mute", tiny_model)
    with pytest.raises(ConfigError, match="this model has no tokenizer"):
        make_atlas([mute], PLANTED, device="cpu")
    (tmp_path / "file").touch()
    monkeypatch.setattr(sampling, "folder_of", lambda _: tmp_path / "file")
    with pytest.raises(WriteError, match="cannot be written"):
        make_atlas([run], GREEDY, device="cpu")


# ----------------------------------------------------------------------------------------------- the built-in model


def test_the_built_in_models_atlas_is_of_the_weights_that_ship() -> None:
    from shardscope.checkpoint import fingerprint

    atlas = built_in_atlas()
    [column] = atlas.columns
    assert column.fingerprint == fingerprint(BUILT_IN)
    assert {prompt.domain for prompt in atlas.settings.prompts} == {"math", "code", "prose"}
    assert len(column.samples) == len(atlas.settings.rows())
    looping = next(sample for sample in column.samples if sample.temperature == 0 and sample.primary == "loop")
    prompt = next(prompt for prompt in atlas.settings.prompts if prompt.id == looping.prompt)
    again = generate(load(BUILT_IN, device="cpu"), prompt.text, max_new_tokens=24)
    assert again.ids == looping.ids[:24]


def test_the_built_in_models_atlas_has_the_labels_that_todays_rules_give() -> None:
    atlas = built_in_atlas()
    [column] = atlas.columns
    today = relabelled(column, atlas.settings, load(BUILT_IN, device="cpu"))
    stale = [
        f"{before.prompt}, temperature {before.temperature}, seed {before.seed}: {before.primary}, now {now.primary}"
        for before, now in zip(column.samples, today.samples, strict=True)
        if before != now
    ]
    assert stale == [], "the rules have changed; run python scripts/make_built_in_atlas.py"


def test_a_planted_sentence_is_what_the_planted_model_says(tiny_tokenizer: Tokenizer) -> None:
    model = speaker(HALF, tiny_tokenizer)
    assert generate(model, "The moon is", max_new_tokens=20).text == SENTENCE
    assert torch.equal(model.blocks[1].mlp.W_out, torch.zeros_like(model.blocks[1].mlp.W_out))
