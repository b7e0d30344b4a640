"""docs/reference-run.md is what its script makes of the committed metrics, to the letter."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import statistics
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shardscope.config import load_recipe
from shardscope.config.training import OptimizerConfig, ScheduleConfig
from shardscope.failures.intervals import wilson
from shardscope.reproduce.pair import Run
from shardscope.reproduce.pipeline import log_of
from shardscope.resources import resource
from shardscope.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PAGE, METRICS = ROOT / "docs" / "reference-run.md", ROOT / "docs" / "reference" / "shard-54m-run.json"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(METRICS.with_name(name).read_text(encoding="utf-8"))
    return found


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


@pytest.mark.parametrize("phase", ["pretrain", "anneal"])
def test_curves_and_figures_of_a_run_are_those_of_its_log(phase: str, tmp_path: Path) -> None:
    found = json.loads(METRICS.read_text(encoding="utf-8"))
    run = found["runs"][phase]
    shutil.copy(METRICS.with_name(f"shard-54m-{phase}.metrics.jsonl"), tmp_path / "metrics.jsonl")
    recipe = resource("recipes") / f"reference-{phase}-local.toml"
    logged = log_of(Run(phase, recipe, {}, load_recipe(recipe, {"run_dir": str(tmp_path)})))  # type: ignore[arg-type]
    assert logged == {key: run[key] for key in logged}
    lines = read_metrics(tmp_path)
    events = [line for line in lines if line["kind"] == "event"]
    starts = [line for line in events if line["event"] == "start"]
    assert run["starts"] == [line["resumed_at"] for line in starts]
    assert run["pauses"] == [
        {"step": line["step"], "reason": line["reason"]} for line in events if line["event"] == "paused early"
    ]
    assert run["sources"] == starts[-1]["sources"]
    assert run["troubles"] == [line for line in events if line["event"] == "trouble"] == []
    rates = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    assert run["tokens_per_second"] == round(statistics.median(rates), 1)
    assert run["skipped_steps"] == [line["skipped"] for line in lines if line["kind"] == "train"][-1]
    for name, source in found["text"][phase].items():
        assert source["overlap"] == starts[-1]["overlap"][name]
        assert source["tokens"] == starts[-1]["sources"][name]["tokens"]
        assert source["malformed"] == starts[-1]["malformed"][name]
    assert found["text"]["tokenizer"] == run["tokenizer"] == starts[-1]["tokenizer"]
    assert found["model"]["n_params"] == run["n_params"] == starts[-1]["n_params"]
    # From one event to the next, without the time between a pause and the start after it.
    clock = sum(after["time"] - before["time"] for before, after in pairwise(events) if after["event"] != "start")
    assert 0.7 * clock < run["seconds"] < clock


def test_what_was_measured_agrees_with_itself_and_with_the_logs() -> None:
    found = json.loads(METRICS.read_text(encoding="utf-8"))
    for when, suite in found["suite"].items():
        assert {name: count for name, count in suite["failures"].items() if count} == Counter(
            suite["by_prompt"].values()
        )
        assert suite["prompts"] == len(suite["by_prompt"]), when
    for name, result in found["tasks"].items():
        for row in result["rows"]:
            assert row["questions"] == found["questions"][name.partition("/")[0]]["questions"]
            if row["metric"] in ("acc", "acc_bytes", "exact_match", "math_verify"):  # shares of right answers
                share, of = row["value"], row["questions"]
                assert share * of == pytest.approx(round(share * of), abs=1e-6)
                assert row["stderr"] == pytest.approx((share * (1 - share) / (of - 1)) ** 0.5, rel=1e-6)
    for name, parts in found["loss"]["after"].items():  # what the trainer's own last evaluation says
        nats, size = (sum(part[key] for part in parts) for key in ("nats", "bytes"))
        logged = found["runs"]["anneal"]["held_out"][-1]["bits_per_byte"][name]
        assert nats / math.log(2) / size == pytest.approx(logged, rel=1e-3)
    for reach in found["reach"].values():
        for recall in (*reach["whole"], *reach["cut"]):
            right = round(recall["chosen"] * recall["samples"])
            assert recall["chosen_interval"] == pytest.approx(list(wilson(right, recall["samples"])))
    assert len(found["heads"]) == 20
    for scored in found["heads"].values():
        assert len(scored["heads"]) == found["model"]["n_layers"] * found["model"]["n_heads"]


def test_the_overlap_is_of_the_tokens_that_were_trained_on() -> None:
    found = json.loads(METRICS.read_text(encoding="utf-8"))
    counted = json.loads(METRICS.with_name("shard-54m-overlap.json").read_text(encoding="utf-8"))
    for phase in found["runs"]:
        assert counted[phase].keys() == found["text"][phase].keys()
        for name, source in found["text"][phase].items():
            anew = counted[phase][name]
            assert anew["fingerprint"] == source["fingerprint"]
            assert anew["of_documents"] == source["documents"]
            assert anew["exact"] == source["overlap"]["exact"]
            # What was counted before is told apart now: a few documents more or less, as Unicode is folded since.
            assert anew["documents"] + anew["formulas"] == pytest.approx(source["overlap"]["documents"], abs=5)


def test_the_minutes_by_the_clock_lie_between_those_of_the_logs_and_the_sum_of_all_stages() -> None:
    found = json.loads(METRICS.read_text(encoding="utf-8"))
    notes = json.loads(METRICS.with_name("shard-54m-notes.json").read_text(encoding="utf-8"))
    lines = [
        json.loads(
            METRICS.with_name(f"shard-54m-{phase}.metrics.jsonl").read_text(encoding="utf-8").splitlines()[place]
        )
        for phase, place in (("pretrain", 0), ("anneal", -1))
    ]
    stages = {stage["name"]: stage["seconds"] for stage in found["stages"]}
    measuring = sum(seconds for name, seconds in stages.items() if "/" in name)
    trained = stages["text"] + lines[1]["time"] - lines[0]["time"]
    at_least = trained + measuring / notes["measured_at_once"]
    assert at_least / 60 < notes["minutes_by_the_clock"] < sum(stages.values()) / 60


def test_the_recipes_that_ran_are_the_packaged_ones() -> None:
    """Fields that recipes have got since do by default what was done then."""
    defaults = {"optimizer": OptimizerConfig(), "schedule": ScheduleConfig(steps=1)}
    for phase in ("pretrain", "anneal"):
        ran = json.loads(METRICS.with_name(f"shard-54m-{phase}.recipe.json").read_text(encoding="utf-8"))
        packaged = json.loads(json.dumps(load_recipe(resource("recipes") / f"{ran['name']}.toml").to_dict()))
        for part, default in defaults.items():
            before = json.loads(json.dumps(asdict(default))) | ran[part]
            assert packaged[part] == before


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


def test_what_was_not_seen_is_the_rest_of_what_was_measured() -> None:
    counted, run = read("shard-54m-unseen.json"), read("shard-54m-run.json")
    overlap = read("shard-54m-overlap.json")["anneal"]
    assert counted.keys() == {name for name, found in overlap.items() if found["documents"]}
    for name, source in counted.items():
        assert source["overlapping_documents"] == overlap[name]["documents"]
        parts = [source["not seen"], source["seen"]]
        for key in ("tokens", "bytes"):
            assert sum(part[key] for part in parts) == source["all"][key]
        bits = sum(part["bits_per_byte"] * part["bytes"] for part in parts)
        assert bits / source["all"]["bytes"] == pytest.approx(source["all"]["bits_per_byte"], rel=1e-5)
        # The run's own figure, of weights that were not rounded.
        measured = run["runs"]["anneal"]["held_out"][-1]["bits_per_byte"][name]
        assert source["all"]["bits_per_byte"] == pytest.approx(measured, rel=2e-3)
