"""Files of strangers, at every place where a command reads one: little memory, no endless wait, nothing executed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Count
from tiny_run import RECIPE, write_corpus

from shardscope.config import load_recipe
from shardscope.interop.restricted import read_original
from shardscope.tensors import read_tensors, write_tensors
from shardscope.train import train

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and makes sparse files and pipes"),
]
PROGRAM = Path(__file__).with_name("strangers.py")
MB, GB = 2**20, 2**30
MOST_MEGABYTES = 2048


def attempts(count: Count, folder: Path, commands: list[tuple[str, list[str]]], must_refuse: bool = False) -> None:
    """Run each command line in a process of its own, and count how it ended."""
    asked = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], input=json.dumps(commands), capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    ended = [json.loads(line) for line in asked.stdout.splitlines()]
    assert len(ended) == len(commands), asked.stderr
    for one in ended:
        count.tried += 1
        if one["megabytes"] > MOST_MEGABYTES:
            count.lost.append(f"{one['name']}: {one['megabytes']} MB")
        elif one["how"] == "sentence":
            count.refused += 1
        elif one["how"] == "done" and not must_refuse:
            count.unharmed += 1
        else:
            count.lost.append(f"{one['name']}: {one['how']}")
    most = count.measured
    most["most_megabytes"] = max(most.get("most_megabytes", 0), *(one["megabytes"] for one in ended))
    most["most_cpu_seconds"] = max(most.get("most_cpu_seconds", 0), *(one["seconds"] for one in ended))


# --------------------------------------------------------------------------------------------- planted files


class Runs:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def packed_object(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": Runs(mark)}, buffer)
    return buffer.getvalue()


def numpy_object(mark: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Runs(mark)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def contents(mark: Path) -> dict[str, bytes | Callable[[Path], object]]:
    """What may lie where a file is expected: bytes, or how to make it."""
    one = {"dtype": "F32", "shape": [2**24, 2**24], "data_offsets": [0, 2**50]}
    yaml = f"a: !!python/object/apply:os.system ['touch {mark}']\n"
    return {
        "a pickle": pickle.dumps(Runs(mark)),
        "a pickle of protocol 0": pickle.dumps(Runs(mark), protocol=0),
        "a pickle in torch's archive": packed_object(mark),
        "a pickle in a NumPy array": numpy_object(mark),
        "YAML that calls": yaml.encode(),
        "Python": f"import os; os.system('touch {mark}')\n".encode(),
        "nothing": b"",
        "a space": b" ",
        "NULs": bytes(MB),
        "a terabyte of NULs": sparse,
        "nested lists": b"[" * 100_000,
        "nested lists that end": b"[" * 100_000 + b"]" * 100_000,
        "60 MB of nested lists": b"[" * (60 * MB),
        "nested tables": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "nested TOML": b"a = " + b"[" * 100_000 + b"]" * 100_000,
        "nested TOML keys": b".".join([b"a"] * 100_000) + b" = 1",
        "long numbers": b'{"step": ' + b"9" * 5000 + b"}",
        "a long TOML number": b"name = " + b"9" * 5000,
        "a list": b"[1, 2]",
        "null": b"null",
        "an empty table": b"{}",
        "not finite": b'{"step": NaN, "model": Infinity}',
        "half a character": b'{"name": "\\ud800"}',
        "50 MB of numbers": b"[" + b"1.5," * (12 * MB) + b"1]",
        "one key many times": b"{" + b'"a": 1, ' * 100_000 + b'"a": 2}',
        "Latin-1": "{\"name\": \"caf\xe9\"}".encode("latin-1"),
        "UTF-16": '{"name": "a"}'.encode("utf-16"),
        "a UTF-8 mark": b'\xef\xbb\xbf{"name": "a"}',
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "a web page": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
        "random bytes": bytes(np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8)),
        "a header that is longer than the file": header(b"{}", length=2**63),
        "a header that is nested": header(b"[" * 100_000),
        "a header that promises petabytes": header(json.dumps({"a": one}).encode(), bytes(8)),
        "gzip of a gigabyte": gzip.compress(bytes(64 * MB), 1) * 16,
        "control characters": b"\x1b]0;owned\x07\x1b[2J{",
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to nothing": lambda path: path.symlink_to("nothing"),
        "a link to another's file": lambda path: path.symlink_to("/etc/passwd"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its corpora, its run, and that run's export."""
    from shardscope.interop import export_pretrained

    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "one.jsonl", seed=1)
    write_corpus(folder / "two.jsonl", seed=2)
    (folder / "tiny.toml").write_text(RECIPE.format(folder=folder))
    run = load_recipe(folder / "tiny.toml", {"schedule.steps": "10"})
    train(run, progress=False)
    from shardscope import load

    model = load(run.folder)
    export_pretrained(model, folder / "exported")
    torch.save({"cfg": {"dim": 32}, "model": dict(model.state_dict())}, folder / "model.pt")
    (folder / "story.txt").write_text("the cat sees the dog")
    return folder


