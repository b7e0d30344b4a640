"""The colours of every picture, page and chart. All of them are told apart with the common colour blindnesses."""

from __future__ import annotations

# Ten colours of viridis (van der Walt & Smith 2015), dark to bright: a share from 0 to 1.
VIRIDIS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
# Blue for less, orange for more, white for nothing (ColorBrewer).
_BLUE_ORANGE = ("2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fee0b6", "fdb863", "e08214", "b35806")
# Okabe & Ito (2008), for lines and categories.
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
SLIDING, GLOBAL, MARK = OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[5]  # kinds of layers; a line or frame to look at


def viridis(share: float) -> tuple[int, int, int]:
    """The colour of a share between 0 and 1, as red, green and blue of 255."""
    return _between(VIRIDIS, share)


def blue_orange(share: float) -> tuple[int, int, int]:
    """The colour of a share between -1 (blue) and 1 (orange), as red, green and blue of 255."""
    return _between(_BLUE_ORANGE, (share + 1) / 2)


def _between(stops: tuple[str, ...], share: float) -> tuple[int, int, int]:
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    below, above = bytes.fromhex(stops[low]), bytes.fromhex(stops[low + 1])
    red, green, blue = (round(a + (place - low) * (b - a)) for a, b in zip(below, above, strict=True))
    return red, green, blue
