"""What tests of the original format share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from original_files import published_values

from shardscope import Shard
from shardscope.tokenizer import Tokenizer


@pytest.fixture
def published(trained_model: Shard) -> dict[str, Any]:
    return published_values(trained_model.config)


@pytest.fixture
def tokenizer_file(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    return tiny_tokenizer.save(tmp_path / "tokenizer.json")
