"""Safetensors files: written whole, and read even if untrusted.

A file is eight bytes with the length of its header, the header (JSON: dtype, shape and place of every tensor), and the
tensors' bytes. The header is checked here before anything is made of it: it may ask for no more than the file holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shardscope.config import ConfigError
from shardscope.files import ReadError, default_mode, parse_json, regular_file, whole_file

MOST_HEADER = 16 * 2**20  # bytes; a model of a thousand layers has one of a megabyte
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its dtype as safetensors calls it, its shape, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file whole, from tensors on any device. Raises WriteError."""
    with whole_file(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, metadata)
        partial.chmod(default_mode())  # safetensors' own is for the owner alone
    return Path(path)


def read_tensors(path: Path, failure: type[ConfigError] = ReadError) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises `failure` with the path and the reason."""
    read_header(path, failure)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise failure(f"{path}: cannot be read as safetensors: {error}") from None


def read_header(path: Path, failure: type[ConfigError] = ReadError) -> dict[str, Entry]:
    """What a safetensors file holds, in the order of its bytes, without reading them.

    Raises `failure` unless the tensors lie side by side and fill the file to its last byte.
    """

    def refuse(reason: str) -> ConfigError:
        return failure(f"{path}: cannot be read as safetensors: {reason}")

    try:
        with regular_file(path, failure).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if file.read(24) == b"version https://git-lfs.":
                raise refuse("it is a Git LFS pointer, not the file it points to; fetch that with `git lfs pull`")
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise refuse(f"{size} bytes have no room for a header of {length}, or it is above {MOST_HEADER}")
            text = file.read(length).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(str(error)) from None
    header = parse_json(text, str(path), failure)
    if not isinstance(header, dict):
        raise refuse("its header is no table")
    entries = {name: _entry(name, values, refuse) for name, values in header.items() if name != "__metadata__"}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    places = [(0, 0), *((e.start, e.stop) for e in entries.values())]
    if any(before[1] != after[0] for before, after in pairwise(places)) or places[-1][1] != size - 8 - length:
        raise refuse("its tensors overlap, leave gaps, or end elsewhere than the file")
    first = 8 + length
    return {name: Entry(e.dtype, e.shape, first + e.start, first + e.stop) for name, e in entries.items()}


def metadata_of(path: Path, failure: type[ConfigError] = ReadError) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors. Raises `failure` as `read_header` does."""
    read_header(path, failure)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        found = parse_json(file.read(length).decode("utf-8"), str(path), failure).get("__metadata__") or {}
    if not isinstance(found, dict):
        raise failure(f"{path}: cannot be read as safetensors: its metadata is no table")
    return {str(key): str(value) for key, value in found.items()}


def why_no_weights(tensors: dict[str, Tensor]) -> str | None:
    """What keeps tensors from being weights: a dtype that is no float of 16 bits or more, or a number not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            return f"{name} holds {str(tensor.dtype).removeprefix('torch.')}; weights are floats of 16 bits or more"
        # Smallest and largest take one pass and carry a NaN along.
        if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            return f"{name} holds a number that is not finite"
    return None


def _entry(name: str, values: object, refuse: Callable[[str], ConfigError]) -> Entry:
    match values:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, start, stop)) and len(shape) < 64
            if dtype in _BITS and whole and prod(shape) * _BITS[dtype] == (stop - start) * 8:
                return Entry(dtype, tuple(shape), start, stop)
    raise refuse(f"its header says of {name[:100]!r} what no tensor can be")
