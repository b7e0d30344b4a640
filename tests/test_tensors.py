"""Safetensors files of strangers: a header is believed only as far as the file bears it out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from shardscope import tensors
from shardscope.files import ReadError
from shardscope.tensors import metadata_of, read_header, read_tensors, why_no_weights, write_tensors

TENSORS = {
    "weight": torch.arange(12.0).view(3, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "none": torch.ones(0, 7),
    "scalar": torch.tensor(3),
    "flag": torch.tensor([True]),
}


def test_what_is_written_is_what_the_library_reads(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "file.safetensors", TENSORS, {"note": "text"})
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == TENSORS.keys()
        for name, entry in read_header(path).items():
            assert entry.shape == tuple(file.get_slice(name).get_shape())
            assert entry.dtype == file.get_slice(name).get_dtype()
    assert metadata_of(path) == {"note": "text"}
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in read_tensors(path).items())


def file_of(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, "overlap"),
        ({"a": entry(0, 4, [1])}, "end elsewhere than the file"),
        ({"a": entry(4, 8, [1])}, "leave gaps"),
        ({"a": entry(0, 8, [2**40])}, "what no tensor can be"),
        ({"a": entry(0, 8, [2**70, 0])}, "what no tensor can be"),
        ({"a": entry(0, 8, [-1, -2])}, "what no tensor can be"),
        ({"a": entry(0, 8, [2.0])}, "what no tensor can be"),
        ({"a": entry(0, 8, [True, 2])}, "what no tensor can be"),
        ({"a": entry(0, 8, [2], "F31")}, "what no tensor can be"),
        ({"a": entry(0, 8, [2], ["F32"])}, "what no tensor can be"),
        ({"a": entry(0, 8, [1] * 100)}, "what no tensor can be"),
        ({"a": entry(8, 0, [2])}, "what no tensor can be"),
        ({"a": 3}, "what no tensor can be"),
        ({"x" * 10**6: 3}, "what no tensor can be"),
        ([], "its header is no table"),
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as safetensors"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number in it is too long"),
    ],
)
def test_a_header_that_the_file_does_not_bear_out_is_one_sentence(tmp_path: Path, header: Any, message: str) -> None:
    path = file_of(tmp_path / "file.safetensors", header, bytes(8))
    for read in (read_header, read_tensors, metadata_of):
        with pytest.raises(ReadError, match=message) as error:
            read(path)  # type: ignore[operator]
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 17 * 2**20, 11])
def test_a_header_of_any_length_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = file_of(tmp_path / "file.safetensors", b"{}", bytes(8), length)
    if length == 17 * 2**20:
        with path.open("ab") as file:
            file.truncate(2 * length)
    with pytest.raises(ReadError, match="have no room for a header"):
        read_tensors(path)


def test_a_file_too_short_for_its_own_length_is_one_sentence(tmp_path: Path) -> None:
    for content in (b"", b"\x00" * 7, b"\x00" * 8):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ReadError):
            read_tensors(tmp_path / "file")


@settings(max_examples=40)
@given(st.binary(max_size=200), st.integers(0, 250), st.binary(max_size=30))
def test_no_bytes_raise_anything_but_a_read_error(tmp_path_factory: Any, head: bytes, place: int, put: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    write_tensors(path, {"a": torch.ones(3), "b": torch.ones(2, 2)})
    content = path.read_bytes()
    for fuzzed in (head, content[:place] + put + content[place + len(put) :], content[:place] + put + content[place:]):
        path.write_bytes(fuzzed)
        with contextlib.suppress(ReadError):
            assert read_tensors(path).keys() == read_header(path).keys()
            metadata_of(path)


def test_weights_are_finite_floats_of_sixteen_bits_or_more() -> None:
    assert why_no_weights({"a": torch.ones(3), "b": torch.ones(0), "c": torch.ones(2, dtype=torch.float16)}) is None
    assert why_no_weights({"a": torch.tensor([1.0, float("nan")])}) == "a holds a number that is not finite"
    assert why_no_weights({"a": torch.tensor([float("-inf")]).bfloat16()}) == "a holds a number that is not finite"
    reason = why_no_weights({"a": torch.tensor([1])})
    assert reason == "a holds int64; weights are floats of 16 bits or more"


def test_a_file_that_goes_away_while_it_is_read_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors opens it and PyTorch once more, to map it into memory; that one calls its absence a RuntimeError."""
    path = tmp_path / "gone.safetensors"
    write_tensors(path, {"a": torch.ones(3)})

    def mapped_too_late(path: Path) -> object:
        path.unlink()
        return torch.UntypedStorage.from_file(str(path), False, 12)

    monkeypatch.setattr(tensors, "load_file", mapped_too_late)
    with pytest.raises(ReadError, match=r"gone\.safetensors: cannot be read as safetensors: .*No such file"):
        read_tensors(path)
