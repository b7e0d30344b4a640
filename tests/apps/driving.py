"""A real headless Chromium on the explorer: what a test does with a page, and reads off it."""

from __future__ import annotations

import csv
import io
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from shardscope.generation import SamplingConfig

sync_api = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright")

BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(os.environ.get("SHARDSCOPE_SKIP_BROWSER") == "1", reason="SHARDSCOPE_SKIP_BROWSER=1"),
]
PROMPT = "Once upon a time, in a small village, there lived a clockmaker who counted. Once upon a time, in a small"
SAMPLING = SamplingConfig(max_new_tokens=6, temperature=0.7, top_p=0.9, seed=4)
ASKED = {"prompt": PROMPT, "tokens": 6, "seed": 4}
WINDOW = 16
# As many heads as the published model, and a text that is longer than a strip, a window and a map's squares.
LONG_TEXT = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=1300))
LARGE = {"checkpoint": "runs/large", "prompt": LONG_TEXT, "tokens": 0}


@dataclass
class Watch:
    """What a page did that nobody sees on it."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    received: int = 0

    def over(self, page) -> None:
        page.on("console", lambda message: self._said(message) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._requested(request.url))
        page.on("websocket", lambda socket: socket.on("framereceived", self._frame))

    def _said(self, message) -> None:
        # Opened at /tokens, Streamlit looks for its server below /tokens first. A popover opened again asks for the
        # files of before, until the page is drawn anew; whether a file can be saved, `saved` sees.
        of_a_file = "/media/" in message.location.get("url", "") or "Download Button source error" in message.text
        if not of_a_file and "/_stcore/" not in message.location.get("url", ""):
            self.errors.append(message.text)

    def _requested(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.hostname or "")

    def _frame(self, frame: str | bytes) -> None:
        self.received += len(frame)


def opened(page, address: str, path: str = "", **choices: object) -> None:
    """Open a page with these choices."""
    page.goto(f"{address}/{path}?" + "&".join(f"{name}={quote(str(value))}" for name, value in choices.items()))


def in_address(page, choice: str) -> None:
    page.wait_for_url(re.compile(re.escape(choice)))


def heading(page, text: str) -> str:
    found = page.get_by_role("heading", name=re.compile(text))
    found.wait_for()
    return str(found.inner_text())


def shown(page, name: str):
    """A drawn map or grid of heads, by (the end of) its name, once it is drawn."""
    found = page.locator(f"[data-shows$='{name}']")
    found.wait_for()
    return found


def place(heatmap, row: int, column: int) -> tuple[float, float]:
    """The centre of a square of a map, on the screen."""
    heatmap.scroll_into_view_if_needed()
    x, y = heatmap.evaluate(
        """(root, [row, column]) => {
            const { plot, data, canvas } = root.map, box = canvas.getBoundingClientRect();
            return [box.left + plot.left + ((column + 0.5) / data.columns.count) * plot.width,
                    box.top + plot.top + ((row + 0.5) / data.rows.count) * plot.height];
        }""",
        [row, column],
    )
    return x, y


def weight_at(page, heatmap, row: int, column: int) -> tuple[str, float]:
    """What the page says of a square under the pointer, and the weight in it."""
    page.mouse.move(*place(heatmap, row, column))
    words = heatmap.locator(".tip").inner_text()
    return words, float(re.search(r"[Ww]eight (\d\.\d+(?:e-\d+)?)", words)[1])


@contextmanager
def taken_away(page, name: str) -> Iterator[object]:
    """What opens below a view: its notebook cell and its files."""
    button = page.locator(f".st-key-take-{name.replace(' ', '-')} button").first
    opened = page.locator("[data-testid=stPopoverBody]")
    closed(page, opened)
    # A click that comes while the page is drawn anew goes astray.
    for _ in range(6):
        button.click()
        try:
            opened.locator("code").wait_for(timeout=10_000)
            break
        except sync_api.TimeoutError:
            closed(page, opened)
    opened.locator("code").wait_for()
    yield opened
    closed(page, opened)


def closed(page, opened) -> None:
    """Escape until nothing is open; it goes astray where nothing in the popover has the focus any more."""
    for _ in range(40):
        if opened.count() == 0:
            return
        page.keyboard.press("Escape")
        try:
            opened.first.wait_for(state="detached", timeout=1_500)
        except sync_api.TimeoutError:
            page.mouse.click(3, 300)
    raise AssertionError("a popover stays open")


def saved(page, button: str) -> bytes:
    with taken_away(page, button.rpartition(".")[0]) as opened:
        # A popover opened again shows the buttons of before, whose files are gone, until the page is drawn anew.
        page.wait_for_timeout(500)
        page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
        with page.expect_download() as download:
            # Not by the pointer: where the page grew meanwhile, the popover hangs below what is on the screen.
            opened.get_by_role("button", name=button, exact=True).dispatch_event("click")
        return Path(download.value.path()).read_bytes()


def saved_table(page, button: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(saved(page, button).decode())))


def run_cell(page, name: str) -> dict[str, object]:
    """Run the notebook cell that the page offers for a view, as it stands, and return what it leaves behind."""
    with taken_away(page, name) as opened:
        code = settled_code(page, opened)
    left: dict[str, object] = {}
    exec(compile(code, name, "exec"), left)
    return left


_codes_before: dict[object, str] = {}


def settled_code(page, opened) -> str:
    """The cell, once it is no longer that of the view opened before, and no longer changing: a busy page is slow."""
    before, seen = _codes_before.get(page), ""
    for _ in range(50):
        code = opened.locator("code").text_content()
        if code == seen and code != before:
            break
        seen = code
        page.wait_for_timeout(200)
    _codes_before[page] = code
    return code


def choose(page, box: str, option: str) -> None:
    page.get_by_role("combobox", name=re.compile(box)).click()
    page.get_by_role("option", name=option, exact=True).click()
