"""Lines out of text files, with what is wrong with them said and counted, in memory that no file can exceed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from shardscope.config import ConfigError
from shardscope.data.archives import COMPRESSIONS, DAMAGE, TextFile, Unreadable, shown, text_file

log = logging.getLogger("shardscope.data")

TEXT_SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json")
SUFFIXES = (*(text + packed for text in TEXT_SUFFIXES for packed in ("", *COMPRESSIONS)), ".parquet")

LONGEST_DOCUMENT = 64_000_000  # bytes; data.max_document_bytes says another number

_CHUNK = 1 << 20
_GIVE_UP_AFTER = 16  # times the longest document without a line end
_REPORTED_ONE_BY_ONE = 20
_LISTED = 10_000
_HOPELESS = 1_000  # malformed pieces in a row from the first on: the source itself is wrong


class DataError(ConfigError):
    """Text that cannot be read or used; the message names the file, the line and what to change."""


class Malformed(NamedTuple):
    """A piece that is no document, and why. `details` stand in brackets."""

    where: str
    problem: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.problem} in {self.where} ({self.details})" if self.details else f"{self.where}: {self.problem}"


class ReadLog:
    """What is known of one pass over a source: how far it has come, and every malformed piece it met.

    `position` of `total` (None: unknown) are bytes of the files as they lie on disk. `malformed` lists the first ten
    thousand pieces, `skipped` counts all of them. A document may have `longest` bytes.
    """

    def __init__(
        self,
        on_malformed: Literal["skip", "fail"] = "fail",
        quiet: bool = False,
        longest: int = LONGEST_DOCUMENT,
    ) -> None:
        self.on_malformed, self.quiet, self.longest = on_malformed, quiet, longest
        self.malformed: list[Malformed] = []
        self.skipped = 0
        self.documents = 0
        self.position = 0
        self.total: int | None = None

    def report(self, where: str, problem: str, details: str = "") -> None:
        """Count a malformed piece, and say so. Raises DataError if such pieces end the run, or are all there is."""
        piece = Malformed(where, problem, details)
        if self.on_malformed == "fail":
            remedy = "set the source's text" if details else "correct it"
            raise DataError(f"{piece}; {remedy}, or skip such pieces with data.on_malformed = 'skip'")
        self.skipped += 1
        if len(self.malformed) < _LISTED:
            self.malformed.append(piece)
        if self.skipped >= _HOPELESS and not self.documents:
            raise DataError(f"none of the first {self.skipped:,} pieces is a document; the first: {self.malformed[0]}")
        if self.quiet or self.skipped > _REPORTED_ONE_BY_ONE:
            return
        log.warning("%s; skipped", piece)
        if self.skipped == _REPORTED_ONE_BY_ONE:
            log.warning("further malformed pieces are counted, and listed in malformed.txt beside the token shards")

    @property
    def why_nothing(self) -> str:
        """To be put after a message that a source holds too little: the first malformed piece, if there was one."""
        return (
            f"; {self.skipped:,} malformed pieces were skipped, the first: {self.malformed[0]}" if self.skipped else ""
        )


def lines(path: Path, reading: ReadLog, cut_at: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of a text file; empty lines may come several at once.

    A line longer than `reading.longest` bytes is reported and left out; with `cut_at`, a long line comes in pieces of
    at most about so many bytes instead, cut at spaces where there are any. A damaged archive is reported after its last
    whole line. Raises DataError for a file that is no text at all.
    """
    place, start, number = shown(path), reading.position, 1
    try:
        with text_file(path) as file:
            for number, line in _lines(file, start, place, reading, cut_at):
                yield number, line
                number += line.count(b"\n")
    except Unreadable as error:
        raise DataError(f"{place}: {error}") from None
    except FileNotFoundError as error:
        raise DataError(f"{place}: cannot be opened ({error.strerror})") from error
    except DAMAGE as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise  # a bug, not an archive with a password
        reading.report(f"{place}:{number}", f"the file is cut short or damaged ({error})")


def _lines(file: TextFile, start: int, place: str, reading: ReadLog, cut_at: int | None) -> Iterator[tuple[int, bytes]]:
    number, dropped = 1, 0  # `dropped`: bytes left out of the line that is being read
    held: list[bytes] = []
    size = 0
    while chunk := file.read(_CHUNK):
        reading.position = start + file.position
        if not held and not dropped and chunk.endswith(b"\n") and chunk.isspace():
            yield number, chunk
            number += chunk.count(b"\n")
            continue
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if not dropped:
                if size + len(piece) <= reading.longest:
                    yield number, b"".join([*held, piece, b"\n"])
                else:
                    reading.report(f"{place}:{number}", too_long(reading))
            held, size, dropped = [], 0, 0
            number += 1
        if dropped:
            dropped += len(rest)
        elif rest:
            held.append(rest)
            size += len(rest)
            if cut_at is not None and size >= cut_at:
                line = b"".join(held)
                place_of_cut = _cut(line)
                yield number, line[:place_of_cut]
                held, size = [line[place_of_cut:]], len(line) - place_of_cut
            elif size > reading.longest:
                reading.report(f"{place}:{number}", too_long(reading))
                held, size, dropped = [], 0, size
        if dropped > _GIVE_UP_AFTER * reading.longest:
            reading.report(f"{place}:{number}", f"no line end in {dropped:,} bytes; the rest of the file is left out")
            return
    if size:
        yield number, b"".join(held)


def too_long(reading: ReadLog) -> str:
    """What is said of a document that is longer than `reading` allows."""
    return f"more than {reading.longest:,} bytes for one document; data.max_document_bytes allows more"


def _cut(line: bytes) -> int:
    """Where a long line may be cut: after its last space, else before its last character."""
    if (space := line.rfind(b" ")) >= 0:
        return space + 1
    end = len(line) - 1
    while end > len(line) - 4 and 0x80 <= line[end] < 0xC0:
        end -= 1
    return end


def is_unicode(text: str) -> bool:
    """Whether the text has UTF-8: half of a surrogate pair, as JSON can spell it, has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
