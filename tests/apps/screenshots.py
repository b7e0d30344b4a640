"""The pictures in docs/images, taken anew: python tests/apps/screenshots.py [FOLDER of runs; default runs/] [NAME …]

They show the built-in checkpoint, and for what only a run has, the newest checkpoint below the folder.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

import browser
import server
from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(server.ROOT))

from apps.parts.address import FIRST_PROMPT
from apps.parts.checkpoints import find_checkpoints
from shardscope.checkpoint import BUILT_IN

IMAGES = server.ROOT / "docs" / "images"
LARGEST = 400_000  # bytes
# Long enough to leave the window of the built-in checkpoint, and with something to find for induction heads.
LONG = {"prompt": " ".join([FIRST_PROMPT] * 5)}
RUN = {"checkpoint": "of a run"}
MAP = "[data-shows*='-layer']"
A_LOOP = {"cell": "loop.prose.3000.built-in", "pick": "card-1, temperature 0, seed 0"}
# File: page, choices in its address, what is drawn last, what the picture ends below ("": the page), width, colours.
PICTURES: dict[str, tuple[str, dict[str, object], str, str, int, str]] = {
    "explorer": ("attention", {**LONG, "layer": 2, "head": 1}, "[data-shows^=pattern]", MAP, 1280, "light"),
    "attention": (
        "attention", {**LONG, "layer": 2, "head": 1, "rectangle": "300-328,222-262"}, "[data-shows*=-q300]", "", 1280,
        "light",
    ),
    "tokens": ("tokens", {"query": 79, "ablate": "3.0"}, "[data-shows=attribution]", "", 1280, "light"),
    "heads": ("heads", {**RUN, "by": "previous", "follow": True}, ".vega-embed", "", 1280, "dark"),
    "runs": (
        "runs", {"curve": "bits_per_byte", "biography": "shard-pico-pretrain (shipped)"}, ".vega-embed",
        ".st-key-take-biography-of-heads", 1280, "light",
    ),
    "atlas": ("failures", A_LOOP, ".marked", ".st-key-take-sample", 1280, "light"),
    "failures": ("failures", {**A_LOOP, "cause": True, "without": True}, ".marked >> nth=2", "", 1280, "light"),
    "phone": ("attention", {"layer": 0, "head": 1, "map": "band"}, "[data-shows^=pattern]", MAP, 390, "dark"),
}  # fmt: skip
BEGINS = {"failures": "h3:has-text('X-ray of the loop')"}  # what a picture begins above; the others at the top


def take(runs: Path, names: Sequence[str]) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    log = Path(tempfile.mkdtemp()) / "server.log"
    of_a_run = next(iter(find_checkpoints([runs])), "")
    with (
        server.explorer(BUILT_IN, runs, log=log) as address,
        sync_playwright() as playwright,
        browser.headless(playwright) as chromium,
    ):
        for name in names:
            path, choices, sign, end, width, scheme = PICTURES[name]
            page = chromium.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
            page.set_default_timeout(600_000)
            asked = urlencode({**choices, **({"checkpoint": of_a_run} if "checkpoint" in choices else {})})
            page.goto(f"{address}/{'' if path == 'attention' else path}?{asked}")
            page.locator(sign).last.wait_for()
            page.wait_for_timeout(5_000)
            height = page.locator("[data-testid=stMainBlockContainer]").evaluate("main => main.scrollHeight")
            page.set_viewport_size({"width": width, "height": int(height) + 60})
            page.wait_for_timeout(3_000)
            if end:
                box = page.locator(end).last.bounding_box()
                assert box is not None
                height = box["y"] + box["height"]
            top = page.locator(BEGINS[name]).first.bounding_box()["y"] - 20 if name in BEGINS else 0
            # What is drawn again every two seconds fades while it is.
            page.wait_for_function("!document.querySelector('[data-stale=true]')")
            clip = {"x": 0, "y": top, "width": width, "height": int(height) + 20 - top}
            save(page.screenshot(clip=clip), IMAGES / f"{name}.png")
            page.close()


def save(png: bytes, path: Path) -> None:
    """In all its colours if that fits into the size, else in the 256 that serve it best."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(server.ROOT)}: {path.stat().st_size:,} bytes, {picture.width} × {picture.height}")


if __name__ == "__main__":
    folder, *names = sys.argv[1:] or ["runs"]
    take(Path(folder).resolve(), names or list(PICTURES))
