"""Attention as pictures: weights to colours, pixels to PNG."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from shardscope.colors import viridis
from shardscope.microscope.reading import PooledMap

Pixels = UInt8[np.ndarray, "height width"]

DECADES = 4  # weights from 1/10,000 to 1 have a colour of their own
HIDDEN_PIXEL = 255  # what a query cannot see
_GREY = (200, 200, 200)


@cache
def palette() -> UInt8[np.ndarray, "256 rgb"]:
    """Viridis from index 0 to 254, dark to bright; HIDDEN_PIXEL is grey."""
    return np.array([*(viridis(shade / (HIDDEN_PIXEL - 1)) for shade in range(HIDDEN_PIXEL)), _GREY], dtype=np.uint8)


def pixels(pooled: PooledMap, window: int | None) -> Pixels:
    """One pixel for each square: the logarithm of its mass, over DECADES; grey where no query sees any key."""
    level = 1 + np.log10(np.maximum(pooled.mass, 10.0**-DECADES)) / DECADES
    image = np.rint(np.clip(level, 0, 1) * (HIDDEN_PIXEL - 1)).astype(np.uint8)
    query, key = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = (query - key) * pooled.cell
    hidden = distance < 0 if window is None else (distance < 0) | (distance - pooled.cell + 1 >= window)
    image[hidden] = HIDDEN_PIXEL
    return image


def png(image: Pixels, colors: UInt8[np.ndarray, "256 rgb"] | None = None, transparent: int | None = None) -> bytes:
    """A PNG file of indices into `colors` (None: the palette), one of which may be `transparent`."""
    picture = Image.fromarray(image)
    picture.putpalette((palette() if colors is None else colors).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **({} if transparent is None else {"transparency": transparent}))
    return file.getvalue()


def contact_sheet(images: list[list[Pixels]], gap: int = 4) -> UInt8[np.ndarray, "taller wider"]:
    """Pictures of one size in rows and columns, `gap` grey pixels apart."""
    height, width = images[0][0].shape
    padded = [[np.pad(image, gap // 2, constant_values=HIDDEN_PIXEL) for image in row] for row in images]
    assert all(image.shape == (height + gap, width + gap) for row in padded for image in row)
    return np.block(padded)


def enlarged(image: Pixels, times: int) -> UInt8[np.ndarray, "taller wider"]:
    """Every pixel as a square of `times` × `times`."""
    return image.repeat(times, axis=0).repeat(times, axis=1)
