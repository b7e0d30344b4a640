"""docs/reference-run.md is what its script makes of the committed metrics, to the letter."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from shardscope.config import load_recipe
from shardscope.resources import resource

ROOT = Path(__file__).parents[2]
PAGE, METRICS = ROOT / "docs" / "reference-run.md", ROOT / "docs" / "reference" / "shard-pico-run.json"


def test_the_page_and_its_pictures_are_those_of_the_metrics(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "reference_run.py"))
    made = script["write"](tmp_path / "reference-run.md")
    assert PAGE.read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), "run python scripts/reference_run.py"
    pictures = sorted((tmp_path / "images").iterdir())
    assert len(pictures) == 3
    for picture in pictures:
        assert (PAGE.parent / "images" / picture.name).read_text() == picture.read_text()
        assert f"(images/{picture.name})" in PAGE.read_text(encoding="utf-8")


def test_the_page_says_first_what_it_is_of_and_how_far_the_published_size_was_trained() -> None:
    page, metrics = PAGE.read_text(encoding="utf-8"), json.loads(METRICS.read_text(encoding="utf-8"))
    learnt = json.loads((ROOT / "docs" / "benchmarks" / "learn-h100.json").read_text(encoding="utf-8"))["runs"]
    if metrics["model"]["n_params"] != 54_538_752:
        assert page.startswith("# The reference run's pipeline on shard-pico\n\n")
        assert page.splitlines()[2].startswith(
            "A model of 984,192 parameters, not the published size of 54,538,752, was"
        )
        assert f"trained to {max(run['tokens'] for run in learnt) // 1_000_000} M tokens only" in page


def test_the_metrics_are_of_the_packaged_recipes() -> None:
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    for phase, name in zip(("pretrain", "anneal"), metrics["recipes"], strict=True):
        recipe, run = load_recipe(resource("recipes") / f"{name}.toml"), metrics["runs"][phase]
        assert run["steps"] == recipe.schedule.steps
        assert run["tokens"] == recipe.schedule.steps * recipe.train.batch_size * recipe.data.seq_len
        assert run["sources"].keys() == {source.name for source in recipe.data.sources}


def test_the_metrics_name_no_place_on_the_machine_that_made_them() -> None:
    assert not re.search(r'": "(/|~|[A-Z]:)', METRICS.read_text(encoding="utf-8"))
