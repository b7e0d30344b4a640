"""The checkpoint that ships: it is the one that was measured, and it opens where nothing else is there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from shardscope import Shard, load
from shardscope.checkpoint import BUILT_IN, WEIGHTS
from shardscope.config import DataConfig, Recipe, Source, load_recipe
from shardscope.data import Holdout, token_shards
from shardscope.failures import CARD_PROMPTS, label
from shardscope.generation import SamplingConfig, generate
from shardscope.microscope import find_heads, head_scores, read
from shardscope.train.evaluate import Score, evaluate

ROOT = Path(__file__).parents[1]
REFERENCE = json.loads((ROOT / "docs/reference/shard-nano.json").read_text(encoding="utf-8"))
CARD = (BUILT_IN / "README.md").read_text(encoding="utf-8")
# Held-out bits per byte of a plain trainer on the same text: 8.4 M parameters, 218 M tokens, one minute of one H200.
ONE_MINUTE_RUN = {"books": 1.481, "code": 0.869, "edu_prose": 1.130, "math": 0.802, "qa": 1.208}
DATA = Path(os.environ.get("SHARDSCOPE_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def shipped() -> Shard:
    return load(BUILT_IN)


def held_out(model: Shard, domains: Iterable[str], eval_tokens: int, folder: Path) -> dict[str, Score]:
    """The score of each domain's held-out text; nothing is read of what it was trained on."""
    assert model.tokenizer is not None
    (folder / "none.jsonl").write_text('{"text": "none"}\n', encoding="utf-8")
    sources = {
        name: Source(name=name, path=str(folder / "none.jsonl"), holdout=str(DATA / f"{name}.val.jsonl.xz"))
        for name in domains
    }
    data = DataConfig(sources=tuple(sources.values()), seq_len=512, cache_dir=str(folder))
    holdouts = {}
    for name, source in sources.items():
        shard = token_shards(source, data, model.tokenizer, progress=False).holdout
        holdouts[name] = Holdout(name, shard, model.tokenizer, seq_len=data.seq_len, eval_tokens=eval_tokens)
    with torch.inference_mode():
        scores = evaluate(model, holdouts, batch_size=2)
    assert scores is not None
    return scores


