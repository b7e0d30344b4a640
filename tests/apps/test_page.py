"""The explorer as people meet it: started by its command, driven in a real headless Chromium."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import browser
import numpy as np
import pytest
import server
import torch
from small_run import MARKUP, make_run, with_markup

from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import list_checkpoints
from shardscope.generate import Generation, SamplingConfig, generate
from shardscope.lens.microscope import ablated, attribution, head_scores, logit_lens, read
from shardscope.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(os.environ.get("SHARDSCOPE_SKIP_BROWSER") == "1", reason="SHARDSCOPE_SKIP_BROWSER=1"),
]
PROMPT = "Once upon a time, in a small village, there lived a clockmaker who counted. Once upon a time, in a small"
SAMPLING = SamplingConfig(max_new_tokens=6, temperature=0.7, top_p=0.9, seed=4)
ASKED = {"prompt": PROMPT, "tokens": 6, "seed": 4}
WINDOW = 16


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
        # Opened at /tokens, Streamlit looks for its server below /tokens first.
        if "/_stcore/" not in message.location.get("url", ""):
            self.errors.append(message.text)

    def _requested(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.hostname or "")

    def _frame(self, frame: str | bytes) -> None:
        self.received += len(frame)


@pytest.fixture(scope="module")
def run(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints: small and random, with a window that a prompt leaves."""
    config = ShardConfig(
        vocab_size=300, n_ctx=320, d_model=32, n_layers=4, n_heads=4, d_head=8, d_mlp=48, window=WINDOW
    )
    folder = tmp_path_factory.mktemp("explorer")
    tokenizer = with_markup(tiny_tokenizer, folder / "tokenizer.json")
    return make_run(folder / "runs" / "tiny-run", config, tokenizer)


@pytest.fixture(scope="module")
def model(run: Path) -> Shard:
    return load(run)


@pytest.fixture(scope="module")
def written(model: Shard) -> Generation:
    return generate(model, PROMPT, SAMPLING)[0]


@pytest.fixture(scope="module")
def ids(written: Generation) -> torch.Tensor:
    """What the pages look at: the prompt and its continuation."""
    return torch.tensor([*written.prompt_ids, *written.ids])


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    log = run.parents[1] / "server.log"
    with server.explorer(run.parent, log=log) as address:
        yield address
    said = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    assert "Traceback" not in said, said[said.find("Traceback") :][-4000:]


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright")
    try:
        with sync_api.sync_playwright() as playwright, browser.headless(playwright) as chromium:
            yield chromium
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def window(chromium) -> Iterator[object]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(window, watch: Watch) -> Iterator[object]:
    page = window.new_page()
    page.set_default_timeout(60_000)
    watch.over(page)
    yield page
    shown_errors = page.locator("[data-testid=stException]").count()
    page.close()
    assert watch.errors == []
    assert watch.hosts == {"localhost"}
    assert shown_errors == 0


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


def saved(page, button: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return Path(download.value.path()).read_bytes()


def saved_table(page, button: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(saved(page, button).decode())))


def run_cell(page, name: str) -> dict[str, object]:
    """Run the notebook cell that the page offers, as it stands, and return what it leaves behind."""
    page.get_by_role("button", name="Copy notebook cell").first.click()
    code = page.locator("[data-testid=stPopoverBody] code").inner_text()
    left: dict[str, object] = {}
    exec(compile(code, name, "exec"), left)
    page.keyboard.press("Escape")
    return left


# ------------------------------------------------------------------------------------------------ Attention


def test_the_page_names_the_layer_kind_and_follows_a_change_of_layer(page, address: str) -> None:
    opened(page, address, **ASKED)
    assert heading(page, "Layer 0") == f"Layer 0 · sliding, window {WINDOW} · head 0"
    picture = page.get_by_role("application", name=re.compile("Attention of layer 0, sliding, window"))
    picture.wait_for()
    page.get_by_role("radiogroup", name="Layer").get_by_text("1", exact=True).click()
    assert heading(page, "Layer 1") == "Layer 1 · global · head 0"
    page.get_by_role("application", name=re.compile("Attention of layer 1, global")).wait_for()
    in_address(page, "layer=1")


