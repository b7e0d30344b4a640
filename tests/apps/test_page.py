"""The explorer as people meet it: started by its command, driven in a real headless Chromium."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import browser
import pytest
import server
import torch

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.generate import SamplingConfig, generate
from shardscope.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(os.environ.get("SHARDSCOPE_SKIP_BROWSER") == "1", reason="SHARDSCOPE_SKIP_BROWSER=1"),
]
PROMPT = "Once upon a time, in a small village"
WINDOW = 16


@dataclass
class Watch:
    """What a page did that nobody sees on it."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    received: int = 0

    def over(self, page) -> None:
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._requested(request.url))
        page.on("websocket", lambda socket: socket.on("framereceived", self._frame))

    def _requested(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.hostname or "")

    def _frame(self, frame: str | bytes) -> None:
        self.received += len(frame)


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Tokenizer) -> Shard:
    """Small and random, with a context that holds a map of 256 squares and a window that a prompt leaves."""
    torch.manual_seed(0)
    config = ShardConfig(
        vocab_size=300, n_ctx=320, d_model=32, n_layers=4, n_heads=4, d_head=8, d_mlp=48, window=WINDOW
    )
    model = Shard(config, tiny_tokenizer)
    with torch.no_grad():
        model.embed.W_E.mul_(20)
    return model.eval()


@pytest.fixture(scope="module")
def address(model: Shard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = tmp_path_factory.mktemp("explorer")
    save_checkpoint(runs / "tiny", model)
    with server.explorer(runs / "tiny", log=runs / "server.log") as address:
        yield address
    assert "Traceback" not in (runs / "server.log").read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright")
    try:
        with sync_api.sync_playwright() as playwright, browser.headless(playwright) as chromium:
            yield chromium
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(chromium, watch: Watch) -> Iterator[object]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    watch.over(page)
    yield page
    context.close()
    assert watch.errors == []
    assert watch.hosts == {"localhost"}


def opened(page, address: str, **choices: object) -> str:
    """Open the attention page with these choices and return the heading of its picture."""
    page.goto(f"{address}/?" + "&".join(f"{name}={quote(str(value))}" for name, value in choices.items()))
    return heading(page, re.compile("Layer"))


def heading(page, text: re.Pattern[str]) -> str:
    found = page.get_by_role("heading", name=text)
    found.wait_for()
    page.locator("[data-testid=stVegaLiteChart] canvas").first.wait_for()
    return str(found.inner_text())


def test_the_page_names_the_layer_kind_and_follows_a_change_of_layer(page, address: str) -> None:
    assert opened(page, address, prompt=PROMPT, tokens=8) == f"Layer 0 · sliding, window {WINDOW} · head 0"
    picture = page.locator("[data-testid=stVegaLiteChart] canvas[aria-label*='sliding, window']")
    assert picture.get_attribute("aria-label").startswith(f"Attention of layer 0, sliding, window {WINDOW}, head 0")
    page.get_by_role("radiogroup", name="Layer").get_by_text("1", exact=True).click()
    assert heading(page, re.compile("Layer 1")) == "Layer 1 · global · head 0"
    assert "layer=1" in page.url
    assert page.locator("[data-testid=stException]").count() == 0


def test_the_page_shows_the_tokens_that_the_engine_generates(page, address: str, model: Shard) -> None:
    opened(page, address, prompt=PROMPT, tokens=8, seed=4)
    config = SamplingConfig(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=4)
    generation = generate(model, PROMPT, config)[0]
    strip = page.locator(".strip button")
    strip.nth(len(generation.prompt_ids)).wait_for()
    new = page.locator(".strip button.new").all_inner_texts()
    assert len(new) == len(generation.ids)
    assert model.tokenizer is not None
    assert [token.strip() for token in new if token.isascii()] == [
        text.strip()
        for text in map(model.tokenizer.token_text, generation.ids)
        if text.isprintable() and text.isascii()
    ]


def test_a_click_on_a_token_makes_it_the_one_that_reads(page, address: str) -> None:
    opened(page, address, prompt=PROMPT, tokens=4)
    page.locator(".strip button[data-pos='3']").click()
    page.get_by_text("The framed token, number 3, reads").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("The framed token, number 4, reads").wait_for()
    assert "query=4" in page.url


def test_a_click_in_the_overview_chooses_the_head(page, address: str) -> None:
    opened(page, address, prompt=PROMPT, tokens=4)
    cells = page.locator("[data-testid=stVegaLiteChart]").nth(1).locator("path[aria-label*='head: 2']")
    cells.first.click()
    assert re.fullmatch(r"Layer [13] · global · head 2", heading(page, re.compile("head 2")))


def test_hovering_names_query_key_distance_and_weight(page, address: str) -> None:
    opened(page, address, prompt=PROMPT, tokens=4, layer=1)
    box = page.locator("canvas[aria-label^='Attention of layer 1']").bounding_box()
    tip = page.locator("#vg-tooltip-element")
    for share in (0.45, 0.5, 0.55):
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * share)
        page.wait_for_timeout(200)
    tip.filter(has_text="Query").wait_for()
    words = tip.inner_text()
    assert [name for name in ("Query", "Key", "Distance", "Weight") if name in words] == [
        "Query",
        "Key",
        "Distance",
        "Weight",
    ]
    query, key = (int(re.search(rf"{name}\s*(\d+)", words)[1]) for name in ("Query", "Key"))
    assert int(re.search(r"Distance\s*(\d+)", words)[1]) == query - key


def test_markup_in_a_prompt_stays_text(page, address: str) -> None:
    opened(page, address, prompt="<script>alert(1)</script><img src=x onerror=alert(2)> **b** :red[x]", tokens=4)
    texts = "".join(page.locator(".strip button.prompt").all_inner_texts())
    assert "<script>alert(1)</script><imgsrc=xonerror=alert(2)>" in re.sub(r"\s", "", texts)
    assert page.locator("img[src='x']").count() == 0


def test_an_interaction_sends_less_than_300_kilobytes(page, address: str, watch: Watch) -> None:
    opened(page, address, prompt="x" * 250, tokens=5)
    page.wait_for_timeout(500)
    before = watch.received
    page.get_by_role("radiogroup", name="Layer").get_by_text("1", exact=True).click()
    heading(page, re.compile("Layer 1 · global"))
    page.wait_for_timeout(1500)
    assert 50_000 < watch.received - before < 300_000


def test_samples_show_six_prompts_with_their_flags(page, address: str) -> None:
    opened(page, address, prompt=PROMPT, tokens=4, sample_tokens=16)
    page.get_by_role("link", name="Samples").click()
    page.locator(".marked").nth(5).wait_for()
    assert page.locator(".marked").first.inner_text().startswith("The capital of France is")
    assert page.get_by_text(re.compile(r"^(clean|loop|breakdown|early end|echo|digits).* · \d+ tokens")).count() == 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(chromium, address: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    opened(page, address, prompt=PROMPT, tokens=4)
    widths = page.evaluate(
        "(() => { const e = document.querySelector('[data-testid=stMain]'); return [e.scrollWidth, e.clientWidth]; })()"
    )
    background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    context.close()
    assert widths[0] <= widths[1]
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light")
