"""docs/reference-run.md is what its script makes of the committed metrics, to the letter."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from shardscope.config import load_recipe
from shardscope.resources import resource

ROOT = Path(__file__).parents[2]
PAGE, METRICS = ROOT / "docs" / "reference-run.md", ROOT / "docs" / "reference" / "shard-54m-run.json"


def test_the_page_and_its_pictures_are_those_of_the_metrics(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "reference_run.py"))
    made = script["write"](tmp_path / "reference-run.md")
    assert PAGE.read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), "run python scripts/reference_run.py"
    pictures = sorted((tmp_path / "images").iterdir())
    assert len(pictures) == 3
    for picture in pictures:
        assert (PAGE.parent / "images" / picture.name).read_text() == picture.read_text()
        assert f"(images/{picture.name})" in PAGE.read_text(encoding="utf-8")


def test_the_page_says_first_that_it_is_of_the_published_size() -> None:
    page, metrics = PAGE.read_text(encoding="utf-8"), json.loads(METRICS.read_text(encoding="utf-8"))
    assert metrics["model"]["n_params"] == 54_538_752
    assert page.startswith("# The reference run\n\nA model of 54,538,752 parameters, the published size, was ")


def test_the_logs_beside_the_metrics_are_of_the_same_run() -> None:
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    for phase, run in metrics["runs"].items():
        logged = METRICS.with_name(f"shard-54m-{phase}.metrics.jsonl").read_text(encoding="utf-8").splitlines()
        lines = [json.loads(line) for line in logged]
        assert [line["resumed_at"] for line in lines if line.get("event") == "start"] == run["starts"]
        last = [line for line in lines if line["kind"] == "eval"][-1]
        for source, bits in run["held_out"][-1]["bits_per_byte"].items():
            assert round(last[source]["bits_per_byte"], 6) == bits
        ran = json.loads(METRICS.with_name(f"shard-54m-{phase}.recipe.json").read_text(encoding="utf-8"))
        packaged = json.loads(json.dumps(load_recipe(resource("recipes") / f"{ran['name']}.toml").to_dict()))
        assert {key: ran[key] for key in ("optimizer", "schedule")} == {
            key: packaged[key] for key in ("optimizer", "schedule")
        }


def test_the_metrics_are_of_the_packaged_recipes() -> None:
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    for phase, name in zip(("pretrain", "anneal"), metrics["recipes"], strict=True):
        recipe, run = load_recipe(resource("recipes") / f"{name}.toml"), metrics["runs"][phase]
        assert run["steps"] == recipe.schedule.steps
        assert run["tokens"] == recipe.schedule.steps * recipe.train.batch_size * recipe.data.seq_len
        assert run["sources"].keys() == {source.name for source in recipe.data.sources}


def test_no_source_was_read_more_than_eight_times_in_both_phases() -> None:
    runs = json.loads(METRICS.read_text(encoding="utf-8"))["runs"]
    passes: dict[str, float] = {}
    for run in runs.values():
        for name, source in run["sources"].items():
            passes[name] = passes.get(name, 0.0) + source["epochs"]
    assert len(passes) == 5
    assert max(passes.values()) <= 8


def test_the_metrics_name_no_place_on_the_machine_that_made_them() -> None:
    assert not re.search(r'": "(/|~|[A-Z]:)', METRICS.read_text(encoding="utf-8"))
