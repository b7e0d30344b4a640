"""How often labels fire on people's text: measured on a small folder, and as committed."""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path

import pytest

from shardscope.bench import failures as calibrate
from shardscope.bench.failures import (
    BOUND,
    add_arguments,
    documents,
    fit,
    planted_line,
    planted_loops,
    run,
    table,
)
from shardscope.config import ConfigError
from shardscope.failures.calibration import FALSE_ALARMS, limits_from
from shardscope.failures.repetition import find_repetition
from shardscope.failures.text_model import TextModel

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
    assert run(arguments(str(folder), "--half", "all", "--without-model", "--out", str(folder / "out.json"))) == 0
    found = json.loads((folder / "out.json").read_text())
    assert table(found) in capsys.readouterr().out
    lengths = [f"{domain}, {tokens} tokens" for domain in ("code", "math", "prose") for tokens in (256, 64)]
    assert sorted(found["people"]) == sorted([*lengths, "math questions", "other questions"])
    assert found["people"]["math questions"]["texts"] == 1
    assert all(label["certain"]["fired"] == 0 for label in found["people"]["math questions"]["labels"].values())
    # One sentence over and over is a loop whoever wrote it.
    prose = found["people"]["prose, 256 tokens"]
    assert 0 < prose["labels"]["loop"]["certain"]["fired"] < prose["texts"]


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
        assert run(arguments(str(folder), "--half", "all", "--without-model", *words)) == 0
        return
    with pytest.raises(ConfigError, match=message):
        run(arguments(str(folder), *words))


def test_planted_loops_are_found_with_their_onset_and_period() -> None:
    found = planted_loops()
    assert found["loops"] > 400
    assert found["f1"] >= 0.98
    assert found["largest_onset_error"] <= 1
    assert found["exact_periods"] == 1


def test_the_halves_share_no_document(folder: Path) -> None:
    halves = [list(documents(folder, "*.xz", half)) for half in ("calibration", "measured", "all")]  # type: ignore[arg-type]
    assert not set(halves[0]) & set(halves[1])
    assert sorted(halves[0] + halves[1]) == sorted(halves[2])


def test_limits_are_set_where_a_tail_of_the_text_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a folder of three domains with training and held-out files; the package's own limits stay."""
    python = Path(calibrate.__file__).read_text(encoding="utf-8")
    tex = "".join(f"Let $x_{{{n}}} = \\frac{{{n}}}{{y}}$ and $z \\in X_{{{n * 7}}}$. " for n in range(400))
    prose = "".join(f"In the year {1500 + n} the river rose {n} feet above the old stone bridge. " for n in range(400))
    for name, text in {"code": python, "math": tex, "books": prose}.items():
        write(tmp_path, name, [text, text])
        (tmp_path / f"{name}.val.jsonl.xz").rename(tmp_path / f"{name}.00.jsonl.xz")
        write(tmp_path, name, [text[:9000], text[9000:18000]])
    fit(tmp_path, tmp_path)
    calibrate.built_in.cache_clear()
    limits = {name: limits_from(values) for name, values in json.loads((tmp_path / "limits.json").read_text()).items()}
    assert limits.keys() == {"code", "math", "prose"}
    for domain, text in {"code": python, "math": tex, "prose": prose}.items():
        assert find_repetition(text[:700], limits[domain].repetitive) is None
    # This prose repeats its sentence, so its own limit is a high one.
    assert limits["prose"].repetitive[384][0] > 0.4
    assert TextModel.load(tmp_path / "text_model.npz").domain(tex) == "math"


@pytest.mark.parametrize(
    ("file", "half"), [(FALSE_ALARMS, "measured"), (ROOT / "docs/benchmarks/failures-training-text.json", "all")]
)
def test_the_committed_rates_are_below_the_bound_and_the_page_shows_them(file: Path, half: str) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    page = (ROOT / "docs/failures.md").read_text(encoding="utf-8")
    assert table(found) in page
    assert found["half"] == half
    if file == FALSE_ALARMS:
        assert planted_line(found) in page
    for group, measured in found["people"].items():
        for failure, label in measured["labels"].items():
            assert label["certain"]["rate"] <= BOUND, (group, failure)
    assert found["milliseconds_per_1000_tokens"] <= 10
