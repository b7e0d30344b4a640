from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from shardscope.files import ReadError
from shardscope.train.metrics import FILE, read_metrics, rewind


def test_what_is_no_line_of_a_run_is_left_out(tmp_path: Path) -> None:
    lines = [
        b'{"kind": "train", "step": 1, "note": "\xff"}',
        b'{"kind": "train"}',
        b'{"kind": "train", "step": null}',
        b"1",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"kind": "eval", "step": 2}',
        b'{"kind": "tra',
    ]
    (tmp_path / FILE).write_bytes(b"\n".join(lines))
    assert [(line["kind"], line["step"]) for line in read_metrics(tmp_path)] == [("train", 1), ("eval", 2)]
    assert [line["step"] for line in read_metrics(tmp_path, "train")] == [1]
    rewind(tmp_path, 1)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_log_that_is_no_file_or_has_no_end_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ReadError, match=r"metrics\.jsonl: cannot be read: it is a pipe"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(2**40)  # sparse: no disk is used
    with pytest.raises(ReadError, match="larger than 256 MiB"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a socket", "a device"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / FILE
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listening:
            monkeypatch.chdir(tmp_path)  # a socket's path may have no more than a hundred bytes
            listening.bind(FILE)
    else:
        path.symlink_to("/dev/zero")
    for read in (lambda: read_metrics(tmp_path), lambda: rewind(tmp_path, 1)):
        with pytest.raises(ReadError, match=f"metrics.jsonl: cannot be read: it is {kind}, not a file"):
            read()
