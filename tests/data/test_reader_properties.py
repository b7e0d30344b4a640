"""Of any bytes whatever a reader makes documents or a ConfigError (of which DataError is one), and nothing else."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardscope.config import ConfigError, Source, load_recipe
from shardscope.data import ReadLog, documents
from shardscope.data.fields import FieldError, Template
from shardscope.tokenizer import Tokenizer

KINDS = [
    "a.txt",
    "a.jsonl",
    "a.json",
    "a.parquet",
    "a.txt.gz",
    "a.jsonl.xz",
    "a.jsonl.bz2",
    "a.json.zip",
    "a.jsonl.zst",
]
RECIPES = Path(__file__).parents[2] / "recipes"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "a", "b"]), inner, max_size=3),
    max_leaves=8,
)
texts = st.one_of(
    st.binary(max_size=300),
    st.lists(json_values, max_size=6).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(json_values, max_size=6).map(lambda rows: json.dumps(rows).encode()),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
packed = st.tuples(
    texts,
    st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress]),
    st.integers(0, 400),
    st.binary(max_size=3),
).map(lambda made: _damaged(made[1](made[0]), made[2], made[3]))


def _damaged(content: bytes, place: int, by: bytes) -> bytes:
    """The content with some bytes replaced, if the place is within it."""
    return content[:place] + by + content[place + len(by) :]


@quick
@given(
    content=packed, kind=st.sampled_from(KINDS), cut=st.sampled_from(["auto", "marker", "line", "paragraph", "file"])
)
def test_a_reader_gives_documents_or_says_why_not(tmp_path: Path, content: bytes, kind: str, cut: str) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("zstandard")
    path = tmp_path / kind
    path.write_bytes(content)
    source = Source(name="s", path=str(path), cut=cut)  # type: ignore[arg-type]
    skipping = ReadLog("skip", quiet=True, longest=1000)
    try:
        found = list(documents(source, skipping))
    except ConfigError:
        return
    assert skipping.documents == len(found)
    for document in found:
        assert len(document.text.encode("utf-8")) <= 1000 or cut == "auto"
    if not skipping.skipped:
        assert list(documents(source, ReadLog("fail", longest=1000))) == found


@quick
@given(lines=st.lists(st.text(alphabet="ab é\n\r", max_size=30), max_size=8))
def test_cutting_a_text_file_loses_nothing_but_its_markers_and_empty_pieces(tmp_path: Path, lines: list[str]) -> None:
    text = "<|endoftext|>".join(lines)
    (tmp_path / "a.txt").write_bytes(text.encode())
    source = Source(name="s", path=str(tmp_path / "a.txt"), cut="marker")
    found = "".join(document.text for document in documents(source, ReadLog()))
    assert found.split() == [word for line in lines for word in line.split()] or "".join(found.split()) == "".join(
        "".join(line.split()) for line in lines
    )


@quick
@given(template=st.text(alphabet="{}ab.[] *text", max_size=15), row=st.dictionaries(st.text(max_size=3), json_values))
def test_a_template_gives_a_text_or_says_why_not(template: str, row: dict[str, object]) -> None:
    with suppress(ConfigError, FieldError):
        assert isinstance(Template(template).document(row), str)


@quick
@given(
    name=st.sampled_from(sorted(path.name for path in RECIPES.glob("*.toml"))),
    place=st.integers(0, 3000),
    by=st.text(max_size=6),
)
def test_a_changed_recipe_is_a_recipe_or_one_sentence(tmp_path: Path, name: str, place: int, by: str) -> None:
    content = (RECIPES / name).read_text(encoding="utf-8")
    (tmp_path / "r.toml").write_text(content[:place] + by + content[place + len(by) :], encoding="utf-8")
    try:
        recipe = load_recipe(tmp_path / "r.toml")
    except ConfigError as error:
        sentence = str(error)
    else:
        sentence = f"{tmp_path} is as good as before"
    assert sentence.startswith(str(tmp_path))
    if sentence.endswith("before"):
        assert tomllib.loads((tmp_path / "r.toml").read_text(encoding="utf-8"))["name"] == recipe.name


@quick
@given(
    content=st.recursive(
        st.none() | st.text(max_size=5) | st.integers(-5, 300),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "type", "vocab", "merges", "BPE", "added_tokens", "version", "1.0"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_tokenizer_or_one_sentence(tmp_path: Path, content: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError):
        Tokenizer.load(tmp_path)
