"""What the YAML files under `evals/` call: the data sets, and the scores of an answer.

Data comes from the Hugging Face hub, or, where the variable SHARDSCOPE_EVAL_DATA or `--metadata eval_data=DIR` names a
folder, from JSON lines in it: DIR/ai2_arc/ARC-Easy/test.jsonl, DIR/gsm8k/main/test.jsonl, and so on.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from shardscope.evals import arith
from shardscope.evals.errors import HarnessError
from shardscope.evals.math_answers import equivalent
from shardscope.evals.math_solutions import boxed, final_answer
from shardscope.evals.math_verifier import verified
from shardscope.files import parse_json, read_text

if TYPE_CHECKING:
    from datasets import Dataset

VARIABLE = "SHARDSCOPE_EVAL_DATA"
SPLITS = ("train", "validation", "test")
LETTERS = "ABCDE"
ARC = "ai2_arc"
TEXTS = {  # of a row, by the folder of the data set
    ARC: ("question", "answerKey"),
    "gsm8k": ("question", "answer"),
    "hendrycks_math": ("problem", "solution"),
}
MOST_OF_A_SPLIT = 2**28  # bytes of a file; the largest of MMLU has 160 million

Row = dict[str, Any]
Likelihood = tuple[float, bool]


# ---------------------------------------------------------------------------------------------------- data


def rows(hub: str, folder: str, subsets: list[str], eval_data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The splits of a data set, its subsets joined: of the hub's `hub`, or of `folder` in the local data."""
    from datasets import concatenate_datasets, load_dataset

    local = eval_data or os.environ.get(VARIABLE)
    if local is None:
        parts = [load_dataset(hub, subset) for subset in subsets]
        return {split: concatenate_datasets([part[split] for part in parts]) for split in parts[0]}
    return _local_rows(Path(local) / folder, subsets)


def _local_rows(folder: Path, subsets: Sequence[str]) -> dict[str, Dataset]:
    from datasets import Dataset

    found: dict[str, list[Row]] = {}
    for subset in subsets:
        for split in SPLITS:
            file = folder / subset / f"{split}.jsonl"
            if file.exists():
                found.setdefault(split, []).extend(_read(file, folder.name))
    if "test" not in found:
        raise HarnessError(
            f"{folder / subsets[0] / 'test.jsonl'}: no such file; {VARIABLE} or --metadata eval_data= names "
            "the folder above"
        )
    if not found["test"]:
        raise HarnessError(f"{folder / subsets[0] / 'test.jsonl'}: it holds no rows")
    found.setdefault("train", [])  # where there is no such file a task has no examples, and can be asked without them
    try:
        return {split: Dataset.from_list(lines) for split, lines in found.items()}
    except (ValueError, TypeError) as error:  # Arrow's: a column that is a text here and a number there
        raise HarnessError(f"{folder}: its rows are no table: {error}") from error


def _read(file: Path, data_set: str) -> list[Row]:
    lines = read_text(file, HarnessError, MOST_OF_A_SPLIT).split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if line or number < len(lines):  # after the last line end there is none
            where = f"{file}, line {number}"
            found.append(_checked(parse_json(line, where, HarnessError), data_set, where))
    return found


def _checked(row: Any, data_set: str, where: str) -> Row:
    """A row that holds what the tasks of its data set read."""
    if not isinstance(row, dict):
        raise HarnessError(f"{where}: not a row {{...}}")
    for key in TEXTS.get(data_set, ()):
        if not isinstance(row.get(key), str):
            raise HarnessError(f"{where}: no text {key!r}")
    if data_set == ARC:
        _check_choices(row, where)
    return row


def _check_choices(row: Row, where: str) -> None:
    choices = row.get("choices")
    texts, labels = (choices.get(key) if isinstance(choices, dict) else None for key in ("text", "label"))
    if not (_are_texts(texts) and _are_texts(labels) and 1 <= len(texts) == len(labels) <= len(LETTERS)):
        raise HarnessError(f"{where}: 'choices' has no 'text' and 'label' of one to {len(LETTERS)} texts each")
    if row["answerKey"] not in labels:
        raise HarnessError(f"{where}: the answerKey {row['answerKey']!r} is none of the labels")


