"""Whatever a corpus file holds, reading it takes little memory and time, and ends in documents or one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

MB = 1 << 20
LIMIT = MB  # of a document, in the children of these tests; and 32 MB instead of 512 before a ratio is asked for

# Reads each file twice, as "fail" and as "skip", and prints what became of it and by how much memory grew.
CHILD = f"""
import json, resource, sys
from shardscope.config import ConfigError, Source
from shardscope.data import ReadLog, documents
import pyarrow.parquet, zstandard
from shardscope.data import archives
archives.BOMB_SIZE = 1 << 25
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
before = peak()
for path in sys.argv[1:]:
    answers = []
    for on_malformed in ("fail", "skip"):
        reading = ReadLog(on_malformed, longest={LIMIT})
        found, error = 0, ""
        try:
            for document in documents(Source(name="s", path=path), reading):
                found += 1
        except ConfigError as e:
            error = str(e)
        answers.append([found, error, [str(piece) for piece in reading.malformed[:3]]])
    print(json.dumps([*answers, peak() - before]), flush=True)
"""


def zst(chunks: list[bytes]) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join(map(packer.compress, chunks)) + packer.flush()


def gz(chunks: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for chunk in chunks:
            file.write(chunk)
    return packed.getvalue()


def xz(chunks: list[bytes]) -> bytes:
    packer = lzma.LZMACompressor(preset=0)
    return b"".join(map(packer.compress, chunks)) + packer.flush()


def bz(chunks: list[bytes]) -> bytes:
    packer = bz2.BZ2Compressor(1)
    return b"".join(map(packer.compress, chunks)) + packer.flush()


def zipped(chunks: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a", "w") as file,
    ):
        for chunk in chunks:
            file.write(chunk)
    return packed.getvalue()


PACKERS: dict[str, Callable[[list[bytes]], bytes]] = {".gz": gz, ".xz": xz, ".zst": zst, ".bz2": bz, ".zip": zipped}
GOOD = b'{"text": "a good row"}\n'


def read(*paths: Path) -> list[tuple[list, list, float]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_huge_line_among_good_ones_is_left_out_in_little_memory(tmp_path: Path) -> None:
    paths = [tmp_path / f"a.jsonl{suffix}" for suffix in ("", *PACKERS)]
    chunks = [GOOD, b'{"text": "', *[b"x" * MB] * 8, b'"}\n', GOOD]
    paths[0].write_bytes(b"".join(chunks))
    for path in paths[1:]:
        path.write_bytes(PACKERS[path.suffix](chunks))
    for failed, skipped, grown in read(*paths):
        assert ":2: more than 1,048,576 bytes for one document; data.max_document_bytes allows more" in failed[1]
        assert skipped[:2] == [2, ""]
        assert grown < 100


def test_an_archive_of_nothing_but_nuls_or_line_ends_is_given_up(tmp_path: Path) -> None:
    for suffix, pack in PACKERS.items():
        (tmp_path / f"lines.jsonl{suffix}").write_bytes(pack([b"\n" * MB] * 48))
        (tmp_path / f"nuls.txt{suffix}").write_bytes(pack([b"\0" * MB] * 48))
    for failed, skipped, grown in read(*sorted(tmp_path.iterdir())):
        assert failed[0] == skipped[0] == 0
        assert "which no text has" in failed[1] or "times its size, which no text does" in failed[1]
        assert all(len(sentence) < 600 and "\n" not in sentence for sentence in [failed[1], *skipped[2]])
        assert grown < 150


def test_a_line_without_end_is_given_up(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(40 * MB)  # sparse: no disk is used
    (failed, skipped, grown) = read(tmp_path / "a.jsonl")[0]
    assert ":1: more than 1,048,576 bytes for one document" in failed[1]
    assert "no line end in" in skipped[2][1]
    assert grown < 100


def test_repetitive_text_is_no_bomb(tmp_path: Path) -> None:
    row = json.dumps({"text": "The same sentence again. " * 40}).encode() + b"\n"
    paths = [tmp_path / f"a.jsonl{suffix}" for suffix in (".zst", ".gz")]
    for path in paths:
        path.write_bytes(PACKERS[path.suffix]([row * 1000] * 20))
    for failed, skipped, grown in read(*paths):
        assert failed[:2] == skipped[:2] == [20_000, ""]
        assert grown < 100


def test_a_row_of_lists_without_end_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b'{"text": "t", "more": [' + b"[]," * (LIMIT // 4) + b"[]]}\n")
    (tmp_path / "b.json").write_bytes(b"[" + GOOD[:-1] + b', {"more": [' + b"[]," * (MB) + b"[]]}]")
    (one, array) = read(tmp_path / "a.jsonl", tmp_path / "b.json")
    assert one[0][:2] == [2, ""]
    assert "b.json:2: not a JSON array of objects (more than 1,048,576 bytes for one document" in array[0][1]
    assert array[2] < 400


def test_a_parquet_file_of_a_few_bytes_is_not_unpacked_to_all_it_claims(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    long = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 200, pyarrow.int32()), pyarrow.array(["word " * 200_000])
    )
    parquet.write_table(pyarrow.table({"text": long}), tmp_path / "repeated.parquet", compression="zstd")
    content = (tmp_path / "repeated.parquet").read_bytes()
    assert len(content) < MB
    (tmp_path / "short.parquet").write_bytes(content[: len(content) // 2] + content[-200:])
    parquet.write_table(
        pyarrow.table({"text": ["x" * (LIMIT + 1), "fine"]}), tmp_path / "long.parquet", use_dictionary=False
    )
    repeated, short, too_long = read(*(tmp_path / f"{name}.parquet" for name in ("repeated", "short", "long")))
    assert "times its size, which no text does" in repeated[0][1]
    assert "the file is cut short or damaged" in short[0][1]
    assert "long.parquet:1: more than 1,048,576 bytes" in too_long[0][1]
    assert too_long[1][0] == 1
    assert max(grown for *_, grown in (repeated, short, too_long)) < 300
