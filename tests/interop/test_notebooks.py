"""The notebooks run from top to bottom as they are committed, on the built-in model, and find what they look for."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in ("failures", "induction", "probing")]
LOADS = "CHECKPOINT = None"


def executed(
    name: str,
    wanted: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path | None = None,
    changed: Mapping[str, str] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Run the notebook as written, on `checkpoint` if one is given; what it printed, and the value of `wanted`.

    `changed` are choices at the top of a cell that are made otherwise, such as a smaller number.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    choices = dict(changed or {})
    if checkpoint is not None:
        choices[LOADS] = f"CHECKPOINT = {str(checkpoint)!r}"
    for written, instead in choices.items():
        (chooses,) = [cell for cell in notebook.cells if written in cell.source]
        chooses.source = chooses.source.replace(written, instead)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({wanted}))"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(folder))
    *printed, last = [stdout(cell) for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(printed), json.loads(last)


def stdout(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_what_it_printed_on_the_built_in_model(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.get("name") for cell in cells for output in cell.outputs} == {"stdout"}
    assert stdout(cells[0]).startswith("7,212,288 parameters")
    assert all(stdout(cell) for cell in cells if "print(" in cell.source)


@pytest.mark.slow
def test_the_built_in_model_knows_how_a_far_text_began_from_its_global_layers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "{'probe': accuracy, 'control': control, 'noise': noise}"
    printed, found = executed("probing", wanted, tmp_path, monkeypatch)
    noise = found["noise"]
    near, far = found["probe"]["inside the window"], found["probe"]["beyond the window"]
    # Stages: the embedding, then sliding, global, sliding, global, sliding, global.
    assert abs(near[0] - 0.5) < 4 * noise
    assert near[1] > 0.5 + 4 * noise, "a sliding layer reads what lies inside its window"
    assert max(abs(score - 0.5) for score in far[:2]) < 4 * noise, "and nothing beyond it"
    assert min(far[4:]) > 0.5 + 4 * noise, "from the second global layer on the model carries it"
    for control in found["control"].values():
        assert all(abs(score - 0.5) < 4 * noise for score in control)
    before, after = map(float, re.search(r"beyond the window: (\S+) before .*, (\S+) from", printed).groups())  # type: ignore[union-attr]
    assert (before, after) == (round(far[1], 2), round(max(far[2:]), 2))
    assert "as a coin would" not in printed


@pytest.mark.slow
def test_removing_the_detected_heads_hurts_copying_more_than_any_matched_random_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (
        "{'intact': intact, 'gains': gains, 'controls': controls, 'sizes': [len(matched(h)) for h in removed.values()]}"
    )
    printed, found = executed("induction", wanted, tmp_path, monkeypatch)
    assert found["intact"] > 2
    for what, gain in found["gains"].items():
        lost, by_chance = found["intact"] - gain, [found["intact"] - control for control in found["controls"][what]]
        assert len(by_chance) == 6
        assert lost > 2 * max(by_chance), what
        assert re.search(rf"without {what}: \d+% of the in-context gain is lost; at most -?\d+%", printed), what
    assert found["sizes"] == [2, 2, 4], "the controls remove as many heads"
    assert min(found["gains"].values()) == found["gains"]["all of these"]


@pytest.mark.slow
def test_the_heads_that_look_back_carry_the_loop_that_the_notebook_comes_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (
        "{'runs': [[c.run, c.step] for c in atlas.columns], 'period': when.period, 'still': still, 'broken': broken}"
    )
    smaller = {
        "STEPS = None, 24": "STEPS = None, 4",
        "CONTROLS = random.Random(0), 8": "CONTROLS = random.Random(0), 4",
    }
    printed, found = executed("failures", wanted, tmp_path, monkeypatch, changed=smaller)
    assert found["runs"] == [["of-the-notebook", 2], ["of-the-notebook", 4]]
    assert f"copies of {found['period']} tokens" in printed
    assert found["still"] is False
    assert found["broken"] <= 1
    assert re.search(r"^as it was: loop", printed, re.MULTILINE)
    assert (tmp_path / "runs" / "of-the-notebook" / "atlas").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdict"),
    [("induction", "has hardly learnt to copy"), ("probing", "has not learnt to look that far back")],
)
def test_a_model_that_has_learnt_nothing_is_told_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, verdict: str
) -> None:
    printed, _ = executed(name, "{}", tmp_path, monkeypatch, tiny_checkpoint)
    assert verdict in printed


@pytest.mark.slow
def test_the_notebook_for_an_empty_machine_trains_looks_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, with fewer steps and less text; all else as it is committed. The installation is tested elsewhere."""
    notebook = nbformat.read(ROOT / "notebooks" / "colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "nobody's numbers: everyone trains a model"
    installs, trains, *_ = cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert installs.source.startswith("%pip install")
    notebook.cells.remove(installs)
    source = '[{name = "prose", path = "builtin:prose"}]'
    flags = f"--schedule.steps=3 --train.eval_every=3 --train.eval_tokens=600 --data.sources='{source}'"
    trains.source = trains.source.replace('FLAGS = ""', f"FLAGS = {flags!r}")
    cells[-2].source = cells[-2].source.replace("LIMIT = 20", "LIMIT = 1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    printed = [stdout(cell) for cell in cells]
    assert printed[1].count("finished at step 3") == 2
    assert "3-gram bytes" in printed[2]
    assert printed[4].count("Question: What is 23 + 19?") == 1
    [picture] = [output.data["text/html"] for output in cells[5].outputs if "data" in output]
    assert "data:image/png;base64," in picture
    assert re.search(r"loss \d+\.\d+ with the head, \d+\.\d+ without", printed[6])
    assert "shard_arc_easy" in printed[7]
    assert (tmp_path / "exported" / "model.safetensors").exists()
