"""Documents out of a source: text, JSON and parquet files, Hugging Face datasets, and the built-in corpora."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from shardscope.config import ConfigError, Source, suggest, suggest_close, user_path
from shardscope.data.archives import shown
from shardscope.data.builtin import BUILTINS, builtin_documents
from shardscope.data.fields import Template
from shardscope.data.files import SUFFIXES, DataError, ReadLog
from shardscope.data.patterns import named
from shardscope.data.readers import Document, extra, reader_of, row_document


def located(source: Source) -> Source:
    """The source with `~` and $VARIABLES of its paths replaced. Raises ConfigError if one means nothing here."""
    where = f"data.sources.{source.name}"

    def found(path: str, field: str) -> str:
        return path if not path or kind_of(path) == "builtin" else str(user_path(path, f"{where}: {field}"))

    return replace(source, path=found(source.path, "path"), holdout=found(source.holdout, "holdout"))


def documents(source: Source, reading: ReadLog) -> Iterator[Document]:
    """The documents that `source.path` names, in an order that depends on nothing but their names.

    Files that `source.holdout` names are left out. Raises ConfigError if the path is wrong, DataError at a malformed
    document unless `reading` skips them.
    """
    found = _all_documents(source.path, source, reading, without=source.holdout)
    return islice(found, source.documents) if source.documents else found


def holdout_documents(source: Source, reading: ReadLog) -> Iterator[Document]:
    """The documents that `source.holdout` names."""
    return _all_documents(source.holdout, source, reading)


def files_of(path: str) -> list[Path]:
    """The text files that a path, folder or pattern names, sorted. Raises ConfigError if there are none.

    A folder gives every text file below it, as do folders that a pattern matches where it matches no file.
    """
    place = user_path(path, "data.sources: path")
    found = named(str(place))
    files = [file for file in found if file.is_file()]
    if not files:
        below = {file for folder in found for file in folder.rglob("*") if file.is_file()}
        files = sorted(file for file in below if file.name.endswith(SUFFIXES))
    if not files:
        # os.path's, because Path's raise an error for a name that is too long.
        near = [str(file) for file in sorted(place.parent.glob("*"))] if os.path.isdir(place.parent) else []
        hint = "" if os.path.exists(place) else suggest_close(str(place), near)
        hint = hint or f"; files end in {', '.join(SUFFIXES)}"
        raise ConfigError(f"data.sources: path={shown(path)!r} names no text files{shown(hint)}")
    foreign = [file for file in files if not file.name.endswith(SUFFIXES)]
    if foreign:
        raise ConfigError(
            f"{shown(foreign[0])}: not a kind of text file that is read; files end in {', '.join(SUFFIXES)}"
        )
    return files


def kind_of(path: str) -> str:
    """'builtin', 'hf' or 'files'."""
    prefix, colon, _ = path.partition(":")
    return prefix if colon and prefix in ("builtin", "hf") else "files"


def _all_documents(path: str, source: Source, reading: ReadLog, without: str = "") -> Iterator[Document]:
    for document in _read(path, source, reading, without):
        reading.documents += 1
        yield document


def _read(path: str, source: Source, reading: ReadLog, without: str) -> Iterator[Document]:
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
            raise ConfigError(f"data.sources.{source.name}: every file of path={shown(path)!r} is held out; leave some")
        reading.total = sum(file.stat().st_size for file in files)
        for file in files:
            yield from reader_of(file)(file, source, reading)


def _hub_documents(name: str, source: Source, reading: ReadLog) -> Iterator[Document]:
    """Rows of a dataset of the Hugging Face hub, or of a local folder laid out like one, streamed."""
    datasets = extra("datasets", f"'hf:{name}'")
    dataset, _, config = name.partition(":")
    template, number = Template(source.text), 0
    try:
        rows = datasets.load_dataset(dataset, config or None, split=source.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from row_document(row, template, f"hf:{name}:{number}", reading)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # the library, the hub and the network raise exceptions of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"data.sources.{source.name}: hf:{name} cannot be read at row {number + 1}: {reason}"
        ) from error
