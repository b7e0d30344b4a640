"""The atlas on a page without a browser: what an address may say, and one sentence for what cannot be drawn."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")

from planted_text import HALF, LOOPING, planted_run
from streamlit.testing.v1 import AppTest

from apps.parts.atlas import samples_at
from apps.parts.rate_map import Place, read_place
from shardscope.checkpoint import BUILT_IN, list_checkpoints
from shardscope.failures import AtlasSettings, SuitePrompt, make_atlas, read_atlas
from shardscope.failures.atlas import rates
from shardscope.tokenizer import Tokenizer

SUITE = AtlasSettings(
    prompts=(
        SuitePrompt(id="sum", text="What is 2 + 40? Answer:", domain="math", gold=("42",)),
        *(SuitePrompt(id=word, text=f"The {word} is") for word in ("moon", "sea")),
    ),
    temperatures=(0.0, 1.0),
    seeds=2,
    max_new_tokens=26,
)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    run = planted_run(tmp_path_factory.mktemp("atlas") / "run", tiny_tokenizer, {10: LOOPING, 20: HALF})
    make_atlas([run], SUITE, device="cpu")
    return run


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sampled, tmp_path / "run")


def open_page(monkeypatch: pytest.MonkeyPatch, *folders: Path, **address: object) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["explorer.py", *map(str, folders)])
    code = "from apps import page_failures as it\nfrom apps.parts import address\naddress.restore()\nit.page()\n"
    page = AppTest.from_string(code, default_timeout=300)
    for choice, value in {"sample_tokens": 1, **address}.items():
        page.query_params[choice] = str(value)
    return page.run()


def says(page: AppTest) -> str:
    elements = (*page.caption, *page.info, *page.warning, *page.error, *page.subheader, *page.markdown)
    return "\n".join(str(element.value).replace("\\", "").replace("\u2060", "") for element in elements)


def test_a_place_comes_back_from_an_address_whatever_the_run_is_called() -> None:
    for run in ("run", "a.b.c", "é ·:/?", "10"):
        place = Place(run, 1000, "math", "no end")
        assert read_place(str(place)) == place


@pytest.mark.parametrize(
    "text", ["", "loop", "loop.math", "loop.math.x.run", "loop.math.1", "loop.math.1.", "a.b.²3.r"]
)
def test_what_is_no_place_is_none(text: str) -> None:
    assert read_place(text) is None


def test_a_square_opens_as_many_samples_as_it_counts(sampled: Path) -> None:
    atlas = read_atlas(sampled)
    columns = {column.step: column for column in atlas.columns}
    for rate in rates(atlas):
        place = Place(rate.run, rate.step, rate.domain, rate.failure)
        found = samples_at(atlas, columns[rate.step], place, rate.temperature)
        assert len(found) == rate.fired + rate.suspected, place


@pytest.mark.parametrize("cell", ["loop.math.10.elsewhere", "loop.math.11.run", "nonsense", "....", "loop.math.10"])
def test_a_square_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, run: Path, cell: str) -> None:
    page = open_page(monkeypatch, run, cell=cell)
    assert not page.exception
    assert [said.value for said in page.info] == [
        "The square that the address names is not on these maps; choose another one."
    ]


@pytest.mark.parametrize("cell", ["nothing.math.10.run", "loop.latin.10.run", "drift.prose.20.run"])
def test_a_square_without_samples_says_so(monkeypatch: pytest.MonkeyPatch, run: Path, cell: str) -> None:
    page = open_page(monkeypatch, run, cell=cell)
    assert not page.exception
    assert "No sample of this square failed in this way" in says(page)


@pytest.mark.parametrize("choice", ["atlas", "beside", "heat", "pick"])
def test_a_choice_that_there_is_not_becomes_the_first_one(
    monkeypatch: pytest.MonkeyPatch, run: Path, choice: str
) -> None:
    page = open_page(monkeypatch, run, cell="loop.all.10.run", **{choice: "<b>nonsense</b>"})
    assert not page.exception
    assert "loop: 9 samples of run, step 10, all" in says(page)


def test_a_run_that_was_not_sampled_says_with_which_command(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    (run / "atlas").rename(run / "elsewhere")
    page = open_page(monkeypatch, run)
    assert not page.exception
    assert f"`shardscope atlas {run}`" in says(page)


def test_samples_that_cannot_be_read_leave_the_rest_of_the_page(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    (run / "atlas" / SUITE.digest / "step-00000010.jsonl").write_text('{"format": 1}\n')
    page = open_page(monkeypatch, run)
    assert not page.exception
    assert len(page.warning) == 1
    assert "not the samples of a checkpoint" in says(page)
    assert len(page.dataframe[0].value) == 6, "the card's prompts, sampled now"


@pytest.mark.parametrize("ids", [[300, 1, 2], [1] * 200])
def test_a_sample_that_the_model_cannot_have_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, run: Path, ids: list[int]
) -> None:
    file = run / "atlas" / SUITE.digest / "step-00000010.jsonl"
    head, first, rest = file.read_text().split("\n", 2)
    file.write_text("\n".join([head, json.dumps({**json.loads(first), "ids": ids}), rest]))
    page = open_page(monkeypatch, run, cell="loop.math.10.run")
    assert not page.exception
    assert [said.value.replace("\\", "") for said in page.error] == [
        "This sample is none of the model's that is open: its tokens do not fit. Sample the run again."
    ]


def test_samples_of_weights_that_are_gone_can_be_read_and_not_explained(
    monkeypatch: pytest.MonkeyPatch, run: Path, tiny_tokenizer: Tokenizer
) -> None:
    list_checkpoints(run)[0].rename(run / "elsewhere")
    page = open_page(monkeypatch, run, cell="loop.prose.10.run")
    assert not page.exception
    assert "can be read, but not explained" in says(page)
    assert "tokens 0 to 25 of the output" in says(page)
    assert "X-ray" not in says(page)
    planted_run(run, tiny_tokenizer, {10: HALF})
    page = open_page(monkeypatch, run, cell="loop.prose.10.run")
    assert not page.exception
    assert "was written anew since" in says(page)
    assert "X-ray" not in says(page)


def test_a_run_is_shown_alone_where_nothing_else_was_sampled_alike(
    monkeypatch: pytest.MonkeyPatch, run: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = planted_run(tmp_path / "other", tiny_tokenizer, {5: HALF})
    make_atlas([other], replace(SUITE, seeds=1), device="cpu")
    page = open_page(monkeypatch, run, other, checkpoint="run/step-00000020")
    assert not page.exception
    assert [box.label for box in page.selectbox if box.label == "Beside it"] == []
    make_atlas([other], SUITE, device="cpu")
    page = open_page(monkeypatch, run, other, checkpoint="run/step-00000020")
    assert page.selectbox(key="beside").options == ["other", "nothing beside it"]
    assert "From run step 20 to other step 5" in says(page)


def test_without_a_run_the_built_in_model_has_a_column_and_the_page_says_how_to_get_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    page = open_page(monkeypatch, BUILT_IN, cell="loop.math.3000.built-in")
    assert not page.exception
    assert "The built-in model is one checkpoint" in says(page)
    assert "`shardscope atlas RUN`" in says(page)
    assert "X-ray of the loop" in says(page)
