"""Biographies on the Runs and Heads pages, without a browser."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import open_page
from small_run import make_run
from streamlit.testing.v1 import AppTest

from apps.parts import biography_tables as tables
from apps.parts.biography_files import BiographyFile, biographies_of
from shardscope import ShardConfig
from shardscope.resources import resource
from shardscope.tokenizer import Tokenizer
from shardscope.train.biography import read_biography
from shardscope.train.metrics import BIOGRAPHY

PROBES, APPEARS = 24, 12  # the probe at which induction appears in layer 1, head 2


def probe(step: int, config: ShardConfig, rng: np.random.Generator) -> dict[str, Any]:
    """A line of a run in which one head begins to copy."""
    shape = (config.n_layers, config.n_heads)
    scores = {name: rng.uniform(0, 0.02, shape) for name in ("induction 4", "induction 12", "previous", "reach")}
    scores["entropy"] = rng.uniform(3, 3.1, shape)
    if step >= APPEARS * 10:
        scores["induction 12"][1, 2] += 0.6
    return {
        "kind": "probe", "step": step, "time": 0.0, "seconds": 0.1, "window": 8, "kinds": list(config.layer_kinds),
        "heads": {name: found.tolist() for name, found in scores.items()},
        "matrices": {f"blocks.{layer}.attn.W_Q": [0.1, 2.0 + layer, 5.0, 0.01] for layer in range(config.n_layers)},
        "positions": [0, 1, 8, 32], "loss": {"prose": {"mean": 3.0, "by_position": [5.0, 4.0, 3.0 - step / 1000]}},
        "samples": [
            {"prompt": "Once", "output": f" at step {step} <b>bold</b>", "failure": "loop" if step < 100 else "no flag"}
        ],
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer) -> Path:
    folder = make_run(tmp_path / "runs" / "tiny-run", tiny_config, tiny_tokenizer)
    rng = np.random.default_rng(0)
    lines = [json.dumps(probe(10 * number, tiny_config, rng)) + "\n" for number in range(PROBES)]
    (folder / BIOGRAPHY).write_text("".join(lines))
    return folder


def says(app: AppTest) -> str:
    return "\n".join(
        str(element.value) for element in [*app.caption, *app.markdown, *app.warning, *app.info, *app.error]
    )


def test_the_planted_change_is_named_where_it_is_and_no_other(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    app = open_page(monkeypatch, "runs", run.parent, score="induction 12")
    assert not app.exception
    assert app.selectbox(key="biography").value == "tiny-run"
    assert "Changes (orange): L1H2 global rises from 0.0" in says(app)
    assert "between steps 110 and 120." in says(app)
    assert "Looping falls from 1 to 0 between steps 90 and 100 (orange)." in says(app)
    other = open_page(monkeypatch, "runs", run.parent, score="induction 4")
    assert "Changes (orange): no curve goes from one level to another." in says(other)


def test_an_address_restores_what_of_a_biography_was_shown(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    asked = {
        "score": "entropy", "followed": "L0H1 sliding|L3H3 global", "matrix": "W_Q", "number": "stable rank",
        "source": "prose", "probe": 50,
    }  # fmt: skip
    app = open_page(monkeypatch, "runs", run.parent, **asked)
    assert not app.exception
    assert app.multiselect(key="followed").value == ["L0H1 sliding", "L3H3 global"]
    for key in ("score", "matrix", "number", "source"):
        assert app.selectbox(key=key).value == asked[key]
    assert app.select_slider(key="probe").value == 50
    assert app.dataframe[-1].value["continuation"].tolist() == [" at step 50 <b>bold</b>"]
    assert app.query_params["score"] == "entropy"


@pytest.mark.parametrize(
    "nonsense",
    [
        {"score": "nonsense"}, {"followed": "L9H9 global|x"}, {"matrix": "../W"}, {"number": "7"}, {"source": "none"},
        {"probe": 55}, {"probe": "x"}, {"biography": "<script>"},
    ],
    ids=str,
)  # fmt: skip
def test_an_address_that_means_nothing_shows_the_defaults(
    monkeypatch: pytest.MonkeyPatch, run: Path, nonsense: dict[str, object]
) -> None:
    app = open_page(monkeypatch, "runs", run.parent, **nonsense)
    assert not app.exception
    assert app.selectbox(key="score").value == "induction 4"
    assert app.select_slider(key="probe").value == 230


def test_a_line_that_training_adds_is_there_at_the_next_look(run: Path, tiny_config: ShardConfig) -> None:
    told = BiographyFile("tiny-run", run)
    assert len(told.read().steps) == PROBES
    with (run / BIOGRAPHY).open("a") as file:
        file.write(json.dumps(probe(240, tiny_config, np.random.default_rng(1))) + "\n")
    os.utime(run / BIOGRAPHY, ns=(1, 1))  # whatever the resolution of the clock
    assert told.read().steps[-1] == 240


@pytest.mark.parametrize(
    "broken", ["a pipe", "a folder", "not JSON", "empty", "of another kind", "without matrices", "a missing link"]
)
def test_a_biography_that_cannot_be_read_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, run: Path, tiny_config: ShardConfig, broken: str
) -> None:
    path = run / BIOGRAPHY
    path.unlink()
    if broken == "a pipe":
        os.mkfifo(path)
    elif broken == "a folder":
        path.mkdir()
    elif broken == "a missing link":
        path.symlink_to("nowhere")
    else:
        line = json.dumps({**probe(0, tiny_config, np.random.default_rng(0)), "matrices": {}})
        texts = {"not JSON": "{{{\n\0", "empty": "", "of another kind": '{"kind": "probe", "step": 3}\n'}
        path.write_text({**texts, "without matrices": line + "\n"}[broken])
    app = open_page(monkeypatch, "runs", run.parent)
    assert not app.exception
    assert app.selectbox(key="biography").value == "shard-pico-pretrain (shipped)"


def test_a_run_that_was_probed_once_comes_after_the_shipped_ones_and_says_why(
    monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    path = run / BIOGRAPHY
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    app = open_page(monkeypatch, "runs", run.parent)
    assert app.selectbox(key="biography").value == "shard-pico-pretrain (shipped)"
    assert app.selectbox(key="biography").options[-1] == "tiny-run"
    app = open_page(monkeypatch, "runs", run.parent, biography="tiny-run")
    assert not app.exception
    assert "This run was probed once so far" in says(app)


def test_a_name_in_a_biography_stays_a_name_in_a_cell(run: Path, tiny_config: ShardConfig) -> None:
    name = "W\"); raise SystemExit('run'); (\""
    line = probe(0, tiny_config, np.random.default_rng(0))
    matrices = {f"blocks.0.attn.{name}": next(iter(line["matrices"].values()))}
    (run / BIOGRAPHY).write_text(json.dumps({**line, "matrices": matrices}) + "\n")
    left: dict[str, Any] = {}
    exec(tables.matrices_cell(BiographyFile("tiny-run", run), name, "stable rank"), left)
    assert list(left["numbers"]) == list(matrices)


def test_the_cells_leave_the_numbers_that_are_drawn(run: Path) -> None:
    told, found = BiographyFile("tiny-run", run), read_biography(run)
    left: dict[str, Any] = {}
    exec(tables.heads_cell(told, "induction 12"), left)
    np.testing.assert_array_equal(left["scores"], found.heads["induction 12"])
    assert {head for head, changes in left["changes"].items() if changes} == {"L1H2"}
    exec(tables.matrices_cell(told, "W_Q", "largest singular value"), left)
    assert [values[0] for values in left["numbers"].values()] == [2.0, 3.0, 4.0, 5.0]
    exec(tables.loss_cell(told, "prose"), left)
    assert left["losses"].shape == (PROBES, 3)
    exec(tables.samples_cell(told, 50), left)
    assert left["samples"][0]["output"] == " at step 50 <b>bold</b>"


def test_tables_hold_every_head_and_every_stretch(run: Path) -> None:
    found = read_biography(run)
    table = tables.heads_table(found, "induction 12")
    assert len(table) == PROBES * 16
    row = table[(table["step"] == 200) & (table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    assert (row["kind"], row["induction 12"] > 0.6) == ("global", True)
    assert tables.loss_table(found, "prose")[["from", "to"]].drop_duplicates().values.tolist() == [
        [0, 0],
        [1, 7],
        [8, 31],
    ]


def test_a_long_biography_is_drawn_with_few_columns_and_with_its_last_probe(run: Path) -> None:
    assert tables.thinned(1000, 40)[-1] == 999
    assert len(tables.thinned(1000, 40)) == 40
    assert tables.thinned(3, 40) == [0, 1, 2]
    assert tables.thinned(1, 40) == [0]


def test_the_heads_page_shows_the_run_as_it_was_probed(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    app = open_page(monkeypatch, "heads", run.parent, prompt="Once upon a time", tokens=4, by="entropy")
    assert not app.exception
    assert "On held-out text: bits" in says(app)
    assert "As an example" not in says(app)


def test_without_a_biography_here_both_pages_show_the_shipped_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    runs = open_page(monkeypatch, "runs", tmp_path / "nothing")
    assert not runs.exception
    assert "shard-pico-pretrain" in runs.selectbox(key="biography").value
    assert "one run on a busy two-core CPU" in says(runs)
    heads = open_page(monkeypatch, "heads", tiny_checkpoint.parent, prompt="Once upon a time", tokens=4, by="previous")
    assert not heads.exception
    assert "As an example, the heads of shard" in says(heads)


def test_what_is_shipped_is_small_whole_and_says_where_it_comes_from() -> None:
    shipped = [told for told in biographies_of([]) if told.shipped]
    assert [told.name.partition(" ")[0] for told in shipped] == ["shard-pico-pretrain", "shard-pico-anneal"]
    files = [path for path in (resource("apps") / "biographies").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    for told, last in zip(shipped, (210, 80), strict=True):
        found = told.read()
        assert (found.steps[0], found.steps[-1]) == (0, last)
        assert found.kinds == ("sliding", "global") * 2
        assert "--probe.every" in (told.folder / "README.md").read_text()
        assert json.loads((told.folder / "recipe.json").read_text())["schedule"]["steps"] == last
