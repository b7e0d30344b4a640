"""The modules and subpackages of shardscope, and the one direction of the imports between them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shardscope"
LEAVES = {
    "colors",
    "config",
    "device",
    "files",
    "manifest",
    "openmp",
    "processes",
    "progress",
    "resources",
    "tensors",
    "terminal",
    "threads",
    "tokenizer",
    "visible",
}
# Room: the rooms it may import from, besides itself.
ARROWS = {
    "colors": set(),
    "config": set(),
    "device": {"config"},
    "files": {"config"},
    "manifest": {"config", "files", "tensors"},
    "tensors": {"config", "files"},
    "openmp": set(),
    "processes": {"config"},
    "tokenizer": {"config", "files", "tokenizer_checks"},
    "tokenizer_checks": set(),
    "progress": set(),
    "resources": set(),
    "terminal": set(),
    "visible": set(),
    "threads": set(),
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
    "reproduce": LEAVES
    | {
        *("model", "checkpoint", "data", "train", "generation", "microscope", "failures", "evals", "bench"),
        "recipes",
    },
}
# What `from shardscope import …` brings besides.
LATER = {
    "generate": "generation",
    "label": "failures",
    "read": "microscope",
    "score": "generation",
    "stream": "generation",
}
CORE = {
    *("torch", "einops", "jaxtyping", "tokenizers", "safetensors", "numpy", "dacite", "tqdm", "triton", "psutil", "PIL")
}
# Optional packages, and the rooms that may import them.
OPTIONAL = {
    "transformer_lens": {"interop", "bench"},
    "transformers": {"interop", "bench"},
    "lm_eval": {"evals", "bench"},
    "math_verify": {"evals"},
    "datasets": {"data", "evals"},
    "pyarrow": {"data", "microscope"},
    "zstandard": {"data"},
    "pandas": {"evals", "microscope"},
    "huggingface_hub": {"interop", "data"},
    "wandb": {"train"},
    "cudnn": {"model"},
    "matplotlib": {"bench"},
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


def rooms_imported_by(path: Path) -> set[str]:
    """The other rooms that a file imports from."""
    names = {"load": "checkpoint", "Shard": "model", "ShardConfig": "config", **LATER}
    parts = [module.split(".") for module, _ in imports(path)]
    rooms = {names.get(part[1], part[1]) for part in parts if part[0] == "shardscope" and len(part) > 1}
    return rooms - {room_of(path)}


def test_the_arrows_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} may not import {room}"
        for path in FILES
        for room in sorted(rooms_imported_by(path) - ARROWS[room_of(path)])
    ]
    assert not wrong


def test_optional_packages_are_imported_in_their_own_rooms_only() -> None:
    wrong = []
    for path in FILES:
        for package in {module.split(".")[0] for module, _ in imports(path)}:
            known = package in sys.stdlib_module_names or package in CORE or package == "shardscope"
            if not known and room_of(path) not in OPTIONAL.get(package, set()):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {package}")
    assert not wrong


CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


def picture() -> str:
    """The rooms in the order in which they may be read, each with those it imports that no other of them implies."""
    direct: dict[str, set[str]] = {}
    for path in FILES:
        direct.setdefault(room_of(path), set()).update(rooms_imported_by(path))
    order = list(TopologicalSorter(direct).static_order())
    below: dict[str, set[str]] = {}
    for room in order:
        below[room] = direct[room].union(*(below[other] for other in direct[room]))
    depth: dict[str, int] = {}
    for room in order:
        depth[room] = max((depth[other] + 1 for other in direct[room]), default=0)
    lines: dict[tuple[int, str], list[str]] = {}  # rooms that import the same stand on one line
    for room in sorted(order, key=lambda room: (depth[room], room)):
        implied = set().union(*(below[other] for other in direct[room]))
        shown = ", ".join(sorted(direct[room] - implied)) or "(nothing of ours)"
        lines.setdefault((depth[room], shown), []).append(room)
    arrows = [f"    {', '.join(rooms)} <- {shown}" for (_, shown), rooms in lines.items()]
    return "\n".join([*arrows, "    cli <- all of them; apps/ too"])


def test_contributing_shows_the_rooms_and_arrows_that_the_imports_have() -> None:
    page = CONTRIBUTING.read_text(encoding="utf-8")
    assert picture() in page, "the imports have changed; `python tests/test_architecture.py` draws the picture anew"


def test_nothing_in_the_package_knows_of_a_browser() -> None:
    assert not any(module.startswith("streamlit") for path in PACKAGE.rglob("*.py") for module, _ in imports(path))


def test_importing_the_package_imports_no_optional_package() -> None:
    code = "import sys, shardscope; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {*OPTIONAL, "streamlit", "matplotlib", "altair", "triton"}


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
    ("reproduce/training.py", "open"): "the same lock, to see whether it is held",
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


if __name__ == "__main__":
    shown = CONTRIBUTING.read_text(encoding="utf-8")
    drawn = re.sub(r"(?m)^    [\w, ]+ <- .*(\n    [\w, ]+ <- .*)+", lambda _: picture(), shown)
    CONTRIBUTING.write_text(drawn, encoding="utf-8")
