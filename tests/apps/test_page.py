"""The explorer as people meet it: started by its command, driven in a real headless Chromium."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import browser
import numpy as np
import pytest
import server
import torch
from planted_text import HALF, LOOPING, planted_run, speaker
from small_run import MARKUP, make_run, with_markup

from apps.page_runs import LOOK_EVERY
from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import BUILT_IN, TrainingState, checkpoint_folder, list_checkpoints, save_checkpoint
from shardscope.failures import AtlasSettings, SuitePrompt, make_atlas, read_atlas
from shardscope.failures.atlas import built_in_atlas, rates
from shardscope.failures.atlas.picture import atlas_picture
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.microscope import ablated, ablation_effect, attribution, head_scores, logit_lens, read
from shardscope.tokenizer import Tokenizer
from shardscope.visible import on_one_line, visible

sync_api = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright")

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


# As many heads as the published model, and a text that is longer than a strip, a window and a map's squares.
LONG_TEXT = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=1300))
LARGE = {"checkpoint": "runs/large", "prompt": LONG_TEXT, "tokens": 0}


@pytest.fixture(scope="module")
def large(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 12 × 8 sharp heads, beside the run and older than it."""
    torch.manual_seed(0)
    config = ShardConfig(vocab_size=300, n_ctx=1400, d_model=32, n_layers=12, n_heads=8, d_head=8, d_mlp=8, window=400)
    model = Shard(config, tiny_tokenizer)
    with torch.no_grad():
        model.embed.W_E.mul_(20)
        for block in model.blocks:
            block.attn.W_Q.mul_(3)
    return save_checkpoint(tmp_path_factory.mktemp("explorer") / "runs" / "large", model)


@pytest.fixture(scope="module")
def run(large: Path, tiny_tokenizer: Tokenizer) -> Path:
    """A run of two checkpoints: small and random, with a window that a prompt leaves."""
    config = ShardConfig(
        vocab_size=300, n_ctx=320, d_model=32, n_layers=4, n_heads=4, d_head=8, d_mlp=48, window=WINDOW
    )
    folder = large.parents[1]
    tokenizer = with_markup(tiny_tokenizer, folder / "tokenizer.json")
    return make_run(folder / "runs" / "tiny-run", config, tokenizer)


@pytest.fixture(scope="module")
def model(run: Path) -> Shard:
    return load(run)


@pytest.fixture(scope="module")
def written(model: Shard) -> Generation:
    return generate(model, PROMPT, SAMPLING)


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
    # A page that is closed while its socket opens is a traceback of the web server's, and no error of the explorer's.
    gone = re.findall(r"^\s*starlette\.websockets\.WebSocketDisconnected:", said, re.MULTILINE)
    assert said.count("Traceback") == len(gone), said[said.find("Traceback") :][-4000:]


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
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


# ------------------------------------------------------------------------------------------------ Attention


def test_the_page_names_the_layer_kind_and_follows_a_change_of_layer(page, address: str) -> None:
    opened(page, address, **ASKED, layer=0, head=0)
    assert heading(page, "Layer 0") == f"Layer 0 · sliding, window {WINDOW} · head 0"
    picture = page.get_by_role("application", name=re.compile("Attention of layer 0, sliding, window"))
    picture.wait_for()
    choose(page, "Layer", "layer 1, global")
    assert heading(page, "Layer 1") == "Layer 1 · global · head 0"
    page.get_by_role("application", name=re.compile("Attention of layer 1, global")).wait_for()
    in_address(page, "layer=1")


