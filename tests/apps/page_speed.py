"""How long the Attention page takes, from click to picture: python tests/apps/page_speed.py [--tokens N] [--out FILE]

A checkpoint of shard-54m with random weights is opened in headless Chromium on a prompt of N tokens. Every wait ends
when the picture is drawn; bytes are counted on the page's web socket.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import browser
import server
import torch
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(server.ROOT))

from apps.parts.address import pack
from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import save_checkpoint


def measure(tokens: int) -> dict[str, dict[str, float]]:
    folder = Path(tempfile.mkdtemp())
    tokenizer = load().tokenizer
    assert tokenizer is not None
    torch.manual_seed(0)
    config = ShardConfig.preset("shard-54m")
    save_checkpoint(folder / "large", Shard(config), tokenizer=tokenizer)
    # Digits are a token each, and so is the space before one: any length can be hit.
    prompt = "".join(random.Random(0).choices("0123456789", k=tokens - 1))
    assert len(tokenizer.encode(prompt, bos=True)) == tokens
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    found: dict[str, dict[str, float]] = {}
    with (
        server.explorer(folder, log=folder / "log") as address,
        sync_playwright() as playwright,
        browser.headless(playwright) as chromium,
    ):
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(600_000)
        received = 0

        def frame(data: str | bytes) -> None:
            nonlocal received
            received += len(data)

        page.on("websocket", lambda socket: socket.on("framereceived", frame))

        def timed(name: str, do: Callable[[], object], *signs: str) -> None:
            before, start = received, time.perf_counter()
            do()
            for sign in signs:
                page.locator(f"[data-shows$='{sign}']").wait_for()
                seconds = time.perf_counter() - start
                found[f"{name}: {sign}"] = {"seconds": round(seconds, 2), "bytes": received - before}
            page.wait_for_timeout(1500)
            found[f"{name}: {signs[-1]}"]["bytes"] = received - before

        def choose(box: str, option: str) -> None:
            page.get_by_role("combobox", name=box).click()
            page.get_by_role("option", name=option, exact=True).click()

        url = f"{address}/?tokens=0&prompt={quote(pack(prompt))}&layer=1"
        timed("open", lambda: page.goto(url), "layer1-head0-mean", "pattern of 96 heads")
        timed("another head", lambda: choose("Head", "head 3"), "layer1-head3-mean")
        timed("and another", lambda: choose("Head", "head 4"), "layer1-head4-mean")
        timed("a sliding layer", lambda: choose("Layer", "layer 2, sliding"), "layer2-head4-mean")
        timed("by distance", lambda: page.get_by_text("by distance", exact=True).click(), "layer2-head4-band")
        canvas = page.locator("[data-shows$='layer2-head4-band'] canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None

        def drag() -> None:
            page.mouse.move(box["x"] + 150, box["y"] + 300)
            page.mouse.down()
            page.mouse.move(box["x"] + 190, box["y"] + 305, steps=4)
            page.mouse.up()

        before, start = received, time.perf_counter()
        drag()
        page.locator("[data-shows*='layer2-head4-q']").wait_for()
        seconds = time.perf_counter() - start
        page.wait_for_timeout(1500)
        found["a rectangle"] = {"seconds": round(seconds, 2), "bytes": received - before}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--out", metavar="FILE", help="where the JSON is written")
    arguments = parser.parse_args()
    numbers = measure(arguments.tokens)
    for name, number in numbers.items():
        print(f"{name:45} {number['seconds']:8.2f} s {number['bytes']:12,.0f} bytes")
    if arguments.out:
        load_after = round(os.getloadavg()[0], 2)
        facts = {"tokens": arguments.tokens, "threads": torch.get_num_threads(), "load_after": load_after}
        Path(arguments.out).write_text(json.dumps({**facts, **numbers}, indent=2) + "\n", encoding="utf-8")
