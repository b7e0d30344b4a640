"""The group `shard` of tasks on one checkpoint, and a table of such results with earlier ones beside it.

`TASKS` is the folder of the tasks and `SAMPLE` a small one of questions of our own in it, which tells whether something
works and which of two checkpoints is better, but is no benchmark.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardscope.config import ConfigError, suggest
from shardscope.files import read_json, write_json, write_text
from shardscope.resources import resource

if TYPE_CHECKING:
    import pandas as pd
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

    from shardscope.evals.harness import ShardLM

TASKS = resource("evals")
SAMPLE = TASKS / "sample"
OUT = Path("runs/evals")
GROUP = "shard"
# Each file is called after its task, so the names are known where lm-eval is not installed.
NAMES = tuple(sorted(f"{GROUP}_{file.stem}" for file in TASKS.glob("*.yaml") if file.stem != GROUP))

# How messages of the harness begin, or what they hold, that are for authors of tasks.
FOR_AUTHORS = ("Custom kwargs can be passed to `--metadata`", "Metrics were not scored on the same number of")

Row = dict[str, Any]

logger = logging.getLogger(__name__)


def evaluate(
    lm: ShardLM, tasks: list[str], data: str | Path | None, limit: int | None = None, num_fewshot: int | None = None
) -> list[Row]:
    """A row for every metric: task, shots, metric, value, stderr (standard error of the mean), questions.

    `data` is a folder of test sets; None: the one that SHARDSCOPE_EVAL_DATA names, else the Hugging Face hub. Raises
    ConfigError for a task that does not exist, and for more shots than its data has examples.
    """
    from lm_eval import evaluate as score

    with _without_chatter():
        loaded = _task_manager(tasks, data).load(tasks)
        _set_shots(loaded["tasks"].values(), num_fewshot)
        found = score(lm, loaded, limit=limit, log_samples=False)
    rows: list[Row] = []
    if found is None:  # not the first process under torchrun
        return rows
    for task, values in found["results"].items():
        for key, value in sorted(values.items()):
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "task": task,
                    "shots": found["n-shot"].get(task),
                    "metric": metric if kind == "none" else f"{metric} ({kind})",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "questions": found["n-samples"][task]["effective"],
                }
            )
    return rows


def check_tasks(names: Iterable[str], data: Path | None) -> None:
    """Whether the tasks can be asked later, each by its own name; on the hub (None) only whether there are such tasks.

    Raises ConfigError for a name of none or of a group of them, and for a folder that lacks the questions of one.
    """
    names = tuple(names)
    if GROUP in names:
        raise ConfigError(f"--tasks {GROUP}: a group of tasks; name the tasks themselves")
    _require_known(names, NAMES)
    for name in names if data is not None else ():
        questions(name, data)


def questions(task: str, data: str | Path | None) -> Row:
    """The number of a task's test questions, and a hash of them. `data` and errors as in `evaluate`."""
    with _without_chatter():
        found = _task_manager([task], data).load([task])
    lines = [json.dumps(document, sort_keys=True, default=str) for document in found["tasks"][task].test_docs()]
    return {"questions": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Within it the harness does not say what is meant for authors of tasks."""

    def matters(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in FOR_AUTHORS)

    loggers = [logging.getLogger(name) for name in ("lm_eval.api.task", "lm_eval.evaluator_utils")]
    for each in loggers:
        each.addFilter(matters)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(matters)


def _task_manager(tasks: Sequence[str], data: str | Path | None) -> TaskManager:
    """Knows our tasks alone. Raises ConfigError for another one."""
    from lm_eval.tasks import TaskManager

    metadata = {} if data is None else {"eval_data": str(data)}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    _require_known(tasks, manager.all_tasks)
    return manager


def _require_known(tasks: Iterable[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for task in tasks:
        if task not in known:
            raise ConfigError(f"--tasks {task}: no such task{suggest(task, known)}")


def _set_shots(tasks: Iterable[Task], num_fewshot: int | None) -> None:
    """How many examples are shown, and which, as `simple_evaluate` sets them: a task that says 0 of itself keeps that.

    `simple_evaluate` itself would run git in the working folder and list the machine's software for a file that is not
    written here. Raises ConfigError where a task is to be shown more examples than there are: the harness would fail
    midway.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for task in tasks:
        own = task.get_config("num_fewshot") or 0
        shots = own if num_fewshot is None or task.get_config("num_fewshot") == 0 else num_fewshot
        if shots > (there := len(task.sampler.df)):
            raise ConfigError(
                f"--num-fewshot: {task.config.task} would show {shots} examples, and its data has {there}; "
                f"use {there} at most"
            )
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def write_result(out: Path, lm: ShardLM, rows: list[Row], data: str, limit: int | None) -> Path:
    """One JSON file for each run, with what it was a run of. While it is written, an empty file holds its name."""
    made = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    facts = {
        "made": made,
        "data": data,
        "limit": limit,
        "device": str(lm.device),
        **lm.get_model_info(),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    file = _new_file(out, made)
    try:
        return write_json(file, facts, indent=1)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _new_file(out: Path, made: str) -> Path:
    """An empty file with a name of its own, also when another run ends in the same second."""
    for name in (made, *(f"{made}-{number}" for number in range(2, 1000))):
        try:
            (out / f"{name}.json").touch(exist_ok=False)
        except FileExistsError:
            continue
        return out / f"{name}.json"
    raise ConfigError(f"{out} holds a thousand results of the same second; remove some")


def write_table(out: Path, most: int = 6) -> Path:
    """table.md and table.csv: a line for each metric, a column for each of the newest `most` runs, the newest first."""
    table = comparison(out).iloc[:, :most].dropna(how="all")  # no lines that only still older runs have
    write_text(out / "table.csv", table.to_csv())
    header = ["task", "shots", "metric", *table.columns]
    lines = [
        [*map(str, index), *("" if cell != cell else str(cell) for cell in row)] for index, *row in _rows_of(table)
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [header, ["-" * width for width in widths], *lines]
    ]
    return write_text(out / "table.md", "\n".join(text) + "\n")


def comparison(out: Path) -> pd.DataFrame:
    """Every kept run as a column `checkpoint, data, limit, time` of values ± standard errors; other files are named."""
    import pandas as pd

    columns = {}
    for file in sorted(out.glob("*.json"), reverse=True):
        try:
            name, column = _column(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s: not a result of `shardscope eval`; it is left out of the table", file)
        else:
            columns[name] = column
    return pd.concat(columns, axis=1) if columns else pd.DataFrame()


def _column(file: Path) -> tuple[str, pd.Series]:
    import pandas as pd

    facts = read_json(file, ConfigError)
    frame = pd.DataFrame(facts["rows"])
    shown = [
        f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None and stderr == stderr else "")
        for value, stderr in zip(frame["value"], frame["stderr"], strict=True)
    ]
    index = pd.MultiIndex.from_frame(frame[["task", "shots", "metric"]])
    if index.has_duplicates:
        raise ValueError("a metric that stands there twice")
    path = Path(facts["model_checkpoint"])
    run_name = path.parent.parent.name if path.parent.name == "checkpoints" else path.name
    limit = "" if facts.get("limit") is None else f", limit {facts['limit']}"
    return f"{run_name}, {facts['data']}{limit}, {file.stem}", pd.Series(shown, index=index)


def _rows_of(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(table.itertuples(name=None))
