"""Bytes that changed on the disk: the very numbers that were saved come back, or one sentence."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attacks import Count
from tiny_run import RECIPE, write_corpus

from shardscope import load
from shardscope.checkpoint import PARTS, list_checkpoints, read_tensors, read_training_state
from shardscope.config import Recipe, load_recipe
from shardscope.data.prepare import shards_of
from shardscope.train import train
from shardscope.train.lineage import weights_digest

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of two checkpoints, and another of the same corpora with another seed. One repeats some of the other."""
    folder = tmp_path_factory.mktemp("rot")
    write_corpus(folder / "one.jsonl", seed=1)
    write_corpus(folder / "two.jsonl", seed=2)
    with (folder / "two.jsonl").open("a") as file:
        file.write((folder / "one.jsonl").read_text())
    (folder / "tiny.toml").write_text(RECIPE.format(folder=folder))
    choices = {"schedule.steps": "10", "train.keep": "2", "data.overlap": "drop"}
    other = {"run_dir": str(folder / "other"), "seed": "7", "data.cache_dir": str(folder / "other-cache")}
    for settings in ({}, other):
        recipe = load_recipe(folder / "tiny.toml", {**choices, **settings})
        train(recipe, progress=False)
    return load_recipe(folder / "tiny.toml", choices)


def everything(checkpoint: Path) -> tuple[object, ...]:
    """All that a run takes from a checkpoint."""
    model, state = load(checkpoint), read_training_state(checkpoint)
    tokenizer = model.tokenizer.fingerprint if model.tokenizer else ""
    weights = weights_digest(read_tensors(checkpoint / "model.safetensors"))
    return model.config, tokenizer, weights, state.step, state.facts, weights_digest(state.optimizer)


@contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Other bytes in a file's place, or no file."""
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


class Rot:
    """Attempts on the files of a checkpoint."""

    def __init__(self, checkpoint: Path, count: Count) -> None:
        self.checkpoint, self.count, self.expected = checkpoint, count, everything(checkpoint)

    def __call__(self, name: str, content: bytes | None, case: str) -> None:
        with self.count.attempt(f"{name}: {case}"), replaced(self.checkpoint / name, content):
            assert everything(self.checkpoint) == self.expected, "other numbers, and not a word"


@pytest.fixture
def newest(trained: Recipe) -> Path:
    return list_checkpoints(trained.folder)[-1]


FILES = (*PARTS, "manifest.json")


def test_a_flipped_bit(newest: Path, attack: Callable[[str], Count]) -> None:
    rot, rng = Rot(newest, attack("flips")), random.Random(0)
    for name in FILES:
        content = (newest / name).read_bytes()
        # Text and headers are few bytes among many.
        places = [rng.randrange(min(len(content), reach)) for reach in (1000, len(content)) for _ in range(150)]
        for place in (0, len(content) - 1, *places):
            flipped, bit = bytearray(content), rng.randrange(8)
            flipped[place] ^= 1 << bit
            rot(name, bytes(flipped), f"bit {bit} of byte {place}")
    assert rot.count.lost == []


def test_a_cut(newest: Path, attack: Callable[[str], Count]) -> None:
    rot, rng = Rot(newest, attack("cuts")), random.Random(1)
    for name in FILES:
        content = (newest / name).read_bytes()
        rot(name, None, "gone")
        for length in (0, 1, 7, 8, 9, len(content) - 1, *(rng.randrange(len(content)) for _ in range(30))):
            rot(name, content[:length], f"{length} bytes of it")
        for more in (b"\0", b"\n", b" ", b"}", bytes(4096), content):
            rot(name, content + more, f"{len(more)} bytes more")
    assert rot.count.lost == []


def test_a_lost_block(newest: Path, attack: Callable[[str], Count]) -> None:
    """What a file system leaves of a block that never reached the disk, or was written to another place."""
    rot, rng = Rot(newest, attack("lost_blocks")), random.Random(2)
    for name in FILES:
        content = (newest / name).read_bytes()
        for size in (512, 4096):
            blocks = range(0, len(content), size)
            for start in rng.sample(blocks, min(20, len(blocks))):
                length = min(size, len(content) - start)
                rot(name, content[:start] + bytes(length) + content[start + length :], f"zeros from {start}")
                other = rng.randrange(max(1, len(content) - length))
                moved = content[other : other + length]
                if moved != content[start : start + length]:
                    rot(name, content[:start] + moved + content[start + length :], f"{other} at {start}")
    assert rot.count.lost == []


def test_a_file_of_another_checkpoint(trained: Recipe, newest: Path, attack: Callable[[str], Count]) -> None:
    """Each of them is whole: of the step before, of another run, and several at once."""
    count, expected = attack("mixed_files"), everything(newest)
    others = [*list_checkpoints(trained.folder)[:-1], *list_checkpoints(trained.folder.with_name("other"))]
    whole = newest.with_name("whole")
    shutil.copytree(newest, whole)
    for other in others:
        whole_other = everything(other)
        for chosen in range(1, 2 ** len(FILES) - 1):
            names = [name for bit, name in enumerate(FILES) if chosen >> bit & 1]
            with count.attempt(f"{names} of {other}"):
                for name in names:
                    shutil.copy(other / name, newest / name)
                try:
                    # With its manifest, and what is the same in both, it is the other one, whole.
                    read = everything(newest)
                    assert read in (expected, whole_other), "other numbers, and not a word"
                finally:
                    for name in names:
                        shutil.copy(whole / name, newest / name)
    shutil.rmtree(whole)
    assert count.lost == []


def test_a_cache_of_tokens(trained: Recipe, newest: Path, attack: Callable[[str], Count]) -> None:
    tokenizer = load(newest).tokenizer
    assert tokenizer is not None
    count, rng = attack("rotten_tokens"), random.Random(3)

    def tokens() -> list[object]:
        shards = shards_of(trained.data, tokenizer, progress=False)
        return [
            (side.tokens.tobytes(), side.starts.tobytes(), [side.origin(n) for n in range(len(side.starts))])
            for both in shards.values()
            for side in (both.train, both.holdout)
        ]

    expected = tokens()
    cache = Path(trained.data.cache_dir)
    for path in sorted(path for path in cache.rglob("*") if path.is_file()):
        content = path.read_bytes()
        contents = {"gone": None, "empty": b"", "half": content[: len(content) // 2], "longer": content + b"\0\0"}
        for place in (rng.randrange(len(content)) for _ in range(20 if content else 0)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            contents[f"byte {place}"] = bytes(flipped)
        for case, rotten in contents.items():
            with count.attempt(f"{path.relative_to(cache)}: {case}"), replaced(path, rotten):
                assert tokens() == expected, "other tokens, and not a word"
    assert count.lost == []