def places(trained: Path) -> dict[str, tuple[Path, list[list[str]]]]:
    """Every file that a command reads, and commands that read it. `{new}` is a folder that is not there."""
    run = trained / "run"
    last = max((run / "checkpoints").iterdir())
    short = ["--max-new-tokens", "2"]
    recipe = ["train", str(trained / "tiny.toml"), "--run_dir", "{new}", "--schedule.steps", "2"]
    original = ["import", str(trained / "model.pt"), "--out", "{new}"]
    found: dict[str, tuple[Path, list[list[str]]]] = {}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "manifest.json"):
        found[f"a checkpoint's {name}"] = (
            last / name,
            [["info", str(last)], ["generate", "the cat", "--checkpoint", str(last), *short]],
        )
    resume = ["train", str(trained / "tiny.toml"), "--schedule.steps", "11"]
    found["a checkpoint's state.json"] = (last / "state.json", [["info", str(last)], resume])
    found["a checkpoint's optimizer.safetensors"] = (last / "optimizer.safetensors", [resume])
    found["a run's recipe.json"] = (run / "recipe.json", [["report", str(run)]])
    found["a run's metrics.jsonl"] = (run / "metrics.jsonl", [["report", str(run)]])
    found["a recipe"] = (trained / "tiny.toml", [recipe])
    found["a corpus"] = (trained / "one.jsonl", [[*recipe, "--data.cache_dir", "{new}/cache"]])
    found["a prompt"] = (
        trained / "story.txt",
        [["attention", str(last), "--prompt-file", str(trained / "story.txt"), "--out", "{new}"]],
    )
    found["the original format"] = (trained / "model.pt", [original])
    found["the tokenizer of an original"] = (
        trained / "tok.json",
        [[*original, "--tokenizer", str(trained / "tok.json")]],
    )
    found["the text of an original"] = (trained / "text.txt", [[*original, "--text", str(trained / "text.txt")]])
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        found[f"an export's {name}"] = (
            trained / "exported" / name,
            [["import", str(trained / "exported"), "--out", "{new}"]],
        )
    return found


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("planted_in_checkpoints", ("a checkpoint's ",)),
        ("planted_in_runs", ("a run's ",)),
        ("planted_in_inputs", ("a recipe", "a corpus", "a prompt")),
        ("planted_in_imports", ("the ", "an export's ")),
    ],
)
def test_whatever_lies_where_a_file_is_read_is_one_sentence_and_never_executed(
    trained: Path, tmp_path: Path, attack: Callable[[str], Count], name: str, beginning: tuple[str, ...]
) -> None:
    count, mark = attack(name), tmp_path / "executed"
    for turn, (place, (path, commands)) in enumerate(places(trained).items()):
        if not place.startswith(beginning):
            continue
        asked, folders = [], []
        for which, (what, content) in enumerate(contents(mark).items()):
            # Whoever names a pipe as a recipe, a prompt or a text means to write to it.
            if what == "a pipe" and place in ("a recipe", "a prompt", "the text of an original"):
                continue
            for number, words in enumerate(commands):
                # Each command reads a third of them, and its neighbours the others: all of them take an hour alone.
                if (which + number + turn) % 3:
                    continue
                copy = tmp_path / f"{len(folders)}"
                folders.append(copy)
                shutil.copytree(trained, copy, symlinks=True)
                # The copy's run is that of the copy's recipe, so that it can be resumed.
                for stated in (copy / "tiny.toml", copy / "run" / "recipe.json"):
                    stated.write_text(stated.read_text().replace(str(trained), str(copy)))
                planted = copy / path.relative_to(trained)
                planted.unlink(missing_ok=True)
                planted.write_bytes(content) if isinstance(content, bytes) else content(planted)
                said = [word.replace("{new}", str(copy / "new")).replace(str(trained), str(copy)) for word in words]
                asked.append((f"{place} is {what} ({words[0]} {number})", said))
        attempts(count, tmp_path, asked)
        for folder in folders:
            shutil.rmtree(folder)
        assert not mark.exists(), f"{place}: something was executed"
    assert count.lost == []


