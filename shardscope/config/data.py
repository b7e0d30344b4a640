"""What a run reads: its vocabulary, the mixture of sources, and the benchmarks that stay out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from shardscope.config.errors import require
from shardscope.config.fields import choice
from shardscope.config.paths import require_no_control_characters


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    path: str = choice("", help="an existing tokenizer.json; empty: train one on the data")
    documents: int = choice(100_000, help="documents a new tokenizer is trained on, drawn from all sources")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One stream of documents of the mixture."""

    name: str = choice(help="short name, used in logs and metrics")
    path: str = choice(
        help="file, folder or pattern of .txt/.jsonl/.json/.parquet (.gz .bz2 .xz .zst .zip), "
        "'hf:owner/dataset[:config]', 'builtin:NAME'; ~ and $VARIABLES are replaced"
    )
    weight: float = choice(1.0, help="share of the training sequences drawn from this source, relative to the others")
    holdout: str = choice("", help="a path of held-out documents; empty: one document in a hundred is held out")
    text: str = choice(
        "text",
        help="the field of a row that holds the document ('text', 'meta.body'), or a text with fields in braces, "
        "as in '{question} {answer}'",
    )
    split: str = choice("train", help="split of a Hugging Face dataset")
    documents: int = choice(0, help="read at most this many documents; 0: all")
    tokens: int = choice(0, help="roughly how many tokens it holds, for --dry-run before it has been read; 0: unknown")
    cut: Literal["auto", "marker", "line", "paragraph", "file"] = choice(
        "auto",
        help="how a text file is cut into documents: at lines that hold the marker alone, and long text at empty lines "
        "(auto); wherever the marker stands; at every line; at empty lines; not at all (file)",
    )
    marker: str = choice("<|endoftext|>", help="what separates the documents of a text file; see cut")

    def __post_init__(self) -> None:
        require(bool(self.name), "data.sources: a source has an empty name; give it one, as in name = 'prose'")
        require(bool(self.path), f"data.sources.{self.name}: path is empty; name a file, a folder or a pattern")
        for field_name in ("path", "holdout"):
            require_no_control_characters(f"data.sources.{self.name}: {field_name}", getattr(self, field_name))
        require(0 <= self.weight < math.inf, f"data.sources.{self.name}: weight={self.weight}; use a number from 0 on")
        require(self.documents >= 0, f"data.sources.{self.name}: documents={self.documents} is negative; use 0 for all")
        require(self.tokens >= 0, f"data.sources.{self.name}: tokens={self.tokens} is negative; use 0 where unknown")
        require(bool(self.text), f"data.sources.{self.name}: text is empty; name the field that holds the document")
        require(
            bool(self.marker.strip()) or self.cut not in ("auto", "marker"),
            f"data.sources.{self.name}: marker={self.marker!r} is empty; name what separates documents",
        )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Scored questions that no training document may repeat."""

    name: str = choice(help="short name, used in logs and metrics")
    path: str = choice(help="as a source's path: the questions, one a row")
    text: str = choice("*", help="as a source's text; '*': every text in the row")
    split: str = choice("test", help="split of a Hugging Face dataset")

    def __post_init__(self) -> None:
        require(bool(self.name), "data.benchmarks: one has an empty name; give it one, as in name = 'arc'")
        require(bool(self.path), f"data.benchmarks.{self.name}: path is empty; name a file, a folder or a pattern")
        require_no_control_characters(f"data.benchmarks.{self.name}: path", self.path)
        require(bool(self.text), f"data.benchmarks.{self.name}: text is empty; '*' takes every text in a row")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[Source, ...] = choice(tuple, help="the mixture: tables of name, path, weight …")
    seq_len: int = choice(2048, help="tokens of a training sequence")
    on_malformed: Literal["skip", "fail"] = choice(
        "fail", help="a malformed line is counted and reported with file and line, then skipped, or ends the run"
    )
    max_document_bytes: int = choice(
        64_000_000, help="a longer document is malformed; reading takes up to ten times as much memory"
    )
    overlap: Literal["count", "drop", "ignore"] = choice(
        "count",
        help="training documents that repeat held-out text or benchmark questions (the same text, or 13 words in a "
        "row) are counted and reported, left out, or not looked for",
    )
    benchmarks: tuple[Benchmark, ...] = choice(tuple, help="scored questions to keep out: tables of name, path, text …")
    cache_dir: str = choice("", help="where tokenized shards are kept; empty: ~/.cache/shardscope/tokens")
    mask_documents: bool = choice(False, help="attention does not cross document boundaries")

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "data.sources is empty; name at least one source of documents")
        names = [source.name for source in self.sources]
        doubled = sorted({name for name in names if names.count(name) > 1})
        require(not doubled, f"data.sources: the names {doubled} are used twice; every source needs its own")
        scored = [benchmark.name for benchmark in self.benchmarks]
        require(len(set(scored)) == len(scored), f"data.benchmarks: a name of {scored} is used twice")
        require(sum(source.weight for source in self.sources) > 0, "data.sources: every weight is 0; raise one")
        require(self.max_document_bytes >= 1, f"data.max_document_bytes={self.max_document_bytes} must be at least 1")
        require(self.seq_len >= 2, f"data.seq_len={self.seq_len} is too short; use at least 2 tokens")
