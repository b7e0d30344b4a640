from __future__ import annotations

import builtins
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shardscope.config import ConfigError, Source
from shardscope.data import DataError, Document, ReadLog, documents, parquet_checks
from shardscope.data.corpora import located

TEXTS = ["first é", "second\nwith two lines", "third 🙂", ""]


def read(path: Path | str, on_malformed: str = "fail", **source: object) -> list[Document]:
    return list(documents(Source(name="s", path=str(path), **source), ReadLog(on_malformed)))  # type: ignore[arg-type]


def rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def zst(content: bytes) -> bytes:
    """Two frames, as parallel compressors write them."""
    zstandard = pytest.importorskip("zstandard")
    half = len(content) // 2
    packer = zstandard.ZstdCompressor()
    return packer.compress(content[:half]) + packer.compress(content[half:])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_jsonl_gives_one_document_a_line_however_it_is_packed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](rows(TEXTS)))
    assert read(path) == [Document(text, f"{path}:{line}") for line, text in enumerate(TEXTS, start=1)]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_truncated_archive_is_reported_with_its_line_and_never_silently_short(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Text that does not compress, so that half of the archive holds many whole lines.
    texts = ["".join(chr(33 + (n * n * k * 7919 + k * k) % 90) for k in range(400)) for n in range(2000)]
    path = tmp_path / f"rows.jsonl{suffix}"
    whole = PACKERS[suffix](rows(texts))
    path.write_bytes(whole[: len(whole) // 4])
    with pytest.raises(DataError, match=rf"rows\.jsonl{suffix}:\d+: the file is cut short or damaged"):
        read(path)
    found = read(path, "skip")
    assert [document.text for document in found] == texts[: len(found)]
    assert f"{path}:{len(found) + 1}: the file is cut short or damaged" in caplog.text


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_file_that_is_no_archive_is_reported(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(b"this is not an archive at all, whatever its name says")
    with pytest.raises(DataError, match=r":1: the file is cut short or damaged"):
        read(path)


MALFORMED = {
    b'{"text": "cut': "not a JSON object",
    b"[1, 2]": "a JSON list, not an object",
    b'{"body": "elsewhere"}': r"no field 'text' in .*rows\.jsonl:2 \(its fields: body\); set the source's text",
    b'{"text": 7}': "'text' holds a int, not a string",
    b'{"text": null}': "'text' holds a NoneType, not a string",
    b'{"text": "\xff"}': "not UTF-8 \\(invalid start byte at byte 11 of the line\\)",
    b'{"text": "\\ud83d"}': "half of a surrogate pair",
    b"[" * 100_000: "not a JSON object",
}


@pytest.mark.parametrize(("line", "problem"), MALFORMED.items(), ids=list(MALFORMED.values()))
def test_a_malformed_line_is_fatal_with_file_and_line(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(["good"]) + line + b"\n" + rows(["also good"]))
    with pytest.raises(DataError, match=rf"(rows\.jsonl:2: .*)?{problem}.*data\.on_malformed = 'skip'"):
        read(path)


def test_malformed_lines_are_counted_reported_and_skipped_by_choice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(["good"]) + b"\n".join(MALFORMED) + b"\n\n" + rows(["also good"]))
    reading = ReadLog("skip")
    found = list(documents(Source(name="s", path=str(path)), reading))
    assert found == [Document("good", f"{path}:1"), Document("also good", f"{path}:{len(MALFORMED) + 3}")]
    assert len(reading.malformed) == len(MALFORMED)
    for line in range(2, 2 + len(MALFORMED)):
        assert re.search(rf"{path}:{line}(: | \()", caplog.text)


def test_many_malformed_lines_are_all_counted_but_not_all_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n" * 500)
    reading = ReadLog("skip")
    assert list(documents(Source(name="s", path=str(path)), reading)) == []
    assert len(reading.malformed) == 500
    assert len(caplog.records) == 21


def test_the_text_may_be_in_another_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "here"}\n')
    assert read(path, text="body") == [Document("here", f"{path}:1")]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfplain")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + rows(["row"]))
    assert [document.text for document in read(tmp_path)] == ["plain", "row"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_short_text_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](b"line one\r\n\r\nline two"))
    assert read(path) == [Document("line one\r\n\r\nline two", f"{path}:1")]


def test_a_long_text_file_is_cut_at_empty_lines_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    paragraphs = [f"paragraph {n} " * 40 + "\nsecond line\n\n" for n in range(300)]
    path.write_text("".join(paragraphs))
    found = read(path)
    assert len(found) > 3
    assert "".join(document.text for document in found) == "".join(paragraphs)
    assert all(document.text.endswith("\n\n") for document in found)
    lines = path.read_text().split("\n")
    for document in found:
        assert lines[int(document.origin.rsplit(":", 1)[1]) - 1] == document.text.split("\n")[0]


def test_a_text_line_that_is_not_utf8_is_reported_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xffd\ngood again\n")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8"):
        read(path)
    assert read(path, "skip") == [Document("good\ngood again\n", f"{path}:1")]


