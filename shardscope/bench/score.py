"""How fast multiple choice is scored, beside the harness's own `--model hf` in the same run: same weights, same items.

What `shardscope bench score` prints and writes comes from here. Both adapters get the same ARC questions as the same
lm-eval requests, tokenizing included, and the same batch size; `hf` counts question and choice pairs in it, ours counts
questions. Runs alternate, so that what slows the machine slows both; medians are reported.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from shardscope.checkpoint import BUILT_IN, resolve_checkpoint, save_checkpoint
from shardscope.config import PRESETS, ConfigError, ShardConfig
from shardscope.device import pick_device
from shardscope.files import write_json
from shardscope.model import Shard
from shardscope.resources import resource
from shardscope.tokenizer import Tokenizer

if TYPE_CHECKING:
    import argparse

    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

SAMPLE = resource("evals") / "sample"
ITEMS = Path("ai2_arc/ARC-Easy/test.jsonl")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Measured:
    """A row of the table. `questions_per_second`: of the median run; a question is scored with all its choices."""

    scorer: str
    batch: int
    questions_per_second: float
    spread: float  # half the range of all runs over the median
    furthest: float  # the largest difference of a log-likelihood from the peer's, in nats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="PATH", help="default: random weights of --model")
    parser.add_argument("--model", default="shard-54m", choices=tuple(PRESETS), help="default shard-54m")
    parser.add_argument(
        "--data", default=str(SAMPLE), metavar="DIR", help=f"folder that holds {ITEMS} (default: our own questions)"
    )
    parser.add_argument("--questions", type=int, default=64, metavar="N", help="at most (default 64)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32], metavar="N", help="batch sizes (default 1 32)")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each (default 3)")
    parser.add_argument("--device", default="auto", help="torch device (default auto)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--out", metavar="FILE", help="where the JSON is written")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises ConfigError for a checkpoint or data that is not there."""
    for flag, least in (("questions", arguments.questions), ("runs", arguments.runs), ("batch", min(arguments.batch))):
        if least < 1:
            raise ConfigError(f"--{flag} {least} measures nothing; use at least 1")
    named = resolve_checkpoint(arguments.checkpoint) if arguments.checkpoint else None
    requests = arc_requests(Path(arguments.data), arguments.questions)
    device = pick_device(arguments.device)
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    with TemporaryDirectory() as scratch:
        checkpoint = named or random_checkpoint(PRESETS[arguments.model], Path(scratch) / "random")
        command = [sys.executable, "-m", "shardscope.cli", "export", str(checkpoint), "--out", f"{scratch}/exported"]
        exported = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if exported.returncode:
            raise ConfigError(exported.stderr.strip().removeprefix("error: "))
        rows = [
            row
            for batch in arguments.batch
            for row in compare(checkpoint, f"{scratch}/exported", requests, batch, arguments.runs, str(device), dtype)
        ]
    report = {
        "command": "shardscope bench score",
        "model": str(arguments.checkpoint or arguments.model),
        "data": ITEMS.as_posix(),  # wherever the folder lies
        "questions": _questions(requests),
        "requests": len(requests),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "torch": torch.__version__,
        "lm_eval": version("lm_eval"),
        "transformers": version("transformers"),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": [asdict(row) for row in rows],
    }
    print(table(report))
    if arguments.out:
        write_json(arguments.out, report, indent=1)
    return 0


def arc_requests(data: Path, most: int) -> list[Instance]:
    """The requests that lm-eval's own ARC task makes of the first `most` questions."""
    from lm_eval.api.instance import Instance

    if not (data / ITEMS).exists():
        raise ConfigError(f"--data {data}: {data / ITEMS} is not there; lay the folder out like {SAMPLE}")
    rows = [json.loads(line) for line in (data / ITEMS).read_text(encoding="utf-8").splitlines()[:most]]
    return [
        Instance("loglikelihood", row, (f"Question: {row['question']}\nAnswer:", f" {text}"), index)
        for row in rows
        for index, text in enumerate(row["choices"]["text"])
    ]


def random_checkpoint(config: ShardConfig, folder: Path) -> Path:
    """Seeded random weights with the built-in model's tokenizer."""
    torch.manual_seed(0)
    return save_checkpoint(folder, Shard(config), tokenizer=Tokenizer.load(BUILT_IN))


def compare(
    checkpoint: str | Path,
    exported: str | Path,
    requests: Sequence[Instance],
    batch: int,
    runs: int,
    device: str,
    dtype: str,
) -> list[Measured]:
    """A row for `hf` and one for `shard`."""
    from lm_eval.models.huggingface import HFLM

    from shardscope.evals.harness import ShardLM

    scorers: dict[str, LM] = {
        "hf": HFLM(pretrained=str(exported), device=device, batch_size=batch, dtype=dtype),
        "shard": ShardLM(pretrained=str(checkpoint), device=device, batch_size=batch, dtype=dtype),
    }
    answers = {name: _answers(lm, requests) for name, lm in scorers.items()}  # warm
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(runs):
        for name, lm in scorers.items():
            start = time.perf_counter()
            _answers(lm, requests)
            seconds[name].append(time.perf_counter() - start)
    return [
        Measured(
            scorer=name,
            batch=batch,
            questions_per_second=_questions(requests) / statistics.median(times),
            spread=(max(times) - min(times)) / 2 / statistics.median(times),
            furthest=max(abs(a - b) for a, b in zip(answers[name], answers["hf"], strict=True)),
        )
        for name, times in seconds.items()
    ]


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    base = {row["batch"]: row["questions_per_second"] for row in report["rows"] if row["scorer"] == "hf"}
    lines = [
        f"{report['model']}, {report['dtype']}, {report['device']}, {report['threads']} threads, torch "
        f"{report['torch']}; {report['questions']} questions of {report['data']}",
        "",
        "| --model | batch | questions/s | spread | against hf | furthest log-likelihood |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['scorer']} | {row['batch']} | {row['questions_per_second']:,.1f} | ±{row['spread']:.0%} "
            f"| {row['questions_per_second'] / base[row['batch']]:.2f}× | {row['furthest']:.1e} |"
        )
    return "\n".join(lines)


def _answers(lm: LM, requests: Sequence[Instance]) -> list[float]:
    # The answers are numbers on the host, so whatever the device, they are there when the call returns.
    return [logprob for logprob, _ in lm.loglikelihood(list(requests), disable_tqdm=True)]  # type: ignore[call-arg]


def _questions(requests: Sequence[Instance]) -> int:
    return sum(request.idx == 0 for request in requests)
