"""The rooms of the house and the one direction of the arrows between them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shardscope"
LEAVES = {"config", "device", "files", "manifest", "processes", "progress", "resources", "tensors", "tokenizer"}
# Room: the rooms it may import from, besides itself.
ARROWS = {
    "config": set(),
    "device": {"config"},
    "files": {"config"},
    "manifest": {"config", "files", "tensors"},
    "tensors": {"config", "files"},
    "processes": {"config"},
    "tokenizer": {"config", "files", "tokenizer_checks"},
    "tokenizer_checks": set(),
    "progress": set(),
    "resources": set(),
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
# What `from shardscope import …` brings besides.
LATER = {
    "generate": "generation",
    "label": "failures",
    "read": "microscope",
    "score": "generation",
    "stream": "generation",
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
        target = {"load": "checkpoint", "Shard": "model", "ShardConfig": "config", **LATER}.get(parts[1], parts[1])
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


# What writes a file, by the name that is called. Everything goes through shardscope/files.py, or is written inside a
# `with whole_file(…)` or `with whole_folder(…)` of it.
WRITERS = {
    *("write_text", "write_bytes", "save_file", "tofile", "savez", "savetxt", "write_table", "to_csv", "to_parquet"),
    *("to_json", "to_pickle", "to_excel", "save_pretrained", "savefig", "imwrite", "copyfile", "copytree", "mkdtemp"),
    *("NamedTemporaryFile", "rename", "replace", "renames", "move", "symlink_to", "symlink"),
}
# Appended to line by line, or no more than a place to hold a lock or a name.
UNWHOLE = {
    ("train/metrics.py", "open"): "metrics.jsonl grows by lines, and its readers leave a cut one out",
    ("train/run.py", "open"): "the lock has no content",
    ("data/shards.py", "open"): "gigabytes written piece by piece into a whole_folder",
    ("data/shards.py", "np.save"): "into the same whole_folder",
}


def writes(path: Path) -> list[str]:
    """The calls in a file that write to the disk by other means than the helpers of shardscope/files.py."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    helped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "whole_f" in "".join(ast.unparse(item.context_expr) for item in block.items)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in helped:
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if last == "open" and name != "os.open":
            words = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
            modes = [str(word.value) for word in words if isinstance(word, ast.Constant)]
            if any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes):
                found.append("open")
        elif last in WRITERS and "." in name and node.args:
            # str.replace has two arguments, Path.replace and dataclasses.replace one and a model or keywords.
            if last != "replace" or name == "os.replace" or (len(node.args) == 1 and not node.keywords):
                found.append(name)
        elif name in ("torch.save", "np.save", "numpy.save", "json.dump", "pickle.dump"):
            found.append(name)
    return found


def test_every_file_is_written_whole() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "files.py"]
    found = {(str(path.relative_to(PACKAGE)), call) for path in paths for call in writes(path)}
    assert found == UNWHOLE.keys()


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')",
        "open(path, 'w').write('x')",
        "path.open(mode='ab')",
        "open(path, mode='r+')",
        "np.save(path, array)",
        "torch.save(model, path)",
        "json.dump(values, file)",
        "partial.replace(path)",
        "os.replace(a, b)",
        "safetensors.torch.save_file(weights, path)",
        "frame.to_csv(path)",
        "def f():\n    with open(path, 'x') as file:\n        pass",
    ],
)
def test_another_way_of_writing_would_be_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "room.py").write_text(f"from shardscope.files import write_text\nwrite_text(path, '')\n{line}\n")
    assert len(writes(tmp_path / "room.py")) == 1
    (tmp_path / "room.py").write_text("text.replace('a', 'b')\nopen(path).read()\nopen(path, 'rb')\nos.open(path, 0)\n")
    assert writes(tmp_path / "room.py") == []
