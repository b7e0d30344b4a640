"""Small things that tests share: a tiny model whose attention is far from uniform, its tokenizer, its checkpoint."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Before the first import of the package: shapes and types are checked on every call from here on. Not where blocks are
# compiled for a GPU, because the compiler cannot follow the checker.
if not torch.cuda.is_available():
    install_import_hook("shardscope", "typechecker.check")

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.tokenizer import Tokenizer

pytest_plugins = ["tiny_run", "trained_models", "exported_models"]

# Workers side by side share the cores and do not fight for them, nor do the processes that they start.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)

# No example is too slow: a busy machine is no error of ours.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (make test), the files with slow tests come first: none is begun when all others have ended."""
    if not workers:
        return
    tests, slow = Counter(item.path for item in items), Counter(i.path for i in items if i.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))


SENTENCES = [
    "Once upon a time, in a small village, there lived a clockmaker who counted every second of the day.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Question: What is 23 + 19? Answer: 42",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "To compute 12 plus 7, we can count on from twelve: nineteen. Solve: 17 * 23 = 391",
]


@pytest.fixture(scope="session")
def tiny_config() -> ShardConfig:
    return ShardConfig(vocab_size=300, n_ctx=64, d_model=32, n_layers=4, n_heads=4, d_head=8, d_mlp=48, window=8)


@pytest.fixture
def tiny_model(tiny_config: ShardConfig) -> Shard:
    torch.manual_seed(0)
    model = Shard(tiny_config)
    with torch.no_grad():
        model.embed.W_E.mul_(5)
        for block in model.blocks:
            block.attn.W_Q.mul_(2)
            block.attn.W_K.mul_(2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 4, vocab_size=300)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer) -> Path:
    return save_checkpoint(tmp_path / "tiny", tiny_model, tokenizer=tiny_tokenizer)