# --------------------------------------------------------------------------------------------------- corpora


def zipped(piece: bytes, times: int) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a", "w", force_zip64=True) as file,
    ):
        for _ in range(times):
            file.write(piece)
    return buffer.getvalue()


def zst(piece: bytes) -> bytes:
    import zstandard

    return zstandard.compress(piece, 1)


PACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    ".gz": lambda piece, times: gzip.compress(piece, 1) * times,
    ".xz": lambda piece, times: lzma.compress(piece, preset=0) * times,
    ".bz2": lambda piece, times: bz2.compress(piece, 1) * times,
    ".zst": lambda piece, times: zst(piece) * times,
    ".zip": zipped,
}


def test_archives_of_gigabytes(tmp_path: Path, attack: Callable[[str], Count]) -> None:
    pieces = {
        "NULs": b"\0",
        "line ends": b"\n",
        "brackets": b"[",
        "tables": b'{"a":',
        "one line": b"x",
        "one text": b"x",
    }
    # Text that is packed less tightly than bombs are is text, however long: it is read, in as little memory.
    bombs, texts = [], []
    for suffix, pack in PACKERS.items():
        for what, piece in pieces.items():
            for kind in (".jsonl", ".json", ".txt"):
                path = tmp_path / f"{what.replace(' ', '-')}{kind}{suffix}"
                path.write_bytes(pack((piece * (16 * MB))[: 16 * MB], 128))
                is_bomb = kind != ".txt" or 200 * path.stat().st_size < 2048 * MB
                (bombs if is_bomb else texts).append((f"{what} in {kind}{suffix}", ["documents", str(path)]))
    count = attack("bombs")
    attempts(count, tmp_path, bombs, must_refuse=True)
    attempts(count, tmp_path, texts)
    assert count.lost == []


def test_parquet_files_that_lie(tmp_path: Path, attack: Callable[[str], Count]) -> None:
    """Bits of the metadata and of the pages' headers, whole varints of them, and row groups that claim to be others."""
    import pyarrow
    from pyarrow import parquet

    rng, asked = random.Random(0), []
    table = pyarrow.table({"text": [f"row {n} " * 20 for n in range(400)], "n": list(range(400))})
    for compression in ("none", "snappy", "zstd"):
        whole = tmp_path / f"{compression}.parquet"
        parquet.write_table(table, whole, compression=compression, row_group_size=100)
        content = whole.read_bytes()
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        for number in range(100):
            forged = bytearray(content)
            for _ in range(rng.choice((1, 1, 3))):
                place = rng.randrange(footer, len(content)) if number % 4 else rng.randrange(len(content))
                match rng.randrange(3):
                    case 0:
                        forged[place] ^= 1 << rng.randrange(8)
                    case 1:  # a number of up to 2^63, as Thrift writes it
                        forged[place : place + 9] = b"\xfe" + b"\xff" * 7 + b"\x7f"
                    case 2:
                        forged[place] = rng.choice((0, 1, 0x7F, 0xFF))
            path = tmp_path / f"{compression}-{number}.parquet"
            path.write_bytes(bytes(forged))
            asked.append((path.name, ["documents", str(path)]))
    count = attack("forged_parquet")
    attempts(count, tmp_path, asked)
    assert count.lost == []


# ------------------------------------------------------------------------------------------ tensors and pickles


