"""Every kind of file, however it is named, packed, cut and spelled: its documents, or one sentence."""

from __future__ import annotations

import bz2
import io
import json
import logging
import os
import sys
import zipfile
from pathlib import Path

import pytest

from shardscope.config import ConfigError, Source
from shardscope.data import DataError, ReadLog, documents, token_shards
from shardscope.data.fields import FieldError, Template
from shardscope.tokenizer import Tokenizer

STORIES = [f"Once upon a time there was a fox number {n}.\n\nIt was red.\n" for n in range(40)]
MARKER = "<|endoftext|>"


def texts(path: Path | str, on_malformed: str = "fail", longest: int = 64_000_000, **source: object) -> list[str]:
    reading = ReadLog(on_malformed, longest=longest)  # type: ignore[arg-type]
    return [document.text for document in documents(Source(name="s", path=str(path), **source), reading)]  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- text files


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("around", ["", "\n", " "])
def test_stories_between_marker_lines_are_documents_of_their_own(tmp_path: Path, line_end: str, around: str) -> None:
    text = f"{around}{MARKER}{around}\n".join(STORIES) + f"{MARKER}\n"
    (tmp_path / "a.txt").write_bytes(text.replace("\n", line_end).encode())
    found = texts(tmp_path / "a.txt")
    assert [story.split() for story in found] == [story.split() for story in STORIES]
    assert not any(MARKER in story for story in found)


def test_a_marker_inside_a_line_is_text_unless_the_source_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one{MARKER}two\nGPT-2 ends a text with {MARKER}\n{MARKER}\nthree")
    assert texts(tmp_path / "a.txt") == [f"one{MARKER}two\nGPT-2 ends a text with {MARKER}\n", "three"]
    assert texts(tmp_path / "a.txt", cut="marker") == ["one", "two\nGPT-2 ends a text with ", "three"]
    assert texts(tmp_path / "a.txt", marker="three") == [(tmp_path / "a.txt").read_text().removesuffix("three")]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("line", ["a", "b", "c", MARKER, "d"]),
        ("paragraph", ["a\nb\n", f"c\n{MARKER}\nd"]),
        ("file", [f"a\nb\n\n\nc\n{MARKER}\nd"]),
        ("auto", ["a\nb\n\n\nc\n", "d"]),
        ("marker", ["a\nb\n\n\nc\n", "d"]),
    ],
)
def test_a_source_says_how_a_text_file_is_cut(tmp_path: Path, cut: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text(f"a\nb\n\n\nc\n{MARKER}\nd")
    assert texts(tmp_path / "a.txt", cut=cut) == expected


def test_the_whole_file_is_one_document_of_any_length_up_to_the_limit(tmp_path: Path) -> None:
    text = "a line of text\n\n" * 20_000
    (tmp_path / "a.txt").write_text(text)
    assert texts(tmp_path / "a.txt", cut="file") == [text]
    assert texts(tmp_path / "a.txt", cut="marker") == [text]
    with pytest.raises(DataError, match=r"a\.txt:1: more than 100,000 bytes for one document; data\.max_document_b"):
        texts(tmp_path / "a.txt", cut="file", longest=100_000)


@pytest.mark.parametrize("text", ["no line end anywhere " * 200_000, "漢字" * 1_000_000], ids=["spaces", "none"])
def test_a_text_of_one_line_is_cut_at_spaces_and_loses_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = texts(tmp_path / "a.txt")
    assert "".join(found) == text
    assert 2 <= len(found) <= 12
    assert all(piece.endswith(" ") for piece in found) or " " not in text


def test_a_run_of_nuls_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n" + b"\0" * 100 + b"\nalso good\0\n")
    with pytest.raises(DataError, match=r"a\.txt:2: a run of NUL bytes, which no text has"):
        texts(tmp_path / "a.txt")
    assert texts(tmp_path / "a.txt", "skip") == ["good\nalso good\0\n"]


# ------------------------------------------------------------------------------------------------------- names


def test_a_file_whose_name_is_latin_1_is_read_and_named(
    tmp_path: Path, small_tokenizer: Tokenizer, data_of, sentences, caplog: pytest.LogCaptureFixture
) -> None:
    if sys.platform != "linux":
        pytest.skip("this file system wants names in UTF-8")
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"caf\xe9.jsonl", b"\xff\n.jsonl"):
        with open(folder + b"/" + name, "wb") as file:
            file.write("".join(json.dumps({"text": text}) + "\n" for text in sentences(150, str(len(name)))).encode())
            file.write(b"{broken\n")
    data = data_of(Source(name="s", path=os.fsdecode(folder)), on_malformed="skip")
    with caplog.at_level(logging.WARNING):
        shards = token_shards(data.sources[0], data, small_tokenizer, progress=False)
    assert len(shards.train.starts) + len(shards.holdout.starts) == 300
    origins = {shards.train.origin(n).rsplit(":", 1)[0] for n in range(len(shards.train.starts))}
    assert {origin.rsplit("/", 1)[1] for origin in origins} == {r"caf\xe9.jsonl", r"\xff .jsonl"}
    assert r"caf\xe9/caf\xe9.jsonl:151: not a JSON object" in caplog.text
    json.dumps([*origins, caplog.text]).encode("utf-8")
    again = token_shards(data.sources[0], data, small_tokenizer, progress=False)
    assert again.train.path == shards.train.path
    missing = os.fsdecode(folder + b"/n\xf6.jsonl")
    with pytest.raises(ConfigError, match=r"n\\\\xf6\.jsonl' names no text files") as error:
        texts(missing)
    str(error.value).encode("utf-8")


