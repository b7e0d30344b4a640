"""The page of the attention as people meet it: started by its command, driven in a real headless Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import (
    ASKED,
    BROWSER,
    LARGE,
    LONG_TEXT,
    WINDOW,
    Watch,
    choose,
    heading,
    in_address,
    opened,
    place,
    run_cell,
    saved_table,
    shown,
    sync_api,
    weight_at,
)
from small_run import MARKUP

from shardscope import Shard, load
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.microscope import read
from shardscope.visible import on_one_line

pytestmark = BROWSER


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
    # The grid is drawn anew with the choice, a busy moment long beside the old one: keys count from then on.
    sync_api.expect(chosen.and_(page.locator("[aria-pressed=true]"))).to_have_count(1, timeout=60_000)
    sync_api.expect(chosen).to_have_count(1, timeout=60_000)
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
