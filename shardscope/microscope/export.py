"""What the microscope sees of one prompt, as files that need nothing to be looked at.

attention.html     every head: its map, its scores, the best of each search; one file, offline, without scripts
overview.png       all heads in small, a row for each layer
maps/L03H5.png     one head, at most 512 × 512 cells
heads.parquet      one row for each head: the scores, mass by distance
maps.parquet       one row for each visible cell of each head's map, at most 128 × 128 cells
tokens.parquet     one row for each token of the prompt
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from shardscope.colors import GLOBAL, MARK, SLIDING
from shardscope.files import whole_file, write_bytes, write_text
from shardscope.microscope.heads import SCORES, HeadScores, find_heads, head_scores
from shardscope.microscope.picture import DECADES, contact_sheet, enlarged, pixels, png
from shardscope.microscope.reading import (
    MicroscopeError,
    PooledMap,
    Progress,
    Reading,
    read,
)
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer
from shardscope.visible import visible

TABLE_CELLS = 128
PAGE_CELLS = (128, 96, 64, 32)  # the first that keeps the page under PAGE_BYTES
PAGE_BYTES = 2_000_000
SHOWN_TEXT = 100_000  # characters of the prompt on the page


def export(model: Shard, text: str, out: Path, checkpoint: str = "", progress: Progress | None = None) -> list[Path]:
    """Write the files of one prompt into `out`; returns them, the pictures of single heads as their folder.

    Raises MicroscopeError for a prompt that the model cannot read, or a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise MicroscopeError("the checkpoint has no tokenizer; put its tokenizer.json beside the weights")
    if not text:
        raise MicroscopeError("the prompt is empty; write at least one character")
    reading = read(model, torch.tensor(model.tokenizer.encode(text, bos=True)), progress=progress)
    scores = head_scores(reading, progress=progress)
    (out / "maps").mkdir(parents=True, exist_ok=True)
    coarse: list[PooledMap] = []
    for score in scores:
        pooled = reading.layers[score.layer].pooled(score.head)
        write_bytes(out / "maps" / f"{_name(score)}.png", png(pixels(pooled, score.window)))
        coarse.append(pooled.coarser(TABLE_CELLS))
        if progress is not None:
            progress((len(coarse)) / len(scores), f"drew the heads of layer {score.layer + 1} of {len(reading.layers)}")
    _write_tables(reading, scores, coarse, model.tokenizer, out, checkpoint)
    write_bytes(out / "overview.png", png(_overview(reading, scores)))
    write_text(out / "attention.html", _page_that_fits(reading, scores, coarse, text, checkpoint))
    names = ("attention.html", "overview.png", "heads.parquet", "maps.parquet", "tokens.parquet")
    return [*(out / name for name in names), out / "maps"]


def _name(score: HeadScores) -> str:
    return f"L{score.layer:02}H{score.head}"


def _overview(reading: Reading, scores: Sequence[HeadScores]) -> np.ndarray:
    n_heads = reading.config.n_heads
    images = [enlarged(pixels(score.map, score.window), 3) for score in scores]
    return contact_sheet([images[first : first + n_heads] for first in range(0, len(images), n_heads)])


# ------------------------------------------------------------------------------------------------ tables