def _are_texts(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def arithmetic(count: int = arith.COUNT, arith_seed: int = arith.SEED, **_: Any) -> dict[str, Dataset]:
    """shard_arith's problems; `--metadata count=1000 arith_seed=1` asks for others."""
    from datasets import Dataset

    made = arith.problems(count, arith_seed)
    shots = [row for row in arith.problems(64, arith_seed + 1) if row["prompt"] not in {p["prompt"] for p in made}]
    return {"test": Dataset.from_list(made), "train": Dataset.from_list(shots)}


# -------------------------------------------------------------------------------------------- multiple choice


def lettered(row: Row) -> str:
    """An ARC question with its choices below it, each after a letter."""
    choices = "".join(f"{LETTERS[i]}. {text}\n" for i, text in enumerate(row["choices"]["text"]))
    return f"Question: {row['question']}\n{choices}Answer:"


def letters(row: Row) -> list[str]:
    return list(LETTERS[: len(row["choices"]["text"])])


def gold_choice(row: Row) -> int:
    at: int = row["choices"]["label"].index(row["answerKey"])
    return at


def score_cloze(row: Row, results: list[Likelihood]) -> dict[str, float]:
    """Of the choices' own texts: accuracy, accuracy by byte, and bits per byte of the right one."""
    return _of_choices([f" {text}" for text in row["choices"]["text"]], gold_choice(row), results)


def score_letters(row: Row, results: list[Likelihood]) -> dict[str, float]:
    return _of_choices([f" {letter}" for letter in letters(row)], gold_choice(row), results)


def score_arithmetic_choices(row: Row, results: list[Likelihood]) -> dict[str, float]:
    return _of_choices([f" {choice}" for choice in row["choices"]], row["gold"], results)


def _of_choices(texts: list[str], gold: int, results: list[Likelihood]) -> dict[str, float]:
    likelihoods = [logprob for logprob, _ in results]
    per_byte = [logprob / len(text.encode()) for logprob, text in zip(likelihoods, texts, strict=True)]
    return {
        "acc": float(likelihoods.index(max(likelihoods)) == gold),
        "acc_bytes": float(per_byte.index(max(per_byte)) == gold),
        "answer_bits_per_byte": -per_byte[gold] / math.log(2),
    }


# --------------------------------------------------------------------------------------------- worked answers


def worked_gsm8k(row: Row) -> str:
    """The solution as people write it, without the calculator's notes `<<16-3=13>>`."""
    return " " + re.sub(r"<<[^>]*>>", "", row["answer"])


def score_gsm8k_likelihood(row: Row, results: list[Likelihood]) -> dict[str, float]:
    return _bits(worked_gsm8k(row), results)


def worked_math(row: Row) -> str:
    return f" {row['solution']}"


def score_math_likelihood(row: Row, results: list[Likelihood]) -> dict[str, float]:
    return _bits(worked_math(row), results)


def _bits(text: str, results: list[Likelihood]) -> dict[str, float]:
    return {"answer_bits_per_byte": -results[0][0] / math.log(2) / len(text.encode())}


def math_target(row: Row) -> str:
    return boxed(row["solution"]) or ""


def score_math(row: Row, results: list[str]) -> dict[str, float]:
    """1 if the answer that the text ends in says the same as the boxed one: by our rules, and by math-verify's."""
    scores = {"exact_match": float(equivalent(final_answer(results[0]), math_target(row)))}
    if (theirs := verified(results[0], row["solution"])) is not None:
        scores["math_verify"] = float(theirs)
    return scores


def score_arithmetic(row: Row, results: list[str]) -> dict[str, float]:
    return arith.judge(row, results[0])