def test_the_page_shows_the_tokens_that_the_engine_generates(page, address: str, written: Generation, model) -> None:
    opened(page, address, **ASKED)
    page.locator(".strip button.new").nth(len(written.ids) - 1).wait_for()
    new = page.locator(".strip button.new").all_inner_texts()
    texts = [model.tokenizer.token_text(id) for id in written.ids]
    readable = [text.isascii() and text.isprintable() for text in texts]
    assert len(new) == len(texts) == 6
    assert any(readable)
    assert [a.strip() for a, ok in zip(new, readable, strict=True) if ok] == [
        b.strip() for b, ok in zip(texts, readable, strict=True) if ok
    ]


def test_a_click_on_a_token_lights_what_it_reads_and_what_reads_it(page, address: str, model, ids) -> None:
    opened(page, address, **ASKED, layer=1, head=2)
    page.locator(".strip button[data-pos='3']").click()
    page.get_by_text("token, number 3, reads").wait_for()
    layer = read(model, ids).layers[1]
    for pos in (0, 2, 3, 9):
        title = page.locator(f".strip button[data-pos='{pos}']").get_attribute("title")
        found = [float(number) for number in re.findall(r"with (\d\.\d+)", title)]
        assert found == pytest.approx([layer.row(2, 3)[pos], layer.column(2, 3)[pos]], abs=1e-4)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("token, number 4, reads").wait_for()
    in_address(page, "query=4")


