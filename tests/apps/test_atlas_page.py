"""The atlas of failures as people meet it: a page driven in a real headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import server
from driving import BROWSER, choose, heading, in_address, opened, run_cell, saved, saved_table
from planted_text import HALF, LOOPING, planted_run, speaker

from shardscope.checkpoint import BUILT_IN, TrainingState, checkpoint_folder, save_checkpoint
from shardscope.failures import AtlasSettings, SuitePrompt, make_atlas, read_atlas
from shardscope.failures.atlas import built_in_atlas, rates
from shardscope.failures.atlas.picture import atlas_picture
from shardscope.tokenizer import Tokenizer

pytestmark = BROWSER

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
