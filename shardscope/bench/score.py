"""How fast multiple choice is scored, beside the harness's own `--model hf` in the same run: same weights, same items.

What `shardscope bench score` prints and writes comes from here. Both adapters get the same ARC questions as the same
lm-eval requests, tokenizing included, and the same batch size; `hf` counts question and choice pairs in it, ours counts
questions. Runs alternate, so that what slows the machine slows both; medians are reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from shardscope.bench import measure
from shardscope.checkpoint import BUILT_IN, resolve_checkpoint, save_checkpoint
from shardscope.config import PRESETS, ConfigError, ShardConfig
from shardscope.device import pick_device
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
FLAGS = ("checkpoint", "model", "questions", "batch", "runs", "dtype", "out")


@dataclass(frozen=True)
class ScoringRow:
    """A row of the table. `questions_per_second`: of the median run; a question is scored with all its choices."""

    scorer: str
    batch: int
    questions_per_second: float
    spread: float | None  # as in measure.py
    seconds: list[float]  # of every run
    furthest: float  # the largest difference of a log-likelihood from the peer's, in nats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="PATH", help="default: random weights of --model")
    parser.add_argument("--model", default="shard-54m", choices=tuple(PRESETS), help="default shard-54m")
    parser.add_argument(
        "--data", default=str(SAMPLE), metavar="DIR", help=f"folder that holds {ITEMS} (default: our own questions)"
    )
    parser.add_argument("--questions", type=int, default=64, metavar="N", help="at most (default 64)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32], metavar="N", help="batch sizes (default 1 32)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")
    measure.add_shared_arguments(parser, runs=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises ConfigError for a checkpoint or data that is not there."""
    measure.at_least_one(questions=arguments.questions, runs=arguments.runs, batch=min(arguments.batch))
    device = pick_device(arguments.device)
    named = resolve_checkpoint(arguments.checkpoint) if arguments.checkpoint else None
    requests = arc_requests(Path(arguments.data), arguments.questions)
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    with TemporaryDirectory() as scratch:
        checkpoint = named or random_checkpoint(PRESETS[arguments.model], Path(scratch) / "random")
        exported = measure.export(checkpoint, Path(scratch) / "exported")
        rows = [
            row
            for batch in arguments.batch
            for row in compare(checkpoint, exported, requests, batch, arguments.runs, device, dtype)
        ]
    report = {
        "command": measure.command_line("score", arguments, *FLAGS),
        "machine": measure.machine(device),
        "model": str(arguments.checkpoint or arguments.model),
        "data": ITEMS.as_posix(),  # wherever the folder lies
        "questions": _questions(requests),
        "requests": len(requests),
        "dtype": dtype,
        "lm_eval": version("lm_eval"),
        "transformers": version("transformers"),
        "rows": [asdict(row) for row in rows],
    }
    print(table(report))
    measure.save(report, arguments.out)
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
    device: torch.device,
    dtype: str,
) -> list[ScoringRow]:
    """A row for `hf` and one for `shard`."""
    from lm_eval.models.huggingface import HFLM

    from shardscope.evals.harness import ShardLM

    scorers: dict[str, LM] = {
        "hf": HFLM(pretrained=str(exported), device=str(device), batch_size=batch, dtype=dtype),
        "shard": ShardLM(pretrained=str(checkpoint), device=str(device), batch_size=batch, dtype=dtype),
    }
    answers = {name: _answers(lm, requests) for name, lm in scorers.items()}  # warm
    ways = {name: partial(_answers, lm, requests) for name, lm in scorers.items()}
    seconds = measure.taking_turns(ways, runs, device)
    return [
        ScoringRow(
            scorer=name,
            batch=batch,
            questions_per_second=_questions(requests) / measure.summary(times).median,
            spread=measure.summary(times).spread,
            seconds=times,
            furthest=max(abs(a - b) for a, b in zip(answers[name], answers["hf"], strict=True)),
        )
        for name, times in seconds.items()
    ]


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    base = {row["batch"]: row["questions_per_second"] for row in report["rows"] if row["scorer"] == "hf"}
    machine = report["machine"]
    title = (
        f"{report['model']}, {report['dtype']}, {machine['name']}, {machine['threads']} threads, torch "
        f"{machine['torch']}; {report['questions']} questions of {report['data']}"
    )
    header = ["--model", "batch", "questions/s", "spread", "against hf", "furthest log-likelihood"]
    cells = [
        [
            row["scorer"],
            str(row["batch"]),
            f"{row['questions_per_second']:,.1f}",
            measure.shown_spread(row["spread"]),
            f"{row['questions_per_second'] / base[row['batch']]:.2f}×",
            f"{row['furthest']:.1e}",
        ]
        for row in report["rows"]
    ]
    return "\n".join([title, "", *measure.table(header, cells)])


def _answers(lm: LM, requests: Sequence[Instance]) -> list[float]:
    return [logprob for logprob, _ in lm.loglikelihood(list(requests), disable_tqdm=True)]  # type: ignore[call-arg]


def _questions(requests: Sequence[Instance]) -> int:
    return sum(request.idx == 0 for request in requests)
