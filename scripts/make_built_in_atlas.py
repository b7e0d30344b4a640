"""The built-in model's atlas that ships with the package, made anew: python scripts/make_built_in_atlas.py

Samples of the same weights and settings are only labelled anew, by today's rules.
"""

from __future__ import annotations

import json
import lzma

from shardscope.checkpoint import BUILT_IN, fingerprint, load
from shardscope.failures.atlas import AtlasSettings, built_in_atlas, make_atlas
from shardscope.failures.atlas.records import SHIPPED, column_lines
from shardscope.failures.atlas.sampling import relabelled
from shardscope.files import write_bytes
from shardscope.progress import progress_of_shares

SETTINGS = AtlasSettings(temperatures=(0.0, 0.7, 1.0), seeds=2, max_new_tokens=128)


def make() -> None:
    shipped = built_in_atlas()
    [column] = shipped.columns
    if shipped.settings == SETTINGS and column.fingerprint == fingerprint(BUILT_IN):
        column = relabelled(column, SETTINGS, load(BUILT_IN, device="cpu"))
    else:
        with progress_of_shares("atlas") as progress:
            [column] = make_atlas([BUILT_IN], SETTINGS, device="cpu", progress=progress).columns
    text = json.dumps(SETTINGS.to_dict()) + "\n" + "".join(column_lines(column))
    write_bytes(SHIPPED, lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))
    print(f"{SHIPPED}: {SHIPPED.stat().st_size:,} bytes, {len(column.samples):,} samples")


if __name__ == "__main__":
    make()