# ------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_a_json_array_gives_a_document_an_element(tmp_path: Path, name: str, indent: int | None, count: int) -> None:
    rows = [{"n": n, "text": f"[{{é🙂]}} {n}," * 300} for n in range(count)]  # several chunks
    content = ("\ufeff  " + json.dumps(rows, indent=indent, ensure_ascii=False) + " \n").encode()
    if name.endswith(".gz"):
        content = __import__("gzip").compress(content)
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == [row["text"] for row in rows]


def test_a_json_file_may_hold_a_row_a_line(tmp_path: Path) -> None:
    for name in ("a.json", "b.ndjson"):
        (tmp_path / name).write_text('{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    assert texts(tmp_path) == ["one", "two"] * 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"text": "one"}, {"text": "tw', r"a\.json:2: not a JSON array of objects \(Unterminated string"),
        (b'[{"text": "one"}', r"a\.json:2: not a JSON array of objects \(the array has no end"),
        (b'[{"text": "one"} {"text": "two"}]', r"a\.json:2: not a JSON array of objects \(no comma"),
        (b'[{"text": "one"}, 7]', r"a\.json:2: a JSON int, not an object"),
        (b'[{"text": "one"}, {"text": "\xff"}]', r"a\.json:1: not UTF-8"),
        (b'[{"text": "one"}, ' + b"[" * 100_000, r"a\.json:2: not a JSON array of objects \(maximum recursion depth"),
        (b'[{"text": "one"}, {"n": ' + b"9" * 5000 + b"}]", r"a\.json:2: not a JSON"),
    ],
)
def test_a_damaged_json_array_is_reported_after_its_last_whole_element(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        texts(tmp_path / "a.json")
    assert texts(tmp_path / "a.json", "skip") in ([], ["one"])


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_bz2_and_a_zip_of_one_file_are_unpacked(tmp_path: Path) -> None:
    row = b'{"text": "packed"}\n'
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(row) + bz2.compress(row))
    (tmp_path / "b.jsonl.zip").write_bytes(zipped({"folder/": b"", "folder/b.jsonl": row}))
    assert texts(tmp_path) == ["packed"] * 3
    (tmp_path / "b.jsonl.zip").write_bytes(zipped({"a.jsonl": row, "b.jsonl": row}))
    with pytest.raises(DataError, match=r"b\.jsonl\.zip: it is a zip of 2 files; unpack it"):
        texts(tmp_path / "b.jsonl.zip")
    (tmp_path / "c.jsonl.zip").write_bytes(zipped({"a.jsonl": row * 1000})[:-30])
    with pytest.raises(DataError, match=r"c\.jsonl\.zip:1: the file is cut short or damaged"):
        texts(tmp_path / "c.jsonl.zip")


def test_an_archive_under_a_plain_name_is_unpacked(tmp_path: Path) -> None:
    import gzip
    import lzma

    for name, packed in {"a.jsonl": gzip.compress, "b.jsonl": lzma.compress, "c.jsonl": bz2.compress}.items():
        (tmp_path / name).write_bytes(packed(b'{"text": "packed"}\n'))
    assert texts(tmp_path) == ["packed"] * 3


