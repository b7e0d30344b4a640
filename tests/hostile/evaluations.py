"""Evaluations that are killed and started again with the same --use_cache.

Run as a program, which imports everything once and forks for each evaluation; it computes nothing itself, because the
threads of a library do not survive a fork.

    python tests/hostile/evaluations.py CHECKPOINT FOLDER CASE [CASE ...]

CASE is `PROCESSES:RANK:CALL`: of so many processes, the one of this rank is killed by SIGKILL at its call of the model
of this number; or `PROCESSES:RANK:~SHARE`, after this share of the time that an undisturbed run takes from its first
call on. Prints a JSON object with the results of an undisturbed run and, for each case, how its processes ended, and
the results and calls of the run that went on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from shardscope.evals import harness
from shardscope.evals.harness import ShardLM

ROOT = Path(__file__).parents[2]
ROLLING = """\
task: documents
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
TASKS = ["shard_arc_easy", "shard_gsm8k", "documents"]  # one of each kind of request
LIMIT = 4


def evaluate(checkpoint: str, folder: Path, cache: str | None, strike: str) -> dict[str, Any]:
    """Scores and answers of every task, how often the model was asked and for how long; {} but in the first process."""
    sample = ROOT / "evals" / "sample"
    calls = count_calls(strike, None if cache is None else f"{cache}_rank{os.environ.get('RANK', '0')}.db")
    lm = ShardLM(checkpoint, device="cpu", batch_size=1)
    manager = TaskManager(
        include_path=[str(ROOT / "evals"), str(folder)], include_defaults=False, metadata={"eval_data": str(sample)}
    )
    given = {"limit": LIMIT, "bootstrap_iters": 0, "num_fewshot": 0, "gen_kwargs": "max_gen_toks=6"}
    found = simple_evaluate(lm, tasks=TASKS, task_manager=manager, use_cache=cache, **given)
    if found is None:
        return {}
    answers = {
        task: [[*map(str, row["resps"])] for row in sorted(rows, key=lambda row: row["doc_id"])]
        for task, rows in found["samples"].items()
    }
    seconds = time.monotonic() - calls[0] if calls else 0.0
    return {"scores": found["results"], "answers": answers, "calls": len(calls), "seconds": seconds}


def count_calls(strike: str, cache: str | None) -> list[float]:
    """When each call of the model was; at the one that `strike` numbers, or `~` seconds after the first, SIGKILL."""
    calls: list[float] = []

    def counted(name: str) -> None:
        real = getattr(harness, name)

        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(time.monotonic())
            if strike.startswith("~") and len(calls) == 1:
                threading.Timer(float(strike[1:]), kill).start()
            if strike == str(len(calls)):
                while cache and not holds_an_answer(cache):  # it is written by a thread of its own
                    time.sleep(0.01)
                kill()
            return real(*arguments, **more)

        setattr(harness, name, call)

    counted("score_groups")
    counted("generate")
    return calls


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def holds_an_answer(cache: str) -> bool:
    with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as file:
        return int(file.execute("SELECT COUNT(*) FROM unnamed").fetchone()[0]) > 1  # beside whose answers they are


def run(checkpoint: str, folder: Path, name: str, processes: int = 1, rank: int = 0, strike: str = "") -> list[Any]:
    """[how each process ended: its exit status, or minus its signal, and its last line], the first one's results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(processes):
        (folder / f"{name}.{number}.json").unlink(missing_ok=True)
        sys.stdout.flush()
        if child := os.fork():
            children.append(child)
            continue
        said = os.open(folder / f"{name}.{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if processes > 1:
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in place.items()}})
        status = 1
        try:
            cache = None if name == "undisturbed" else str(folder / name)
            found = evaluate(checkpoint, folder, cache, strike if number == rank else "")
            (folder / f"{name}.{number}.json").write_text(json.dumps(found))
            status = 0
        except SystemExit as ended:  # as the interpreter does
            print(ended.code)
        finally:
            sys.stdout.flush()
            os._exit(status)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    last = [((folder / f"{name}.{n}.txt").read_text().strip().splitlines() or [""])[-1] for n in range(processes)]
    results = folder / f"{name}.0.json"
    return [list(zip(ends, last, strict=True)), json.loads(results.read_text()) if results.exists() else None]


def main() -> None:
    checkpoint, folder = sys.argv[1], Path(sys.argv[2])
    (folder / "documents.yaml").write_text(ROLLING.format(file=ROOT / "evals/sample/ai2_arc/ARC-Easy/test.jsonl"))
    report: dict[str, Any] = {"undisturbed": run(checkpoint, folder, "undisturbed")[1], "cases": {}}
    for case in sys.argv[3:]:
        processes, rank, strike = case.split(":")
        if strike.startswith("~"):
            strike = f"~{float(strike[1:]) * report['undisturbed']['seconds']}"
        name = case.replace(":", "-")
        ends, _ = run(checkpoint, folder, name, int(processes), int(rank), strike)
        again, results = run(checkpoint, folder, name, int(processes))
        report["cases"][case] = {"ends": ends, "again": again, "results": results}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