def test_the_page_shows_the_tokens_that_the_engine_generates(page, address: str, written: Generation, model) -> None:
    opened(page, address, **ASKED)
    page.locator(".strip button.new").nth(len(written.ids) - 1).wait_for()
    new = page.locator(".strip button.new").evaluate_all("buttons => buttons.map(button => button.textContent)")
    assert len(written.ids) == 6
    assert new == [on_one_line(model.tokenizer.token_text(id)) for id in written.ids]


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
    chosen = grid.get_by_role("button", name="layer 3 global, head 2")
    chosen.click()
    assert heading(page, "head 2") == "Layer 3 · global · head 2"
    # The grid is drawn anew with the choice: keys count from then on.
    sync_api.expect(chosen).to_have_attribute("aria-pressed", "true", timeout=60_000)
    chosen.focus()
    for key in ("ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    sync_api.expect(grid.get_by_role("button", name="layer 1 global, head 1")).to_be_focused(timeout=60_000)
    page.keyboard.press("Enter")
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

    rows = saved_table(page, "tile.csv")
    np.testing.assert_allclose([float(row["weight"]) for row in rows], exact.ravel(), atol=1e-6)
    left = run_cell(page, "tile")
    np.testing.assert_allclose(left["tile"].detach().numpy(), exact, atol=1e-5)

    rows, left = saved_table(page, "map.csv"), run_cell(page, "map")
    np.testing.assert_allclose([float(row["mean"]) for row in rows], left["pooled"].mean.ravel(), atol=1e-6)
    rows, left = saved_table(page, "reads.csv"), run_cell(page, "reads")
    for name, weights in (("reads", left["reads"]), ("read_by", left["read_by"])):
        np.testing.assert_allclose([float(row[name]) for row in rows], weights, atol=1e-6)
    rows, left = saved_table(page, "heads.csv"), run_cell(page, "heads")
    found = [float(row["induction"]) for row in rows]
    np.testing.assert_allclose(found, [score.induction for score in left["scores"]], rtol=1e-5)
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
        if MARKUP in generate(model, prompt, config).text:
            break
    for path in ("", "tokens"):
        opened(page, address, path, prompt=prompt, tokens=24, temperature=2.0, top_p=1.0, seed=seed)
        page.locator(".heads[data-shows]").wait_for()
        assert MARKUP in page.locator(".strip button.new").all_inner_texts()
        texts = "".join(page.locator(".strip button.prompt").all_inner_texts())
        assert "<script>alert(1)</script><imgsrc=xonerror=alert(2)>" in re.sub(r"\s", "", texts)
        assert page.locator("img[src='x'], script:text('alert')").count() == 0


def test_a_square_that_a_head_cannot_see_says_why(page, address: str) -> None:
    opened(page, address, **ASKED, layer=0, head=1)
    picture = shown(page, "layer0-head1-mean")
    for query, key, why in ((20, 25, "after the query: not seen"), (30, 5, "outside the window: not seen")):
        page.mouse.move(*place(picture, query, key))
        assert picture.locator(".tip").inner_text().endswith(why)


def test_a_rectangle_framed_by_keyboard_alone_begins_at_the_corner(page, address: str) -> None:
    opened(page, address, **ASKED, layer=1)
    shown(page, "layer1-head0-mean").locator("canvas").focus()
    for key in ("Shift+ArrowDown", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    shown(page, "layer1-head0-q0-2-k0-2")
    in_address(page, "rectangle=0-2%2C0-2")


def test_what_a_token_reads_far_off_is_named_beside_the_strip(page, address: str, large: Path) -> None:
    model = load(large)
    ids = torch.tensor(model.tokenizer.encode(LONG_TEXT, bos=True))
    layer = read(model, ids).layers[1]
    rows = [layer.row(head, len(ids) - 1)[: len(ids) - 480] for head in range(8)]
    head = int(np.argmax([row.max() for row in rows]))
    best = int(rows[head].argmax())
    opened(page, address, **LARGE, layer=1, head=head)
    first = page.locator(".far button").first
    assert first.get_attribute("title") == f"token {best}, is read with {rows[head][best]:.4f}"
    first.click()
    heading(page, f"What token {best} reads")


def test_a_large_rectangle_is_drawn_whole_and_can_be_looked_into_again(
    page, address: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(large.parents[1])
    model = load(large)
    ids = torch.tensor(model.tokenizer.encode(LONG_TEXT, bos=True))
    layer = read(model, ids).layers[3]
    opened(page, address, **LARGE, layer=3, head=2, rectangle="600-1029,300-729")
    tile = shown(page, "layer3-head2-q600-1029-k300-729")
    page.get_by_text("Mean weights, 3 × 3 tokens a square, of layer 3, head 2: queries 600 to 1028").wait_for()
    exact = layer.tile(2, range(600, 1029), range(300, 729))
    words, weight = weight_at(page, tile, 142, 100)  # the last row
    assert "Query 1026 to 1028 " in words
    assert "Key 600 to 602 " in words
    assert weight == pytest.approx(exact[426:, 300:303].mean(), abs=2e-5)
    rows, left = saved_table(page, "tile.csv"), run_cell(page, "tile")
    assert (len(rows), left["pooled"].cell) == (143 * 143, 3)
    np.testing.assert_allclose([float(row["mean"]) for row in rows], left["pooled"].mean.ravel(), atol=1e-6)
    page.mouse.move(*place(tile, 10, 20))
    page.mouse.down()
    page.mouse.move(*place(tile, 15, 30), steps=4)
    page.mouse.move(*place(tile, 19, 39), steps=4)
    page.mouse.up()
    closer = shown(page, "layer3-head2-q630-660-k360-420")
    assert weight_at(page, closer, 29, 0)[1] == pytest.approx(
        layer.tile(2, range(659, 660), range(360, 361))[0, 0], abs=2e-5
    )


def test_an_interaction_sends_less_than_300_kilobytes(page, address: str, watch: Watch) -> None:
    """All heads in small, a band and a rectangle are open, as much as there can be; then one thing changes."""
    opened(page, address, **LARGE, layer=2, map="band", rectangle="1000-1192,700-892")
    shown(page, "pattern of 96 heads")
    shown(page, "layer2-head0-band")
    shown(page, "layer2-head0-q1000-1192-k700-892")

    def received(sign: str) -> int:
        shown(page, sign)
        page.wait_for_timeout(1000)
        return watch.received - before

    before = watch.received
    choose(page, "Head", "head 3")
    assert 20_000 < received("layer2-head3-q1000-1192-k700-892") < 300_000
    # What has not changed is not sent again: neither map nor band nor the small maps.
    before = watch.received
    page.mouse.click(*place(shown(page, "layer2-head3-q1000-1192-k700-892"), 100, 20))
    heading(page, "What token 1100 reads")
    assert received("layer2-head3-q1000-1192-k700-892") < 80_000


@pytest.mark.parametrize(
    "name", ["http://evil.example/a", "www.evil.example", "mail@evil.example", ":material/home:", ":smile:"]
)
def test_a_name_in_an_address_is_neither_a_link_nor_a_picture(page, address: str, name: str) -> None:
    opened(page, address, "failures", checkpoint=name, sample_tokens=1)
    warning = page.get_by_role("alert").filter(has_text="is not among the checkpoints")
    warning.wait_for()
    assert warning.locator("a").count() == 0
    assert warning.inner_text().replace("\u2060", "").find(name) >= 0


def test_the_map_is_above_the_fold_of_a_small_laptop(chromium, address: str) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(60_000)
    opened(page, address, **ASKED, layer=0, head=0)
    picture = shown(page, "layer0-head0-mean").bounding_box()
    page.close()
    assert picture["y"] <= 800 - 300


# --------------------------------------------------------------------------------------------------- Tokens


def test_tokens_show_the_librarys_numbers_and_a_head_can_be_switched_off(
    page, address: str, model: Shard, ids: torch.Tensor, written: Generation, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    place = len(written.prompt_ids)  # the first new token
    opened(page, address, "tokens", **ASKED, query=place)
    grid = shown(page, "attribution")
    lens = logit_lens(model, ids, top=5)
    rows, left = saved_table(page, "tokens.csv"), run_cell(page, "tokens")
    exact = [float(lens.next_probability[-1, int(row["position"]) - 1]) for row in rows]
    for found in ([float(row["probability"]) for row in rows], left["probabilities"].numpy()):
        np.testing.assert_allclose(found, exact, rtol=1e-4)
    rows, left = saved_table(page, "lens.csv"), run_cell(page, "lens")
    assert [float(row["entropy"]) for row in rows] == pytest.approx(lens.entropy[:, place - 1].tolist(), rel=1e-4)
    assert left["lens"].topk(5).indices.tolist() == lens.tokens[:, place - 1].tolist()

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
    shown_texts = codes.evaluate_all("codes => codes.map(code => code.textContent)")
    assert shown_texts == [visible(text) for text in (written.text, written.text, without)]
    assert without != written.text, "the fixture's head does nothing: choose another"
    in_address(page, "ablate=1.3")
    rows, left = saved_table(page, "ablation.csv"), run_cell(page, "ablation")
    effect = ablation_effect(model, ids, [(1, 3)], position=place - 1, top=8)
    for found in ([float(row["after"]) for row in rows], left["effect"].after):
        np.testing.assert_allclose(found, effect.after, rtol=1e-4)
    assert left["without"].text == without


def test_a_mean_is_the_prompts_own_in_the_effect_and_in_the_continuation(
    page, address: str, model: Shard, ids: torch.Tensor, written: Generation
) -> None:
    place, prompt = len(written.prompt_ids), torch.tensor(written.prompt_ids)
    opened(page, address, "tokens", **ASKED, query=place + 2, ablate="1.3 2.0", mode="mean")
    page.get_by_text("Without L1H3, L2H0 (mean)").wait_for()
    rows = saved_table(page, "ablation.csv")
    with ablated(model, [(1, 3), (2, 0)], "mean", reference=prompt), torch.no_grad():
        after = model(ids[None])[0, place + 1].softmax(dim=-1)
        without = generate(model, [written.prompt_ids], SAMPLING)[0].text
    best = after.topk(5).values.tolist()
    assert sorted((float(row["after"]) for row in rows), reverse=True)[:5] == pytest.approx(best, rel=1e-4)
    texts = page.locator("[data-testid=stCode] code").evaluate_all("codes => codes.map(code => code.textContent)")
    assert texts[2] == visible(without)


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
    rows = saved_table(page, "heads.csv")
    assert all(float(row["reach"]) == 0 for row in rows if row["kind"] == "sliding")
    best = max((score for score in scores.values() if score.kind == "global"), key=lambda score: score.previous)
    framed = grid.locator("button[aria-pressed=true]")
    assert framed.count() == 3
    assert f"{best.layer}.{best.head}" in [button.get_attribute("data-head") for button in framed.all()]

    found = run_cell(page, "heads")["found"]
    assert (found[0].layer, found[0].head) == (best.layer, best.head)
    assert {score.kind for score in found} == {"global"}
    rows, left = saved_table(page, "distances.csv"), run_cell(page, "distances")
    masses = [mass for head in left["masses"].values() for mass in head]
    np.testing.assert_allclose([float(row["mass"]) for row in rows], masses, atol=1e-6)

    page.get_by_text("Read all 2 checkpoints").click()
    page.locator(".st-key-take-training button").wait_for()
    rows, left = saved_table(page, "training.csv"), run_cell(page, "training")
    for path in list_checkpoints(run):
        step = int(path.name.removeprefix("step-"))
        expected = {(s.layer, s.head): s.previous for s in head_scores(read(load(path), ids))}[best.layer, best.head]
        row = next(r for r in rows if r["head"] == f"L{best.layer}H{best.head}" and int(r["step"]) == step)
        assert float(row["score"]) == pytest.approx(expected, abs=1e-5)
        assert left["training"][step][best.layer, best.head] == pytest.approx(expected, abs=1e-5)


# --------------------------------------------------------------------------------------- Runs and Failures


def test_the_runs_page_shows_a_line_soon_after_a_training_writes_it(
    page, address: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks every two seconds, so that the lag stays under five; how long a busy machine takes is another matter."""
    assert LOOK_EVERY <= 2
    monkeypatch.chdir(run.parents[1])
    opened(page, address, "runs")
    page.locator("td", has_text="20 of 100").wait_for(state="attached")
    assert page.get_by_text("pretrain with muon: 100 steps").count() == 1
    with (run / "metrics.jsonl").open("a") as file:
        line = {"kind": "train", "step": 30, "time": 0.0, "cross_entropy": 4.25, "lr": 1e-3, "tokens_per_second": 77.0}
        file.write(json.dumps(line) + "\n")
    page.locator("td", has_text="30 of 100").wait_for(state="attached")
    rows, left = saved_table(page, "curve.csv"), run_cell(page, "curve")
    assert [(int(row["step"]), float(row["value"])) for row in rows][-1] == (30, 4.25)
    assert left["curve"] == {"runs/tiny-run": [(int(row["step"]), float(row["value"])) for row in rows]}
    rows, left = saved_table(page, "plan of tiny-run.csv"), run_cell(page, "plan of tiny-run")
    rates = {int(float(row["step"])): float(row["learning rate"]) for row in rows if row["step"]}
    assert [left["rates"][step] for step in rates] == pytest.approx(list(rates.values()))
    assert left["shares"] == pytest.approx({row["source"]: float(row["share"]) for row in rows if row["source"]})


def test_a_biography_is_read_while_it_grows_and_can_be_taken_away(
    page, address: str, run: Path, model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    shape = (model.config.n_layers, model.config.n_heads)

    def line(step: int) -> str:
        scores = np.full(shape, 0.02)
        scores[1, 2] = 0.02 if step < 100 else 0.5
        told = {
            "kind": "probe", "step": step, "time": 0.0, "seconds": 0.1, "window": WINDOW,
            "kinds": list(model.config.layer_kinds), "heads": {"induction 8": scores.tolist()},
            "matrices": {"blocks.0.attn.W_Q": [0.1, 2.0, 5.0, None]}, "positions": [0, WINDOW, 64],
            "loss": {"prose": {"mean": 3.0, "by_position": [4.0, 3.0]}},
            "samples": [{"prompt": "Once", "output": MARKUP, "failure": "loop"}],
        }  # fmt: skip
        return json.dumps(told) + "\n"

    log = run / "biography.jsonl"
    try:
        log.write_text("".join(map(line, range(0, 190, 10))))
        opened(page, address, "runs")
        page.get_by_text("L1H2 global rises from 0.02 to 0.5 between steps 90 and 100").wait_for()
        rows, left = saved_table(page, "biography of heads.csv"), run_cell(page, "biography of heads")
        assert [float(row["induction 8"]) for row in rows] == pytest.approx(left["scores"].ravel().tolist())
        assert {head for head, changes in left["changes"].items() if changes} == {"L1H2"}
        with log.open("a") as file:
            file.write(line(190).replace("0.5", "0.9"))
        page.get_by_text("L1H2 global rises from 0.02 to 0.54 between steps 90 and 100").wait_for()
        in_address(page, "biography=tiny-run")
    finally:
        log.unlink()


def test_failures_show_six_prompts_with_their_flags(
    page, address: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    opened(page, address, sample_tokens=16)
    page.get_by_role("link", name="Failures").click()
    page.locator(".marked").wait_for()
    assert page.locator(".marked").inner_text().startswith("The capital of France is")
    flags = r"^(no flag|loop|breakdown|early end|repetitive|echo|digits|wrong|drift|untrue).* · \d+ tokens"
    assert page.get_by_text(re.compile(flags)).count() == 1
    rows = saved_table(page, "training samples.csv")
    assert [(row["output"], row["failure"]) for row in rows] == [(" a a a a", "loop"), (" fine", "no flag")]
    assert [line["output"] for line in run_cell(page, "training samples")["samples"]] == [row["output"] for row in rows]
    rows = saved_table(page, "samples.csv")
    left = run_cell(page, "samples")
    assert [(row["output"], row["flags"]) for row in rows] == [
        (sample.generation.text, left["describe"](sample.labels)) for sample in left["samples"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_needs_sideways_scrolling_on_a_phone(chromium, address: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    signs = {
        "": ".heatmap[data-shows]",
        "tokens": ".heads[data-shows]",
        "heads": ".heads[data-shows]",
        "runs": ".vega-embed",
        "failures": ".marked",
    }
    for path, sign in signs.items():
        opened(page, address, path, **ASKED, sample_tokens=8)
        page.locator(sign).first.wait_for()
        main = page.locator("[data-testid=stMain]")
        inside, outside = main.evaluate("main => [main.scrollWidth, main.clientWidth]")
        assert inside <= outside, path
        background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light"), path
    context.close()


# ------------------------------------------------------------------------------------------- Failures: the atlas

SUMS = tuple(
    SuitePrompt(id=f"sum-{n}", text=f"What is {n} + {42 - n}? Answer:", domain="math", gold=("42",)) for n in (2, 9)
)
SAYINGS = tuple(SuitePrompt(id=word, text=f"The {word} is") for word in ("moon", "sea", "sky"))
SUITE = AtlasSettings(prompts=(*SUMS, *SAYINGS), temperatures=(0.0, 1.0), seeds=2, max_new_tokens=26)


@pytest.fixture(scope="module")
def planted(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that loops, and an anneal after which only sums do; both sampled."""
    folder = tmp_path_factory.mktemp("planted") / "runs"
    before = planted_run(folder / "pretrain", tiny_tokenizer, {10: LOOPING, 20: LOOPING})
    ancestors = [{"run": "pretrain", "checkpoint": str(checkpoint_folder(before, 20)), "step": 20, "weights": ""}]
    after = checkpoint_folder(folder / "anneal", 8)
    state = TrainingState(step=8, facts={"ancestors": ancestors})
    save_checkpoint(after, speaker(HALF, tiny_tokenizer), state=state)
    make_atlas([before, after.parents[1]], SUITE, device="cpu")
    return folder


@pytest.fixture(scope="module")
def atlas_address(planted: Path) -> Iterator[str]:
    log = planted.parent / "server.log"
    with server.explorer(BUILT_IN, planted, log=log) as address:
        yield address
    assert "Traceback" not in log.read_text()


OF_THE_ANNEAL = {"checkpoint": "runs/anneal/step-00000008", "sample_tokens": 1}


def square(page, failure: str, domain: str, step: int, run: str):
    return page.locator(f"button[data-place='{failure}.{domain}.{step}.{run}']")


def test_an_anneal_stands_beside_its_pretraining_square_by_square(
    page, atlas_address: str, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted.parent)
    opened(page, atlas_address, "failures", **OF_THE_ANNEAL)
    square(page, "loop", "all", 10, "pretrain").wait_for()
    domain = page.locator(".domain").first
    assert domain.locator("thead tr").nth(0).inner_text().split() == ["pretrain", "anneal"]
    assert domain.locator("thead tr").nth(1).inner_text().split() == ["step", "10", "20", "8"]
    atlas = read_atlas([planted / "pretrain", planted / "anneal"])
    expected = {
        (rate.failure, rate.domain, rate.step, rate.run): f"{100 * rate.rate:.0f}"
        for rate in rates(atlas)
        if rate.temperature is None and rate.rate is not None
    }
    assert expected["loop", "math", 8, "anneal"] == "100"
    assert expected["loop", "prose", 8, "anneal"] == "0"
    assert page.locator(".rates button").count() == len(expected)
    for place, percent in expected.items():
        assert square(page, *place).inner_text() == percent, place
    assert "9 of 9 samples, 95 % interval 70.1% to 100.0%" in square(
        page, "loop", "prose", 20, "pretrain"
    ).get_attribute("title")
    text = page.get_by_text(re.compile("From pretrain step 20 to anneal step 8")).inner_text()
    assert re.search(r"loop rarer \(-60\.0 points", text)
    rows = saved_table(page, "atlas.csv")
    left = run_cell(page, "atlas")
    assert [(row["failure"], int(row["fired"]), int(row["samples"])) for row in rows] == [
        (rate.failure, rate.fired, rate.samples) for rate in left["found"]
    ]
    assert saved(page, "atlas.png") == atlas_picture(atlas)


def test_a_square_opens_its_samples_and_a_loop_its_xray(
    page, atlas_address: str, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted.parent)
    opened(page, atlas_address, "failures", **OF_THE_ANNEAL)
    square(page, "loop", "prose", 20, "pretrain").click()
    assert heading(page, "^loop") == "loop: 9 samples of pretrain, step 20, prose"
    in_address(page, "cell=loop.prose.20.pretrain")
    page.locator(".marked").wait_for()
    assert page.locator(".marked").inner_text() == "The moon is" + "xy" * 13
    assert page.get_by_text(re.compile(r"From token 0 of the output on: 13\.0 copies of 2 tokens")).count() == 1
    assert page.get_by_role("heading", name="Sampled now").count() == 0
    rows = saved_table(page, "square.csv")
    assert [row["output"] for row in rows] == ["xy" * 13] * 9
    assert [sample.text for sample in run_cell(page, "square")["samples"]] == ["xy" * 13] * 9
    assert run_cell(page, "sample")["generation"].text == "xy" * 13
    choose(page, "Sample", "sky, temperature 1, seed 9 · " + "xy" * 13)
    in_address(page, "pick=sky")
    seen = page.url
    page.get_by_role("radio", name="0", exact=True).click()
    heading(page, "^loop: 3 samples of pretrain, step 20, prose")
    in_address(page, "heat=0")
    page.goto(seen)
    heading(page, "^loop: 9 samples")
    page.locator(".marked", has_text="The sky is").wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("heading", name="Sampled now").wait_for()
    page.wait_for_url(lambda url: "cell=" not in url)


def test_squares_are_reached_by_keyboard(page, atlas_address: str) -> None:
    opened(page, atlas_address, "failures", **OF_THE_ANNEAL)
    first = square(page, "early end", "all", 10, "pretrain")
    first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert heading(page, "^loop") == "loop: 6 samples of anneal, step 8, all"
    assert square(page, "loop", "all", 8, "anneal").get_attribute("aria-pressed") == "true"


def test_the_built_in_model_has_its_one_column_and_the_page_says_how_to_get_more(page, atlas_address: str) -> None:
    opened(page, atlas_address, "failures", checkpoint="built-in", sample_tokens=1)
    [column] = built_in_atlas().columns
    square(page, "loop", "math", column.step, "built-in").wait_for()
    says = page.get_by_text(re.compile("The built-in model is one checkpoint")).inner_text()
    assert "make demo" in says
    assert "shardscope atlas RUN" in says
    found = {(rate.failure, rate.domain): rate for rate in rates(built_in_atlas()) if rate.temperature is None}
    for failure, domain in (("loop", "math"), ("wrong", "prose"), ("no end", "code")):
        percent = f"{100 * found[failure, domain].rate:.0f}"
        assert square(page, failure, domain, column.step, "built-in").inner_text() == percent


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_open_square_needs_no_sideways_scrolling_on_a_phone(chromium, atlas_address: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    opened(page, atlas_address, "failures", **OF_THE_ANNEAL, cell="loop.prose.20.pretrain")
    page.locator(".marked").wait_for()
    main = page.locator("[data-testid=stMain]")
    inside, outside = main.evaluate("main => [main.scrollWidth, main.clientWidth]")
    assert inside <= outside
    text, background = page.locator(".rates th[scope=row]").first.evaluate(
        "head => [getComputedStyle(head).color, getComputedStyle(head).backgroundColor]"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (text, background)]
    assert (bright[0] < bright[1]) == (scheme == "light"), "dark on light, or light on dark"
    context.close()
