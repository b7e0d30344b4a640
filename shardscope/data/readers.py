"""One reader for each kind of file: its documents, and a report of every piece that is none.

Text files are cut as the source's `cut` says:

    auto       at lines that hold the marker alone (`<|endoftext|>`, as in TinyStories' files); what is longer than
               32,768 characters is cut at the next empty line, because one file of a whole library would otherwise be a
               single document, on one side of the split
    marker     wherever the marker stands, also inside a line
    line       every line is a document
    paragraph  documents are separated by empty lines
    file       the whole file is one document
"""

from __future__ import annotations

import codecs
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shardscope.config import ConfigError, Source
from shardscope.data.archives import COMPRESSIONS, DAMAGE, Unreadable, is_bomb, shown, text_file
from shardscope.data.fields import FieldError, Template
from shardscope.data.files import DataError, ReadLog, lines, too_long
from shardscope.data.parquet_checks import why_unreadable

# A text file is cut at the first empty line after so many characters, a long line at a space before so many bytes.
_CUT_AT_PARAGRAPH, _CUT_AT_LINE = 32_768, 1_048_576
_NULS = b"\0" * 64  # a run that no text has
_MOST_VALUES = 5_000_000  # lists and objects in one row: each takes Python 72 bytes at least
_CHUNK = 1 << 20
_PARQUET_ROWS = 256


class Document(NamedTuple):
    """A text and where it came from, as in `books.jsonl:17`.

    Documents of one `family` (a module's code, and the prose that is in that code) are held out together; the default
    is the text itself, so that copies are.
    """

    text: str
    origin: str
    family: str = ""


Reader = Callable[[Path, Source, ReadLog], Iterator[Document]]


def reader_of(file: Path) -> Reader:
    """The reader for a file, by its name."""
    if file.suffix == ".parquet":
        return parquet
    unpacked = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_file}.get(unpacked.suffix, plain_text)


def plain_text(path: Path, source: Source, reading: ReadLog) -> Iterator[Document]:
    """The documents of a text file, cut as `source.cut` says. Joined they are the text without its marker lines."""
    place, cut, marker = shown(path), source.cut, source.marker
    whole_lines = cut in ("line", "marker")  # else a long line may come in pieces
    collected = _Collected(place, reading)
    for number, raw in lines(path, reading, cut_at=None if whole_lines else _CUT_AT_LINE):
        if _NULS in raw:
            reading.report(f"{place}:{number}", "a run of NUL bytes, which no text has")
            continue
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            reading.report(f"{place}:{number}", f"not UTF-8 ({error.reason} at byte {error.start + 1} of the line)")
            continue
        if cut == "marker":
            before, *others = line.split(marker)
            collected.add(before, number)
            for other in others:
                yield from collected.document()
                collected.add(other.removeprefix("\r").removeprefix("\n"), number)
        elif cut == "line":
            collected.add(line.rstrip("\r\n"), number)
            yield from collected.document()
        elif (cut == "auto" and line.strip() == marker) or (cut == "paragraph" and not line.strip()):
            yield from collected.document()
        else:
            collected.add(line, number)
            long = collected.size >= _CUT_AT_LINE or (collected.size >= _CUT_AT_PARAGRAPH and not line.strip())
            if cut == "auto" and long:
                yield from collected.document()
    yield from collected.document()


class _Collected:
    """The lines of the document that is being read."""

    def __init__(self, place: str, reading: ReadLog) -> None:
        self._place, self._reading = place, reading
        self._lines: list[str] = []
        self._first = 1
        self._bytes = 0
        self.size = 0  # characters

    def add(self, line: str, number: int) -> None:
        if not self.size:
            self._first = number
        self.size += len(line)
        self._bytes += len(line.encode("utf-8"))
        if self._bytes <= self._reading.longest:
            self._lines.append(line)

    def document(self) -> Iterator[Document]:
        """What was collected, unless it is empty or too long; collecting begins anew."""
        where = f"{self._place}:{self._first}"
        if self._bytes > self._reading.longest:
            self._reading.report(where, too_long(self._reading))
        elif (text := "".join(self._lines)).strip():
            yield Document(text, where)
        self._lines, self._bytes, self.size = [], 0, 0


def json_lines(path: Path, source: Source, reading: ReadLog) -> Iterator[Document]:
    """A document a line, each a JSON object."""
    template, place = Template(source.text), shown(path)
    for number, raw in lines(path, reading):
        if not raw.strip():
            continue  # an empty line holds no row
        where = f"{place}:{number}"
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            _require_few_values(text)
            row = json.loads(text)
        except UnicodeDecodeError as error:
            reading.report(where, f"not UTF-8 ({error.reason} at byte {error.start + 1} of the line)")
        except (ValueError, RecursionError) as error:
            reading.report(where, f"not a JSON object ({error})")
        else:
            yield from row_document(row, template, where, reading)


