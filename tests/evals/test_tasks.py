"""The tasks under evals/ on our own sample and on the real files, and the table of `shardscope eval`."""

from __future__ import annotations

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from real_items import DATA, ROOT, real_rows

from shardscope.cli import main
from shardscope.config import ConfigError
from shardscope.evals import suite, tasks
from shardscope.evals.harness import HarnessError, ShardLM

LIKELIHOODS = ["shard_arc_easy", "shard_arc_challenge_letter", "shard_gsm8k_likelihood", "shard_arith_choice"]


@pytest.fixture
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def loaded(names: list[str], data: Path) -> dict[str, Any]:
    manager = TaskManager(include_path=str(ROOT / "evals"), include_defaults=False, metadata={"eval_data": str(data)})
    return manager.load(names)["tasks"]


def test_the_group_holds_every_task_and_all_of_them_load_from_the_sample() -> None:
    found = loaded(["shard"], ROOT / "evals" / "sample")
    assert len(found) == 10
    assert all(len(list(task.test_docs())) >= 12 for task in found.values())


def test_real_files_give_the_prompts_and_choices_of_lm_evals_own_arc() -> None:
    rows = real_rows("ai2_arc/ARC-Easy/test.jsonl", 5)
    task = loaded(["shard_arc_easy"], DATA)["shard_arc_easy"]
    docs = list(task.test_docs())
    assert len(docs) == 2376
    for row, doc in zip(rows, docs, strict=False):
        # The template of lm_eval/tasks/arc/arc_easy.yaml.
        assert task.doc_to_text(doc) == f"Question: {row['question']}\nAnswer:"
        assert task.doc_to_choice(doc) == row["choices"]["text"]
        assert task.doc_to_target(doc) == row["choices"]["label"].index(row["answerKey"])
    maths = list(loaded(["shard_math"], DATA)["shard_math"].test_docs())
    assert len(maths) == 5000
    assert all(tasks.score_math(row, [row["solution"]])["exact_match"] == 1 for row in maths[::50])


@pytest.mark.parametrize("name", ["shard_math", "shard_math_likelihood"])
def test_the_examples_of_math_are_our_own_with_their_solutions(name: str) -> None:
    task = loaded([name], ROOT / "evals" / "sample")[name]
    docs = list(task.test_docs())
    for doc in docs:
        prompt = task.fewshot_context(doc, 8)
        shown = prompt.removesuffix(f"Problem: {doc['problem']}\nSolution:")
        assert shown.count("\nSolution: ") == shown.count("\\boxed{") == 8
        assert not any(other["problem"] in shown for other in docs)
    for example in task.config.fewshot_config.samples:  # each is a task that its own solution solves
        assert set(tasks.score_math(example, [example["solution"]]).values()) == {1.0}
    if (DATA / "hendrycks_math").is_dir():
        real = {doc["problem"] for doc in loaded([name], DATA)[name].test_docs()}
        assert not real & {example["problem"] for example in task.config.fewshot_config.samples}


def test_the_environment_variable_names_the_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tasks.VARIABLE, str(ROOT / "evals" / "sample"))
    assert len(tasks.rows("allenai/ai2_arc", "ai2_arc", ["ARC-Easy"])["test"]) == 20


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"gsm8k/main/test\.jsonl: no such file; SHARDSCOPE_EVAL_DATA or"):
        tasks.rows("openai/gsm8k", "gsm8k", ["main"], eval_data=str(tmp_path))
    broken = tmp_path / "gsm8k" / "main" / "test.jsonl"
    broken.parent.mkdir(parents=True)
    for line, message in (('{"question": ', "line 2: cannot be read as JSON"), ("[" * 100_000, "nested too deeply")):
        broken.write_text(f'{{"question": "one", "answer": "#### 1"}}\n{line}\n')
        with pytest.raises(HarnessError, match=rf"test\.jsonl, {message}" if "line" in message else message):
            tasks.rows("openai/gsm8k", "gsm8k", ["main"], eval_data=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "no text 'question'"),
        ({"answerKey": 1}, "no text 'answerKey'"),
        ({"answerKey": "C"}, "the answerKey 'C' is none of the labels"),
        ({"choices": ["yes", "no"]}, "'choices' has no 'text' and 'label' of one to 5 texts each"),
        ({"choices": {"text": ["yes"], "label": ["A", "B"]}}, "of one to 5 texts each"),
        ({"choices": {"text": [1, 2], "label": ["A", "B"]}}, "of one to 5 texts each"),
        ({"choices": {"text": list("abcdef"), "label": list("ABCDEF")}}, "of one to 5 texts each"),
    ],
)
def test_a_row_that_no_task_can_ask_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"question": "Which?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}, "answerKey": "B"}
    file = tmp_path / "ai2_arc" / "ARC-Easy" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(row) + "\n")
    assert len(tasks.rows("allenai/ai2_arc", "ai2_arc", ["ARC-Easy"], eval_data=str(tmp_path))["test"]) == 1
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(HarnessError, match=rf"test\.jsonl, line 2: .*{re.escape(message)}"):
        tasks.rows("allenai/ai2_arc", "ai2_arc", ["ARC-Easy"], eval_data=str(tmp_path))
    file.write_text("\n".join(json.dumps(row | {"id": name}) for name in (1, "two")))
    with pytest.raises(HarnessError, match="ai2_arc: its rows are no table: "):
        tasks.rows("allenai/ai2_arc", "ai2_arc", ["ARC-Easy"], eval_data=str(tmp_path))
    file.write_text("")
    with pytest.raises(HarnessError, match=r"test\.jsonl: it holds no rows"):
        tasks.rows("allenai/ai2_arc", "ai2_arc", ["ARC-Easy"], eval_data=str(tmp_path))
    file.write_text("[]\n")
    with pytest.raises(HarnessError, match=r"line 1: not a row \{...\}"):
        tasks.rows("allenai/ai2_arc", "ai2_arc", ["ARC-Easy"], eval_data=str(tmp_path))


