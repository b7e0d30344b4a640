"""Runs: their state, their curves, and where they fork from one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from opening import open_page
from small_run import make_run

from apps.page_runs import CURVES, Run, curve_cell, curve_table, find_runs, forks, state, states, steps_before, story
from shardscope import ShardConfig
from shardscope.checkpoint import checkpoint_folder
from shardscope.config import load_recipe
from shardscope.tokenizer import Tokenizer
from shardscope.train import train
from shardscope.train.metrics import Metrics


def test_a_run_whose_recipe_is_broken_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    (tiny_run / "recipe.json").write_text('{"name": "x"}')
    page = open_page(monkeypatch, "runs", tiny_run.parent)
    assert not page.exception
    assert page.error[0].value.startswith("Its recipe cannot be read: ")


def test_an_explorer_without_runs_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = open_page(monkeypatch, "runs", tmp_path)
    assert "There is no run under" in page.info[0].value


def test_a_run_outside_the_start_folders_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer
) -> None:
    inside = make_run(tiny_run.parents[1] / "inside" / "mine", tiny_config, tiny_tokenizer)
    (inside.parent / "link").symlink_to(tiny_run)
    page = open_page(monkeypatch, "runs", inside.parent, runs="tiny-run|../runs/tiny-run")
    assert page.multiselect(key="runs").options == ["mine"]
    assert "not among those" in page.warning[0].value


def told(runs: dict[str, Run], name: str) -> str:
    return story(runs[name], {other: forks(run) for other, run in runs.items()})


def test_a_fork_continues_where_its_run_had_come_to(tiny_run: Path, tiny_tokenizer: Tokenizer) -> None:
    recipe = {
        **json.loads((tiny_run / "recipe.json").read_text()),
        "name": "fork",
        "phase": "anneal",
        "model": None,
        "start_from": str(tiny_run),
    }
    fork = tiny_run.parent / "fork"
    metrics = Metrics(fork)
    (fork / "recipe.json").write_text(json.dumps(recipe))
    metrics.write("event", 0, event="start", started_from=str(checkpoint_folder(tiny_run, 20)))
    metrics.write("train", 10, cross_entropy=4.0)
    metrics.close()
    runs = find_runs([tiny_run.parent])
    table = curve_table(list(runs.values()), "cross_entropy")
    assert sorted(zip(table["run"], table["step"], strict=True)) == [("fork", 30), ("tiny-run", 10), ("tiny-run", 20)]
    assert "forks from **tiny\\-run** at step 20" in told(runs, "fork")
    assert "Forked by **fork** at step 20." in told(runs, "tiny-run")
    assert states([runs["tiny-run"], runs["fork"]])["forked from"].tolist() == ["", "tiny-run@20"]
    assert "forked from" not in states([runs["tiny-run"]])


@pytest.mark.parametrize("saved", [True, False], ids=["with a checkpoint", "before its first checkpoint"])
def test_a_fork_of_a_fork_continues_where_both_had_come_to(recipe_file: Path, tmp_path: Path, saved: bool) -> None:
    """Real runs: 10 steps of the first, all 8 of its fork, and then the fork of that."""
    runs = tmp_path / "runs"
    for recipe, name, start in (
        ("tiny", "a", ""),
        ("anneal", "b", "a@10"),
        ("anneal", "c", "b/checkpoints/step-00000008"),
    ):
        changes = {
            "run_dir": str(runs / name),
            "probe.every": "0",
            **({"start_from": f"{runs / start}"} if start else {}),
        }
        train(load_recipe(tmp_path / f"{recipe}.toml", changes), progress=False)
    if not saved:
        shutil.rmtree(runs / "c" / "checkpoints")
    found = find_runs([runs])
    assert {name: steps_before(found[name]) for name in "abc"} == {"a": 0, "b": 10, "c": 18}
    assert "It forks from **b** at step 8." in told(found, "c")
    assert "It forks from **a** at step 10. Forked by **c** at step 8." in told(found, "b")
    assert "Forked by **b** at step 10." in told(found, "a")
    assert states([found[name] for name in "abc"])["forked from"].tolist() == ["", "a@10", "b@8"]
    assert curve_table([found["c"]], "cross_entropy")["step"].tolist() == list(range(19, 27))


def test_a_run_in_trouble_still_runs_and_says_what_is_wrong(tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    run = find_runs([tiny_run.parent])["tiny-run"]
    assert "trouble" not in states([run])
    for kind in ("loss spike", "plateau"):
        metrics.write("event", 20, event="trouble", trouble=kind, since=1018, evidence="high")
    metrics.write("event", 30, event="over", trouble="loss spike")
    metrics.flush()
    assert state(run)["state"] == "running"
    assert states([run])["trouble"].tolist() == ["plateau since step 1,018"]
    metrics.write("event", 30, event="paused early", reason="plateau")
    metrics.close()
    assert state(run)["state"] == "paused early"


def test_a_fork_from_a_checkpoint_folder_names_the_run_of_that_checkpoint(tiny_run: Path) -> None:
    recipe = json.loads((tiny_run / "recipe.json").read_text())
    start_from = str(checkpoint_folder(tiny_run, 10))
    fork = tiny_run.parent / "fork"
    metrics = Metrics(fork)
    (fork / "recipe.json").write_text(
        json.dumps({**recipe, "name": "fork", "phase": "anneal", "model": None, "start_from": start_from})
    )
    metrics.write("event", 0, event="start", started_from=start_from)
    metrics.close()
    runs = find_runs([tiny_run.parent])
    assert "forks from **tiny\\-run** at step 10" in told(runs, "fork")
    assert "Forked by **fork** at step 10." in told(runs, "tiny-run")


def test_a_resumed_run_stays_where_it_began(tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    metrics.write("event", 20, event="start", started_from=str(checkpoint_folder(tiny_run, 20)))
    metrics.write("train", 30, cross_entropy=4.0)
    metrics.close()
    run = find_runs([tiny_run.parent])["tiny-run"]
    assert steps_before(run) == 0
    assert curve_table([run], "cross_entropy")["step"].tolist() == [10, 20, 30]


def test_numbers_that_were_not_finite_are_gaps_of_their_curves(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    nothing = float("nan")
    metrics.write("sentinel", 20, matrices={"a": [nothing, 1.0], "b": [0.5, 1.0], "c": [1.0, nothing]})
    metrics.write("sentinel", 30, matrices={"a": [nothing, nothing]})
    metrics.write("train", 30, cross_entropy=nothing, lr=nothing, grad_norm=nothing)
    metrics.write(
        "eval", 30, prose={"loss": 4.0, "bits_per_byte": 2.0}, all={"loss": nothing, "bits_per_byte": nothing}
    )
    metrics.close()
    with (tiny_run / "metrics.jsonl").open("ab") as file:
        file.write(b'1\n{"kind": "train", "cross_entropy": 3.0}\n{"kind": "event", "step": 30}\n\xff\n')
    run = find_runs([tiny_run.parent])["tiny-run"]
    expected = {
        "cross_entropy": [("training", 10), ("training", 20)],
        "held_out_loss": [("all", 20), ("code", 20), ("prose", 20), ("prose", 30)],
        "bits_per_byte": [("all", 20), ("code", 20), ("prose", 20), ("prose", 30)],
        "smallest_ratio": [("worst matrix", 20)],
    }
    for curve in CURVES:
        page = open_page(monkeypatch, "runs", tiny_run.parent, curve=curve)
        assert not page.exception
        table = curve_table([run], curve)
        points = sorted(zip(table["series"], table["step"], strict=True))
        assert points == expected.get(curve, points)
        # The cell for a notebook draws the same points.
        left: dict[str, dict[str, list[tuple[int, object]]]] = {}
        exec(curve_cell([run], curve), left)
        ((_, drawn),) = left["curve"].items()
        numbers = [x for _, value in drawn for x in (value.values() if isinstance(value, dict) else [value])]
        assert sorted(x for x in numbers if x is not None) == sorted(table["value"])


def test_a_long_curve_keeps_its_last_point_and_is_thinned(tmp_path: Path, tiny_run: Path) -> None:
    metrics = Metrics(tiny_run)
    for step in range(30, 5030):
        metrics.write("train", step, cross_entropy=1.0)
    metrics.close()
    runs = list(find_runs([tiny_run.parent]).values())
    table = curve_table(runs, "cross_entropy")
    assert 300 < len(table) <= 600
    assert table["step"].max() == 5029
    assert len(curve_table(runs, "cross_entropy", most=0)) == 5002
