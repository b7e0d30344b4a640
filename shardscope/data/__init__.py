"""Corpora, token shards, mixtures and batches."""

from shardscope.data.corpora import documents
from shardscope.data.files import DataError, Reading
from shardscope.data.holdout import Holdout, HoldoutBatch
from shardscope.data.mixture import Batch, Mixture, SourcePlan, document_starts, format_plan
from shardscope.data.prefetch import Prefetcher
from shardscope.data.prepare import Prepared, prepare, sample_documents, shards_of
from shardscope.data.readers import Document
from shardscope.data.shards import SourceShards, TokenShard, token_shards

__all__ = [
    "Batch",
    "DataError",
    "Document",
    "Holdout",
    "HoldoutBatch",
    "Mixture",
    "Prefetcher",
    "Prepared",
    "Reading",
    "SourcePlan",
    "SourceShards",
    "TokenShard",
    "document_starts",
    "documents",
    "format_plan",
    "prepare",
    "sample_documents",
    "shards_of",
    "token_shards",
]