def test_a_folder_and_a_glob_give_their_files_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(rows([name]))
    (tmp_path / "notes.md").write_text("not read from a folder")
    assert [document.text for document in read(tmp_path)] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert [document.text for document in read(tmp_path / "*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [document.text for document in read(tmp_path / "**/*.jsonl")] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]


def test_held_out_files_are_not_read_for_training(tmp_path: Path) -> None:
    for name in ("train.jsonl", "held.jsonl"):
        (tmp_path / name).write_bytes(rows([name]))
    assert [d.text for d in read(tmp_path, holdout=str(tmp_path / "held.jsonl"))] == ["train.jsonl"]
    with pytest.raises(ConfigError, match=r"every file of .* is held out"):
        read(tmp_path, holdout=str(tmp_path))


def test_a_limit_on_documents_holds_over_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(rows(TEXTS))
    assert len(read(tmp_path, documents=6)) == 6


def test_a_missing_path_suggests_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "books.jsonl").write_bytes(rows(TEXTS))
    with pytest.raises(ConfigError, match=r"names no text files; did you mean '.*books\.jsonl'\?"):
        read(tmp_path / "boks.jsonl")


def test_a_kind_of_file_that_is_not_read_is_refused_with_the_kinds_that_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(ConfigError, match=r"a\.csv: not a kind of text file that is read; files end in \.txt, "):
        read(tmp_path / "a.csv")


def test_parquet_rows_are_documents_and_bad_rows_are_reported(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "three"], "n": [1, 2, 3]}), path)
    with pytest.raises(DataError, match=r"rows\.parquet:2: 'text' holds a NoneType, not a string"):
        read(path)
    assert read(path, "skip") == [Document("one", f"{path}:1"), Document("three", f"{path}:3")]
    with pytest.raises(
        DataError, match=r"no field 'txt' in .*rows\.parquet \(its fields: text, n; did you mean 'text'\?\)"
    ):
        read(path, text="txt")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows\.parquet:1: the file is cut short or damaged"):
        read(path)


def test_a_parquet_file_whose_names_are_not_utf8_is_called_damaged(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["one"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xfft"))
    with pytest.raises(DataError, match=r"rows\.parquet:1: the file is cut short or damaged"):
        read(path)


def test_a_parquet_file_that_ends_the_process_of_its_reader_is_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no `except` sees: C++ ends the process that reads such metadata, so another one reads it first."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["one"]}), path)
    assert read(path) == [Document("one", f"{path}:1")]
    monkeypatch.setattr(parquet_checks, "_TRIAL", "import os; os.abort()")
    with pytest.raises(DataError, match=r"rows\.parquet:1: the file is cut short or damaged \(its metadata cannot be"):
        read(path)


def test_a_dataset_laid_out_as_on_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}-00000.jsonl").write_bytes(rows(texts))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n"
        "  - split: train\n    path: data/train-*.jsonl\n  - split: test\n    path: data/test-*.jsonl\n---\n"
    )
    name = f"hf:{tmp_path}:small"
    assert read(name) == [Document("one", f"{name}:1"), Document("two", f"{name}:2")]
    assert read(name, split="test") == [Document("three", f"{name}:1")]
    with pytest.raises(DataError, match=r"no field 'body' in hf:.*small:1 \(its fields: text\)"):
        read(name, text="body")
    with pytest.raises(DataError, match=r"data\.sources\.s: hf:.*cannot be read at row 1: .*absent"):
        read(name, split="absent")


@pytest.mark.parametrize(
    ("package", "path"), [("datasets", "hf:owner/name"), ("pyarrow", "a.parquet"), ("zstandard", "a.txt.zst")]
)
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, path: str) -> None:
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    real_import = builtins.__import__
    monkeypatch.delitem(__import__("sys").modules, package, raising=False)

    def absent(name: str, *rest: object, **more: object) -> object:
        if name == package:
            raise ImportError(name)
        return real_import(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ConfigError, match=rf"needs the {package} package; pip install 'shardscope\[data\]'"):
        read(path if path.startswith("hf:") else tmp_path / path)


def test_an_unknown_builtin_corpus_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no built-in corpus 'pros'; did you mean 'prose'"):
        read("builtin:pros")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.jsonl.zst", "a.jsonl.xz"])
def test_an_archive_of_no_bytes_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name}:1: the file is cut short or damaged"):
        read(tmp_path / name)


def test_the_kind_of_a_file_is_its_last_suffix_but_the_packing(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl.txt").write_text("no JSON here\n")
    (tmp_path / "rows.txt.jsonl").write_text('{"text": "a row"}\n')
    assert [text for text, *_ in read(tmp_path)] == ["no JSON here\n", "a row"]


def test_variables_in_paths_are_replaced_and_an_unset_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(name="books", path="$BOOKS_HERE/a.txt", holdout="~/val.txt")
    monkeypatch.setenv("BOOKS_HERE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (located(source).path, located(source).holdout) == (f"{tmp_path}/a.txt", f"{tmp_path}/val.txt")
    monkeypatch.delenv("BOOKS_HERE")
    with pytest.raises(ConfigError, match=r"data\.sources\.books: path='\$BOOKS_HERE/a\.txt' needs an environment var"):
        located(source)
