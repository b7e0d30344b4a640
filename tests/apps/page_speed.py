"""How long the Attention page takes, from click to picture: python tests/apps/page_speed.py [--tokens N] [--out FILE]

A checkpoint of shard-54m with random weights is opened in headless Chromium on a prompt of N tokens. A time runs from
the release of the pointer (for the first pictures: from the request for the page) to the frame after the picture was
drawn, both read off the page's own clock; bytes are counted on its web socket.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import browser
import server
import torch

sys.path.insert(0, str(server.ROOT))

from apps.parts.address import pack
from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import save_checkpoint

# Components draw into shadow roots, which are watched from their making on.
WATCH = """
globalThis.released = 0;
globalThis.drawn = {};
addEventListener("pointerup", () => [globalThis.released, globalThis.drawn] = [performance.now(), {}], true);
const watcher = new MutationObserver((changes) => {
  for (const { target } of changes) requestAnimationFrame(() => setTimeout(() => {
    globalThis.drawn[target.dataset.shows] ??= performance.now() - globalThis.released;
  }));
});
const watch = (root) => watcher.observe(root, { attributes: true, subtree: true, attributeFilter: ["data-shows"] });
watch(document);
const attach = Element.prototype.attachShadow;
Element.prototype.attachShadow = function (...how) {
  const root = attach.apply(this, how);
  watch(root);
  return root;
};
"""
READ = "sign => Object.entries(globalThis.drawn).find(([name]) => name.includes(sign))?.[1] ?? null"


def measure(tokens: int) -> list[dict[str, Any]]:
    """A row for each kind of action: the median and the slowest of its times, and the most bytes."""
    from playwright.sync_api import sync_playwright

    folder = Path(tempfile.mkdtemp())
    tokenizer = load().tokenizer
    assert tokenizer is not None
    torch.manual_seed(0)
    save_checkpoint(folder / "large", Shard(ShardConfig.preset("shard-54m")), tokenizer=tokenizer)
    # Digits are a token each, and so is the space before one: any length can be hit.
    prompt = "".join(random.Random(0).choices("0123456789", k=tokens - 1))
    assert len(tokenizer.encode(prompt, bos=True)) == tokens
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    seconds: dict[str, list[float]] = {}
    sent: dict[str, list[int]] = {}
    with (
        server.explorer(folder, log=folder / "log") as address,
        sync_playwright() as playwright,
        browser.headless(playwright) as chromium,
    ):
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(600_000)
        page.add_init_script(WATCH)
        received = 0

        def frame(data: str | bytes) -> None:
            nonlocal received
            received += len(data)

        page.on("websocket", lambda socket: socket.on("framereceived", frame))

        def timed(name: str, do: Callable[[], object], sign: str) -> None:
            before = received
            do()
            page.locator(f"[data-shows*='{sign}']").first.wait_for()
            page.wait_for_timeout(2000)
            seconds.setdefault(name, []).append(page.evaluate(READ, sign) / 1000)
            sent.setdefault(name, []).append(received - before)

        def choose(box: str, option: str) -> Callable[[], None]:
            page.get_by_role("combobox", name=box, exact=True).click()
            return page.get_by_role("option", name=option, exact=True).click

        def drag(across: int) -> None:
            canvas = page.locator("[data-shows*='head4-'] canvas").first
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + 100 + across, box["y"] + 300)
            page.mouse.down()
            page.mouse.move(box["x"] + 140 + across, box["y"] + 330, steps=4)
            page.mouse.up()

        url = f"{address}/?tokens=0&prompt={quote(pack(prompt))}&layer=1"
        timed("first map", lambda: page.goto(url), "layer1-head0-mean")
        timed("all heads", lambda: None, "pattern of 96 heads")
        for head in (3, 4, 5, 6, 7, 0):
            timed("another head", choose("Head", f"head {head}"), f"layer1-head{head}-mean")
        for layer, head in ((3, 1), (5, 2), (2, 3), (4, 4)):
            button = page.locator(f"button[data-head='{layer}.{head}']")
            timed("a head of another layer", button.click, f"layer{layer}-head{head}-mean")
        for across in (0, 20, 40):
            timed("a rectangle", partial(drag, across), "head4-q")
        timed("largest weights", page.get_by_text("largest weight", exact=True).click, "layer4-head4-max")
        timed("by distance", page.get_by_text("by distance", exact=True).click, "layer4-head4-band")
        timed("by distance", choose("Head", "head 5"), "layer4-head5-band")
    return [
        {
            "action": name,
            "median": round(statistics.median(times), 2),
            "slowest": round(max(times), 2),
            "times": len(times),
            "bytes": max(sent[name]),
        }
        for name, times in seconds.items()
    ]


def table(report: dict[str, Any]) -> str:
    """The report's rows as Markdown."""
    lines = ["| action | median | slowest | times | kB sent |", "|---|---:|---:|---:|---:|"]
    for row in report["rows"]:
        lines.append(
            f"| {row['action']} | {row['median']:.2f} s | {row['slowest']:.2f} s | {row['times']} "
            f"| {row['bytes'] / 1000:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--out", metavar="FILE", help="where the JSON is written")
    arguments = parser.parse_args()
    load_before = round(os.getloadavg()[0], 2)
    report = {
        "command": "python tests/apps/page_speed.py --out docs/benchmarks/explorer-cpu.json",
        "tokens": arguments.tokens,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "measured": date.today().isoformat(),
        "load_before": load_before,
        "rows": measure(arguments.tokens),
    }
    print(table(report))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