def test_more_shots_than_there_are_examples_is_one_sentence(tmp_path: Path) -> None:
    lm: Any = None  # it is not asked
    with pytest.raises(ConfigError, match="shard_arc_easy would show 7 examples, and its data has 6; use 6 at most"):
        suite.evaluate(lm, ["shard_arc_easy"], suite.SAMPLE, num_fewshot=7)
    file = tmp_path / "gsm8k" / "main" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"question": "What is 1 + 1?", "answer": "#### 2"}\n')
    with pytest.raises(ConfigError, match="shard_gsm8k would show 5 examples, and its data has 0"):
        suite.evaluate(lm, ["shard_gsm8k"], tmp_path)
    assert suite.questions("shard_gsm8k", tmp_path)["questions"] == 1


def test_choices_are_scored_by_sum_by_byte_and_in_bits() -> None:
    row = {"choices": {"text": ["yes", "certainly"], "label": ["A", "B"]}, "answerKey": "B"}
    scores = tasks.score_cloze(row, [(-4.0, False), (-5.0, False)])
    assert scores == {
        "acc": 0.0,
        "acc_bytes": 1.0,  # -5 / 10 bytes beats -4 / 4 bytes
        "answer_bits_per_byte": pytest.approx(5 / 10 / math.log(2)),
    }


def test_a_lettered_question_shows_its_choices() -> None:
    row = {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"}
    assert tasks.lettered(row) == "Question: Which?\nA. one\nB. two\nAnswer:"
    assert (tasks.letters(row), tasks.gold_choice(row)) == (["A", "B"], 1)


def test_bits_per_byte_of_the_answer_are_the_models_own(formats: tuple[Path, Path], in_the_repository: None) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size="auto")
    rows = suite.evaluate(lm, ["shard_gsm8k_likelihood"], "evals/sample", limit=3)
    bits = []
    for line in Path("evals/sample/gsm8k/main/test.jsonl").read_text().splitlines()[:3]:
        doc = json.loads(line)
        pair = (f"Question: {doc['question']}\nAnswer:", tasks.worked_gsm8k(doc))
        context, continuation = lm._encode_pair(*pair)
        ((logprob, _),) = lm._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
        bits.append(-logprob / math.log(2) / len(pair[1].encode()))
    (row,) = rows
    assert row["value"] == pytest.approx(sum(bits) / 3, abs=1e-5)
    assert row["questions"] == 3
    assert row["stderr"] is not None


