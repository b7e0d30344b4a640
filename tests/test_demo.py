"""What `make demo` promises, read off the run that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardscope.checkpoint import STATE, list_checkpoints
from shardscope.config import load_recipe
from shardscope.evals.report import held_out_table
from shardscope.files import read_json
from shardscope.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "shard-pico-anneal"

made = pytest.mark.skipif(not list_checkpoints(RUN), reason="`make demo SERVE=0` trains it")


@made
def test_the_annealed_pico_model_beats_a_3_gram_of_bytes_on_every_source() -> None:
    for line in held_out_table(RUN, order=3):
        assert line.after < line.before, line
        assert line.after < line.baseline.ngram, line


@made
def test_it_finished_and_lost_no_step() -> None:
    for run in (RUN, RUN.with_name("shard-pico-pretrain")):
        facts = read_json(list_checkpoints(run)[-1] / STATE)
        assert (facts["status"], facts["skipped_steps"]) == ("finished", 0)


@made
def test_it_was_trained_by_the_recipes_that_are_here() -> None:
    for phase in ("pretrain", "anneal"):
        recipe = load_recipe(ROOT / "recipes" / f"shard-pico-{phase}.toml")
        steps = [line["step"] for line in read_metrics(RUN.with_name(recipe.name), "train")]
        assert steps[-1] == recipe.schedule.steps
