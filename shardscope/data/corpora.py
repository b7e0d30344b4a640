"""Documents out of a source: text, JSONL and parquet files, Hugging Face datasets, and the built-in corpora."""

from __future__ import annotations

import glob
import importlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from shardscope.config import ConfigError, Source, suggest
from shardscope.data.builtin import BUILTINS, builtin_documents
from shardscope.data.files import COMPRESSIONS, SUFFIXES, DataError, Reading, is_unicode, lines, log

# A long text file becomes several documents: it is cut at the first empty line after so many characters,
# or at any line end after the second number.
_CUT_AT_PARAGRAPH, _CUT_AT_LINE = 32_768, 1_048_576


class Document(NamedTuple):
    """A text and where it came from, as in `books.jsonl:17`.

    Documents of one `family` (a module's code, and the prose that is in that code) are held out together; the default
    is the text itself, so that copies are.
    """

    text: str
    origin: str
    family: str = ""


def located(source: Source) -> Source:
    """The source as this machine has it: $VARIABLES replaced, and its hub counterpart where there are no such files.

    Raises ConfigError for a variable that is not set when there is no counterpart, and for one that is set to a folder
    without the files: whoever set it does not want another text.
    """
    path, holdout = os.path.expandvars(source.path), os.path.expandvars(source.holdout)
    if source.hub is not None and kind_of(path) == "files" and not _exists(path):
        hub = source.hub
        if path != source.path:
            raise ConfigError(
                f"data.sources.{source.name}: path={source.path!r} means {path!r} here, and there is no such file; "
                f"correct the variable, or unset it to read {hub.path} instead"
            )
        log.warning("data.sources.%s: no file at %s; reading %s instead", source.name, source.path, hub.path)
        return replace(
            source, path=hub.path, text=hub.text, split=hub.split, documents=hub.documents, holdout="", hub=None
        )
    if "$" in path and not _exists(path):
        raise ConfigError(
            f"data.sources.{source.name}: path={source.path!r} needs an environment variable that is not set; "
            "export it, or write the folder into the recipe"
        )
    return replace(source, path=path, holdout=holdout, hub=None)


def documents(source: Source, reading: Reading) -> Iterator[Document]:
    """The documents that `source.path` names, in an order that depends on nothing but their names.

    Files that `source.holdout` names are left out. Raises ConfigError if the path is wrong, DataError at a malformed
    document unless `reading` skips them.
    """
    found = _all_documents(source.path, source, reading, without=source.holdout)
    return islice(found, source.documents) if source.documents else found


def holdout_documents(source: Source, reading: Reading) -> Iterator[Document]:
    """The documents that `source.holdout` names."""
    return _all_documents(source.holdout, source, reading)


def files_of(path: str) -> list[Path]:
    """The text files that a path, folder or glob names, sorted. Raises ConfigError if there are none."""
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
    elif place.is_file():
        files = [place]
    else:
        files = sorted(Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file())
    if not files:
        near = [str(file) for file in sorted(place.parent.glob("*"))] if place.parent.is_dir() else []
        hint = suggest(str(place), near) if near and not place.exists() else f"; files end in {', '.join(SUFFIXES)}"
        raise ConfigError(f"data.sources: path={path!r} names no text files{hint}")
    foreign = [file for file in files if not file.name.endswith(SUFFIXES)]
    if foreign:
        raise ConfigError(f"{foreign[0]}: not a kind of text file that is read; files end in {', '.join(SUFFIXES)}")
    return files


def _exists(path: str) -> bool:
    place = Path(path).expanduser()
    return place.exists() or any(glob.iglob(str(place), recursive=True))


def kind_of(path: str) -> str:
    """'builtin', 'hf' or 'files'."""
    prefix, colon, _ = path.partition(":")
    return prefix if colon and prefix in ("builtin", "hf") else "files"


