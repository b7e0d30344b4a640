"""Text files as streams of bytes, packed or not, in little memory whatever is in them.

What a file is packed with is read off its first bytes. An archive is unpacked piece by piece, a stream's own claims
about the memory it needs are not believed beyond `_DICTIONARY`, and one that unpacks to hundreds of times its size
without end is taken for a bomb.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shardscope.config import ConfigError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
# What a damaged or hostile archive raises while it is read.
DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)

_MAGIC = {
    ".gz": rb"\x1f\x8b\x08",
    ".bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    ".xz": rb"\xfd7zXZ\x00",
    ".zst": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    ".zip": rb"PK(\x03\x04|\x05\x06)",
}
_DICTIONARY = 1 << 28  # bytes that an xz or zst stream may ask for to look back; the strongest presets ask for 2²⁷
BOMB_SIZE, BOMB_RATIO = 1 << 29, 200  # text packs to a tenth, the most repetitive logs to a hundredth
_PACKED_CHUNK = 1 << 12  # a zst block of four bytes unpacks to 2¹⁷


class Unreadable(ConfigError):
    """A whole file that holds no text to be read: a Git LFS pointer, another encoding, a zip of many files."""


class TextFile(io.RawIOBase):
    """The unpacked bytes of a file; `position` is how much of the packed file was read."""

    def __init__(self, unpacked: Any, packed: BinaryIO) -> None:
        self._unpacked, self._packed = unpacked, packed
        self._is_packed = unpacked is not packed
        self._read = 0

    @property
    def position(self) -> int:
        return self._packed.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._unpacked.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._read += len(chunk)
        if self._is_packed and (reason := is_bomb(self._read, self.position)):
            raise OSError(reason)
        return len(chunk)


@contextmanager
def text_file(path: Path) -> Iterator[TextFile]:
    """Open a file and unpack it. Raises Unreadable with the reason for what is no text, one of DAMAGE while reading."""
    with open(path, "rb") as packed:
        beginning = packed.peek(64)[:64]
        if reason := _no_text(beginning):
            raise Unreadable(reason)
        kind = next((suffix for suffix, magic in _MAGIC.items() if re.match(magic, beginning)), "")
        named = path.suffix if path.suffix in COMPRESSIONS else ""
        if named and named != kind:
            raise EOFError(f"it is no {named} archive")
        yield TextFile(_unpacked(kind, packed, path), packed)


def is_bomb(unpacked: int, packed: int) -> str | None:
    """Why so many unpacked bytes out of so many packed ones are no text."""
    if unpacked > max(BOMB_SIZE, BOMB_RATIO * packed):
        return f"it unpacks to more than {BOMB_RATIO} times its size, which no text does"
    return None


def _no_text(beginning: bytes) -> str | None:
    if beginning.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a Git LFS pointer, not the text; run `git lfs pull`"
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
    return None


def _unpacked(kind: str, packed: io.BufferedReader, path: Path) -> Any:
    if kind == ".gz":
        return gzip.GzipFile(fileobj=packed)
    if kind == ".bz2":
        return bz2.BZ2File(packed)
    if kind == ".xz":
        return _Streams(packed, lambda: lzma.LZMADecompressor(memlimit=_DICTIONARY))
    if kind == ".zst":
        return _Streams(packed, _zstandard())
    if kind == ".zip":
        return _only_member(packed)
    return packed


def _only_member(packed: BinaryIO) -> Any:
    archive = zipfile.ZipFile(packed)
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise Unreadable(f"it is a zip of {len(members)} files; unpack it, a zip is read if it holds one file")
    return archive.open(members[0])


class _Streams:
    """The streams of an archive one after another. Unlike the libraries' readers it takes no half stream for whole."""

    def __init__(self, packed: BinaryIO, start: Any) -> None:
        self._packed, self._start = packed, start
        self._stream: Any = None
        self._ready = memoryview(b"")

    def read(self, most: int) -> bytes:
        """Up to `most` bytes; none at the end."""
        while not self._ready:
            if self._stream is not None and not self._stream.eof and not getattr(self._stream, "needs_input", True):
                data = b""
            else:
                data = self._next_packed()
                if not data:
                    return b""
            self._ready = memoryview(self._stream.decompress(data, most))
        taken, self._ready = self._ready[:most], self._ready[most:]
        return bytes(taken)

    def _next_packed(self) -> bytes:
        """The next packed bytes, with a stream that takes them; none at the end."""
        if self._stream is not None and not self._stream.eof:
            data = self._packed.read(_PACKED_CHUNK)
            if not data:
                raise EOFError("it ends before the end of its last stream")
            return data
        first = self._stream is None
        data = b"" if first else self._stream.unused_data.lstrip(b"\0")  # between streams there may be padding
        while not data:
            data = self._packed.read(_PACKED_CHUNK)
            if not data:
                return b""
            data = data if first else data.lstrip(b"\0")
        self._stream = self._start()
        return data


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError("a .zst file needs the zstandard package; pip install 'shardscope[data]'") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY)

    class Frame:
        """A frame with the interface of `lzma`'s decompressor."""

        def __init__(self) -> None:
            self._frame = decompressor.decompressobj()

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            try:
                return self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None

        @property
        def eof(self) -> bool:
            return bool(self._frame.eof)

        @property
        def unused_data(self) -> bytes:
            return bytes(self._frame.unused_data)

    return Frame


def shown(path: str | os.PathLike[str]) -> str:
    """A path for people and for UTF-8 files: bytes of its name that are no UTF-8 are written as in `caf\\xe9`."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")
