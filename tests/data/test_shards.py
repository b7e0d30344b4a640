from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardscope.config import DataConfig, Source
from shardscope.data import DataError, token_shards
from shardscope.files import is_partial
from shardscope.tokenizer import Tokenizer

Write = Callable[..., Path]
DataOf = Callable[..., DataConfig]
Sentences = Callable[..., list[str]]


@pytest.fixture
def data(write_jsonl: Write, data_of: DataOf, sentences: Sentences) -> DataConfig:
    return data_of(write_jsonl("a.jsonl", sentences(300)))


def folders(data: DataConfig) -> list[str]:
    return sorted(os.listdir(data.cache_dir))


def test_each_document_is_end_of_text_and_its_tokens(
    data: DataConfig, small_tokenizer: Tokenizer, sentences: Sentences
) -> None:
    shards = token_shards(data.sources[0], data, small_tokenizer, progress=False)
    found = 0
    for shard in (shards.train, shards.holdout):
        assert shard.tokens.dtype == np.uint16
        assert isinstance(shard.tokens, np.memmap)
        stops = [*shard.starts[1:], len(shard)]
        for number, (start, stop) in enumerate(zip(shard.starts, stops, strict=True)):
            line = int(shard.origin(number).rsplit(":", 1)[1])
            assert shard.tokens[start:stop].tolist() == small_tokenizer.encode(sentences(300)[line - 1], bos=True)
            assert small_tokenizer.decode(shard.ids(number)) == sentences(300)[line - 1]
            found += 1
    assert found == 300


def test_the_documents_of_a_window_are_found_by_position(data: DataConfig, small_tokenizer: Tokenizer) -> None:
    shard = token_shards(data.sources[0], data, small_tokenizer, progress=False).train
    second, third = int(shard.starts[1]), int(shard.starts[2])
    assert shard.documents_in(0, second) == range(0, 1)
    assert shard.documents_in(0, second + 1) == range(0, 2)
    assert shard.documents_in(second, third) == range(1, 2)
    assert shard.documents_in(second - 1, third + 1) == range(0, 3)


def test_a_second_time_nothing_is_tokenized(
    data: DataConfig, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = token_shards(data.sources[0], data, small_tokenizer, progress=False).train.tokens.tolist()
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_: pytest.fail("tokenized again"))
    renamed = replace(data.sources[0], name="other", weight=7.0)
    assert token_shards(renamed, data, small_tokenizer, progress=False).train.tokens.tolist() == first


def test_whatever_changes_the_tokens_makes_new_shards(data: DataConfig, sentences: Sentences) -> None:
    source, tokenizer = data.sources[0], Tokenizer.train(sentences(100), 300)
    token_shards(source, data, tokenizer, progress=False)
    token_shards(source, data, Tokenizer.train(sentences(100), 301), progress=False)
    token_shards(replace(source, documents=50), data, tokenizer, progress=False)
    assert len(folders(data)) == 3
    with open(source.path, "a") as file:
        file.write('{"text": "one more"}\n')
    token_shards(source, data, tokenizer, progress=False)
    assert len(folders(data)) == 4
    os.utime(source.path, (1, 1))
    token_shards(source, data, tokenizer, progress=False)
    assert len(folders(data)) == 5


def test_a_failed_making_leaves_nothing_behind(data: DataConfig, small_tokenizer: Tokenizer) -> None:
    with open(data.sources[0].path, "a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl:301: not a JSON object"):
        token_shards(data.sources[0], data, small_tokenizer, progress=False)
    assert folders(data) == []


