"""Every way to die, everywhere: the long form of `tests/train/test_dying.py`."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import Count
from dying import die

from shardscope.checkpoint import list_checkpoints, read_tensors
from shardscope.config import ConfigError
from shardscope.train.lineage import weights_digest
from shardscope.train.metrics import read_metrics

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc for names"),
]


@pytest.mark.parametrize(
    ("way", "cases"),
    [
        ("kills_at_changes", "all"),
        ("kills_at_moments", 100),
        ("signals", 100),
        ("full_disk", "all"),
        ("read_only", "all"),
        ("two_trainers", 20),
        ("forks_of_a_run_that_deletes", 200),
    ],
)
def test_nothing_is_lost_by_dying(
    recipe_file: Path, tmp_path: Path, attack: Callable[[str], Count], way: str, cases: int | str
) -> None:
    found = die(recipe_file, tmp_path / "deaths", {way: cases})[way]
    attack(way).add(found["tried"], found["sentences"], found["lost"])
    assert found["lost"] == []
    assert found["tried"] >= 10


STEPS = ["--schedule.steps", "8", "--schedule.warmup", "0", "--train.save_every", "2", "--train.keep", "1"]
CHANGES = "write,pwrite64,fsync,rename,renameat,renameat2,mkdir,unlink,unlinkat,rmdir,ftruncate,chmod,fchmod"


def command(recipe: Path, case: Path) -> list[str]:
    module = [sys.executable, "-m", "shardscope.recipes.pretrain", str(recipe)]
    return [*module, *STEPS, "--run_dir", str(case / "run"), "--data.cache_dir", str(case / "cache")]


def train(recipe: Path, case: Path, *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, *command(recipe, case)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def result(case: Path) -> tuple[str, list[int], list[str]]:
    (last,) = list_checkpoints(case / "run")
    steps = [line["step"] for line in read_metrics(case / "run", "train")]
    return weights_digest(read_tensors(last / "model.safetensors")), steps, [last.name]


def test_killed_at_any_system_call_that_changes_a_file(
    recipe_file: Path, tmp_path: Path, attack: Callable[[str], Count]
) -> None:
    """Also those of libraries that are not written in Python."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    counted = train(recipe_file, tmp_path / "whole", "strace", "-f", "-c", "-e", f"trace={CHANGES}")
    if counted.returncode:
        pytest.skip(f"strace may not trace here: {counted.stderr[-200:]}")
    # strace counts the calls of each name apart, and those of each thread.
    rows = re.findall(r"(?m)^ +[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", counted.stderr)
    calls = [(name, number) for number_of, name in rows for number in range(1, int(number_of) + 1)]
    expected, rng = result(tmp_path / "whole"), random.Random(0)
    count, killed = attack("kills_at_calls"), 0
    for _ in range(40):
        chosen = rng.sample(calls, 2)
        case = tmp_path / "-".join(f"{name}-{number}" for name, number in chosen)
        with count.attempt(case.name):
            for name, number in chosen:
                inject = f"inject={name}:signal=SIGKILL:when={number}"
                words = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject]
                killed += train(recipe_file, case, *words).returncode == -signal.SIGKILL
            done = train(recipe_file, case)
            assert done.returncode == 0, done.stderr
            assert result(case) == expected
            shutil.rmtree(case)
    assert count.lost == []
    count.measured["killed"] = killed
    assert killed >= count.tried, "most runs ended before their call came"


def test_a_small_disk_says_one_sentence_and_a_larger_one_goes_on(
    recipe_file: Path, tmp_path: Path, attack: Callable[[str], Count]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    assert train(recipe_file, tmp_path / "whole").returncode == 0
    count = attack("small_disks")
    for kilobytes in (4, 8, 32, 64, 128, 256, 512, 1024):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with count.attempt(f"{kilobytes} kB"):
                _fill_up_and_grow(recipe_file, disk, result(tmp_path / "whole"))
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    assert count.lost == []


def _fill_up_and_grow(recipe_file: Path, disk: Path, expected: tuple[str, list[int], list[str]]) -> None:
    """Raises the sentence of the first run as a ConfigError, if the second ends as an undisturbed one."""
    first = train(recipe_file, disk)
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    then = train(recipe_file, disk)
    assert then.returncode == 0, then.stderr
    assert result(disk) == expected
    if first.returncode:
        assert "Traceback" not in first.stderr
        sentence = first.stderr.splitlines()[-1]
        assert re.fullmatch(r"error: .*(no room is left|No space left|cannot be written).*", sentence)
        raise ConfigError(sentence)
