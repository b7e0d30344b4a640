"""Corpora, token shards, mixtures and batches."""

from shardscope.data.corpora import documents, files_of, kind_of, located
from shardscope.data.files import DataError, ReadLog
from shardscope.data.holdout import Holdout, HoldoutBatch
from shardscope.data.mixture import Batch, Mixture, SourcePlan, dealt, document_starts, format_plan
from shardscope.data.prefetch import Prefetcher
from shardscope.data.prepare import Prepared, as_source, prepare, sample_documents, shards_of
from shardscope.data.readers import Document
from shardscope.data.shards import Overlap, SourceShards, TokenShard, token_shards

__all__ = [
    "Batch",
    "DataError",
    "Document",
    "Holdout",
    "HoldoutBatch",
    "Mixture",
    "Overlap",
    "Prefetcher",
    "Prepared",
    "ReadLog",
    "SourcePlan",
    "SourceShards",
    "TokenShard",
    "as_source",
    "dealt",
    "document_starts",
    "documents",
    "files_of",
    "format_plan",
    "kind_of",
    "located",
    "prepare",
    "sample_documents",
    "shards_of",
    "token_shards",
]