def test_padding_between_xz_streams_is_skipped(tmp_path: Path) -> None:
    import lzma

    stream = lzma.compress(b'{"text": "packed"}\n')
    (tmp_path / "a.jsonl.xz").write_bytes(stream + b"\0" * 8192 + stream + b"\0" * 4)
    assert texts(tmp_path / "a.jsonl.xz") == ["packed"] * 2


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("on_malformed", ["fail", "skip"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, name: str, on_malformed: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DataError, match=rf"{name}: it is a Git LFS pointer, not the text; run `git lfs pull`"):
        texts(tmp_path / name, on_malformed)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_called_so(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(("\ufeff" if encoding != "utf-16" else "").encode(encoding) + "x".encode(encoding))
    with pytest.raises(DataError, match=r"a\.txt: it is UTF-16; convert it to UTF-8"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_an_empty_file_among_others_holds_no_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "z.txt").write_text("text")
    assert texts(tmp_path) == ["text"]


# ------------------------------------------------------------------------------------------------------ fields


def test_a_wrong_field_is_named_with_those_there_are(tmp_path: Path, data_of, small_tokenizer: Tokenizer) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "one", "id": 1}\n' * 3)
    data = data_of(tmp_path / "rows.jsonl", on_malformed="skip")
    with pytest.raises(DataError, match=r"no field 'text' in .*rows\.jsonl:1 \(its fields: body, id\)"):
        token_shards(data.sources[0], data, small_tokenizer, progress=False)
    (tmp_path / "rows.jsonl").write_text('{"body": "one", "id": 1}\n' * 5000)
    with pytest.raises(DataError, match=r"none of the first 1,000 pieces is a document; the first: no field 'text' in"):
        texts(tmp_path / "rows.jsonl", "skip")


ARC = {
    "id": "Mercury_7",
    "question": "Which gas do plants take in?",
    "choices": {"text": ["oxygen", "carbon dioxide"], "label": ["A", "B"]},
    "answerKey": "B",
    "meta": {"deep": {"body": "inside"}},
    "a.b": "dotted",
    "n": 12,
    "empty": None,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("question", ARC["question"]),
        ("meta.deep.body", "inside"),
        ("a.b", "dotted"),
        ("Q: {question} {{{n}}}", "Q: Which gas do plants take in? {12}"),
        ("{choices.text}", "oxygen\ncarbon dioxide"),
        (
            "Question: {question}\nAnswer: {choices.text[answerKey]}",
            "Question: Which gas do plants take in?\nAnswer: carbon dioxide",
        ),
    ],
)
def test_a_document_is_a_field_or_a_text_with_fields(template: str, expected: str) -> None:
    assert Template(template).document(ARC) == expected


def test_choices_may_be_a_list_of_objects() -> None:
    row = {**ARC, "choices": [{"text": "oxygen", "label": "A"}, {"text": "carbon dioxide", "label": "B"}]}
    assert Template("{choices.text[answerKey]}").document(row) == "carbon dioxide"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("questoin", "no field 'questoin'"),
        ("meta.shallow", "no field 'meta.shallow'"),
        ("question.inner", "no field 'question.inner'"),
        ("meta", "'meta' holds a dict, not a string"),
        ("n", "'n' holds a int, not a string"),
        ("{empty}", "'empty' holds a NoneType, not a string"),
        ("{choices.text[id]}", r"'choices.text\[id\]' finds no choice 'Mercury_7'"),
        ("{choices.text[nothing]}", "no field 'nothing'"),
    ],
)
def test_a_row_without_the_field_says_what_it_lacks(template: str, problem: str) -> None:
    with pytest.raises(FieldError, match=problem):
        Template(template).document(ARC)


@pytest.mark.parametrize(
    "template", ["{question", "question}", "{}", "{question!r}", "{n:>4}", "{{only braces}}", "{a[b]c}"]
)
def test_wrong_braces_are_a_mistake_of_the_recipe(template: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources: text="):
        Template(template)


def test_parquet_rows_may_have_fields_in_fields(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{key: ARC[key] for key in ("question", "choices", "answerKey", "meta", "n")} for _ in range(600)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert (
        texts(tmp_path / "a.parquet", text="{question} {choices.text[answerKey]}")
        == ["Which gas do plants take in? carbon dioxide"] * 600
    )
    assert texts(tmp_path / "a.parquet", text="meta.deep.body") == ["inside"] * 600
    with pytest.raises(DataError, match=r"no field 'quest' in .*a\.parquet \(its fields: question, choices, answerKey"):
        texts(tmp_path / "a.parquet", text="quest")
