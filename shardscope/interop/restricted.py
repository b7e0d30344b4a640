"""Reading a pickled checkpoint without running anything from it, in bounded memory.

What `torch.save` writes is a zip archive with a pickle and a file of bytes for every storage. A pickle is a program.
The unpickler here knows the few instructions that build numbers, texts, plain containers and tensors; it calls
nothing, imports nothing, and refuses a file that names any other function or class. A published checkpoint also holds
an instance of its author's `Config` class: every class that is called so becomes a bag of plain values. Tensors are
descriptions until somebody asks for their bytes, which are at most those of the file.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shardscope.config import ConfigError
from shardscope.files import file_inside, read_json, regular_file
from shardscope.tensors import read_tensors

_SETTINGS_CLASS = re.compile(r"(?:\w+\.)*\w*(?:Config|Cfg|Args|Namespace)")
_WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict")
_CONFIG_KEYS = ("cfg", "config")
_MOST_PICKLE, _MOST_INSTRUCTIONS, _MOST_PARTS = 32 * 2**20, 2_000_000, 100_000
_SMALL = 2**24  # bytes that a tensor may ask for beyond its storage, as a mask expanded from one row does

# What other kinds of file begin with, and what to do with them.
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file it points to; fetch that with `git lfs pull`",
    b"\x1f\x8b": "is compressed with gzip; unpack it with `gunzip` first",
    b"\xfd7zXZ": "is compressed with xz; unpack it with `unxz` first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it with `unzstd` first",
    b"BZh": "is compressed with bzip2; unpack it with `bunzip2` first",
    b"GGUF": "is a GGUF file, which holds quantised weights; take the original",
    b"\x89HDF": "is an HDF5 file, not a checkpoint of PyTorch",
    b"<": "is a web page, not the file; download the raw file",
}


class OriginalError(ConfigError):
    """A checkpoint that cannot be read safely or does not hold a Shard; the message says what was found."""


@dataclass
class Settings:
    """What stands in for a pickled config object: its values, none of its code."""

    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Storage:
    """The bytes of one or several tensors: a part of the archive."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_original(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config values, weights by name) of a file `{"cfg": …, "model": state_dict}`, or of a .safetensors file with its
    config.json beside it.

    Raises OriginalError when the file names anything but tensors, containers and a config class, or lacks either part.
    """
    path = regular_file(Path(path), OriginalError)
    with path.open("rb") as file:
        beginning = file.read(4096)
    for magic, reason in _BEGINNINGS.items():
        if beginning.startswith(magic):
            raise OriginalError(f"{path}: {reason}")
    if path.suffix == ".safetensors" or (beginning[8:9] == b"{" and not beginning.startswith(b"PK")):
        return _read_safetensors(path)
    if not beginning.startswith(b"PK") or not zipfile.is_zipfile(path):  # another layout, or a cut off file
        raise OriginalError(
            f"{path}: not in torch.save's zip layout (torch 1.6 and later), or cut off; an older file becomes one with "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _parts(path, archive)
            contents = _unpickled(path, archive.read(parts["data.pkl"]))
            values, stored = _config_and_weights(path, contents)
            return values, dict(_tensors(path, archive, parts, stored))
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, UnicodeError) as error:
        raise OriginalError(f"{path}: not a checkpoint written by torch.save: {_first_line(error)}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights = read_tensors(path, OriginalError)
    if not (path.parent / "config.json").exists():
        raise OriginalError(f"{path}: holds weights alone; put the config.json that was published with it beside it")
    return read_json(file_inside(path.parent, "config.json", OriginalError), OriginalError), weights


def _parts(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's parts without the folder around them. None may be packed, or its size could be anything."""
    found = archive.infolist()
    pickles = [info for info in found if info.filename.endswith("/data.pkl") and info.filename.count("/") == 1]
    if len(found) > _MOST_PARTS or len(pickles) != 1:
        raise OriginalError(f"{path}: a zip archive, but not one that torch.save writes: it has no part data.pkl")
    folder = pickles[0].filename.removesuffix("data.pkl")
    parts = {info.filename.removeprefix(folder): info for info in found}
    if packed := [info.filename for info in found if info.compress_type != zipfile.ZIP_STORED]:
        raise OriginalError(f"{path}: its part {packed[0][:100]} is compressed, which torch.save never does")
    if pickles[0].file_size > _MOST_PICKLE:
        raise OriginalError(f"{path}: its data.pkl has {pickles[0].file_size:,} bytes, above {_MOST_PICKLE:,}")
    if (order := parts.get("byteorder")) and archive.open(order).read(16) != b"little":
        raise OriginalError(f"{path}: was written on a big-endian machine; save it again on another")
    return parts


