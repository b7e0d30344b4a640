"""`shardscope eval`: the group `shard` on one checkpoint, as a table with earlier runs beside it.

By default it runs offline on a small sample of questions of our own, which tells whether something works and which of
two checkpoints is better, but is no benchmark; `--data` names a folder with the real test sets.
"""

from __future__ import annotations

import argparse

from shardscope.cli.arguments import add_checkpoint, add_device, add_out, path, whole
from shardscope.config import ConfigError
from shardscope.device import pick_device
from shardscope.evals.suite import OUT, SAMPLE, TASKS, evaluate, write_result, write_table
from shardscope.files import check_writable_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--tasks", default="shard", metavar="NAMES", help="tasks or groups, with commas (default shard)"
    )
    parser.add_argument("--data", type=path, metavar="DIR", help="test sets (default: a small sample of our own)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="questions of each task at most (default: all)")
    parser.add_argument("--num-fewshot", type=whole(0), metavar="N", help="examples before each question")
    add_device(parser)
    parser.add_argument(
        "--batch-size", type=_batch_size, default="auto", metavar="N", help="contexts, or texts, at once (default auto)"
    )
    add_out(parser, f"folder of the results (default {OUT})", default=OUT)
    parser.add_argument(
        "--tasks-path", action="store_true", help="only print the folder of the tasks, for lm_eval --include_path"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score, store the result, print the table. Raises ConfigError for a folder without the data."""
    if arguments.tasks_path:
        print(TASKS)
        return 0
    data = arguments.data or SAMPLE
    if not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder; lay it out like {SAMPLE}")
    check_writable_folder(arguments.out, "--out")
    device = pick_device(arguments.device)
    from shardscope.evals.harness import ShardLM  # the folder of the tasks is known without lm-eval

    checkpoint = None if arguments.checkpoint is None else str(arguments.checkpoint)
    lm = ShardLM(checkpoint, device=str(device), batch_size=arguments.batch_size)
    rows = evaluate(lm, arguments.tasks.split(","), data, arguments.limit, arguments.num_fewshot)
    if lm.rank != 0:
        return 0  # under torchrun the first process has all results
    write_result(arguments.out, lm, rows, "sample" if arguments.data is None else str(data), arguments.limit)
    written = write_table(arguments.out)
    print(written.read_text(encoding="utf-8"), end="")
    print(f"\n{written}, {written.with_suffix('.csv')}")
    return 0


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else whole(1)(text)
