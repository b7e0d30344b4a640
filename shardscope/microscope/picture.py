"""Attention as pictures: weights to colours, pixels to PNG, and text that shows what it is made of."""

from __future__ import annotations

import struct
import unicodedata
import zlib

import numpy as np
from jaxtyping import UInt8

from shardscope.microscope.reading import PooledMap

Pixels = UInt8[np.ndarray, "height width"]

DECADES = 4  # weights from 1/10,000 to 1 have a colour of their own
HIDDEN_PIXEL = 255  # what a query cannot see
# Ten colours of viridis (van der Walt & Smith 2015), which colour-blind people can read; grey for what is hidden.
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
_GREY = (200, 200, 200)


def palette() -> UInt8[np.ndarray, "256 rgb"]:
    """Viridis from index 0 to 254, dark to bright; HIDDEN_PIXEL is grey."""
    stops = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _VIRIDIS.split()])
    at = np.linspace(0, len(stops) - 1, HIDDEN_PIXEL)
    viridis = np.stack([np.interp(at, np.arange(len(stops)), channel) for channel in stops.T], axis=1)
    return np.append(np.rint(viridis), [_GREY], axis=0).astype(np.uint8)


def pixels(pooled: PooledMap, window: int | None) -> Pixels:
    """One pixel for each square: the logarithm of its mass, over DECADES; grey where no query sees any key."""
    level = 1 + np.log10(np.maximum(pooled.mass, 10.0**-DECADES)) / DECADES
    image = np.rint(np.clip(level, 0, 1) * (HIDDEN_PIXEL - 1)).astype(np.uint8)
    query, key = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = (query - key) * pooled.cell
    hidden = distance < 0 if window is None else (distance < 0) | (distance - pooled.cell + 1 >= window)
    image[hidden] = HIDDEN_PIXEL
    return image


def png(image: Pixels) -> bytes:
    """A PNG file (W3C PNG, third edition) of palette indices."""
    height, width = image.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = image
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, indexed
    parts = (
        (b"IHDR", header),
        (b"PLTE", palette().tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def contact_sheet(images: list[list[Pixels]], gap: int = 4) -> UInt8[np.ndarray, "taller wider"]:
    """Pictures of one size in rows and columns, `gap` grey pixels apart."""
    height, width = images[0][0].shape
    padded = [[np.pad(image, gap // 2, constant_values=HIDDEN_PIXEL) for image in row] for row in images]
    assert all(image.shape == (height + gap, width + gap) for row in padded for image in row)
    return np.block(padded)


def enlarged(image: Pixels, times: int) -> UInt8[np.ndarray, "taller wider"]:
    """Every pixel as a square of `times` × `times`."""
    return image.repeat(times, axis=0).repeat(times, axis=1)


def visible(text: str) -> str:
    """`text` with control and formatting characters (bidi overrides, too) written out; newlines and tabs stay."""
    return "".join(_written_out(character) for character in text)


def _written_out(character: str) -> str:
    # The joiners are part of how some scripts and emoji are spelled.
    if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"\\u{ord(character):04x}"
