"""A run that takes a second: two sources of made-up text, a model of a few thousand parameters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

WORDS = "the a cat dog sees eats finds small red old house tree river and then again slowly"


def write_corpus(path: Path, seed: int, documents: int = 120) -> None:
    rng, words = random.Random(seed), WORDS.split(" ")
    with path.open("w") as file:
        for _ in range(documents):
            text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 60))) + "."
            file.write(json.dumps({"text": text}) + "\n")


RECIPE = """
name = "tiny"
phase = "pretrain"
run_dir = "{folder}/run"
[model]
vocab_size = 300
n_ctx = 32
d_model = 32
n_layers = 2
n_heads = 2
d_head = 16
d_mlp = 48
window = 8
[data]
seq_len = 32
cache_dir = "{folder}/cache"
sources = [
  {{ name = "one", path = "{folder}/one.jsonl", weight = 2 }},
  {{ name = "two", path = "{folder}/two.jsonl" }},
]
[optimizer]
lr = 1e-2
[schedule]
steps = 20
warmup = 0.1
decay = 0
[train]
batch_size = 4
log_every = 1
eval_every = 10
eval_tokens = 200
sentinel_every = 10
save_every = 5
device = "cpu"
"""

ANNEAL = """
name = "tiny-anneal"
phase = "anneal"
run_dir = "{folder}/anneal"
start_from = "{folder}/run"
[data]
seq_len = 32
cache_dir = "{folder}/cache"
sources = [{{ name = "two", path = "{folder}/two.jsonl" }}]
[optimizer]
lr = 1e-2
[schedule]
steps = 8
warmup = 0
decay = 1.0
[train]
batch_size = 4
log_every = 1
eval_tokens = 200
device = "cpu"
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "one.jsonl", seed=1)
    write_corpus(tmp_path / "two.jsonl", seed=2)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    (tmp_path / "anneal.toml").write_text(ANNEAL.format(folder=tmp_path))
    return path
