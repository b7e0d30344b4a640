"""The notebooks run from top to bottom, and find in a model that learnt to copy what they look for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOADS = "CHECKPOINT = None"


def executed(name: str, checkpoint: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the notebook on `checkpoint`, every cell as written but for its choice of a model; the value of `wanted`."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (chooses,) = [cell for cell in notebook.cells if LOADS in cell.source]
    chooses.source = chooses.source.replace(LOADS, f"CHECKPOINT = {str(checkpoint)!r}")
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({wanted}))"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {}})
    client.execute(cwd=str(checkpoint.parent))
    found: dict[str, Any] = json.loads(notebook.cells[-1].outputs[-1].text)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_a_probe_finds_nothing_past_the_window_before_the_first_global_layer(
    trained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "{'probe': list(accuracy.values()), 'control': list(control.values()), 'noise': noise}"
    found = executed("probing", trained_checkpoint, wanted, monkeypatch)
    embedding, sliding, *rest = found["probe"]
    assert abs(embedding - 0.5) < 4 * found["noise"]
    assert abs(sliding - 0.5) < 4 * found["noise"]
    assert max(rest) > 0.5 + 4 * found["noise"], "a model with induction heads knows what it has seen"
    assert all(abs(score - 0.5) < 4 * found["noise"] for score in found["control"])


@pytest.mark.slow
def test_removing_the_detected_heads_takes_the_in_context_gain_away(
    trained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = executed("induction", trained_checkpoint, "{'gain': gain, 'found': found}", monkeypatch)
    gain = found["gain"]
    assert gain["nothing"] > 2
    assert gain["all of these"] < 0.5 * gain["nothing"]
    assert gain["as many others"] > gain["all of these"] + 0.5
    assert {tuple(head) for heads in found["found"].values() for head in heads}


@pytest.mark.slow
def test_a_model_that_has_learnt_nothing_is_told_so(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = executed("induction", tiny_checkpoint, "{'gain': gain}", monkeypatch)
    assert abs(found["gain"]["nothing"]) < 0.3
