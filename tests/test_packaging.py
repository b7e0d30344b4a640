"""What `python -m build` makes works in an empty folder without a checkout: both archives, with real installs."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import venv
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
QUICK = ["--schedule.steps=2", "--train.eval_tokens=600", "--train.eval_every=2"]
ONE_SOURCE = '--data.sources=[{name = "sums", path = "builtin:arithmetic"}]'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="links and Makefiles")]


def tracked_files() -> list[Path]:
    """What a clone would have, with the changes that are not committed yet."""
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked archive is not packed again")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and with the wheel built from it, as `python -m build` does."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for path in tracked_files():
        copy = clone / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out)], clone)
    unpacked = unpack(out, tmp_path_factory.mktemp("unpacked"))
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], unpacked)
    return out


def unpack(dist: Path, folder: Path) -> Path:
    [archive] = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    [top] = folder.iterdir()
    return top


def environment_of(folder: Path) -> Path:
    """A virtual environment that sees every package of this one except ours; its Python."""
    venv.create(folder / "venv", symlinks=True)
    packages = folder / "borrowed" / "site-packages"  # by this name dill knows what it need not pickle
    packages.mkdir(parents=True)
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            ours = "shardscope" in entry.name.lower() or entry.suffix == ".pth"
            if not ours and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{packages}\n")
    return folder / "venv" / "bin" / "python"


def clean_environment(python: Path) -> dict[str, str]:
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "TORCH_LOGS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', '')}", "HF_HUB_OFFLINE": "1"}


def run(words: list[str], folder: Path, python: Path | None = None) -> str:
    env = clean_environment(python) if python else None
    done = subprocess.run(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and, from its metadata, what the wheel asks for."""
    python = environment_of(tmp_path_factory.mktemp("installed"))
    [wheel] = archives.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--no-index", f"{wheel}[all]"], archives, python)
    return python


def test_the_wheel_brings_every_dependency_and_the_command(installed: Path, tmp_path: Path) -> None:
    where = run([str(installed), "-c", "import shardscope; print(shardscope.__file__)"], tmp_path, installed)
    assert str(installed.parents[1]) in where
    assert "7,212,288" in run(["shardscope", "info"], tmp_path, installed)
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"


def test_a_packaged_recipe_trains_by_its_name(installed: Path, tmp_path: Path) -> None:
    said = run(
        ["shardscope", "train", "shard-pico-pretrain", *QUICK, ONE_SOURCE, "--model.vocab_size=500"],
        tmp_path,
        installed,
    )
    assert "finished at step 2" in said
    assert "\r" not in said
    said = run(["shardscope", "train", "shard-pico-anneal", *QUICK, ONE_SOURCE], tmp_path, installed)
    assert "finished at step 2" in said
    assert "finished" in run(["shardscope", "info", "runs/shard-pico-anneal"], tmp_path, installed)


def test_the_sample_is_scored_and_lm_eval_finds_the_tasks(installed: Path, tmp_path: Path) -> None:
    said = run(["shardscope", "eval", "--tasks", "shard_arc_easy", "--limit", "2"], tmp_path, installed)
    assert "shard_arc_easy" in said
    assert (tmp_path / "runs" / "evals" / "table.md").exists()
    tasks = run(["shardscope", "eval", "--tasks-path"], tmp_path, installed).strip()
    assert str(installed.parents[1]) in tasks
    words = ["--model", "shard", "--tasks", "shard_arc_easy", "--include_path", tasks, "--limit", "2"]
    said = run(
        [str(installed), "-m", "lm_eval", *words, "--metadata", f"eval_data={tasks}/sample"], tmp_path, installed
    )
    assert "shard_arc_easy" in said.split("Tasks")[-1]


def test_the_explorer_opens(installed: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["shardscope", "explore", "--port", str(port)],
        cwd=tmp_path, env={**clean_environment(installed), "STREAMLIT_SERVER_HEADLESS": "true"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        page = b""
        while not page and server.poll() is None:
            try:
                page = urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5).read()
            except OSError:
                time.sleep(0.2)
        assert page == b"ok"
    finally:
        server.terminate()
        server.wait()
    assert server.stdout is not None
    # The server's own child processes are none: to end the command is to end the explorer.
    assert b"Traceback" not in server.stdout.read()


def test_every_page_of_the_installed_explorer_runs(installed: Path, tmp_path: Path) -> None:
    program = (
        "from streamlit.testing.v1 import AppTest\n"
        "from shardscope.resources import resource\n"
        "page = AppTest.from_file(str(resource('apps') / 'explorer.py'), default_timeout=120).run()\n"
        "assert not page.exception, page.exception\n"
        "print(len(page.main))\n"
    )
    assert int(run([str(installed), "-c", program], tmp_path, installed).split()[-1]) > 0


def test_the_source_archive_makes_the_demo(archives: Path, tmp_path: Path) -> None:
    source = unpack(archives, tmp_path)
    names = ("constraints.txt", "requirements", "Makefile", "tests", "docs", "notebooks", "recipes", "evals", "apps")
    for name in (*names, "LICENSE"):
        assert (source / name).exists(), name
    python = environment_of(tmp_path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--no-index", "--no-build-isolation", "--editable", f"{source}[app]"], tmp_path, python)
    (python.parents[1] / ".demo").touch()  # as after the installation, which would download here
    flags = shlex.join([*QUICK, '--data.sources=[{name = "prose", path = "builtin:prose"}]'])
    words = ["make", "demo", "SERVE=0", f"VENV={python.parents[1]}", f"DEMO_FLAGS={flags}"]
    said = run(words, source, python)
    assert said.count("finished at step 2") == 2
    assert "3-gram bytes" in said
