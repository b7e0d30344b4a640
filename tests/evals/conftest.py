"""The same weights as the harness's own `hf` and as `shard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # lm_eval is an extra: the other tests of this folder run without it
    from lm_eval.models.huggingface import HFLM

    from shardscope.evals.harness import ShardLM


@pytest.fixture(scope="module")
def theirs(formats: tuple[Path, Path]) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(formats[1]), device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def ours(formats: tuple[Path, Path]) -> ShardLM:
    from shardscope.evals.harness import ShardLM

    return ShardLM(pretrained=str(formats[0]), device="cpu", batch_size="auto")