def json_file(path: Path, source: Source, reading: ReadLog) -> Iterator[Document]:
    """The objects of a JSON array; or a document a line, as many files of this name are."""
    try:
        with text_file(path) as file:
            beginning = file.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    except (Unreadable, *DAMAGE):
        beginning = b""  # said when it is read
    if not beginning.startswith(b"["):
        yield from json_lines(path, source, reading)
        return
    template, place, start, number = Template(source.text), shown(path), reading.position, 0
    try:
        with text_file(path) as file:
            for number, row in enumerate(_array(file, reading), start=1):
                reading.position = start + file.position
                yield from row_document(row, template, f"{place}:{number}", reading)
    except UnicodeDecodeError as error:
        reading.report(f"{place}:{number + 1}", f"not UTF-8 ({error.reason})")
    except ValueError as error:  # no JSON, or a number of too many digits
        reading.report(f"{place}:{number + 1}", f"not a JSON array of objects ({error})")
    except RecursionError as error:
        reading.report(f"{place}:{number + 1}", f"not a JSON array of objects ({error})")
    except DAMAGE as error:
        reading.report(f"{place}:{number + 1}", f"the file is cut short or damaged ({error})")


def _array(file: Any, reading: ReadLog) -> Iterator[Any]:
    """The elements of a JSON array, one in memory at a time. Raises json.JSONDecodeError where it is none."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, at, chunk, ended = "", 0, _CHUNK, False

    def more() -> None:
        nonlocal text, at, ended
        packed = file.read(chunk)
        ended = not packed
        text, at = text[at:] + utf8.decode(packed, final=ended), 0

    def skip_space() -> str:
        nonlocal at
        while True:
            rest = text[at : at + 64].lstrip()
            at += len(text[at : at + 64]) - len(rest)
            if rest:
                return rest[0]
            if at >= len(text):
                if ended:
                    raise json.JSONDecodeError("the array has no end", text[-64:], len(text[-64:]))
                more()

    skip_space()
    at += 1  # the opening bracket
    if skip_space() == "]":
        return
    while True:
        skip_space()
        try:
            _require_few_values(text, at)
            row, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            if ended:
                raise
            if len(text) - at > reading.longest:
                raise json.JSONDecodeError(too_long(reading), text[at : at + 64], 0) from None
            chunk = max(_CHUNK, len(text) - at)  # twice as much, so that a long element is not tried too often
            more()
            continue
        at, chunk = end, _CHUNK
        yield row
        following = skip_space()
        at += 1
        if following == "]":
            return
        if following != ",":
            raise json.JSONDecodeError("no comma between two elements", text[max(0, at - 64) : at], 0)


def parquet(path: Path, source: Source, reading: ReadLog) -> Iterator[Document]:
    """A document a row."""
    extra("pyarrow", "a parquet file")
    import pyarrow
    from pyarrow import parquet

    template, place = Template(source.text), shown(path)
    start, number, unpacked, size = reading.position, 0, 0, path.stat().st_size
    try:
        with text_file(path):  # says what it is if it is none
            pass
        with parquet.ParquetFile(path, buffer_size=_CHUNK) as file:
            names, leaves = file.schema_arrow.names, {file.schema.column(n).path for n in range(len(file.schema))}
        try:
            columns = template.columns(names)
        except FieldError as error:
            raise DataError(f"{error.problem} in {place} ({_short(error.details)}); set the source's text") from None
        if reason := why_unreadable(path, columns):
            raise OSError(reason)
        # A string that a column repeats is a number until it is asked for: few bytes of a file may hold much text.
        repeated = [column for column in columns if column in leaves]
        with parquet.ParquetFile(path, buffer_size=_CHUNK, read_dictionary=repeated) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for n in range(batch.num_rows):
                    number += 1
                    where = f"{place}:{number}"
                    try:
                        row = {name: batch.column(name)[n].as_py() for name in columns}
                    except UnicodeDecodeError as error:
                        reading.report(where, f"not UTF-8 ({error.reason} at byte {error.start + 1})")
                        continue
                    for document in row_document(row, template, where, reading):
                        unpacked += len(document.text)
                        yield document
                    if reason := is_bomb(unpacked, size):
                        raise OSError(reason)
                reading.position = start + size * number // max(1, file.metadata.num_rows)
    except Unreadable as error:
        raise DataError(f"{place}: {error}") from None
    except ConfigError:
        raise
    # Names that are not UTF-8 and counts beyond all bounds are Python's own errors in pyarrow.
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        reading.report(f"{place}:{number + 1}", f"the file is cut short or damaged ({reason})")


def row_document(row: Any, template: Template, where: str, reading: ReadLog) -> Iterator[Document]:
    """The document in one row, or none and a report."""
    if not isinstance(row, dict):
        reading.report(where, f"a JSON {type(row).__name__}, not an object")
        return
    try:
        text = template.document(row)
    except FieldError as error:
        reading.report(where, error.problem, _short(error.details))
        return
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        reading.report(where, f"{template.text!r} holds half of a surrogate pair, which is no character")
        return
    if size > reading.longest:
        reading.report(where, too_long(reading))
        return
    yield Document(text, where)


def extra(package: str, for_what: str) -> Any:
    """An optional package. Raises ConfigError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(f"{for_what} needs the {package} package; pip install 'shardscope[data]'") from None


def _require_few_values(text: str, start: int = 0) -> None:
    if len(text) - start > _MOST_VALUES and text.count("[", start) + text.count("{", start) > _MOST_VALUES:
        raise json.JSONDecodeError(f"more than {_MOST_VALUES:,} lists and objects in one row", text[:64], 0)


def _short(details: str) -> str:
    return details if len(details) <= 200 else details[:200] + " …"
