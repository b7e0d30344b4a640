"""Where the explorer, the recipes and the evaluation tasks lie: in a checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent


def resource(name: Literal["apps", "recipes", "evals"]) -> Path:
    """The folder of that name: beside the package in a checkout or a source archive, else the wheel's copy of it."""
    beside = PACKAGE.parent / name
    return beside if (PACKAGE.parent / "pyproject.toml").exists() and beside.is_dir() else PACKAGE / "_resources" / name