def _all_documents(path: str, source: Source, reading: Reading, without: str = "") -> Iterator[Document]:
    kind, name = kind_of(path), path.partition(":")[2]
    if kind == "builtin":
        if name not in BUILTINS:
            raise ConfigError(f"data.sources.{source.name}: no built-in corpus {name!r}{suggest(name, BUILTINS)}")
        yield from (Document(*found) for found in builtin_documents(name, source.documents, reading))
    elif kind == "hf":
        yield from _hub_documents(name, source, reading)
    else:
        held_out = {file.resolve() for file in files_of(without)} if without and kind_of(without) == "files" else set()
        files = [file for file in files_of(path) if file.resolve() not in held_out]
        if not files:
            raise ConfigError(f"data.sources.{source.name}: every file of path={path!r} is held out; leave some")
        reading.total = sum(file.stat().st_size for file in files)
        for file in files:
            yield from _reader(file)(file, source.text, reading)


def _reader(file: Path) -> Callable[[Path, str, Reading], Iterator[Document]]:
    if file.suffix == ".parquet":
        return _parquet
    unpacked = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return _json_lines if unpacked.suffix == ".jsonl" else _plain_text


def _plain_text(path: Path, field: str, reading: Reading) -> Iterator[Document]:
    held: list[str] = []
    first, size = 1, 0
    for number, raw in lines(path, reading):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            reading.report(f"{path}:{number}", f"not UTF-8 ({error.reason} at byte {error.start + 1} of the line)")
            continue
        if not held:
            first = number
        held.append(line)
        size += len(line)
        if (size >= _CUT_AT_PARAGRAPH and not line.strip()) or size >= _CUT_AT_LINE:
            yield Document("".join(held), f"{path}:{first}")
            held, size = [], 0
    if "".join(held).strip():
        yield Document("".join(held), f"{path}:{first}")


def _json_lines(path: Path, field: str, reading: Reading) -> Iterator[Document]:
    for number, raw in lines(path, reading):
        if not raw.strip():
            continue  # an empty line holds no row
        where = f"{path}:{number}"
        try:
            row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            reading.report(where, f"not UTF-8 ({error.reason} at byte {error.start + 1} of the line)")
        except (ValueError, RecursionError) as error:
            reading.report(where, f"not a JSON object ({error})")
        else:
            yield from _row_document(row, field, where, reading)


def _parquet(path: Path, field: str, reading: Reading) -> Iterator[Document]:
    _extra("pyarrow", "a parquet file")
    import pyarrow
    from pyarrow import parquet

    start, number = reading.position, 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise DataError(f"{path}: no column {field!r}{suggest(field, names)}; set the source's text")
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    number += 1
                    where = f"{path}:{number}"
                    try:
                        row = {field: value.as_py()}
                    except UnicodeDecodeError as error:
                        reading.report(where, f"not UTF-8 ({error.reason} at byte {error.start + 1})")
                    else:
                        yield from _row_document(row, field, where, reading)
                reading.position = start + path.stat().st_size * number // max(1, file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        reading.report(f"{path}:{number + 1}", f"the file is cut short or damaged ({error})")


def _hub_documents(name: str, source: Source, reading: Reading) -> Iterator[Document]:
    """Rows of a dataset of the Hugging Face hub, or of a local folder laid out like one, streamed."""
    datasets = _extra("datasets", f"'hf:{name}'")
    dataset, _, config = name.partition(":")
    number = 0
    try:
        rows = datasets.load_dataset(dataset, config or None, split=source.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from _row_document(row, source.text, f"hf:{name}:{number}", reading)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # the library, the hub and the network raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data.sources.{source.name}: hf:{name} cannot be read at row {number + 1}: {reason}"
        ) from error


def _row_document(row: Any, field: str, where: str, reading: Reading) -> Iterator[Document]:
    """The document in one row, or none and a report."""
    if not isinstance(row, dict):
        reading.report(where, f"a JSON {type(row).__name__}, not an object")
    elif field not in row:
        reading.report(where, f"no field {field!r}{suggest(field, map(str, row))}; set the source's text")
    elif not isinstance(row[field], str):
        reading.report(where, f"{field!r} holds a {type(row[field]).__name__}, not a string")
    elif not is_unicode(row[field]):
        reading.report(where, f"{field!r} holds half of a surrogate pair, which is no character")
    else:
        yield Document(row[field], where)


def _extra(package: str, for_what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(f"{for_what} needs the {package} package; pip install 'shardscope[data]'") from None
