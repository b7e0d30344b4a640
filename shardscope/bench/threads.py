"""Writing on a CPU that is idle, and on one of whose cores another program runs.

Each measurement is a process of its own, because PyTorch's threads learn how to wait when they are first made.
"chosen" is what `import shardscope` does: it looks around and uses the cores that are free. "spinning" is PyTorch's own
default, "waiting" the same without spinning, "one" a single thread. The other program runs at nice 10 or at nice 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch

from shardscope.bench.measure import add_out, at_least_one, command_line, machine, save, shown_spread, summary, table
from shardscope.checkpoint import resolve_checkpoint
from shardscope.progress import progress_bar

# What each way sets in the environment; a number of threads that is set there is not changed.
ALL = str(torch.get_num_threads())
WAYS: dict[str, dict[str, str]] = {
    "chosen": {},
    "spinning": {"OMP_NUM_THREADS": ALL},
    "waiting": {"OMP_NUM_THREADS": ALL, "OMP_WAIT_POLICY": "PASSIVE"},
    "one": {"OMP_NUM_THREADS": "1"},
}
TEMPERATURES = (0.0, 0.8)
BUSY: dict[str, int | None] = {"no": None, "at nice 10": 10, "at nice 0": 0}
WRITE = """
import time
from shardscope import generate, load

model = load({checkpoint!r}, device="cpu")
ask = dict(temperature={temperature}, stop_at_eos=False)
generate(model, [1, 2, 3], max_new_tokens=4, **ask)
start = time.perf_counter()
generate(model, [1, 2, 3], max_new_tokens={new}, **ask)
print(time.perf_counter() - start)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="PATH", help="what writes (default: the built-in model)")
    parser.add_argument("--new", type=int, default=64, metavar="N", help="tokens to write (default 64)")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measured runs of each (default 5)")
    add_out(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON.

    Raises ConfigError for numbers that measure nothing, and for a checkpoint that is not there.
    """
    at_least_one(new=arguments.new, runs=arguments.runs)
    checkpoint = str(resolve_checkpoint(arguments.checkpoint))
    seconds: dict[tuple[str, float, str], list[float]] = {}
    total = arguments.runs * len(BUSY) * len(TEMPERATURES) * len(WAYS)
    with progress_bar(desc="measuring", total=total, unit="run") as bar:
        for _ in range(arguments.runs):
            for busy, nice in BUSY.items():
                with nullcontext() if nice is None else _another_program(nice):
                    for temperature, way in product(TEMPERATURES, WAYS):
                        found = _seconds(checkpoint, arguments.new, temperature, WAYS[way])
                        seconds.setdefault((way, temperature, busy), []).append(found)
                        bar.update()
    rows = []
    for (way, temperature, busy), times in seconds.items():
        timing = summary(times)
        rows.append(
            {
                **{"threads": way, "text": "sampled" if temperature else "greedy", "busy": busy},
                **{"tokens_per_second": arguments.new / timing.median, "spread": timing.spread},
                "slower_than_idle": timing.median / statistics.median(seconds[way, temperature, "no"]),
            }
        )
    report = {
        "command": command_line("threads", arguments, "checkpoint", "new", "runs", "out"),
        "machine": machine(torch.device("cpu")),
        "rows": rows,
    }
    print(shown(report))
    save(report, arguments.out)
    return 0


def shown(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    header = ("threads, text, other program", "tokens/s", "spread", "slower than idle")
    lines = [
        (
            f"{row['threads']}, {row['text']}, {row['busy']}",
            f"{row['tokens_per_second']:,.1f}",
            shown_spread(row["spread"]),
            f"{row['slower_than_idle']:.2f}×",
        )
        for row in report["rows"]
    ]
    return "\n".join([f"{report['machine']['name']}, torch {report['machine']['torch']}", "", *table(header, lines)])


def _seconds(checkpoint: str, new: int, temperature: float, way: dict[str, str]) -> float:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    words = [sys.executable, "-c", WRITE.format(checkpoint=checkpoint, new=new, temperature=temperature)]
    done = subprocess.run(words, env={**plain, **way}, capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextmanager
def _another_program(nice: int) -> Iterator[None]:
    # It ends with the benchmark, however that one ends.
    code = f"import os\nos.nice({nice})\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        try:
            time.sleep(0.2)
            yield
        finally:
            other.kill()