def test_a_run_is_kept_and_shown_beside_the_earlier_ones(
    formats: tuple[Path, Path], tmp_path: Path, in_the_repository: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(["2026-01-01T00-00-00", "2026-01-02T00-00-00"])
    monkeypatch.setattr(suite.time, "strftime", lambda *_: next(times))
    words = [str(formats[0]), "--out", str(tmp_path), "--limit", "2", "--device", "cpu"]
    assert main(["eval", *words, "--tasks", ",".join(LIKELIHOODS[:2])]) == 0
    assert main(["eval", *words, "--tasks", ",".join(LIKELIHOODS)]) == 0
    table = (tmp_path / "table.md").read_text().splitlines()
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert header[:3] == ["task", "shots", "metric"]
    assert [column.rsplit(", ", 2)[1:] for column in header[3:]] == [
        ["limit 2", "2026-01-02T00-00-00"],
        ["limit 2", "2026-01-01T00-00-00"],
    ]
    assert {line[0] for line in lines} == set(LIKELIHOODS)
    for line in lines:
        assert line[3]
        assert bool(line[4]) == (line[0] in LIKELIHOODS[:2])
        assert not line[4] or line[4] == line[3]  # the same questions, the same model
    assert len((tmp_path / "table.csv").read_text().splitlines()) == len(lines) + 1


@pytest.mark.parametrize("name", ["shard_arith", "shard_gsm8k", "shard_math"])
def test_a_task_that_has_answers_written_runs_to_its_table(
    formats: tuple[Path, Path], tmp_path: Path, in_the_repository: None, name: str
) -> None:
    words = [str(formats[0]), "--out", str(tmp_path), "--limit", "1", "--device", "cpu", "--tasks", name]
    assert main(["eval", *words]) == 0
    lines = [line.split("|") for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert {line[1].strip() for line in lines} == {name}
    assert any(line[3].strip().startswith("exact_match") for line in lines)
    verifies = name == "shard_math" and find_spec("math_verify") is not None
    assert verifies == any(line[3].strip() == "math_verify" for line in lines)
    assert all(0 <= float(line[4]) <= 1 for line in lines)


def test_what_the_harness_says_to_authors_of_tasks_is_left_out(
    formats: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout, of which git would complain
    assert main(["eval", str(formats[0]), "--limit", "2", "--device", "cpu", "--tasks", "shard_arith"]) == 0
    assert "fatal" not in capfd.readouterr().err
    assert not any(words in caplog.text for words in suite.FOR_AUTHORS)
    assert (tmp_path / "runs" / "evals" / "table.md").exists()


@pytest.mark.parametrize("shots", [None, 2])
def test_scores_are_those_of_simple_evaluate_with_the_same_shots(formats: tuple[Path, Path], shots: int | None) -> None:
    names = ["shard_gsm8k", "shard_arc_easy", "shard_arith"]
    lm = ShardLM(str(formats[0]), device="cpu", batch_size=2)
    ours = suite.evaluate(lm, names, suite.SAMPLE, limit=2, num_fewshot=shots)
    manager = TaskManager(
        include_path=str(suite.TASKS), include_defaults=False, metadata={"eval_data": str(suite.SAMPLE)}
    )
    found = simple_evaluate(lm, tasks=names, task_manager=manager, limit=2, num_fewshot=shots, log_samples=False)
    expected = {
        (task, key): value
        for task, values in found["results"].items()
        for key, value in values.items()
        if "," in key and "_stderr" not in key
    }
    for row in ours:
        metric, _, kind = row["metric"].partition(" ")
        assert row["value"] == expected.pop((row["task"], f"{metric},{kind.strip('()') or 'none'}"))
        assert row["shots"] == found["n-shot"][row["task"]]
    assert not expected


def kept(out: Path, value: float, task: str = "sums") -> Path:
    """A result of a second that is always the same."""
    row = {"task": task, "shots": 0, "metric": "acc", "value": value, "stderr": None, "questions": 2}
    lm = SimpleNamespace(device="cpu", get_model_info=lambda: {"model_checkpoint": "runs/small"})
    return suite.write_result(out, lm, [row], "sample", None)  # type: ignore[arg-type]


def test_results_of_the_same_second_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.time, "strftime", lambda *_: "2026-01-01T00-00-00")
    files = [kept(tmp_path, value) for value in (0.25, 0.5, 0.75)]
    assert [file.name for file in files] == [f"2026-01-01T00-00-00{n}.json" for n in ("", "-2", "-3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)
    assert sorted(suite.comparison(tmp_path).to_numpy().ravel()) == ["0.2500", "0.5000", "0.7500"]


def test_the_table_has_no_line_that_none_of_its_runs_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([f"2026-01-0{day}T00-00-00" for day in (1, 2, 3)])
    monkeypatch.setattr(suite.time, "strftime", lambda *_: next(times))
    kept(tmp_path, 0.25, task="products")
    for value in (0.5, 0.75):
        kept(tmp_path, value)
    table = suite.write_table(tmp_path, most=2).read_text()
    assert "products" not in table
    assert len(table.splitlines()) == len(["header", "rule", "sums"])
    assert "limit" not in table  # these were whole runs
    assert "products" in suite.write_table(tmp_path, most=3).read_text()


@pytest.mark.parametrize(
    "broken", ["", "{", "[1]", "{}", '{"rows": []}', '{"rows": [{"task": "sums"}]}', "null", "\x00"]
)
def test_a_broken_result_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str) -> None:
    kept(tmp_path, 0.5)
    (tmp_path / "broken.json").write_text(broken)
    assert "0.5000" in suite.write_table(tmp_path).read_text()
    assert "broken.json: not a result of `shardscope eval`; it is left out" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "no/such/folder"], "--data no/such/folder: no such folder"),
        (["--tasks", "shard_arc_eazy"], "--tasks shard_arc_eazy: no such task; did you mean 'shard_arc_easy'?"),
        (["--limit", "2", "--device", "tpu9"], "device='tpu9' is not a torch device"),
    ],
)
def test_a_mistake_gets_one_sentence(
    formats: tuple[Path, Path], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(formats[0]), *words]) == 1
    error = capsys.readouterr().err
    assert f"error: {message}" in error
    assert len(error.splitlines()) == 1