def test_a_click_in_the_overview_chooses_the_head(page, address: str) -> None:
    opened(page, address, **ASKED)
    grid = shown(page, "pattern of 16 heads")
    assert grid.locator("section.sliding button").count() == grid.locator("section.global button").count() == 8
    grid.get_by_role("button", name="layer 3 global, head 2").click()
    assert heading(page, "head 2") == "Layer 3 · global · head 2"
    for key in ("ArrowUp", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    assert heading(page, "head 1") == "Layer 1 · global · head 1"


def test_a_dragged_rectangle_becomes_an_exact_tile_that_can_be_taken_away(
    page, address: str, model: Shard, ids: torch.Tensor, window, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    opened(page, address, **ASKED, layer=2, head=1)
    picture = shown(page, "layer2-head1-mean")
    page.mouse.move(*place(picture, 20, 8))
    page.mouse.down()
    page.mouse.move(*place(picture, 25, 14), steps=4)
    page.mouse.move(*place(picture, 30, 20), steps=4)
    page.mouse.up()
    tile = shown(page, "layer2-head1-q20-31-k8-21")
    in_address(page, "rectangle=20-31%2C8-21")
    exact = read(model, ids).layers[2].tile(1, range(20, 31), range(8, 21))
    for row, column in ((0, 0), (0, 12), (5, 6), (10, 12)):
        words, weight = weight_at(page, tile, row, column)
        assert weight == pytest.approx(exact[row, column], abs=2e-5)
        assert f"Query {20 + row} " in words
        assert f"Key {8 + column} " in words
        assert f"Distance {12 + row - column}" in words

    rows = saved_table(page, "Weights")
    np.testing.assert_allclose([float(row["weight"]) for row in rows], exact.ravel(), atol=1e-6)
    left = run_cell(page, "tile")
    np.testing.assert_allclose(left["tile"].detach().numpy(), exact, atol=1e-5)
    with page.expect_download() as download:
        tile.get_by_role("button", name="Save as PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")

    # The same address in a browser that has never been here shows the same numbers.
    fresh = window.browser.new_context()
    other = fresh.new_page()
    other.set_default_timeout(60_000)
    other.goto(page.url)
    again = shown(other, "layer2-head1-q20-31-k8-21")
    assert heading(other, "Layer 2") == f"Layer 2 · sliding, window {WINDOW} · head 1"
    assert weight_at(other, again, 10, 12)[1] == pytest.approx(exact[10, 12], abs=2e-5)
    fresh.close()


def test_the_band_wastes_no_square_outside_the_window(page, address: str, model: Shard, ids: torch.Tensor) -> None:
    opened(page, address, **ASKED, layer=0, head=3, map="band")
    band = shown(page, "layer0-head3-band")
    exact = read(model, ids).layers[0].band(3, range(40), range(WINDOW))
    for query, distance in ((39, 0), (30, WINDOW - 1)):
        words, weight = weight_at(page, band, query, distance)
        assert weight == pytest.approx(exact[query, distance], abs=2e-5)
        assert f"Distance {distance}" in words
    assert band.evaluate("root => root.map.data.columns.count") == WINDOW
    # By keyboard: two squares to the right and two down frame a rectangle.
    band.locator("canvas").focus()
    for key in ("ArrowDown", "Shift+ArrowDown", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert heading(page, "Up close") == "Up close"
    page.get_by_text(re.compile("Exact weights of layer 0, head 3")).wait_for()


def test_markup_in_a_prompt_or_a_vocabulary_stays_text(page, address: str, model: Shard) -> None:
    prompt = "<script>alert(1)</script><img src=x onerror=alert(2)> **b** :red[x]"
    for seed in range(200):
        config = SamplingConfig(max_new_tokens=24, temperature=2.0, seed=seed)
        if MARKUP in generate(model, prompt, config)[0].text:
            break
    for path in ("", "tokens"):
        opened(page, address, path, prompt=prompt, tokens=24, temperature=2.0, top_p=1.0, seed=seed)
        page.locator(".heads[data-shows]").wait_for()
        assert MARKUP in page.locator(".strip button.new").all_inner_texts()
        texts = "".join(page.locator(".strip button.prompt").all_inner_texts())
        assert "<script>alert(1)</script><imgsrc=xonerror=alert(2)>" in re.sub(r"\s", "", texts)
        assert page.locator("img[src='x'], script:text('alert')").count() == 0


def test_an_interaction_sends_less_than_300_kilobytes(page, address: str, watch: Watch) -> None:
    opened(page, address, prompt="x" * 300, tokens=5)
    shown(page, "pattern of 16 heads")
    before = watch.received
    page.get_by_role("radiogroup", name="Layer").get_by_text("1", exact=True).click()
    shown(page, "layer1-head0-mean")
    page.wait_for_timeout(1000)
    assert 20_000 < watch.received - before < 300_000


# --------------------------------------------------------------------------------------------------- Tokens


def test_tokens_show_the_librarys_numbers_and_a_head_can_be_switched_off(
    page, address: str, model: Shard, ids: torch.Tensor, written: Generation, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    place = len(written.prompt_ids)  # the first new token
    opened(page, address, "tokens", **ASKED, query=place)
    grid = shown(page, "attribution")
    lens = logit_lens(model, ids, top=5)
    rows = saved_table(page, "Tokens")
    probabilities = {int(row["position"]): float(row["probability"]) for row in rows}
    assert probabilities[place] == pytest.approx(float(lens.next_probability[-1, place - 1]), rel=1e-4)
    layers = saved_table(page, "Logit lens")
    assert [float(row["entropy"]) for row in layers] == pytest.approx(lens.entropy[:, place - 1].tolist(), rel=1e-4)

    best = [int(id) for id in lens.tokens[-1, place - 1] if id != ids[place]]
    exact = attribution(model, ids, place - 1, int(ids[place]), best[0])
    titles = [button.get_attribute("title") for button in grid.get_by_role("button").all()]
    found = {tuple(map(int, re.findall(r"\d+", title)[:2])): float(title.split("adds ")[1]) for title in titles}
    assert found == {head: pytest.approx(float(x), abs=6e-5) for head, x in np.ndenumerate(exact.heads)}
    left = run_cell(page, "attribution")
    np.testing.assert_allclose(left["heads"].numpy(), exact.heads, atol=1e-5)

    grid.get_by_role("button", name=re.compile("layer 1, head 3 ")).click()
    page.get_by_text("Without L1H3 (zero)").wait_for()
    with ablated(model, [(1, 3)]):
        without = generate(model, [written.prompt_ids], SAMPLING)[0].text
    codes = page.locator("[data-testid=stCode] code")
    codes.nth(2).wait_for()
    shown_texts = [text.split() for text in codes.all_inner_texts()]
    assert written.text.split() in shown_texts if written.text.isprintable() else shown_texts
    if without.isprintable():
        assert without.split() in shown_texts
    in_address(page, "ablate=1.3")


# ---------------------------------------------------------------------------------------------------- Heads


def test_heads_are_found_by_their_scores_and_followed_through_the_run(
    page, address: str, model: Shard, ids: torch.Tensor, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    opened(page, address, "heads", **ASKED, by="previous", kind="global")
    grid = shown(page, "previous")
    scores = {(score.layer, score.head): score for score in head_scores(read(model, ids))}
    for button in grid.get_by_role("button").all():
        layer, head, value = re.findall(r"\d+\.\d+|\d+", button.get_attribute("title"))
        assert float(value) == pytest.approx(scores[int(layer), int(head)].previous, abs=6e-5)
    rows = saved_table(page, "All heads")
    assert all(float(row["reach"]) == 0 for row in rows if row["kind"] == "sliding")
    best = max((score for score in scores.values() if score.kind == "global"), key=lambda score: score.previous)
    framed = grid.locator("button[aria-pressed=true]")
    assert framed.count() == 3
    assert f"{best.layer}.{best.head}" in [button.get_attribute("data-head") for button in framed.all()]

    left = run_cell(page, "heads")
    assert (left["best"].layer, left["best"].head) == max(scores, key=lambda head: scores[head].previous)
    assert left["previous"] == pytest.approx(left["best"].previous, abs=1e-5)

    page.get_by_text("Read all 2 checkpoints").click()
    page.get_by_role("button", name="Through the training").wait_for()
    followed = saved_table(page, "Through the training")
    for path in list_checkpoints(run):
        expected = {(s.layer, s.head): s.previous for s in head_scores(read(load(path), ids))}[best.layer, best.head]
        row = next(r for r in followed if r["head"] == f"L{best.layer}H{best.head}" and path.name.endswith(r["step"]))
        assert float(row["score"]) == pytest.approx(expected, abs=1e-5)


# --------------------------------------------------------------------------------------- Runs and Failures


def test_a_line_that_a_training_writes_is_on_the_page_in_five_seconds(page, address: str, run: Path) -> None:
    opened(page, address, "runs")
    page.locator("td", has_text="20 of 100").wait_for(state="attached")
    assert page.get_by_text("pretrain with muon: 100 steps").count() == 1
    with (run / "metrics.jsonl").open("a") as file:
        line = {"kind": "train", "step": 30, "time": 0.0, "cross_entropy": 4.25, "lr": 1e-3, "tokens_per_second": 77.0}
        file.write(json.dumps(line) + "\n")
    page.locator("td", has_text="30 of 100").wait_for(state="attached", timeout=5_000)
    rows = saved_table(page, "Curve")
    assert [(int(row["step"]), float(row["value"])) for row in rows][-1] == (30, 4.25)


def test_failures_show_six_prompts_with_their_flags(
    page, address: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    opened(page, address, sample_tokens=16)
    page.get_by_role("link", name="Failures").click()
    page.locator(".marked").nth(5).wait_for()
    assert page.locator(".marked").first.inner_text().startswith("The capital of France is")
    assert page.get_by_text(re.compile(r"^(clean|loop|breakdown|early end|echo|digits).* · \d+ tokens")).count() == 6
    rows = saved_table(page, "Samples")
    left = run_cell(page, "samples")
    assert [(row["output"], row["flags"]) for row in rows] == [
        (sample.generation.text, left["describe"](sample.labels)) for sample in left["samples"]
    ]


@pytest.mark.parametrize(("scheme", "pages"), [("light", ["", "tokens", "heads", "runs"]), ("dark", [""])])
def test_no_page_needs_sideways_scrolling_on_a_phone(chromium, address: str, scheme: str, pages: list[str]) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    signs = {
        "": ".heatmap[data-shows]",
        "tokens": ".heads[data-shows]",
        "heads": ".heads[data-shows]",
        "runs": "canvas",
    }
    for path in pages:
        opened(page, address, path, **ASKED)
        page.locator(signs[path]).first.wait_for()
        main = page.locator("[data-testid=stMain]")
        inside, outside = main.evaluate("main => [main.scrollWidth, main.clientWidth]")
        assert inside <= outside, path
    background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    context.close()
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light")
