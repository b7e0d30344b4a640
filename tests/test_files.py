"""Files are written whole or not at all, and a stranger's are read within bounds."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardscope import Shard, files
from shardscope.checkpoint import save_checkpoint
from shardscope.cli import main
from shardscope.config import ConfigError
from shardscope.files import (
    ReadError,
    WriteError,
    appending,
    is_partial,
    parse_json,
    read_json,
    read_text,
    regular_file,
    remove_partial,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)
from shardscope.recipes.command import run_recipe
from shardscope.tensors import write_tensors
from shardscope.tokenizer import Tokenizer

LONG = "word " * 20_000


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file may grow past `n_bytes`: the system refuses the write, in whatever library it is, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_pieces(path: Path) -> None:
    with whole_folder(path) as partial, (partial / "pieces").open("w") as file:
        for _ in range(20):
            file.write(LONG)


def write_array(path: Path) -> None:
    with whole_folder(path) as partial:
        np.save(partial / "starts.npy", np.ones(10_000))


WAYS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, LONG),
    "bytes": lambda path: write_bytes(path, LONG.encode()),
    "JSON": lambda path: write_json(path, {"text": LONG}),
    "tensors": lambda path: write_tensors(path, {"weight": torch.ones(10_000)}),
    "a folder of pieces": write_pieces,
    "a folder with an array": write_array,
}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [True, False], ids=["over an older one", "where nothing was"])
def test_where_no_room_is_left_the_old_one_stays_and_no_half_one(tmp_path: Path, way: str, before: bool) -> None:
    target = tmp_path / "target"
    if before and "folder" in way:
        target.mkdir()
        (target / "old").write_text("as it was")
    elif before:
        target.write_text("as it was")
    found = everything(tmp_path)
    with room_for(5000), pytest.raises(WriteError) as error:
        WAYS[way](target)
    kept = "what was written there before is intact" if before else "nothing half-written is left"
    assert str(error.value) == (
        f"{target}: no room is left on the disk; {kept}; make room and give the same command again"
    )
    assert everything(tmp_path) == found
    assert [path.name for path in tmp_path.iterdir()] == (["target"] if before else [])
    WAYS[way](target)
    assert target.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, way: str) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "below", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(WriteError, match=r"cannot be written \(.*name another place") as error:
            WAYS[way](target)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match=r"Permission denied.*name another place"):
        write_text(tmp_path / "new", "text")
    tmp_path.chmod(0o700)


def test_what_else_goes_wrong_inside_keeps_its_own_name(tmp_path: Path) -> None:
    """A source that cannot be read while a folder is written is no failure of the writing."""
    with pytest.raises(FileNotFoundError, match="missing"), whole_folder(tmp_path / "new"):
        (tmp_path / "missing").read_text()
    with pytest.raises(ConfigError, match="a reason"), whole_file(tmp_path / "new"):
        raise ConfigError("a reason")
    assert not list(tmp_path.iterdir())


def killed_at(call: int, work: Callable[[], object]) -> bool:
    """Do it in a process that dies at its n-th call of the system's that concerns files; True if it died."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        return status == signal.SIGKILL
    count = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return instead

    try:
        for name in ("open", "fsync", "replace", "rename", "mkdir", "close", "unlink"):
            setattr(os, name, dying(getattr(os, name)))
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_at_any_call_the_name_stands_for_the_old_or_the_new_and_never_for_less(
    tmp_path: Path, kind: str
) -> None:
    old = {"a": b"old a", "b": b"old b"} if kind == "folder" else {"target": b"old"}
    new = {"a": b"new a", "b": b"new b"} if kind == "folder" else {"target": b"new"}
    target = tmp_path / "target"

    def work() -> None:
        if kind == "file":
            write_bytes(target, new["target"])
            return
        with whole_folder(target) as partial:
            for name, content in new.items():
                write_bytes(partial / name, content)

    seen, call, died = set(), 0, True
    while died:
        call += 1
        for name, content in old.items():
            write_bytes(target / name if kind == "folder" else target, content)
        died = killed_at(call, work)
        there = everything(target) if kind == "folder" else {"target": target.read_bytes()}
        assert there in (old, new), f"at call {call}"
        seen.add(there == new)
        remove_partial(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert call > 5
    assert seen == {True, False}


def test_files_get_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "")
        write_tensors(tmp_path / "folder" / "weights", {"a": torch.ones(1)})
        with whole_folder(tmp_path / "whole"):
            pass
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert modes == {"text": "0o640", "folder": "0o750", "weights": "0o640", "whole": "0o750"}


