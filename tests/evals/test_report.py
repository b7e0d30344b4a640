"""The report's baselines see the bytes that they should, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardscope.cli import main
from shardscope.config import load_recipe
from shardscope.evals.report import _shares, size_of, text_of
from shardscope.train import train


@pytest.mark.parametrize(
    ("sizes", "most", "shares"),
    [
        ([100, 100], 50, [25, 25]),
        ([10, 100, 100], 100, [10, 45, 45]),  # a short source leaves the rest to the others
        ([10, 20], 100, [10, 20]),
        ([5], 3, [3]),
    ],
)
def test_sources_give_equal_shares_of_the_text_as_far_as_they_have_it(
    sizes: list[int], most: int, shares: list[int]
) -> None:
    assert _shares(sizes, most) == shares


def test_only_the_tokens_that_are_kept_are_read() -> None:
    tokens = np.array([0, 1, 2, 1, 2], dtype=np.uint16)
    pieces = [b"", b"ab", b"cde"]
    assert [text_of(tokens, pieces, most).tobytes() for most in (1, 2, 4, 99)] == [b"a", b"ab", b"abcd", b"abcdeabcde"]
    assert [size_of(tokens, pieces, most) for most in (1, 2, 4, 99)] == [1, 2, 4, 10]


def test_a_training_set_that_no_memory_could_hold_is_read_no_further_than_needed() -> None:
    tokens = np.broadcast_to(np.uint16(1), 1 << 46)  # 128 TiB of the same token
    pieces = [b"", b"abc"]
    assert size_of(tokens, pieces, 5_000_000) == 5_000_000
    assert text_of(tokens, pieces, 5_000_000).tobytes() == (b"abc" * 2_000_000)[:5_000_000]


@pytest.fixture
def run_folder(recipe_file: Path, tmp_path: Path) -> Path:
    train(load_recipe(recipe_file, {"model.n_ctx": "128"}), progress=False)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("flags", "sentence"), [(["--ngram", "99"], "use 1 to 16"), (["--ngram-bytes", "0"], "use 1 or more")]
)
def test_a_model_that_cannot_be_is_refused_in_one_sentence(
    flags: list[str], sentence: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_folder), *flags]) == 1
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
