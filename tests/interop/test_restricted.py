"""Files that ask for more than they hold: refused in one sentence, at once, without the memory that they ask for."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardscope.interop.restricted import OriginalError, read_original, shown


@contextlib.contextmanager
def little_memory(most: int = 100_000_000) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def saved(path: Path, config: object = None, state: object = None, **more: object) -> Path:
    contents = {"cfg": config if config is not None else {"dim": 4}, "model": state or {"norm": torch.ones(4)}, **more}
    torch.save(contents, path)
    return path


def archive(
    path: Path, data: bytes, compression: int = zipfile.ZIP_STORED, parts: dict[str, bytes] | None = None
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {"data.pkl": data, "version": b"3\n", **(parts or {})}.items():
            file.writestr(f"model/{name}", content)
    return path


def nested(levels: int, kind: type = list) -> Any:
    value: Any = kind()
    for _ in range(levels):
        value = kind([value, value]) if kind is not dict else {"a": value, "b": value}
    return value


def test_a_tensor_that_repeats_one_number_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", None, {"wide": torch.ones(1).expand(65536, 65536)})
    with (
        little_memory(),
        pytest.raises(OriginalError, match="'wide' repeats 1 numbers as 4,294,967,296, which no weight"),
    ):
        read_original(path)
    small = read_original(saved(tmp_path / "model.pt", None, {"mask": torch.ones(1, 8).expand(8, 8)}))[1]
    assert torch.equal(small["mask"], torch.ones(8, 8))


def test_views_of_one_storage_come_back_as_they_were(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    state = {"rows": whole[1:3], "columns": whole.T, "one": whole[2, 3], "none": whole[:0], "half": whole.bfloat16()}
    state |= {"parameter": torch.nn.Parameter(whole), "many": torch.arange(5), "flag": torch.tensor([True])}
    _, back = read_original(saved(tmp_path / "model.pt", None, state))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor.detach()), name


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_config_value_that_is_nested_without_end_is_never_printed(tmp_path: Path, kind: type) -> None:
    """Forty levels of two references each: a few hundred bytes, and 10^12 characters if printed or compared."""
    with little_memory():
        values, _ = read_original(saved(tmp_path / "model.pt", {"dim": nested(40, kind)}))
        assert shown(values["dim"]) == f"a {kind.__name__} of 2"
        with pytest.raises(OriginalError, match=r"its config is a list"):
            read_original(saved(tmp_path / "model.pt", [nested(40, kind)]))


def test_a_key_of_nested_tuples_is_refused_and_never_hashed(tmp_path: Path) -> None:
    """To build this file takes a key that is hashed only when it is read."""
    key = pickle.dumps(nested(40, tuple), protocol=2)[2:-1]  # without the protocol and the end
    data = b"\x80\x02}(" + key + b"K\x01u."
    with little_memory(), pytest.raises(OriginalError, match="a table with a key of kind tuple"):
        read_original(archive(tmp_path / "model.pt", data))


def test_packed_parts_are_refused_unopened(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "model.pt", b"\x80\x02}.", zipfile.ZIP_DEFLATED, {"data/0": bytes(200_000_000)})
    with little_memory(), pytest.raises(OriginalError, match=r"is compressed, which torch.save never does"):
        read_original(bomb)


def test_a_storage_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"cfg": {}, "model": {"weight": torch.ones(1000)}}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for info in whole.infolist():
            content = whole.read(info)
            cut.writestr(info.filename, content[:100] if info.filename.endswith("data/0") else content)
    with pytest.raises(OriginalError, match="'weight' asks for more than the file holds of it"):
        read_original(tmp_path / "cut.pt")


class Sets:
    """Unpickling this sets an attribute `items` on a table, as a subclass of one could have it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return collections.OrderedDict, ([("dim", 4)],), {"items": 3, "keys": None}


def test_attributes_of_a_table_do_not_hide_what_it_holds(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()  # torch's own carries an attribute _metadata
    values, weights = read_original(saved(tmp_path / "model.pt", Sets(), state))
    assert values == {"dim": 4}
    assert weights.keys() == {"weight", "bias"}


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_what_is_no_file_is_said_so_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OriginalError, match="cannot be read: it is a"):
        read_original(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02" + b"]" * 2_100_000 + b".", "more than 2,000,000 instructions"),
        (b"\x80\x02" + b"]" * 33 * 2**20 + b".", "its data.pkl has"),
        (b"\x80\x02(((t.", "holds a tuple"),
        (b"\x80\x02h\x05.", "refused by the restricted unpickler"),
        (b"\x80\x02u.", "refused by the restricted unpickler"),
        (b"\x80\x02K\x01K\x02a.", "it adds to a int"),
        (b"\x80\x02K\x01}b.", "it sets attributes of a int"),
        (b"\x80\x02K\x01)R.", "it calls something that is not a function"),
        (b"\x80\x02ctorch\nSize\nK\x01R.", "it calls something that is not a function"),
        (b"\x80\x02ctorch\nSize\n)R.", "calls torch.Size with arguments that a checkpoint does not need"),
        (b"\x80\x02K\x01Q.", "refers to something outside"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.", "BYTEARRAY8 is none that a checkpoint needs"),
        (b"\x80\x02\x8c", "refused by the restricted unpickler"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the file would call os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "the file would call builtins.eval"),
        (b"", "refused by the restricted unpickler"),
    ],
)
def test_instructions_that_build_no_checkpoint_are_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(OriginalError, match=message) as error:
        read_original(archive(tmp_path / "model.pt", data))
    assert len(str(error.value)) < 1000


def test_archives_of_other_kinds_are_one_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as file:
        file.writestr("a.npy", b"")
    with pytest.raises(OriginalError, match=r"it has no part data\.pkl"):
        read_original(tmp_path / "arrays.npz")
    with pytest.raises(OriginalError, match="big-endian"):
        read_original(archive(tmp_path / "big.pt", b"\x80\x02}.", parts={"byteorder": b"big"}))


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 400), st.binary(max_size=6))
def test_no_bytes_raise_anything_but_an_original_error(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, place: int, put: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    buffer = io.BytesIO()
    torch.save({"cfg": {"dim": 4}, "model": {"a": torch.ones(3), "b": torch.ones(2, 2)}}, buffer)
    with zipfile.ZipFile(buffer) as whole:
        parts = {info.filename.partition("/")[2]: whole.read(info) for info in whole.infolist()}
    data = parts.pop("data.pkl")
    for fuzzed in (
        b"\x80\x02" + head,
        data[:place] + put + data[place + len(put) :],
        data[:place] + put + data[place:],
    ):
        with contextlib.suppress(OriginalError):
            values, weights = read_original(archive(folder / "fuzzed.pt", fuzzed, parts=parts))
            assert isinstance(values, dict)
            assert all(isinstance(weight, torch.Tensor) for weight in weights.values())