def test_skipped_lines_are_listed_beside_the_shards_and_counted_every_time(
    data: DataConfig, small_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with open(data.sources[0].path, "a") as file:
        file.write("{broken\n[]\n")
    data = replace(data, on_malformed="skip")
    for _ in range(2):
        caplog.clear()
        assert token_shards(data.sources[0], data, small_tokenizer, progress=False).malformed == 2
        assert "data.sources.a: 2 malformed pieces were skipped; they are listed in" in caplog.text
    listed = (Path(data.cache_dir) / folders(data)[0] / "malformed.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [f"{data.sources[0].path}:{n}" for n in (301, 302)]
    with pytest.raises(DataError, match=r"a\.jsonl:301"):
        token_shards(data.sources[0], replace(data, on_malformed="fail"), small_tokenizer, progress=False)


def test_a_holdout_file_is_the_other_side(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, sentences: Sentences
) -> None:
    train, held = write_jsonl("t.jsonl", sentences(5)), write_jsonl("h.jsonl", sentences(3, "held"))
    data = data_of(Source(name="s", path=str(train), holdout=str(held)))
    shards = token_shards(data.sources[0], data, small_tokenizer, progress=False)
    assert small_tokenizer.decode(shards.train.tokens.tolist()) == "".join(sentences(5))
    assert small_tokenizer.decode(shards.holdout.tokens.tolist()) == "".join(sentences(3, "held"))
    held.write_text("")
    with pytest.raises(DataError, match=r"data\.sources\.s: path='.*h\.jsonl' holds no document"):
        token_shards(data.sources[0], data, small_tokenizer, progress=False)


def flip(path: Path, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["short", "missing", "garbled", "a token", "a start", "an origin"])
def test_damaged_shards_are_named_with_the_way_out(data: DataConfig, small_tokenizer: Tokenizer, damage: str) -> None:
    token_shards(data.sources[0], data, small_tokenizer, progress=False)
    folder = Path(data.cache_dir) / folders(data)[0]
    if damage == "short":
        os.truncate(folder / "train.tokens", 10)
    elif damage == "missing":
        (folder / "holdout.starts.npy").unlink()
    elif damage == "garbled":
        (folder / "meta.json").write_text("[]")
    else:  # one bit, which would be another text
        flip(
            folder
            / {"a token": "train.tokens", "a start": "holdout.starts.npy", "an origin": "train.origins.txt"}[damage]
        )
    with pytest.raises(DataError, match=rf"{folder.name}: damaged token shards .* delete the folder"):
        token_shards(data.sources[0], data, small_tokenizer, progress=False)


def test_a_cache_that_cannot_be_written_is_named(data: DataConfig, small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = replace(data, cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cache: token shards cannot be written .* set data\.cache_dir"):
        token_shards(blocked.sources[0], blocked, small_tokenizer, progress=False)


PROGRAM = """
import sys
from shardscope.config import DataConfig, Source
from shardscope.data import token_shards
from shardscope.tokenizer import Tokenizer
path, cache, tokenizer = sys.argv[1:]
data = DataConfig(sources=(Source(name="a", path=path),), cache_dir=cache)
print("ready", flush=True)
sys.stdin.readline()
shards = token_shards(data.sources[0], data, Tokenizer.load(tokenizer), progress=False)
print(len(shards.train), len(shards.holdout))
"""


def start(data: DataConfig, tokenizer: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, data.sources[0].path, data.cache_dir, str(tokenizer)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # A shell starts what it runs in the background with SIGINT ignored, and so would be what that starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_may_prepare_at_the_same_time(
    data: DataConfig, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    small_tokenizer.save(tmp_path)
    processes = [start(data, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len(folders(data)) == 1


@pytest.fixture
def making(
    data: DataConfig, small_tokenizer: Tokenizer, tmp_path: Path, write_jsonl: Write, sentences: Sentences
) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of tokenizing the data."""
    write_jsonl("a.jsonl", sentences(200) * 1000)  # seconds of work
    small_tokenizer.save(tmp_path)
    process = start(data, tmp_path)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    while not list(Path(data.cache_dir).glob(".*.partial/train.tokens")):
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop_while_making_leaves_nothing(
    data: DataConfig, making: subprocess.Popen[str], number: int
) -> None:
    making.send_signal(number)
    making.communicate()
    assert making.returncode != 0
    assert folders(data) == []


def test_what_a_process_killed_while_making_left_is_removed_by_the_next_and_no_other(
    data: DataConfig,
    making: subprocess.Popen[str],
    small_tokenizer: Tokenizer,
    write_jsonl: Write,
    sentences: Sentences,
) -> None:
    (remains,) = folders(data)
    assert is_partial(remains)
    write_jsonl("b.jsonl", sentences(10))
    other = replace(data.sources[0], path=str(Path(data.sources[0].path).with_name("b.jsonl")))
    token_shards(other, data, small_tokenizer, progress=False)
    assert remains in folders(data)  # its process lives
    making.kill()
    making.communicate()
    token_shards(replace(other, documents=5), data, small_tokenizer, progress=False)
    assert len(folders(data)) == 2
    assert not any(is_partial(name) for name in folders(data))
    assert sorted(path.name for path in (Path(data.cache_dir) / folders(data)[0]).iterdir()) == [
        "holdout.origins.txt",
        "holdout.starts.npy",
        "holdout.tokens",
        "malformed.txt",
        "manifest.json",
        "meta.json",
        "train.origins.txt",
        "train.starts.npy",
        "train.tokens",
    ]
