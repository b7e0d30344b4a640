"""The rooms of the house and the one direction of the arrows between them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shardscope"
LEAVES = {"config", "device", "tokenizer", "processes"}
# Room: the rooms it may import from, besides itself.
ARROWS = {
    "config": set(),
    "device": {"config"},
    "processes": {"config"},
    "tokenizer": {"config", "tokenizer_checks"},
    "tokenizer_checks": set(),
    "model": {"config"},
    "checkpoint": LEAVES | {"model"},
    "data": LEAVES,
    "train": LEAVES | {"model", "checkpoint", "data"},
    "generation": LEAVES | {"model", "checkpoint"},
    "microscope": LEAVES | {"model", "checkpoint", "generation"},
    "interop": LEAVES | {"model", "checkpoint", "generation"},
    "failures": LEAVES | {"model", "checkpoint", "generation", "microscope"},
    "evals": LEAVES | {"model", "checkpoint", "data", "train", "generation", "failures"},
    "bench": LEAVES
    | {"model", "checkpoint", "data", "train", "generation", "microscope", "interop", "failures", "evals"},
    "recipes": LEAVES | {"model", "train", "failures"},
}
CORE = {"torch", "einops", "jaxtyping", "tokenizers", "safetensors", "numpy", "dacite", "tqdm", "triton"}
# Heavy guests, and the rooms they may enter.
GUESTS = {
    "transformer_lens": {"interop", "bench"},
    "transformers": {"interop", "bench"},
    "lm_eval": {"evals", "bench"},
    "datasets": {"data", "evals"},
    "pyarrow": {"data", "microscope"},
    "zstandard": {"data"},
    "pandas": {"evals", "microscope"},
    "huggingface_hub": {"interop", "data"},
    "wandb": {"train"},
    "cudnn": {"model"},
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at the top of the file) of every import that runs; those for type checkers alone do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import {node.module} by its full name"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "shardscope"
                else [node.module]
            )
            found += [(name or "", node in tree.body) for name in names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in ("cli", "__init__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_arrows_point_one_way(path: Path) -> None:
    room = room_of(path)
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "shardscope" or len(parts) == 1:
            continue
        target = {"load": "checkpoint", "Shard": "model", "ShardConfig": "config"}.get(parts[1], parts[1])
        assert target == room or target in ARROWS[room], f"{room} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_guests_stay_in_their_own_rooms(path: Path) -> None:
    for module, _ in imports(path):
        guest = module.split(".")[0]
        if guest in sys.stdlib_module_names or guest in CORE or guest == "shardscope":
            continue
        assert room_of(path) in GUESTS.get(guest, set()), f"{room_of(path)} imports {module}"


def test_nothing_in_the_package_knows_of_a_browser() -> None:
    assert not any(module.startswith("streamlit") for path in PACKAGE.rglob("*.py") for module, _ in imports(path))


def test_importing_the_package_brings_in_none_of_the_guests() -> None:
    code = "import sys, shardscope; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {*GUESTS, "streamlit", "matplotlib", "altair", "triton"}


def test_only_the_command_lines_read_argv() -> None:
    readers = {
        room_of(path)
        for path in PACKAGE.rglob("*.py")
        if "sys.argv" in path.read_text() or ".parse_args(" in path.read_text()
    }
    assert readers <= {"cli", "recipes"}
