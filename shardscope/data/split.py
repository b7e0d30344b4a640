"""Which documents are held out: one in a hundred by a hash of its text, so that copies fall on the same side.

The built-in corpora have hundreds of documents and not millions, so of them it is one module in twenty.
"""

from __future__ import annotations

import hashlib

from shardscope.config import DataConfig, Source
from shardscope.data.archives import shown
from shardscope.data.corpora import documents, kind_of
from shardscope.data.files import DataError, ReadLog
from shardscope.data.readers import Document

ONE_IN = 100
ONE_BUILT_IN_IN = 20
_HASHES = 2**64


def side_hash(document: Document) -> int:
    """0 … 2⁶⁴-1, the same on every machine and for all of a family."""
    decisive = document.family or document.text
    return int.from_bytes(hashlib.blake2b(decisive.encode("utf-8"), digest_size=8).digest(), "big")


def holdout_threshold(source: Source, data: DataConfig) -> int:
    """Documents whose hash lies below this are held out; 0 where `source.holdout` names them instead.

    A source too small to have both sides gives its document of the smallest hash. Reads only until both sides are met.
    Raises DataError if there are not two different documents.
    """
    if source.holdout:
        return 0
    threshold = _HASHES // (ONE_BUILT_IN_IN if kind_of(source.path) == "builtin" else ONE_IN)
    lowest, highest = _HASHES, -1
    reading = ReadLog(data.on_malformed, quiet=True, longest=data.max_document_bytes)
    for document in documents(source, reading):
        hashed = side_hash(document)
        lowest, highest = min(lowest, hashed), max(highest, hashed)
        if lowest < threshold <= highest:
            return threshold
    if lowest >= highest:
        raise DataError(
            f"data.sources.{source.name}: path={shown(source.path)!r} holds fewer than two different documents, so "
            f"none can be held out; give it more documents, or name a file of others in holdout{reading.why_nothing}"
        )
    return lowest + 1
