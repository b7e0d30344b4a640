"""One head's attention over a prompt: exact wherever one looks, and a picture of the whole."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from shardscope.files import write_bytes
from shardscope.microscope.picture import enlarged, pixels, png
from shardscope.microscope.reading import MAX_CELLS, LayerReading, PooledMap

SMALLEST_PICTURE = 256  # pixels on a side; a short prompt's squares are drawn larger


@dataclass(frozen=True, eq=False)
class HeadMap:
    """What `read(model, prompt).head(layer, head)` gives. In a notebook it shows as its picture.

    A query's weights sum to 1, and what it cannot see is exactly 0. Raises MicroscopeError for tokens that the prompt
    lacks, and for more than MAX_TILE weights at once.
    """

    layer: LayerReading
    head: int

    def tile(self, queries: range | None = None, keys: range | None = None) -> Float[np.ndarray, "query key"]:
        """The exact weights of a rectangle (None: all queries, all keys)."""
        everything = range(self.layer.n_tokens)
        return self.layer.tile(
            self.head, everything if queries is None else queries, everything if keys is None else keys
        )

    def row(self, query: int) -> Float[np.ndarray, "pos"]:
        """What one query reads: its weight on every token."""
        return self.layer.row(self.head, query)

    def column(self, key: int) -> Float[np.ndarray, "pos"]:
        """What reads one key: the weight that every token gives it."""
        return self.layer.column(self.head, key)

    def band(self, queries: range | None = None, distances: range | None = None) -> Float[np.ndarray, "query distance"]:
        """Exact weights by distance, the query itself being 0 (None: all queries, all distances that it can see)."""
        n, window = self.layer.n_tokens, self.layer.window
        reach = n if window is None else min(window, n)
        return self.layer.band(
            self.head, range(n) if queries is None else queries, range(reach) if distances is None else distances
        )

    def pooled(self, max_cells: int = MAX_CELLS, queries: range | None = None, keys: range | None = None) -> PooledMap:
        """A rectangle (None: everything), however large, in at most `max_cells` squares on a side."""
        return self.layer.pooled(self.head, max_cells, queries, keys)

    def png(self, max_cells: int = MAX_CELLS) -> bytes:
        """The whole map as a PNG: queries downwards, keys to the right, brighter the more attention; grey is hidden."""
        image = pixels(self.pooled(max_cells), self.layer.window)
        return png(enlarged(image, -(-SMALLEST_PICTURE // max(image.shape))))

    def save(self, path: str | Path) -> Path:
        """Write the PNG; returns its path. Raises WriteError."""
        return write_bytes(path, self.png())

    def __repr__(self) -> str:
        seen = "global" if self.layer.window is None else f"sliding, window {self.layer.window}"
        return f"layer {self.layer.layer}, head {self.head} ({seen}): {self.layer.n_tokens} tokens"

    def _repr_html_(self) -> str:
        picture = b64encode(self.png()).decode()
        return (
            f'<figure style="margin:0"><img alt="attention of {self!r}" src="data:image/png;base64,{picture}">'
            f"<figcaption>{self!r}; queries downwards, keys to the right, brighter is more attention</figcaption>"
            "</figure>"
        )
