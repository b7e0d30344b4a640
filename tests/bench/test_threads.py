"""How PyTorch's threads wait, and the benchmark that shows what it is worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardscope.cli import main


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "1000"}, None)],
    ids=["nobody chose", "the user chose", "the user chose otherwise"],
)
def test_threads_wait_without_spinning_unless_the_user_chose(given: dict[str, str], expected: str | None) -> None:
    code = (
        "import os, sys; assert 'torch' not in sys.modules; import shardscope, torch;"
        "print(os.environ.get('OMP_WAIT_POLICY'), torch.get_num_threads())"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = {**plain, **given, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected), "1"]  # the number of threads stays the user's


@pytest.mark.slow
def test_the_benchmark_measures_idle_and_busy_in_one_run(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "threads.json"
    words = ["bench", "threads", "--checkpoint", str(tiny_checkpoint), "--new", "4", "--runs", "1", "--out", str(out)]
    assert main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    cases = [(row["threads"], row["text"], row["busy"]) for row in rows]
    assert len(set(cases)) == len(cases) == 8
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert row["busy"] or row["slower_than_idle"] == 1
    assert "| waiting, greedy, one |" in capsys.readouterr().out
