"""The report says what the metrics hold, and nothing else."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from small_reproduction import SAMPLE

from shardscope.cli import main
from shardscope.evals import arith
from shardscope.failures import CARD_PROMPTS
from shardscope.failures.intervals import wilson
from shardscope.files import read_json, write_json
from shardscope.reproduce.published import SAMPLES
from shardscope.reproduce.report import report
from shardscope.reproduce.report_measures import CHANCE, sign_test
from shardscope.reproduce.report_training import last_loss, pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def metrics(reproduced: Path) -> dict[str, Any]:
    return copy.deepcopy(read_json(reproduced / "metrics.json"))


def rows(page: str, section: str) -> list[list[str]]:
    """The cells of the first table of a section, without its header."""
    lines = page.replace("\u00a0", " ").partition(f"## {section}\n")[2].partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_report_lies_beside_the_metrics_with_its_pictures(reproduced: Path, metrics: dict[str, Any]) -> None:
    page = (reproduced / "report.md").read_text(encoding="utf-8")
    assert page == report(metrics, "images/report")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert shown == [f"images/report-{name}.svg" for name in ("loss", "held-out", "heads")]
    for path in shown:
        ElementTree.parse(reproduced / path)


def test_a_model_of_another_size_is_named_as_such_first(metrics: dict[str, Any]) -> None:
    page = report(metrics, "images/x")
    first = page.splitlines()[:3]
    assert first[0] == "# The reference run's pipeline on tiny"
    assert f"A model of {metrics['model']['n_params']:,} parameters, not the published size of 54,538,752," in first[2]
    metrics["model"]["n_params"] = 54_538_752
    first = report(metrics, "images/x").splitlines()[:3]
    assert first[0] == "# The reference run"
    assert "A model of 54,538,752 parameters, the published size," in first[2]


def test_the_first_words_say_how_to_do_it_again_and_whether_other_programs_ran(metrics: dict[str, Any]) -> None:
    metrics["machine"] |= {"load": 7.6, "threads": 2}
    first = report(metrics, "x").partition("## ")[0]
    recipes = "tiny-pretrain tiny-anneal"
    assert (
        f"To run it again: `shardscope reproduce --recipes {recipes} --limit 3 --prompts 8 --checkpoints 4`." in first
    )
    assert "Other programs ran beside it (load 8)" in first
    metrics["machine"]["load"] = 2.1
    assert "Other programs" not in report(metrics, "x")


def test_the_first_lines_say_tokens_loss_answers_and_loops(metrics: dict[str, Any]) -> None:
    in_short = [line for line in report(metrics, "x").partition("## ")[0].splitlines() if line.startswith("- ")]
    assert len(in_short) == (4 if metrics["suite"]["after"]["prompts"] else 3)
    parts = [part for parts in metrics["loss"]["after"].values() for part in parts]
    bits = sum(part["nats"] for part in parts) / math.log(2) / sum(part["bytes"] for part in parts)
    assert f"Held-out text takes {bits:.3f} bits per byte after the anneal" in in_short[1]
    (accuracy,) = [r for r in metrics["tasks"]["shard_arc_easy/after"]["rows"] if r["metric"] == "acc_bytes"]
    assert f"ARC-Easy {accuracy['value']:.1%} ± {accuracy['stderr']:.1%} (chance 25%)" in in_short[2]


def test_the_tokens_that_were_read_add_up_to_those_of_the_run(metrics: dict[str, Any]) -> None:
    table = tables(report(metrics, "x"), "Its text")[0]
    assert [row[0] for row in table] == ["one", "two"]
    for column, phase in ((3, "pretrain"), (4, "anneal")):
        read = [int(row[column].split()[0].replace(",", "")) for row in table if row[column] != "–"]
        assert sum(read) == metrics["runs"][phase]["tokens"]
    passes = [metrics["runs"][phase]["sources"]["two"]["epochs"] for phase in ("pretrain", "anneal")]
    assert float(table[1][5]) == pytest.approx(sum(passes), abs=0.006)


def test_a_source_that_was_another_text_in_each_phase_has_a_row_for_each(metrics: dict[str, Any]) -> None:
    metrics["text"]["anneal"]["two"]["fingerprint"] = "another text"
    assert [row[0] for row in tables(report(metrics, "x"), "Its text")[0]] == ["one", "two", "two"]


def tables(page: str, section: str) -> list[list[list[str]]]:
    """The cells of every table of a section, without its header."""
    blocks = page.partition(f"## {section}\n")[2].partition("\n## ")[0].strip().split("\n\n")
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
        for block in blocks
        if block.startswith("|")
    ]


def test_text_that_is_held_out_too_is_told_by_how_much_of_it_repeats(metrics: dict[str, Any]) -> None:
    counted = {"of_documents": 120, "with_texts": {}, "dropped": False}
    for phase in metrics["text"].values():
        for source in phase.values() if isinstance(phase, dict) else ():
            source["overlap"] = {
                **counted, "documents": 9, "exact": 2, "tokens": source["tokens"] // 4, "mostly": 5, "formulas": 30,
                "held_out_share": 0.125,
            }  # fmt: skip
    page = report(metrics, "x")
    assert tables(page, "Its text")[1][0] == ["one", "9", "2", "5", "30", "25.0%", "12.5%"]
    assert "Overlapping documents were trained on." in page
    told = "Of the held-out text 12% of one, 12% of two stands word for word in documents that were trained on"
    assert told in page
    assert "before it, in the same windows; of one, two a part was trained on." in page.partition("## ")[0]
    for phase in metrics["text"].values():
        for source in phase.values() if isinstance(phase, dict) else ():
            source["overlap"]["dropped"] = True
    page = report(metrics, "x")
    assert "Overlapping documents were left out of the training." in page
    assert "word for word" not in page


def test_metrics_that_count_less_of_the_overlap_or_none_have_a_page_too(metrics: dict[str, Any]) -> None:
    for phase in metrics["text"].values():
        for source in phase.values() if isinstance(phase, dict) else ():
            for key in ("mostly", "formulas", "held_out_share"):
                del source["overlap"][key]
    assert tables(report(metrics, "x"), "Its text")[1][0][3:5] == ["–", "–"]
    for phase in metrics["text"].values():
        for source in phase.values() if isinstance(phase, dict) else ():
            source["overlap"] = None
    assert len(tables(report(metrics, "x"), "Its text")) == 1


def test_the_last_loss_is_a_mean_of_the_curves_end_and_not_one_draw(metrics: dict[str, Any]) -> None:
    run = {"loss": [{"loss": loss} for loss in [9.0] * 18 + [2.0, 1.0]]}
    assert last_loss(run) == 1.5
    assert last_loss({"loss": [{"loss": 3.0}]}) == 3.0
    (row,) = [row for row in rows(report(metrics, "x"), "The run") if row[0] == "anneal"]
    assert row[6] == f"{last_loss(metrics['runs']['anneal']):.3f}"


def test_bits_per_byte_are_those_of_the_trainers_last_evaluation(metrics: dict[str, Any]) -> None:
    table = {row[0]: row for row in rows(report(metrics, "x"), "Bits per byte, by source")}
    logged = metrics["runs"]["anneal"]["held_out"][-1]["bits_per_byte"]
    assert float(table["two"][3]) == pytest.approx(logged["two"], abs=1e-4)
    assert table.keys() == {"one", "two", "all"}
    assert float(table["two"][4]) == pytest.approx(float(table["two"][3]) - float(table["two"][2]), abs=1.1e-4)


def test_a_source_whose_held_out_loss_rose_again_is_named_with_its_passes(metrics: dict[str, Any]) -> None:
    name, source = next(iter(metrics["runs"]["anneal"]["sources"].items()))
    ends = [1.5, 1.2, 1.21]
    metrics["runs"]["anneal"]["held_out"] = [
        {"step": step, "bits_per_byte": {name: bits}} for step, bits in zip((10, 20, 30), ends, strict=True)
    ]
    assert "Overfitting" not in report(metrics, "images/report")
    metrics["runs"]["anneal"]["held_out"][-1]["bits_per_byte"][name] = 1.3
    said = f"Overfitting: {name}, read {source['epochs']:.1f} times in the anneal, stood at 1.200 bits per byte at its "
    assert f"{said}step 20 and at 1.300 at its end." in report(metrics, "images/report")


def test_losses_by_position_are_those_of_each_source_and_of_all(metrics: dict[str, Any]) -> None:
    page = report(metrics, "x")
    parts = metrics["loss"]["after"]
    table = rows(page, "Loss by position")
    assert [row[0] for row in table] == ["0 to 31", "32 to 63"]
    for place, row in enumerate(table):
        there = [parts[name][place] for name in ("one", "two")]
        assert row[1:3] == [f"{part['nats'] / part['tokens']:.3f}" for part in there]
        together = sum(part["nats"] for part in there) / sum(part["tokens"] for part in there)
        assert row[-1] == f"{together:.3f}"


def test_each_metric_stands_there_before_and_after_with_its_standard_error(metrics: dict[str, Any]) -> None:
    table = rows(report(metrics, "x"), "Questions")
    found = {row["metric"]: row for row in metrics["tasks"]["shard_arc_easy/after"]["rows"]}
    (accuracy,) = [row for row in table if (row[0], row[2]) == ("arc_easy", "acc, chance 0.25")]
    assert accuracy[1] == "3"
    assert accuracy[4] == f"{found['acc']['value']:.3f} ± {found['acc']['stderr']:.3f}"


def test_a_change_has_the_error_of_a_difference_and_what_is_no_better_than_a_guess_is_named(
    metrics: dict[str, Any],
) -> None:
    def asked(value: float, error: float) -> dict[str, Any]:
        return {"rows": [{"metric": "acc", "value": value, "stderr": error, "questions": 100}]}

    metrics["tasks"] = {
        "shard_arc_easy/before": asked(0.2, 0.03), "shard_arc_easy/after": asked(0.4, 0.04),
        "shard_arc_challenge/before": asked(0.2, 0.03), "shard_arc_challenge/after": asked(0.26, 0.04),
        "shard_arith_choice/before": asked(0.2, 0.03), "shard_arith_choice/after": asked(0.1, 0.02),
    }  # fmt: skip
    page = report(metrics, "x")
    assert rows(page, "Questions")[0][5] == "+0.200 ± 0.050"
    assert "Within two standard errors of chance after the anneal: arc_challenge (acc)." in page
    assert "Below chance: arith_choice (acc)." in page


def test_chance_is_one_over_the_number_of_choices() -> None:
    problems = arith.problems(arith.COUNT, arith.SEED)
    assert CHANCE["shard_arith_choice"] == sum(1 / len(row["choices"]) for row in problems) / len(problems)
    for task, folder in (("shard_arc_easy", "ARC-Easy"), ("shard_arc_challenge", "ARC-Challenge")):
        lines = (SAMPLE / "ai2_arc" / folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
        choices = [len(json.loads(line)["choices"]["text"]) for line in lines]
        assert CHANCE[task] == pytest.approx(sum(1 / n for n in choices) / len(choices), abs=0.01)


def test_rates_of_failures_have_wilson_intervals_and_the_prompts_that_moved(metrics: dict[str, Any]) -> None:
    def suite(labels: list[str]) -> dict[str, Any]:
        counts = {name: labels.count(name) for name in ("loop", "no flag")}
        by_prompt = {str(number): label for number, label in enumerate(labels)}
        return {"prompts": 200, "left_out": 0, "new_tokens": 128, "failures": counts, "by_prompt": by_prompt}

    # Of 50 prompts that looped 8 still do, and 2 have begun to.
    metrics["suite"] = {
        "before": suite(["loop"] * 50 + ["no flag"] * 150),
        "after": suite(["loop"] * 8 + ["no flag"] * 190 + ["loop"] * 2),
    }
    low, high = wilson(10, 200)
    page = report(metrics, "x")
    assert rows(page, "Failures in the prompt suite")[0] == [
        "loop", "25.0% (19.5% to 31.4%)", f"5.0% ({low:.1%} to {high:.1%})", "42", "2", "0.00",
    ]  # fmt: skip
    assert f"Of 200 sampled continuations 5.0% ({low:.1%} to {high:.1%}) loop after the anneal" in page


@pytest.mark.parametrize(("left", "came"), [(45, 24), (0, 0), (3, 4), (1, 0), (13, 22), (7, 7)])
def test_the_sign_test_is_scipys_binomial_test(left: int, came: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(left, left + came).pvalue if left + came else 1.0
    assert sign_test(left, came) == pytest.approx(expected, rel=1e-9)


def test_what_was_not_measured_has_no_row(metrics: dict[str, Any]) -> None:
    page = report({**metrics, "tasks": {}}, "x")
    assert "## Questions" not in page
    assert "–" not in "".join(cell for row in rows(page, "What it cost") for cell in row)
    metrics["suite"]["after"]["prompts"] = 0
    assert "## Failures in the prompt suite" not in report(metrics, "x")


def test_costs_add_up_and_energy_and_rent_stand_there_where_they_are_known(metrics: dict[str, Any]) -> None:
    metrics["stages"] = [
        {"name": "pretrain", "seconds": 3600.0, "joules": 720_000.0},
        {"name": "heads/a", "seconds": 60.0, "joules": None},
        {"name": "heads/b", "seconds": 120.0, "joules": 3600.0},
    ]
    assert rows(report(metrics, "x"), "What it cost") == [
        ["the rest of it", "1", "60.0", "200.0", "2.00"],
        ["**the model**", "1", "60.0", "200.0", "2.00"],
        ["scores of all heads", "2", "3.0", "1.0", "0.10"],
        ["**measuring it**", "2", "3.0", "1.0", "0.10"],
        ["**all**", "3", "63.0", "201.0", "2.10"],
    ]
    for stage in metrics["stages"]:
        stage["joules"] = None
    metrics["price_per_hour"] = None
    page = report(metrics, "x")
    assert "Energy was not measured" in page
    assert rows(page, "What it cost")[-1] == ["**all**", "3", "63.0"]


def test_no_sample_breaks_the_list_it_stands_in(metrics: dict[str, Any]) -> None:
    for sample in metrics["samples"]["after"]["samples"]:
        sample["text"] = "a | b ` c\n\n## d <img> " + "long " * 99
    page = report(metrics, "x")
    section = page.partition("## The card's six prompts\n")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("- after it: ")]
    assert len(shown) == 6
    assert all(line.startswith("- after it: `a ¦ b ' c ## d <img> long ") for line in shown)
    assert "\n## d" not in page


def test_the_cards_own_samples_stand_beside_ours(metrics: dict[str, Any]) -> None:
    assert SAMPLES.keys() == {prompt.text for prompt in CARD_PROMPTS}
    page = report(metrics, "x")
    assert '- the card: `"covered by the Crown" (for example, the Great Seal of France...)` (ungrounded)' in page
    assert page.count("- the card: ") == page.count("- before the anneal: ") == 6


def test_reach_is_told_by_choices_by_nats_and_by_loss_beyond_the_window() -> None:
    found = read_json(ROOT / "docs" / "reference" / "shard-54m-run.json")
    page = report(found, "x")
    four = tables(page, "Reach")
    assert len(four) == 4
    farthest = [table[-1] for table in four]
    after = found["reach"]["after"]
    assert farthest[1][3].startswith(f"{after['whole'][-1]['chosen']:.0%} (")
    assert farthest[2][3].startswith(f"{after['whole'][-1]['lift']:z.2f} (")
    assert farthest[3][3:] == [f"{after['losses'][-1][way]:.3f}" for way in ("whole", "cut")]
    assert len(four[3]) == sum(part["first"] >= found["model"]["window"] for part in after["losses"])


def test_remarks_end_the_sections_they_belong_to(metrics: dict[str, Any]) -> None:
    page = report(metrics, "x", {"": "First words.", "Its text": "About the text."})
    assert page.partition("## The run")[0].endswith("\n\nFirst words.\n\n")
    assert page.partition("## Curves")[0].endswith("\n\nAbout the text.\n\n")
    with pytest.raises(AssertionError, match="no such section"):
        report(metrics, "x", {"The text": "…"})


def test_what_compares_with_the_card_depends_on_the_model(metrics: dict[str, Any]) -> None:
    other = {row[0]: row[3] for row in rows(report(metrics, "x"), "Beside the card")}
    metrics["model"]["n_params"] = 54_538_752
    same = {row[0]: row[3] for row in rows(report(metrics, "x"), "Beside the card")}
    assert (other["parameters"], same["parameters"]) == ("no: another size of model", "yes: the same architecture")
    assert other["training, tokens/s"].startswith("no:")
    assert same["training, tokens/s"].startswith("only together with the machines:")


def test_curves_go_on_where_the_pretraining_ended(metrics: dict[str, Any]) -> None:
    drawn = pictures(metrics)["held-out"]
    paths = [
        [tuple(map(float, point.split(","))) for point in found.split()]
        for found in re.findall(r'<polyline points="([^"]+)"', drawn)
    ]
    for path in paths:
        assert path == sorted(path, key=lambda point: point[0])
    names = [one.text for one in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"one", "two", "all", "anneal"} <= set(names)


def test_the_command_writes_the_report_of_a_file_of_metrics(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "page.md"
    assert main(["report", str(reproduced / "metrics.json"), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text == (reproduced / "report.md").read_text(encoding="utf-8").replace("images/report-", "images/page-")
    assert (page.parent / "images" / "page-loss.svg").exists()


@pytest.mark.parametrize("content", ["{}", json.dumps({"format": 0}), "[]", "not JSON"])
def test_what_is_no_metrics_is_one_sentence(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(content)
    assert main(["report", str(file), "--out", str(tmp_path / "page.md")]) == 1
    assert "metrics.json" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_metrics_without_a_place_for_the_page_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "metrics.json", {})
    assert main(["report", str(tmp_path / "metrics.json")]) == 1
    assert "say with --out where the page" in capsys.readouterr().err
