from __future__ import annotations

from pathlib import Path

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