def test_links_and_devices_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "text"
    write_text("/dev/null", "text")
    assert not Path("/dev/null").is_file()


def test_a_folder_that_another_process_made_first_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "cache", replace=False) as partial:
        (partial / "a").write_text("second")
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "a").write_text("first")
    assert everything(tmp_path) == {"cache/a": b"first"}


def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    names = [".recipe.json.0123abcd.partial", ".mine.partial", "recipe.json.0123abcd.partial", ".hidden"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_partial(tmp_path)
    remove_partial(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    assert not is_partial("folder/.a.0123abcd.partial.txt")


def test_a_line_that_finds_no_room_is_a_sentence_and_the_lines_before_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write("first\n")
        file.flush()
        file.write("x" * 1000)
        with room_for(100), pytest.raises(WriteError, match=r"no room is left .* before is intact"), appending(path):
            file.flush()
    assert path.read_text().startswith("first\n")


# ------------------------------------------------------------------------------------------------- commands


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_old_one(
    tiny_checkpoint: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    found = everything(tiny_checkpoint)
    for n_bytes in (100, 2000, 30_000):  # config, tokenizer, weights
        with room_for(n_bytes), pytest.raises(WriteError, match="no room is left"):
            save_checkpoint(tiny_checkpoint, tiny_model, tokenizer=tiny_tokenizer, notes={"filler": "x" * 5000})
        assert everything(tiny_checkpoint) == found


@pytest.mark.parametrize("n_bytes", [100, 1500, 4000, 9000, 40_000])
def test_a_run_for_which_there_is_no_room_says_what_is_intact_and_goes_on_when_there_is(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], n_bytes: int
) -> None:
    words = [str(recipe_file), "--schedule.steps", "6", "--train.save_every", "3"]
    with room_for(n_bytes):
        assert run_recipe("pretrain", None, words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "no room is left on the disk" in error
    assert run_recipe("pretrain", None, words) == 0


def test_an_export_and_an_import_for_which_there_is_no_room_leave_nothing(
    formats: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["export", str(formats[0]), "--out", str(tmp_path / "out")],
        ["import", str(formats[1]), "--out", str(tmp_path / "out")],
    ):
        with room_for(5000):
            assert main(words) == 1
        assert "no room is left on the disk; nothing half-written is left; make room" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- reading


def test_what_is_no_file_is_said_to_be_what_it_is_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in {
        "pipe": "it is a pipe",
        "endless": "it is a device",
        ".": "it is a folder",
        "none": "No such file",
        "loop": "symbolic links",
        "x" * 300: "too long",
        "a\0b": "null",
    }.items():
        for reader in (regular_file, read_text, read_json):
            with pytest.raises(ReadError, match=message):
                reader(tmp_path / name)  # type: ignore[operator]


def test_a_text_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"x" * 2**20)
    assert len(read_text(tmp_path / "text", most=2**20)) == 2**20
    (tmp_path / "text").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ReadError, match="larger than 1 MiB"):
        read_text(tmp_path / "text", most=2**20)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ReadError, match="larger than 64 MiB"):
        read_text(tmp_path / "sparse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "a number in it is too long"),
        ('{"a": -' + "9" * 5000 + "}", "a number in it is too long"),
        ('{"a": 1', "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[]", "holds list, not a table of values"),
        ("3", "holds int, not"),
    ],
)
def test_json_of_every_sort_is_read_or_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ReadError, match=message) as error:
        read_json(tmp_path / "file.json")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_numbers_of_the_usual_sizes_are_read(tmp_path: Path) -> None:
    values = {"big": 2**70, "float": 1e300, "nested": [[[[1]]]]}
    (tmp_path / "file.json").write_text(json.dumps(values))
    assert read_json(tmp_path / "file.json") == parse_json(json.dumps(values), "text") == values
    assert files.MOST_TEXT >= 40e6, "the largest published tokenizer.json has 35 MB"