def _write_tables(
    reading: Reading,
    scores: Sequence[HeadScores],
    maps: Sequence[PooledMap],
    tokenizer: Tokenizer,
    out: Path,
    checkpoint: str,
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    facts = {
        "checkpoint": checkpoint,
        "tokenizer": tokenizer.fingerprint,
        "tokens": str(reading.n_tokens),
        "window": str(reading.config.window),
    }
    heads = {
        "layer": [score.layer for score in scores],
        "head": [score.head for score in scores],
        "kind": [score.kind for score in scores],
        **{name: [getattr(score, name) for score in scores] for name in SCORES},
        "distance_edges": [score.distance_edges for score in scores],
        "mass_by_distance": [score.mass_by_distance for score in scores],
    }
    rows = [_map_rows(score, pooled) for score, pooled in zip(scores, maps, strict=True)]
    cells = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    ids = reading.ids.tolist()
    tokens = {"position": range(len(ids)), "id": ids, "text": [tokenizer.token_text(id) for id in ids]}
    facts_of_maps = {**facts, "cell": str(maps[0].cell)}
    for name, columns, notes in (("heads", heads, facts), ("maps", cells, facts_of_maps), ("tokens", tokens, facts)):
        table = pa.table(columns).replace_schema_metadata(notes)
        with whole_file(out / f"{name}.parquet") as partial:
            parquet.write_table(table, partial, compression="zstd")


def _map_rows(score: HeadScores, pooled: PooledMap) -> dict[str, np.ndarray]:
    query, key = np.nonzero(pooled.max)
    where = query.astype(np.uint16), key.astype(np.uint16)
    layer, head = (np.full(len(query), value, dtype=np.uint16) for value in (score.layer, score.head))
    values = {"mean": pooled.mean[query, key], "max": pooled.max[query, key]}
    return {"layer": layer, "head": head, "query_cell": where[0], "key_cell": where[1], **values}


# -------------------------------------------------------------------------------------------------- page


def _page_that_fits(
    reading: Reading, scores: Sequence[HeadScores], maps: Sequence[PooledMap], text: str, checkpoint: str
) -> str:
    for cells in PAGE_CELLS:
        page = _page(reading, scores, [pooled.coarser(cells) for pooled in maps], text, checkpoint)
        if len(page.encode()) <= PAGE_BYTES:
            return page
    raise MicroscopeError(f"a page of {len(scores)} heads does not fit {PAGE_BYTES:,} bytes; the other files are there")


def _page(reading: Reading, scores: Sequence[HeadScores], maps: Sequence[PooledMap], text: str, checkpoint: str) -> str:
    """All of it as one HTML file. It has no script: a head is opened by its anchor, and the policy forbids the rest."""
    config = reading.config
    backgrounds = "\n".join(
        f".{_name(score)}{{background-image:url(data:image/png;base64,"
        f"{b64encode(png(pixels(pooled, score.window))).decode()})}}"
        for score, pooled in zip(scores, maps, strict=True)
    )
    layers = "\n".join(_layer_row(scores, layer, config.n_heads) for layer in range(config.n_layers))
    searches = "\n".join(_search(scores, by) for by in SCORES)
    details = "\n".join(_detail(score, pooled, config.window) for score, pooled in zip(scores, maps, strict=True))
    shown = text[:SHOWN_TEXT] + (f"\n… {len(text) - SHOWN_TEXT:,} more characters" if len(text) > SHOWN_TEXT else "")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention of {reading.n_tokens:,} tokens</title>
<style>{_STYLE}
{backgrounds}
</style></head><body>
<h1>Attention of {reading.n_tokens:,} tokens</h1>
<p>{escape(visible(checkpoint)) or "A model"}: {config.n_layers} layers of {config.n_heads} heads; sliding layers see
{config.window:,} tokens, global layers everything before. Rows are queries, columns keys. Colour is the share of a
query's attention on a logarithmic scale, from 1/{10**DECADES:,} (dark) to 1 (bright); grey cannot be seen. Each
square pools {maps[0].cell} × {maps[0].cell} tokens. Choose a head to see it in full.</p>
<main>
{layers}
</main>
{details}
<h2>Head search</h2><div class="searches">{searches}</div>
<h2>Prompt</h2><pre dir="auto">{escape(visible(shown))}</pre>
</body></html>
"""


def _layer_row(scores: Sequence[HeadScores], layer: int, n_heads: int) -> str:
    row = scores[layer * n_heads : (layer + 1) * n_heads]
    heads = "".join(
        f'<a class="map {_name(score)}" href="#{_name(score)}" title="layer {layer}, head {score.head}"></a>'
        for score in row
    )
    return f'<div class="layer {row[0].kind}"><b>{layer} {row[0].kind}</b>{heads}</div>'


def _search(scores: Sequence[HeadScores], by: str) -> str:
    rows = "".join(
        f'<tr><td><a href="#{_name(score)}">{_name(score)}</a><td>{score.kind}<td>{getattr(score, by):.4g}'
        for score in find_heads(scores, by, top=10)
    )
    return f"<table><caption><b>{by}</b>: {escape(SCORES[by])}</caption>{rows}</table>"


def _detail(score: HeadScores, pooled: PooledMap, window: int) -> str:
    numbers = "".join(f"<tr><td>{name}<td>{getattr(score, name):.4g}<td>{escape(SCORES[name])}" for name in SCORES)
    bars = "".join(
        f"<tr{' class=edge' if first == window else ''}><td>{_span(first, last)}"
        f'<td><i style="width:{100 * mass:.2f}%"></i><td>{mass:.4f}'
        for (first, last), mass in zip(pairwise(score.distance_edges.tolist()), score.mass_by_distance, strict=True)
    )
    return f"""<section id="{_name(score)}"><h2>Layer {score.layer} ({score.kind}), head {score.head}</h2>
<div class="map full {_name(score)}" role="img" aria-label="{len(pooled.mean)} × {len(pooled.mean)} squares"></div>
<table>{numbers}</table>
<table class="bars"><caption>Mass by distance; the line is the edge of the window</caption>{bars}</table></section>"""


def _span(first: int, stop: int) -> str:
    return f"{first}" if stop == first + 1 else f"{first}–{stop - 1}"


_STYLE = (
    f":root{{--sliding:{SLIDING};--global:{GLOBAL};--mark:{MARK}}}"
    + """
:root{color-scheme:light dark;font:15px/1.45 system-ui,sans-serif}body{max-width:72rem;margin:1rem auto;padding:0 1rem}
.map{display:inline-block;width:min(7.2vw,84px);aspect-ratio:1;margin:1px;background-size:100% 100%;
image-rendering:pixelated}.map:hover,.map:focus{outline:2px solid var(--mark)}
.layer{display:flex;align-items:center;border-left:6px solid;margin:2px 0;padding-left:6px}.layer b{width:5.5rem}
.sliding{border-color:var(--sliding)}.global{border-color:var(--global)}section{display:none}
section:target{display:block}
.full{width:min(100%,40rem)}.searches{display:flex;flex-wrap:wrap;align-items:start;gap:1.5rem}
table{border-collapse:collapse}
td{padding:1px 8px}caption{text-align:left}.bars td:nth-child(2){width:20rem}.bars i{display:block;height:.8em;
background:var(--sliding)}.edge td{border-top:2px solid var(--mark)}pre{white-space:pre-wrap;overflow-wrap:anywhere;
unicode-bidi:plaintext;max-height:30rem;overflow:auto;border:1px solid #8888;padding:.6rem}"""
)
