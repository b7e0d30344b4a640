"""What a folder's files were when they were saved: a SHA-256 of every file, and of every tensor so that it has a name.

`manifest.json` is written last. Whoever reads the folder compares, and a flipped bit or a file of another checkpoint is
an error instead of other numbers. It protects against corruption and mix-ups, not against an attacker, who can write a
manifest too.

A safetensors file is compared by its header and its tensors, which together are all of its bytes, in threads beside
the loading: hashing releases Python's lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardscope.config import ConfigError
from shardscope.files import read_json, regular_file, write_json
from shardscope.tensors import read_header

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 2**20


class DamagedError(ConfigError):
    """A file is not what the manifest says; the message names file and tensor."""


def write_manifest(folder: Path, names: Sequence[str]) -> Path:
    """Write `folder`/manifest.json about the files `names` in it. Raises WriteError."""
    with ThreadPoolExecutor(_threads()) as pool:
        whole = {name: pool.submit(_digest, folder / name) for name in names}
        parts = {name: _parts(folder / name, pool) for name in names if _has_tensors(name)}
        files = {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": whole[name].result(),
                **({"tensors": {part: found.result() for part, found in parts[name].items()}} if name in parts else {}),
            }
            for name in names
        }
    return write_json(folder / MANIFEST, {"format": FORMAT, "files": files}, indent=1)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """What the folder's manifest says of each file; None where there is none. Raises DamagedError."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    values = read_json(path, DamagedError)
    files = values.get("files")
    if values.keys() != {"format", "files"} or values["format"] != FORMAT or not isinstance(files, dict):
        raise DamagedError(f"{path}: not a manifest of format {FORMAT}; it was damaged, or a newer version wrote it")
    for name, entry in files.items():
        wanted = {"bytes", "sha256", "tensors"} if _has_tensors(name) else {"bytes", "sha256"}
        whole = isinstance(entry, dict) and entry.keys() == wanted and type(entry["bytes"]) is int
        if not whole or Path(name).name != name:
            raise DamagedError(f"{path}: what it says of {name[:100]!r} is damaged")
    return files


@contextmanager
def compared(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """While the block reads these files of `folder`, compare them with the manifest; without one, do nothing.

    Sizes, and files without tensors, are compared before the block. Raises DamagedError at its end, or instead of what
    it raised, where a file is not as it was saved, is missing though it was saved, or is there though it was not.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        yield
        return
    for name in names:
        if (name in manifest) != os.path.lexists(folder / name):
            there = "was not saved with it" if name not in manifest else "was saved with it and is missing"
            raise DamagedError(f"{folder / name} {there}")
    listed = [name for name in names if name in manifest]
    for name in listed:
        if (size := regular_file(folder / name, DamagedError).stat().st_size) != manifest[name]["bytes"]:
            raise DamagedError(
                f"{folder / name} is not as it was saved (it has {size} bytes instead of {manifest[name]['bytes']})"
            )
    with ThreadPoolExecutor(_threads()) as pool:
        small = {name: pool.submit(_digest, folder / name) for name in listed if not _has_tensors(name)}
        for name, found in small.items():
            if found.result() != manifest[name]["sha256"]:
                raise DamagedError(f"{folder / name} is not as it was saved (its SHA-256 differs)")
        running = {name: _parts(folder / name, pool) for name in listed if _has_tensors(name)}
        try:
            yield
        finally:
            for name, parts in running.items():
                _compare_parts(folder / name, manifest[name]["tensors"], parts)


def _compare_parts(path: Path, said: object, parts: dict[str, Future[str]]) -> None:
    if not isinstance(said, dict) or said.keys() != parts.keys():
        raise DamagedError(f"{path} does not hold the tensors that it was saved with")
    for part, found in parts.items():
        if found.result() != said[part]:
            what = "its header" if part == "" else part
            raise DamagedError(f"{path}: {what} is not as it was saved (its SHA-256 differs)")


def _parts(path: Path, pool: ThreadPoolExecutor) -> dict[str, Future[str]]:
    """SHA-256 of each tensor by name, and of the header under the empty name."""
    entries = read_header(path, DamagedError)
    first = min((entry.start for entry in entries.values()), default=None)
    places = {"": (0, first), **{name: (entry.start, entry.stop) for name, entry in entries.items()}}
    return {part: pool.submit(_digest, path, *place) for part, place in places.items()}


def _digest(path: Path, start: int = 0, stop: int | None = None) -> str:
    """SHA-256 of the bytes [start, stop) of a file (None: to its end), a megabyte at a time."""
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    with regular_file(path, DamagedError).open("rb", buffering=0) as file:
        file.seek(start)
        left = stop - start if stop is not None else None
        while left != 0:
            view = memoryview(buffer)[: _CHUNK if left is None else min(_CHUNK, left)]
            n = file.readinto(view)
            if not n:
                break
            digest.update(view[:n])
            left = None if left is None else left - n
    return digest.hexdigest()


def _has_tensors(name: str) -> bool:
    return name.endswith(".safetensors")


def _threads() -> int:
    return min(4, os.cpu_count() or 1)