def test_headers_that_promise_what_the_file_has_not(tmp_path: Path, attack: Callable[[str], Count]) -> None:
    count, rng, path = attack("hostile_headers"), random.Random(0), tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.int64)}
    content = write_tensors(path, tensors).read_bytes()
    length = int.from_bytes(content[:8], "little")
    data = content[8 + length :]
    odd = [
        0,
        -1,
        1,
        2**31,
        2**48,
        2**63,
        2**64,
        1e300,
        2.5,
        None,
        True,
        "8",
        [],
        {},
        [2**40, 2**40],
        "F64",
        "I4",
        "BOOL",
    ]
    for number in range(500):
        values = json.loads(content[8 : 8 + length])
        for _ in range(rng.choice((1, 2))):
            entry = values[rng.choice("ab")]
            key = rng.choice(list(entry))
            if isinstance(entry[key], list) and rng.random() < 0.7:
                entry[key] = [rng.choice(odd) if rng.random() < 0.5 else n for n in entry[key]]
            else:
                entry[key] = rng.choice(odd)
        text = json.dumps(values).encode()
        path.write_bytes(header(text, data[: rng.choice((len(data), len(data), 8))]))
        with count.attempt(f"{number}: {text!r}"):
            for name, tensor in read_tensors(path).items():
                # The same bytes under another shape are what the header says, no more of them.
                assert tensor.numel() * tensor.itemsize <= len(data), name
    assert count.lost == []


CALLS = """
    os:system posix:system os:popen subprocess:Popen subprocess:check_output builtins:eval builtins:exec
    builtins:open builtins:getattr builtins:__import__ builtins:compile __builtin__:eval importlib:import_module
    runpy:run_path pickle:loads _pickle:loads marshal:loads types:FunctionType types:CodeType functools:partial
    functools:reduce operator:attrgetter operator:methodcaller shutil:rmtree pathlib:Path pathlib:PosixPath.unlink
    socket:create_connection torch:load torch.hub:load torch.jit:load torch.serialization:load numpy:load
    numpy.core.multiarray:_reconstruct torch.storage:_load_from_bytes torch._utils:_rebuild_wrapper
    collections:OrderedDict.__class__ torch._utils:_rebuild_tensor_v2.__globals__ code:interact pty:spawn
    webbrowser:open ctypes:CDLL signal:raise_signal sys:exit copyreg:_reconstructor copy_reg:__newobj__
    shardscope.files:write_text logging.config:dictConfig
"""


def calling(module: str, name: str, argument: str, how: int) -> bytes:
    """A pickle that calls module.name(argument), by one of the instructions that call."""
    text = b"X" + len(argument).to_bytes(4, "little") + argument.encode()
    named = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"
    found = f"c{module}\n{name}\n".encode()
    return [
        b"\x80\x02" + found + text + b"\x85R.",
        b"\x80\x04" + named + text + b"\x85R.",
        b"\x80\x02" + found + text + b"\x85\x81.",
        b"\x80\x04" + named + text + b"\x85}\x92.",
        b"(" + text + f"i{module}\n{name}\n.".encode(),
        b"(" + found + text + b"o.",
        b"\x80\x02}X\x03\x00\x00\x00cfg" + found + text + b"\x85Rs.",
        b"\x80\x02" + found + b"}" + text + b"Nsb.",
    ][how]


def test_pickles_that_would_run_code(tmp_path: Path, attack: Callable[[str], Count]) -> None:
    count, mark, path = attack("hostile_pickles"), tmp_path / "executed", tmp_path / "model.pt"
    for module, _, name in (word.partition(":") for word in CALLS.split()):
        for how in range(8):
            data = calling(module, name, f"touch {mark}", how)
            for wrapped in (True, False):
                if wrapped:
                    with zipfile.ZipFile(path, "w") as archive:
                        archive.writestr("model/data.pkl", data)
                        archive.writestr("model/version", b"3\n")
                else:
                    path.write_bytes(data)
                refused = count.refused
                with count.attempt(f"{module}.{name}, {how}, {'archive' if wrapped else 'bare'}"):
                    read_original(path)
                    raise AssertionError("it was read")
                assert count.refused == refused + 1 or count.lost
    assert not mark.exists()
    assert count.lost == []