def metrics(phase: str, kind: str) -> list[dict[str, Any]]:
    lines = (ROOT / f"docs/reference/shard-nano-{phase}.metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def bits(entry: dict[str, Any], domain: str) -> float:
    return float(entry[domain]["bits_per_byte"])


def test_the_weights_are_the_ones_that_were_measured() -> None:
    assert hashlib.sha256((BUILT_IN / WEIGHTS).read_bytes()).hexdigest() == REFERENCE["sha256"]


def test_the_checkpoint_fits_sixteen_megabytes_with_tokenizer_and_card() -> None:
    files = {path.name: path.stat().st_size for path in BUILT_IN.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files.keys()
    assert sum(files.values()) <= 16_000_000


def test_it_opens_when_no_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: Shard) -> None:
    monkeypatch.chdir(tmp_path)
    model = load()
    assert model.n_params == 7_212_288
    assert torch.equal(model.embed.W_E, shipped.embed.W_E)
    assert model.tokenizer is not None
    assert model.tokenizer.fingerprint == REFERENCE["tokenizer"]


@pytest.mark.skipif(not (DATA / "qa.val.jsonl.xz").exists(), reason="set SHARDSCOPE_DATA to the held-out text")
def test_held_out_bits_per_byte_of_every_domain_are_the_committed_figures(shipped: Shard, tmp_path: Path) -> None:
    """Four windows of 512 tokens of each; the card's figures, over all of the text, are in the committed metrics."""
    expected = REFERENCE["check"]["held_out"]
    assert expected.keys() == ONE_MINUTE_RUN.keys()
    found = held_out(shipped, expected, REFERENCE["check"]["eval_tokens"], tmp_path)
    assert {name: found[name].tokens for name in expected} == {name: row["tokens"] for name, row in expected.items()}
    for name, row in expected.items():
        assert found[name].bits_per_byte == pytest.approx(row["bits_per_byte"], abs=2e-3), name


@pytest.mark.parametrize("domain", list(ONE_MINUTE_RUN))
def test_the_anneal_lowers_every_domain_and_ends_clearly_below_a_run_of_one_minute(domain: str) -> None:
    evaluations = metrics("anneal", "eval")
    first, last = bits(evaluations[0], domain), bits(evaluations[-1], domain)
    assert last < first
    assert last < 0.975 * ONE_MINUTE_RUN[domain]


def test_books_and_edu_prose_end_below_the_figures_aimed_at() -> None:
    last = metrics("anneal", "eval")[-1]
    assert bits(last, "books") < 1.45
    assert bits(last, "edu_prose") < 1.08


def test_the_card_shows_the_committed_figures() -> None:
    evaluations = metrics("anneal", "eval")
    for domain in (*ONE_MINUTE_RUN, "all"):
        before, after = bits(evaluations[0], domain), bits(evaluations[-1], domain)
        assert f"| {domain} | {before:.3f} | **{after:.3f}** |" in CARD, domain


def test_the_card_sets_the_shipped_anneal_beside_the_other_candidates() -> None:
    candidates = json.loads((ROOT / "docs/reference/shard-nano-candidates.json").read_text(encoding="utf-8"))
    for name, candidate in candidates.items():
        scores = candidate["held_out_bits_per_byte"]
        row = [f"{scores[domain]:.3f}" for domain in ("edu_prose", "books", "code", "math", "qa", "all")]
        cells = " | ".join([*row, str(candidate["greedy_story"]["loop_onset"])])
        bold = "**" if candidate["shipped"] else ""
        assert re.search(
            rf"^\| {re.escape(bold + name + bold)}: [^|]+ \| {re.escape(cells)} \|$", CARD, re.MULTILINE
        ), name
    (shipped,) = [candidate for candidate in candidates.values() if candidate["shipped"]]
    last = metrics("anneal", "eval")[-1]
    for domain, score in shipped["held_out_bits_per_byte"].items():
        assert score == pytest.approx(bits(last, domain), abs=1e-4), domain


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_the_shipped_run_made_the_recipes_choices(phase: str) -> None:
    values = json.loads((ROOT / f"docs/reference/shard-nano-{phase}.recipe.json").read_text(encoding="utf-8"))
    for source in values["data"]["sources"]:
        del source["hub"]  # the trainer of that day could read another text instead; it did not
    ran, recipe = Recipe.from_dict(values), load_recipe(ROOT / f"recipes/shard-nano-{phase}-local.toml")
    for section in ("data", "optimizer", "schedule", "model", "seed"):
        assert getattr(ran, section) == getattr(recipe, section), section


def test_no_source_was_read_more_than_eight_times() -> None:
    passes: dict[str, float] = {}
    for phase in ("pretrain", "anneal"):
        for name, source in metrics(phase, "event")[0]["sources"].items():
            passes[name] = passes.get(name, 0.0) + source["epochs"]
    assert passes.keys() == ONE_MINUTE_RUN.keys()
    assert max(passes.values()) <= 8, passes


def test_the_metrics_hold_the_samples_of_every_thousand_steps() -> None:
    for phase, steps in (("pretrain", 7_000), ("anneal", 3_000)):
        said = [(sample["step"], sample["prompt"]) for sample in metrics(phase, "sample")]
        prompts = [prompt.text for prompt in CARD_PROMPTS]
        assert said == [(step, prompt) for step in range(1_000, steps + 1, 1_000) for prompt in prompts]


def test_text_that_no_machine_lacks_costs_what_it_cost(shipped: Shard) -> None:
    """The licence's first tokens, for machines without the held-out text."""
    assert shipped.tokenizer is not None
    ids = shipped.tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"), bos=True)[:1024]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(shipped(tokens[:, :-1])[0], tokens[0, 1:])
    assert nats.item() == pytest.approx(REFERENCE["check"]["licence_nats"], abs=2e-3)


def test_it_has_an_induction_head_and_a_previous_token_head(shipped: Shard) -> None:
    """On 50 random tokens said twice, as Olsson et al. (2022, arXiv:2209.11895) look for them.

    Half the queries, those of the first time, have nothing to copy from: the plain mean cannot pass 0.5.
    """
    assert shipped.tokenizer is not None
    said = torch.randint(1, 8192, (50,), generator=torch.Generator().manual_seed(0))
    reading = read(shipped, torch.cat([torch.tensor([shipped.tokenizer.bos_id]), said, said]))
    scores = head_scores(reading)
    (induction,), (previous,) = (find_heads(scores, by=name, top=1) for name in ("induction", "previous"))
    assert (induction.layer, induction.head) == (3, 3)
    assert induction.induction > 0.4
    second = [reading.layer(3).row(3, 51 + place)[place + 2] for place in range(50)]
    assert sum(second) / 50 > 0.6
    assert (previous.layer, previous.head) == (2, 2)
    assert previous.previous > 0.6


def test_the_greedy_story_loops_from_its_first_token_and_is_flagged(shipped: Shard) -> None:
    """The aim was sixty grammatical tokens before it loops; the card says that it was missed."""
    story = next(prompt for prompt in CARD_PROMPTS if prompt.text.startswith("Once upon a time"))
    expected = REFERENCE["greedy_story"]
    (generation,) = generate(shipped, [story.text], SamplingConfig(max_new_tokens=64, temperature=0))
    labels = label(generation, domain=story.domain, tokenizer=shipped.tokenizer)
    assert generation.text.startswith(expected["begins"])
    assert labels.primary == expected["flag"]
    assert labels.loop is not None
    assert (labels.loop.start, labels.loop.period) == (expected["onset"], expected["period"])


@pytest.mark.skipif(not (DATA / "README.md").exists(), reason="set SHARDSCOPE_DATA to the held-out text")
def test_the_card_lists_every_source_with_the_licence_that_the_text_came_with() -> None:
    row = re.compile(r"^\| (edu_prose|books|code|math|qa) \| (\S+) \| ([^|]+) \| [\d,]+ \| ([\d,]+) \|$", re.MULTILINE)
    found = row.findall((DATA / "README.md").read_text(encoding="utf-8"))
    assert len(found) > 50
    for domain, repository, licence, size in found:
        assert f"| {domain} | {repository} | {licence} | {size} |" in CARD, repository


def test_its_files_are_the_ones_that_were_measured() -> None:
    """`load` compares them with the manifest each time; here the manifest is one."""
    manifest = json.loads((BUILT_IN / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert manifest.keys() == {"model.safetensors", "config.json", "tokenizer.json"}
    for name, entry in manifest.items():
        assert hashlib.sha256((BUILT_IN / name).read_bytes()).hexdigest() == entry["sha256"], name