def _config_and_weights(path: Path, contents: object) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    if not isinstance(contents, dict):
        raise OriginalError(f"{path}: holds a {type(contents).__name__}, not a table with 'cfg' and 'model'")
    weights = _first(contents, _WEIGHTS_KEYS, path)
    config = _first(contents, _CONFIG_KEYS, path)
    values = config.values if isinstance(config, Settings) else config
    if not isinstance(values, dict):
        raise OriginalError(f"{path}: its config is a {type(values).__name__}, not a table of values")
    if not isinstance(weights, dict) or not weights:
        raise OriginalError(f"{path}: its weights are no table of tensors")
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, StoredTensor):
            raise OriginalError(f"{path}: the weight {shown(name)} is a {type(weight).__name__}, not a plain tensor")
        if weight.storage.dtype.is_floating_point and weight.storage.dtype.itemsize == 1:
            kind = weight.storage.dtype
            raise OriginalError(f"{path}: the weight {shown(name)} is {kind}; 8-bit floats have scales elsewhere")
    return {name: value for name, value in values.items() if isinstance(name, str)}, weights


def _tensors(
    path: Path, archive: zipfile.ZipFile, parts: Mapping[str, zipfile.ZipInfo], stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, Tensor]]:
    """The weights, each storage read once. Together they hold no more than the file does."""
    left = path.stat().st_size
    storages: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        storage = tensor.storage
        itemsize, info = storage.dtype.itemsize, parts.get(f"data/{storage.key}")
        reach = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        asked = math.prod(tensor.shape)
        held = 0 if info is None else min(storage.numel, info.file_size // itemsize)
        if asked and tensor.offset + reach > held:
            raise OriginalError(f"{path}: the weight {shown(name)} asks for more than the file holds of it")
        if asked * itemsize > storage.numel * itemsize + _SMALL:
            raise OriginalError(
                f"{path}: the weight {shown(name)} repeats {storage.numel:,} numbers as {asked:,}, which no weight does"
            )
        if not asked:
            yield name, torch.empty(tensor.shape, dtype=storage.dtype)
            continue
        if storage.key not in storages:
            assert info is not None
            left -= info.file_size
            if left < 0:
                raise OriginalError(f"{path}: its parts overlap, which torch.save never does")
            data = bytearray(archive.read(info))
            storages[storage.key] = torch.frombuffer(data, dtype=storage.dtype, count=held)
        yield name, storages[storage.key].as_strided(tensor.shape, tensor.strides, tensor.offset)


# ------------------------------------------------------------------------------------------------- the unpickler


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names. It is never looked up."""

    full: str


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES"),
    "BINBYTES8",
}
_STORAGES = {
    **{"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8},
    **{"BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128},
    **{"Float8_e4m3fnStorage": torch.float8_e4m3fn, "Float8_e5m2Storage": torch.float8_e5m2},
}
_KNOWN = {
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict", "torch.Size"),
    *("torch.device", *(f"torch.{name}" for name in _STORAGES)),
    *(str(dtype) for dtype in set(_STORAGES.values())),
}


def _unpickled(path: Path, data: bytes) -> Any:
    """What the pickle builds. Raises OriginalError with what it would call, if it names anything to call."""
    machine = _Unpickler()
    reason = ""
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if number > _MOST_INSTRUCTIONS:
                raise OriginalError(f"it has more than {_MOST_INSTRUCTIONS:,} instructions")
            machine.step(instruction.name, argument)
        return_value = machine.stack[-1] if machine.stack else None
    except (OriginalError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        return_value, reason = None, _first_line(error)
    if machine.foreign:
        raise OriginalError(
            f"{path}: refused, nothing was run: the file would call {', '.join(sorted(machine.foreign)[:12])}; "
            "only tensors, plain containers and a Config are read"
        )
    if reason:
        raise OriginalError(f"{path}: refused by the restricted unpickler: {reason}")
    return return_value


class _Unpickler:
    """A pickle's stack and memory, and the instructions that build data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.foreign: set[str] = set()

    def step(self, instruction: str, argument: Any) -> None:
        stack = self.stack
        if instruction in _CONSTANTS:
            stack.append(_CONSTANTS[instruction])
        elif instruction in _EMPTY:
            stack.append(_EMPTY[instruction]())
        elif instruction in _VALUES:
            stack.append(argument)
        elif instruction in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memory[argument] = stack[-1]
        elif instruction == "MEMOIZE":
            self.memory[len(self.memory)] = stack[-1]
        elif instruction in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memory[argument])
        elif instruction == "GLOBAL":
            self._name(*argument.split(" ", 1))
        elif instruction == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            self._name(module, name)
        elif instruction not in ("PROTO", "FRAME", "STOP"):
            handler = getattr(self, f"_{instruction.lower()}", None)
            if handler is None:
                raise OriginalError(f"the instruction {instruction} is none that a checkpoint needs")
            handler()

    def _name(self, module: object, name: object) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "something without a name"
        if full not in _KNOWN and not _SETTINGS_CLASS.fullmatch(full):
            self.foreign.add(full[:200])
        self.stack.append(_Name(full))

    def _since_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise OriginalError("it pops more than it has pushed")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _mark(self) -> None:
        self.stack.append(_MARK)

    def _pop(self) -> None:
        self.stack.pop()

    def _pop_mark(self) -> None:
        self._since_mark()

    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _list(self) -> None:
        self.stack.append(self._since_mark())

    def _dict(self) -> None:
        items = self._since_mark()
        self.stack.append({})
        _put(self.stack[-1], items)

    def _append(self) -> None:
        item = self.stack.pop()
        _plain(self.stack[-1], list).append(item)

    def _appends(self) -> None:
        items = self._since_mark()
        _plain(self.stack[-1], list).extend(items)

    def _additems(self) -> None:
        items = self._since_mark()
        _plain(self.stack[-1], set).update(_key(item) for item in items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self._since_mark()
        _put(self.stack[-1], items)

    def _newobj(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(name, arguments))

    def _newobj_ex(self) -> None:
        named, arguments, name = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(_made(name, (arguments, named) if named else arguments))

    def _reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(name, arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict | None):
            state = {**(state[0] or {}), **(state[1] or {})}  # the second holds what is in slots
        if isinstance(target, Settings) and isinstance(state, dict):
            target.values.update({str(key): value for key, value in state.items()})
        elif not isinstance(target, dict):  # attributes of a table, as torch's _metadata, are no content
            raise OriginalError(f"it sets attributes of a {type(target).__name__}")

    def _binpersid(self) -> None:
        match self.stack.pop():
            case ("storage", _Name(name), str(key), str(), int(numel)) if name.removeprefix("torch.") in _STORAGES:
                self.stack.append(Storage(key, _STORAGES[name.removeprefix("torch.")], numel))
            case _:
                raise OriginalError("it refers to something outside that is no storage of numbers")


def _made(name: object, arguments: object) -> Any:
    """What a function or class of the few known ones would make of its arguments."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise OriginalError("it calls something that is not a function")
    match name.full, arguments:
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            sizes = (offset, *shape, *strides)
            if (
                len(shape) != len(strides)
                or not all(type(n) is int and 0 <= n < 2**48 for n in sizes)
                or len(shape) > 8
            ):
                raise OriginalError("it describes a tensor that cannot be")
            return StoredTensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, *_):
            return tensor
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):
            table: dict[Any, Any] = {}
            _put(table, [part for pair in pairs for part in pair])
            return table
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "torch.device", (str(kind), *_):
            return kind
        case full, () if _SETTINGS_CLASS.fullmatch(full):
            return Settings()
    if name.full in _KNOWN or _SETTINGS_CLASS.fullmatch(name.full):
        raise OriginalError(f"it calls {name.full} with arguments that a checkpoint does not need")
    return None  # foreign: the file is refused in any case


def _plain(target: object, kind: type) -> Any:
    if type(target) is not kind:
        raise OriginalError(f"it adds to a {type(target).__name__}, which is no {kind.__name__}")
    return target


def _put(table: object, items: list[Any]) -> None:
    _plain(table, dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))


def _key(key: object) -> Any:
    """A key of a table. Tuples inside tuples are refused: to compare them may take for ever."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, str | int | float | bytes) for part in parts):
        raise OriginalError(f"it has a table with a key of kind {type(key).__name__}")
    return key


def shown(value: object, most: int = 80) -> str:
    """`repr` of a value from an untrusted file: of nested or long ones the beginning, or the kind."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list | tuple | set | dict):
        flat = len(value) <= 8 and all(part is None or isinstance(part, str | bool | int | float) for part in value)
        if isinstance(value, dict) or not flat:
            return f"a {type(value).__name__} of {len(value)}"
        text = ", ".join(shown(part, 20) for part in value)
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= most else text[:most] + "…"


def _first(contents: Mapping[Any, Any], keys: tuple[str, ...], path: Path) -> Any:
    for key in keys:
        if key in contents:
            return contents[key]
    found = ", ".join(shown(key).strip("'") for key in list(contents)[:12])
    raise OriginalError(f"{path}: has none of the keys {', '.join(keys)}; found {found}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
