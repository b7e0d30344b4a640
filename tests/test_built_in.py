"""The checkpoint that ships: it is the one that was measured, and it opens where nothing else is there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from shardscope import Shard, load
from shardscope.checkpoint import BUILT_IN, WEIGHTS
from shardscope.config import DataConfig, Source
from shardscope.data import prepare
from shardscope.failures import sample_card
from shardscope.lens.microscope import find_heads, head_scores, read
from shardscope.train.evaluate import Score, evaluate

ROOT = Path(__file__).parents[1]
REFERENCE = json.loads((ROOT / "docs/reference/shard-nano.json").read_text(encoding="utf-8"))
DATA = Path(os.environ.get("SHARDSCOPE_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def shipped() -> Shard:
    return load(BUILT_IN)


def held_out(model: Shard, domain: str, eval_tokens: int, cache: Path) -> Score:
    """The domain's held-out text; the training side is the smallest file there is, and not looked at."""
    source = Source(name=domain, path=str(DATA / "qa.00.jsonl.xz"), holdout=str(DATA / f"{domain}.val.jsonl.xz"))
    data = DataConfig(sources=(source,), seq_len=model.config.n_ctx, cache_dir=str(cache))
    assert model.tokenizer is not None
    found = prepare(data, model.tokenizer, batch_size=1, seed=0, eval_tokens=eval_tokens, progress=False)
    scores = evaluate(model, found.holdouts, batch_size=2)
    assert scores is not None
    return scores["all"]


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
@pytest.mark.parametrize("domain", ["edu_prose", "qa"])
def test_held_out_bits_per_byte_are_the_committed_figures(domain: str, shipped: Shard, tmp_path: Path) -> None:
    expected = REFERENCE["check"][domain]
    found = held_out(shipped, domain, REFERENCE["check"]["eval_tokens"], tmp_path)
    assert found.tokens == expected["tokens"]
    assert found.bits_per_byte == pytest.approx(expected["bits_per_byte"], abs=2e-3)


def test_text_that_no_machine_lacks_costs_what_it_cost(shipped: Shard) -> None:
    """The licence's first tokens, for machines without the held-out text."""
    assert shipped.tokenizer is not None
    ids = shipped.tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"), bos=True)[:1024]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(shipped(tokens[:, :-1])[0], tokens[0, 1:])
    assert nats.item() == pytest.approx(REFERENCE["check"]["licence_nats"], abs=2e-3)


def test_it_has_an_induction_head_and_a_previous_token_head(shipped: Shard) -> None:
    """On random tokens said twice, as Olsson et al. (2022, arXiv:2209.11895) look for them."""
    assert shipped.tokenizer is not None
    best = {"induction": 0.0, "previous": 0.0}
    for seed in range(3):
        said = torch.randint(1, 8192, (50,), generator=torch.Generator().manual_seed(seed))
        scores = head_scores(read(shipped, torch.cat([torch.tensor([shipped.tokenizer.bos_id]), said, said])))
        for name in best:
            best[name] += getattr(find_heads(scores, by=name, top=1)[0], name) / 3
    assert best["previous"] > 0.7
    assert best["induction"] > 0.35


def test_the_story_is_grammatical_for_sixty_tokens_or_so_and_is_flagged_when_it_loops(shipped: Shard) -> None:
    samples = {prompt.text: (generation, labels) for prompt, generation, labels in sample_card(shipped, temperature=0)}
    generation, labels = samples["Once upon a time, in a small village,"]
    assert generation.text == REFERENCE["greedy_story"]
    assert labels.summary == REFERENCE["greedy_story_flag"]
