"""Token shards: a source's documents, tokenized once into 16-bit ids that are mapped from disk.

A folder of the cache holds one source under one tokenizer. Its name is a hash of everything that decides its content,
it appears complete or not at all, and each side of it (train, holdout) is three files:

    train.tokens       uint16 ids: every document is `<|endoftext|>` and its tokens
    train.starts.npy   for each document the position of its first token
    train.origins.txt  for each document a line, as in `books.jsonl:17`

Its manifest.json says what the files were when they were written, and is compared each time they are opened: a flipped
bit would be another token, of which training says nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardscope.config import DataConfig, Source, user_path
from shardscope.data.archives import shown
from shardscope.data.builtin import builtin_version
from shardscope.data.corpora import documents, files_of, holdout_documents, kind_of
from shardscope.data.files import DataError, ReadLog, log
from shardscope.data.readers import Document
from shardscope.data.split import holdout_threshold, side_hash
from shardscope.files import is_partial, locked, read_json, whole_folder, write_json, write_text
from shardscope.manifest import compared, write_manifest
from shardscope.progress import progress_bar
from shardscope.tokenizer import Tokenizer

WORDS_IN_COMMON = 13  # in a row: documents that have them overlap
PARTS = ("tokens", "starts.npy", "origins.txt")  # of one side
FORMAT = 3  # raise when the files or the cutting of documents change
FILES = (*(f"{side}.{part}" for side in ("train", "holdout") for part in PARTS), "malformed.txt", "meta.json")
_CHARACTERS_AT_ONCE = 2_000_000
_LOCK, _ABANDONED_AFTER = ".lock", 3600.0  # seconds, for a folder without a lock


class TokenShard:
    """One side of a source: its tokens, where its documents start, and where they came from."""

    def __init__(self, folder: Path, side: str) -> None:
        self.path = folder / f"{side}.tokens"
        self._origins = folder / f"{side}.origins.txt"
        self.starts: NDArray[np.int64] = np.load(folder / f"{side}.starts.npy")
        self.tokens: NDArray[np.uint16] = np.memmap(self.path, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return len(self.tokens)

    def documents_in(self, start: int, stop: int) -> range:
        """Numbers of the documents that have a token in [start, stop)."""
        first, after = np.searchsorted(self.starts, [start, stop - 1], side="right")
        return range(int(first) - 1, int(after))

    def origin(self, document: int) -> str:
        """Where the document came from."""
        return self._origin_lines[document]

    def without(self, documents: NDArray[np.int64], folder: Path, side: str) -> None:
        """Write this side without some of its documents into `folder`, under the name `side`."""
        stops = np.append(self.starts[1:], len(self))
        kept = np.setdiff1d(np.arange(len(self.starts)), documents)
        lengths = (stops - self.starts)[kept]
        np.save(folder / f"{side}.starts.npy", np.cumsum(lengths) - lengths)
        with open(folder / f"{side}.tokens", "wb") as file:
            for run in np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1):
                file.write(self.tokens[self.starts[run[0]] : stops[run[-1]]].tobytes())
        with open(folder / f"{side}.origins.txt", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{self.origin(document)}\n" for document in kept.tolist())

    def ids(self, document: int) -> list[int]:
        """The document's tokens, without the `<|endoftext|>` before them."""
        stop = self.starts[document + 1] if document + 1 < len(self.starts) else len(self)
        ids: list[int] = self.tokens[self.starts[document] + 1 : stop].tolist()
        return ids

    @cached_property
    def fingerprint(self) -> str:
        """Names the content wherever the files lie: of where documents start, and of a million tokens spread evenly."""
        spread = self.tokens[:: max(1, len(self) // 1_000_000)]
        digest = hashlib.blake2b(self.starts.tobytes(), digest_size=8)
        digest.update(np.ascontiguousarray(spread).tobytes())
        return f"{len(self)} tokens, {digest.hexdigest()}"

    @cached_property
    def _origin_lines(self) -> list[str]:
        return self._origins.read_text(encoding="utf-8").split("\n")


@dataclass(frozen=True)
class Overlap:
    """Training documents of one source that repeat held-out or scored text.

    The last three are None in the logs of runs that did not count them.
    """

    documents: int
    exact: int  # of them, those that are the same text
    tokens: int  # in them
    of_documents: int  # in the whole source
    with_texts: dict[str, int]  # documents by whose text they repeat
    dropped: bool
    mostly: int | None = None  # of the documents, those that consist of such text to the half or more
    formulas: int | None = None  # further documents, which share only what many training documents have
    held_out_share: float | None = None  # of the source's own held-out text, what stands in the documents

    def __str__(self) -> str:
        whose = ", ".join(f"{name} {count:,}" for name, count in self.with_texts.items())
        mostly = "" if self.mostly is None else f"{self.mostly:,} half of it or more, "
        said = (
            f"{self.documents:,} of {self.of_documents:,} training documents repeat held-out or scored text "
            f"({self.exact:,} all of it, {mostly}the others {WORDS_IN_COMMON} words or more; of {whose})"
        )
        if self.held_out_share:
            said += f", which is {self.held_out_share:.1%} of the source's own held-out text"
        return said


class SourceShards(NamedTuple):
    """Both sides of a source, how many malformed pieces were left out of it, and what of it repeats held-out text."""

    train: TokenShard
    holdout: TokenShard
    malformed: int
    overlap: Overlap | None = None  # None: not counted


def token_shards(source: Source, data: DataConfig, tokenizer: Tokenizer, progress: bool = True) -> SourceShards:
    """The source's shards from the cache, made first if they are not there.

    Safe when several processes ask at once: each makes its own and the first to finish is kept.
    Raises ConfigError or DataError for a source that cannot be read, and DataError for a damaged cache.
    """
    cache = cache_of(data)
    folder = cache / _key(source, data, tokenizer)
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _make(folder, source, data, tokenizer, progress)
        except OSError as error:
            raise DataError(f"{cache}: token shards cannot be written ({error}); set data.cache_dir") from error
    return _open(folder, source)


def cache_of(data: DataConfig) -> Path:
    """The folder that holds token shards."""
    return user_path(data.cache_dir or "~/.cache/shardscope/tokens", "data.cache_dir")


def _key(source: Source, data: DataConfig, tokenizer: Tokenizer) -> str:
    """Names the content: the name and the weight of a source do not change its tokens."""
    content = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "text": source.text,
        "split": source.split,
        "documents": source.documents,
        "cut": source.cut,
        "marker": source.marker,
        "on_malformed": data.on_malformed,
        "max_document_bytes": data.max_document_bytes,
        "train": state_of(source.path),
        "holdout": state_of(source.holdout) if source.holdout else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def state_of(path: str) -> list[Any]:
    """What tells one content of a path from another: its files' sizes and times, or the version of a built-in."""
    kind = kind_of(path)
    if kind == "builtin":
        return [path, builtin_version()]
    if kind == "hf":
        local = Path(path.removeprefix("hf:").partition(":")[0])
        files = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else []
    else:
        files = files_of(path)
    stats = [(shown(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return [path if kind == "hf" else "files", stats]


# ------------------------------------------------------------------------------------------------- making


def _make(folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, progress: bool) -> None:
    _remove_abandoned(folder.parent)
    # Another process may be first; it has made the same.
    with _ended_by_sigterm(), whole_folder(folder, replace=False) as making, _marked_alive(making):
        reading = other = ReadLog(data.on_malformed, longest=data.max_document_bytes)
        threshold = holdout_threshold(source, data)
        train, held_out = _Writer(making, "train", tokenizer.bos_id), _Writer(making, "holdout", tokenizer.bos_id)
        for document, ids in _encoded(documents(source, reading), reading, tokenizer, source.name, progress):
            (held_out if side_hash(document) < threshold else train).append(ids, document.origin)
        if source.holdout:
            other = ReadLog(data.on_malformed, longest=data.max_document_bytes)
            name = f"{source.name} (held out)"
            for document, ids in _encoded(holdout_documents(source, other), other, tokenizer, name, progress):
                held_out.append(ids, document.origin)
        for writer, path, read in ((train, source.path, reading), (held_out, source.holdout or source.path, other)):
            if not writer.close():
                raise DataError(f"data.sources.{source.name}: path={shown(path)!r} holds no document{read.why_nothing}")
        passes = [reading, other] if source.holdout else [reading]
        write_text(making / "malformed.txt", "".join(f"{piece}\n" for read in passes for piece in read.malformed))
        skipped = sum(read.skipped for read in passes)
        write_json(making / "meta.json", {"train": train.tokens, "holdout": held_out.tokens, "malformed": skipped})
        write_manifest(making, FILES)


def _encoded(
    found: Iterable[Document], reading: ReadLog, tokenizer: Tokenizer, name: str, progress: bool
) -> Iterator[tuple[Document, NDArray[np.uint16]]]:
    with progress_bar(desc=f"tokenizing {name}", unit="B", unit_scale=True, disable=not progress) as bar:
        for batch in _batches(found):
            yield from zip(batch, tokenizer.encode_batch([document.text for document in batch]), strict=True)
            bar.total = reading.total
            bar.update(reading.position - bar.n)


def _batches(found: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in found:
        batch.append(document)
        size += len(document.text)
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    def __init__(self, folder: Path, side: str, bos_id: int) -> None:
        self._bos_id = bos_id
        self._starts_path = folder / f"{side}.starts.npy"
        self._starts = array("q")
        self._file = open(folder / f"{side}.tokens", "wb")  # noqa: SIM115
        self._origins = open(folder / f"{side}.origins.txt", "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        self.tokens = 0

    def append(self, ids: NDArray[np.uint16], origin: str) -> None:
        self._file.write(np.array([self._bos_id], dtype=np.uint16).tobytes())
        self._file.write(ids.tobytes())
        self._origins.write(" ".join(origin.splitlines()) + "\n")
        self._starts.append(self.tokens)
        self.tokens += 1 + len(ids)

    def close(self) -> int:
        """The number of tokens written."""
        self._file.close()
        self._origins.close()
        np.save(self._starts_path, np.array(self._starts, dtype=np.int64))
        return self.tokens


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM is an exception, as SIGINT is, so that nothing half made is left."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _marked_alive(making: Path) -> Iterator[None]:
    """A lock in the folder, which ends with this process: so others can tell it from what a killed one left."""
    with open(making / _LOCK, "w", encoding="utf-8") as lock:
        locked(lock.fileno())
        yield
        (making / _LOCK).unlink()


def _remove_abandoned(cache: Path) -> None:
    """Folders of processes that were killed while making."""
    for folder in cache.glob(".*.partial"):
        if not is_partial(folder.name):
            continue
        try:
            with open(folder / _LOCK, "r+", encoding="utf-8") as lock:
                abandoned = locked(lock.fileno(), unknown=False)
        except OSError:  # just begun, or killed before it had a lock, or after
            abandoned = _age(folder) > _ABANDONED_AFTER
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _age(folder: Path) -> float:
    """Seconds since the folder was changed; 0 for one that is gone."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def _open(folder: Path, source: Source) -> SourceShards:
    try:
        with compared(folder, FILES):
            meta = read_json(folder / "meta.json", DataError)
            shards = SourceShards(TokenShard(folder, "train"), TokenShard(folder, "holdout"), int(meta["malformed"]))
        sizes = {"train": len(shards.train), "holdout": len(shards.holdout)}
        whole = all(meta[side] == size for side, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError) as error:  # a ConfigError is a ValueError
        raise DataError(f"{folder}: damaged token shards ({error}); delete the folder to make them again") from error
    if not whole:
        raise DataError(f"{folder}: damaged token shards (wrong size); delete the folder to make them again")
    if shards.malformed:
        log.warning(
            "data.sources.%s: %d malformed pieces were skipped; they are listed in %s",
            source.name,
            shards.malformed,
            folder / "malformed.txt",
        )
    return shards
