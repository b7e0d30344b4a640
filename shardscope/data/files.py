"""Lines out of text files, plain or compressed, with what is wrong with them said and counted."""

from __future__ import annotations

import gzip
import io
import logging
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from shardscope.config import ConfigError

log = logging.getLogger("shardscope.data")

TEXT_SUFFIXES = (".txt", ".jsonl")
COMPRESSIONS = ("", ".gz", ".xz", ".zst")
SUFFIXES = (*(text + packed for text in TEXT_SUFFIXES for packed in COMPRESSIONS), ".parquet")

_CHUNK = 1 << 20
_REPORTED_ONE_BY_ONE = 20


class DataError(ConfigError):
    """Text that cannot be read or used; the message names the file, the line and what to change."""


class Reading:
    """One pass over a source: how far it has come, and every malformed piece it met.

    `position` of `total` (None: unknown) are bytes of the files as they lie on disk.
    """

    def __init__(self, on_malformed: Literal["skip", "fail"] = "fail", quiet: bool = False) -> None:
        self.on_malformed = on_malformed
        self.quiet = quiet
        self.malformed: list[str] = []
        self.position = 0
        self.total: int | None = None

    def report(self, where: str, problem: str) -> None:
        """Count a malformed piece, and say so. Raises DataError if malformed pieces end the run."""
        if self.on_malformed == "fail":
            raise DataError(f"{where}: {problem}; mend it, or skip such lines with data.on_malformed = 'skip'")
        self.malformed.append(f"{where}: {problem}")
        if self.quiet or len(self.malformed) > _REPORTED_ONE_BY_ONE:
            return
        log.warning("%s: %s; skipped", where, problem)
        if len(self.malformed) == _REPORTED_ONE_BY_ONE:
            log.warning("further malformed lines are counted, and listed in malformed.txt beside the token shards")


def lines(path: Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of a text file. A damaged archive is reported after its last whole line."""
    number = 0
    start = reading.position
    try:
        raw = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    with raw:
        try:
            unpacked = _unpacked(raw, path)
            if unpacked is not raw and path.stat().st_size == 0:
                raise EOFError("an archive is never empty")
            for number, line in enumerate(unpacked, start=1):
                reading.position = start + raw.tell()
                yield number, line
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            reading.report(f"{path}:{number + 1}", f"the file is cut short or damaged ({error})")


def _unpacked(raw: io.BufferedReader, path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(raw), _CHUNK)
    return raw


def is_unicode(text: str) -> bool:
    """Whether the text has UTF-8: half of a surrogate pair, as JSON can spell it, has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _Zstandard(io.RawIOBase):
    """Unpacked bytes of a .zst file. The package's own reader takes a file that ends mid-frame for a whole one."""

    def __init__(self, packed: io.BufferedReader) -> None:
        try:
            import zstandard
        except ImportError:
            raise ConfigError("a .zst file needs the zstandard package; pip install 'shardscope[data]'") from None
        self._packed = packed
        self._decompressor = zstandard.ZstdDecompressor()
        self._error = zstandard.ZstdError
        self._frame: Any = None  # the frame being read
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            unread = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            chunk = unread or self._packed.read(_CHUNK)
            if not chunk:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends before the end of its last frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            try:
                self._ready = self._frame.decompress(chunk)
            except self._error as error:
                raise OSError(str(error)) from None
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)
