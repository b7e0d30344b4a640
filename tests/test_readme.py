"""What the README shows is run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_python_runs_as_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    newest = tmp_path / "work" / "runs" / "newest" / "checkpoints" / "step-00000001"
    newest.parent.mkdir(parents=True)
    tiny_checkpoint.rename(newest)
    block += "assert model.W_U.shape[1] == logits.shape[-1]\nassert cache['pattern', 0].ndim == 4\n"
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path / "work", env=path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, place = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if place:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert place in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_every_recipe_and_command_of_the_readme_exists() -> None:
    from shardscope.cli import main
    from shardscope.recipes.command import find_recipe

    for recipe in re.findall(r"recipes/[\w-]+\.toml", README):
        assert (ROOT / recipe).exists()
    for name in re.findall(r"shardscope train ([\w-]+)`", README):
        assert find_recipe(name).exists()
    for command in set(re.findall(r"`shardscope (\w+)", README)):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0


def test_the_readme_is_a_screen_and_a_half_and_contributing_one() -> None:
    assert len(README.splitlines()) <= 75
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 66


def test_contributing_names_files_and_folders_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:shardscope|apps|evals|recipes|scripts|docs|\.ci)/[\w./-]*)`", page)
    assert len(named) > 10
    for name in named:
        assert "NAME" in name or (ROOT / name).exists(), name
