from __future__ import annotations

from pathlib import Path

import pytest
from small_reproduction import TASKS, command, make_recipes

from shardscope.cli import main


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole reproduction."""
    folder = tmp_path_factory.mktemp("reproduced")
    assert main(command(make_recipes(folder), folder / "out", TASKS, "--price-per-hour", "2")) == 0
    return folder / "out"
