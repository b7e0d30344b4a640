"""`shardscope eval`: the group `shard` on one checkpoint, as a table with earlier runs beside it.

By default it runs offline on a small sample of questions of our own (`evals/sample`), which tells whether something
works and which of two checkpoints is better, but is no benchmark; `--data` names a folder with the real test sets.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardscope.config import ConfigError
from shardscope.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import argparse

    import pandas as pd

    from shardscope.evals.harness import ShardLM

TASKS = Path("evals")
SAMPLE = TASKS / "sample"
OUT = Path("runs/evals")

Row = dict[str, Any]

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="default: the built-in model or newest run")
    parser.add_argument(
        "--tasks", default="shard", metavar="NAMES", help="tasks or groups, with commas (default shard)"
    )
    parser.add_argument("--data", default=str(SAMPLE), metavar="DIR", help=f"test sets (default {SAMPLE}: our own)")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each task at most (default: all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    parser.add_argument("--device", help="torch device (default: cuda where there is one)")
    parser.add_argument("--batch-size", default="auto", help="default auto")
    parser.add_argument("--out", default=str(OUT), metavar="DIR", help=f"where results are kept (default {OUT})")


def run(arguments: argparse.Namespace) -> int:
    """Score, keep the result, print the table. Raises ConfigError for a folder without the tasks or the data."""
    from shardscope.evals.harness import ShardLM

    if not (TASKS / "shard.yaml").exists():
        raise ConfigError(f"{TASKS}/shard.yaml is not here; run this in a checkout of the repository, or use lm_eval")
    if not Path(arguments.data).is_dir():
        raise ConfigError(f"--data {arguments.data}: no such folder; lay it out like {SAMPLE}")
    lm = ShardLM(arguments.checkpoint, device=arguments.device, batch_size=arguments.batch_size)
    rows = evaluate(lm, arguments.tasks.split(","), arguments.data, arguments.limit, arguments.num_fewshot)
    if lm.rank != 0:
        return 0  # under torchrun the first process has all results
    keep(Path(arguments.out), lm, rows, arguments)
    written = write_table(Path(arguments.out))
    print(written.read_text(encoding="utf-8"), end="")
    print(f"\n{written}, {written.with_suffix('.csv')}")
    return 0


def evaluate(
    lm: ShardLM, tasks: list[str], data: str | Path, limit: int | None = None, num_fewshot: int | None = None
) -> list[Row]:
    """A row for every metric: task, shots, metric, value, stderr (standard error of the mean), questions."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"eval_data": str(data)})
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise ConfigError(f"--tasks {unknown[0]}: no such task; use {', '.join(sorted(manager.all_tasks))}")
    found = simple_evaluate(
        lm, tasks=tasks, task_manager=manager, limit=limit, num_fewshot=num_fewshot, log_samples=False
    )
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


def keep(out: Path, lm: ShardLM, rows: list[Row], arguments: argparse.Namespace) -> Path:
    """One JSON file for each run, with what it was a run of. It is there whole or not at all."""
    made = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    facts = {
        "made": made,
        "data": str(arguments.data),
        "limit": arguments.limit,
        "device": str(lm.device),
        **lm.get_model_info(),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    file = _new_file(out, made)
    return write_json(file, facts, indent=1)


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
