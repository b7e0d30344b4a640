"""How often labels fire on people's text: measured on a small folder, and as committed."""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path

import pytest

from shardscope.bench import failures as calibrate
from shardscope.bench.failures import BOUND, add_arguments, planted_line, planted_loops, run, table, wilson
from shardscope.config import ConfigError

ROOT = Path(__file__).parents[2]
PROSE = "The clockmaker counted every second of the day, and nobody in the village ever asked him why. "


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def write(folder: Path, name: str, texts: list[str]) -> None:
    with lzma.open(folder / f"{name}.val.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    license = (ROOT / "LICENSE").read_text(encoding="utf-8")[:4000]
    write(tmp_path, "books", [license, PROSE * 60])
    write(tmp_path, "math", ["Question: What is 2 + 3?\nAnswer: 2 + 3 = 5\n#### 5", license])
    write(tmp_path, "code", [Path(calibrate.__file__).read_text(encoding="utf-8")[:4000]])
    write(tmp_path, "qa", ["Question: Which has seeds?\nAnswer: fruit"])
    return tmp_path


def test_a_folder_of_text_becomes_a_table_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(str(folder), "--out", str(folder / "out.json"))) == 0
    found = json.loads((folder / "out.json").read_text())
    assert table(found) in capsys.readouterr().out
    assert list(found["human"]) == ["code", "math", "math questions", "other questions", "prose"]
    assert found["human"]["math questions"]["windows"] == 1
    assert found["human"]["math questions"]["labels"]["digit_hallucination"]["fired"] == 0
    # One sentence over and over is a loop whoever wrote it.
    assert 0 < found["human"]["prose"]["labels"]["loop"]["fired"] < found["human"]["prose"]["windows"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--files", "*.txt"], "no file here is called"),
        (["--windows", "0"], "--windows 0 measures nothing"),
        (["--files", "plain.*"], "not xz-packed lines of JSON"),
        (["--files", "qa.*"], None),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(folder: Path, words: list[str], message: str | None) -> None:
    (folder / "plain.jsonl").write_text("{}\n")
    if message is None:
        assert run(arguments(str(folder), *words)) == 0
        return
    with pytest.raises(ConfigError, match=message):
        run(arguments(str(folder), *words))


def test_planted_loops_are_found_with_their_onset_and_period() -> None:
    found = planted_loops()
    assert found["loops"] > 400
    assert found["f1"] >= 0.98
    assert found["largest_onset_error"] <= 1
    assert found["exact_periods"] == 1


def test_the_interval_is_wilsons() -> None:
    # Brown, Cai & DasGupta 2001: 0 of n gives an upper end of z² / (n + z²).
    assert wilson(0, 100) == [0.0, pytest.approx(1.96**2 / (100 + 1.96**2), abs=1e-5)]
    assert wilson(5, 10) == [pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5)]


@pytest.mark.parametrize("name", ["failures", "failures-training-text"])
def test_the_committed_rates_are_below_the_bound_and_the_page_shows_them(name: str) -> None:
    found = json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/failures.md").read_text(encoding="utf-8")
    assert table(found) in page
    assert planted_line(found) in page
    for group, measured in found["human"].items():
        for failure, label in measured["labels"].items():
            assert label["rate"] <= BOUND, (group, failure)
    assert found["milliseconds_per_1000_tokens"] <= 10
