"""The stages of a reproduction, in order, and all of their figures in one JSON file.

Questions and text come first, so that what is missing is missed before anything is trained; then the pretraining to its
pause, the rest of it, the anneal; then everything that is measured on checkpoints, each of them a stage of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

import shardscope
from shardscope.bench.measure import machine
from shardscope.checkpoint import checkpoint_folder, load, read_facts
from shardscope.config import ConfigError
from shardscope.data import Holdout, SourceShards, located, prepare, shards_of
from shardscope.data.shards import state_of
from shardscope.device import pick_device
from shardscope.failures import CARD_PROMPTS, text_model_of
from shardscope.files import write_json
from shardscope.model import Shard
from shardscope.reproduce import measures
from shardscope.reproduce.ledger import Ledger, Record, Result, Stage
from shardscope.reproduce.meter import gpus_of
from shardscope.reproduce.pair import Pair, Run
from shardscope.reproduce.training import train_to_end, train_to_pause
from shardscope.tokenizer import Tokenizer
from shardscope.train.flops import flops_per_token
from shardscope.train.metrics import read_metrics
from shardscope.train.plan import matmul_rate, plan
from shardscope.train.run import claimed_folder
from shardscope.train.setup import tokenizer_for

FORMAT = 1  # of the file of metrics
METRICS = "metrics.json"
TASKS = (
    "shard_arc_easy", "shard_arc_challenge", "shard_gsm8k", "shard_gsm8k_likelihood", "shard_math",
    "shard_math_likelihood", "shard_arith", "shard_arith_choice",
)  # fmt: skip
POINTS = 200  # of a training curve in the metrics
SHARE_WHEN_MEASURING = 0.05  # of a bare matrix product's rate: a guess, for the time that is left


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and with how much.

    `data`: a folder of test sets, None for the hub; `limit`: questions of each task; `prompts`: of the suite.
    """

    device: str = "auto"
    processes: int = 1
    tasks: tuple[str, ...] = TASKS
    data: Path | None = None
    limit: int | None = None
    prompts: int | None = None
    price_per_hour: float | None = None


def reproduce(pair: Pair, out: Path, settings: Settings, say: Callable[[str], None] = print) -> Path:
    """Do every stage that is not done yet, and write and return the file of metrics.

    The same call after a kill, a signal or an error goes on where it was. Raises ConfigError for text, questions or a
    recipe that cannot be used, and Signalled when a training was ended by SIGINT or SIGTERM.
    """
    device = pick_device(settings.device)
    ledger = Ledger(out / "stages", gpus_of(device, settings.processes))
    records = ledger.run(list(_Stages(pair, ledger, settings, device).all()), say)
    return write_json(out / METRICS, metrics_of(pair, records, settings, device), indent=1)


class _Stages:
    def __init__(self, pair: Pair, ledger: Ledger, settings: Settings, device: torch.device) -> None:
        self.pair, self.ledger, self.settings, self.device = pair, ledger, settings, device
        self.rate = SHARE_WHEN_MEASURING * matmul_rate(device)

    def all(self) -> Iterator[Stage]:
        for task in self.settings.tasks:
            yield Stage(
                name=f"questions/{task}", says=f"questions of {task}",
                made_from=self._folder_of_questions,
                work=partial(measures.questions_of, task, self.settings.data),
            )  # fmt: skip
        yield Stage(
            name="text", says="tokenizer and token shards", made_from=self._texts,
            work=partial(prepare_text, self.pair), seconds=30.0,
        )  # fmt: skip
        yield from self._training()
        for run, step in self.pair.checkpoints():
            yield self._measure(
                f"heads/{run.phase}-{step:08d}", f"scores of the heads at step {step:,} of the {run.phase}",
                checkpoint_folder(run.folder, step), measures.scores_of_heads, tokens=measures.HEAD_TOKENS,
            )  # fmt: skip
        for when, run in (("before", self.pair.pretrain), ("after", self.pair.anneal)):
            yield from self._measures_of(when, run)

    def _training(self) -> Iterator[Stage]:
        pretrain, anneal = self.pair.runs()
        processes, half = self.settings.processes, pretrain.steps // 2
        seconds = {
            run.phase: 3600 * (plan(run.recipe, processes, self.pair.model).hours or 0.0) for run in self.pair.runs()
        }
        yield Stage(
            name="pause", says=f"pretraining until it is paused by a signal at step {half:,}",
            made_from=lambda: {**self._made_from(pretrain), "pause_at": half},
            work=lambda: train_to_pause(pretrain, half, processes), seconds=seconds["pretrain"] / 2,
        )  # fmt: skip
        yield Stage(
            name="pretrain", says="pretraining, resumed, to its end", made_from=lambda: self._made_from(pretrain),
            work=lambda: train_to_end(pretrain, processes), seconds=seconds["pretrain"] / 2,
            still_there=pretrain.last.is_dir,
        )  # fmt: skip
        yield Stage(
            name="anneal", says="anneal",
            made_from=lambda: {**self._made_from(anneal), "start": self._start()},
            work=lambda: train_to_end(anneal, processes, self._start()), seconds=seconds["anneal"],
            still_there=anneal.last.is_dir,
        )  # fmt: skip

    def _measures_of(self, when: str, run: Run) -> Iterator[Stage]:
        settings, moment = self.settings, f"{when} the anneal"
        n_ctx, evaluated = self.pair.model.n_ctx, run.recipe.train.eval_tokens * len(run.recipe.data.sources)
        yield self._measure(
            f"loss/{when}", f"held-out loss by source and position {moment}", run.last, self._losses, tokens=evaluated,
            text=lambda: self.ledger.key("text"), eval_tokens=self.pair.anneal.recipe.train.eval_tokens,
        )  # fmt: skip
        yield self._measure(
            f"suite/{when}", f"failures in the prompt suite {moment}", run.last,
            partial(_failures, run=run, most=settings.prompts),
            tokens=200 * measures.NEW_TOKENS, prompts=settings.prompts, text_model=partial(_text_model, run),
        )  # fmt: skip
        yield self._measure(
            f"samples/{when}", f"the card's six prompts {moment}", run.last, partial(_samples, run=run),
            tokens=6 * 256, text_model=partial(_text_model, run),
        )  # fmt: skip
        yield self._measure(
            f"reach/{when}", f"reach of sliding and global layers {moment}", run.last, measures.reach, tokens=64 * n_ctx
        )
        for task in settings.tasks:
            asked = self._questions_of(task)
            yield self._measure(
                f"tasks/{task}/{when}", f"{task} {moment}", run.last,
                partial(measures.rows_of_task, task=task, data=settings.data, limit=settings.limit),
                tokens=300 * (settings.limit or 1_200), limit=settings.limit, questions=asked,
            )  # fmt: skip

    def _measure(
        self, name: str, says: str, checkpoint: Path, work: Callable[[Shard], Result], tokens: int, **how: Any
    ) -> Stage:
        """A stage that looks at a checkpoint; `how` is what its result depends on beside the weights."""

        def made_from() -> dict[str, Any]:
            facts = read_facts(checkpoint)
            said = {key: value() if callable(value) else value for key, value in how.items()}
            return {
                "weights": facts["weights"],
                "tokenizer": facts["tokenizer"],
                "version": shardscope.__version__,
                **said,
            }

        def measured() -> Result:
            return work(opened(str(checkpoint), str(self.device)))

        seconds = 1.0 + tokens * flops_per_token(self.pair.model, self.pair.model.n_ctx) / 3 / self.rate
        return Stage(name=name, says=says, made_from=made_from, work=measured, seconds=seconds)

    def _folder_of_questions(self) -> dict[str, Any]:
        return {"data": _state_of_questions(self.settings.data), "version": shardscope.__version__}

    def _questions_of(self, task: str) -> Callable[[], str]:
        return lambda: str(self.ledger.result(f"questions/{task}")["sha256"])

    def _losses(self, model: Shard) -> Result:
        assert model.tokenizer is not None, "a run's checkpoint holds its tokenizer"
        return measures.loss_by_source_and_position(model, holdouts_of(self.pair, model.tokenizer))

    def _texts(self) -> dict[str, Any]:
        """What the tokens of both phases are made from."""
        pretrain, anneal = self.pair.runs()
        sources = [located(source) for run in self.pair.runs() for source in run.recipe.data.sources]
        paths = {path for source in sources for path in (source.path, source.holdout) if path}
        return {
            "pretrain": pretrain.what_counts(), "anneal": anneal.what_counts(),
            "files": {path: state_of(path) for path in sorted(paths)},
        }  # fmt: skip

    def _start(self) -> str:
        """The weights that the anneal starts from."""
        return str(self.ledger.result("pretrain")["weights"])

    def _made_from(self, run: Run) -> dict[str, Any]:
        text = self.ledger.result("text")
        return {"recipe": run.what_counts(), "tokenizer": text["tokenizer"], "text": text[run.phase]}


def _text_model(run: Run) -> str:
    """What tells the model of text that labels the run's continuations from another one."""
    return text_model_of(run.folder).fingerprint


def _failures(model: Shard, run: Run, most: int | None) -> Result:
    return measures.failures_of_suite(model, most, text_model_of(run.folder))


def _samples(model: Shard, run: Run) -> Result:
    samples = measures.samples_of_card(model, text_model_of(run.folder))
    return {"samples": samples, "decoding": measures.decoding_speed(model)}


def _state_of_questions(data: Path | None) -> Any:
    """What tells one folder of test sets from another."""
    if data is None:
        return "hub"
    files = sorted(data.rglob("*.jsonl"))
    return [[str(file.relative_to(data)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def prepare_text(pair: Pair) -> Result:
    """Train the tokenizer and make the shards of both phases where they are not there yet; what they hold.

    Raises ConfigError or DataError, before anything is trained, where the model's context has no room for the card's
    prompts, and where either phase could not begin with this text.
    """
    with claimed_folder(pair.pretrain.recipe):
        tokenizer = tokenizer_for(pair.pretrain.recipe, progress=True)
    longest = max(len(tokenizer.encode(prompt.text, bos=True)) for prompt in CARD_PROMPTS)
    if pair.model.n_ctx <= longest:
        raise ConfigError(
            f"model.n_ctx={pair.model.n_ctx} has no room for the card's prompts of up to {longest} tokens; raise it"
        )
    found: Result = {"tokenizer": tokenizer.fingerprint, "entries": tokenizer.vocab_size}
    for run in pair.runs():
        train = run.recipe.train
        prepared = prepare(
            run.recipe.data, tokenizer, batch_size=train.batch_size, seed=run.recipe.seed, phase=run.phase,
            eval_tokens=train.eval_tokens,
        )  # fmt: skip
        found[run.phase] = {name: _described(both) for name, both in prepared.shards.items()}
    return found


def _described(both: SourceShards) -> dict[str, Any]:
    return {
        "tokens": len(both.train), "documents": len(both.train.starts), "held_out_tokens": len(both.holdout),
        "malformed": both.malformed, "fingerprint": both.train.fingerprint,
        "overlap": None if both.overlap is None else asdict(both.overlap),
    }  # fmt: skip


def holdouts_of(pair: Pair, tokenizer: Tokenizer) -> dict[str, Holdout]:
    """The held-out text of every source of either phase, in windows of the anneal's length."""
    seq_len = pair.anneal.recipe.data.seq_len
    return {
        name: Holdout(
            name, both.holdout, tokenizer, seq_len=seq_len, eval_tokens=pair.anneal.recipe.train.eval_tokens
        )
        for run in pair.runs()
        for name, both in shards_of(run.recipe.data, tokenizer, progress=False).items()
    }  # fmt: skip


@lru_cache(maxsize=1)
def opened(checkpoint: str, device: str) -> Shard:
    """The model of a checkpoint; the last one stays in memory for the stages that follow on it."""
    return load(checkpoint, device=device)


# ------------------------------------------------------------------------------------------------------- the metrics


def metrics_of(pair: Pair, records: Mapping[str, Record], settings: Settings, device: torch.device) -> dict[str, Any]:
    """Everything that the report says, from the records of the stages and the logs of the runs."""

    def results(kind: str) -> dict[str, Any]:
        return {
            name.partition("/")[2]: record.result for name, record in records.items() if name.startswith(f"{kind}/")
        }

    model = pair.model
    return {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "name": pair.name,
        "recipes": [run.file.stem for run in pair.runs()],
        "machine": {**machine(device), "processes": settings.processes},
        "model": {**model.to_dict(), "n_params": model.n_params, "layer_kinds": list(model.layer_kinds)},
        "price_per_hour": settings.price_per_hour,
        "limits": {"questions": settings.limit, "prompts": settings.prompts},
        "text": records["text"].result,
        "questions": results("questions"),
        "pause": records["pause"].result,
        "runs": {run.phase: {**records[run.phase].result, **log_of(run)} for run in pair.runs()},
        "heads": results("heads"),
        **{kind: results(kind) for kind in ("loss", "suite", "samples", "reach", "tasks")},
        "stages": [
            {"name": record.name, "seconds": record.seconds, "joules": record.joules} for record in records.values()
        ],
    }  # fmt: skip


def log_of(run: Run) -> dict[str, Any]:
    """The curves of a run: training loss in at most POINTS means, and every held-out evaluation."""
    lines = read_metrics(run.folder)
    steps = [(line["step"], line["cross_entropy"], line["lr"]) for line in lines if line["kind"] == "train"]
    steps = [point for point in steps if point[1] is not None]  # a step that was not finite has no loss
    width = max(1, -(-len(steps) // POINTS))
    groups = [steps[first : first + width] for first in range(0, len(steps), width)]
    return {
        "sequences": run.recipe.train.batch_size,
        "seq_len": run.recipe.data.seq_len,
        "loss": [
            {"step": group[-1][0], "loss": round(statistics.fmean(loss for _, loss, _ in group), 5), "lr": group[-1][2]}
            for group in groups
        ],
        "held_out": [
            {
                "step": line["step"],
                "bits_per_byte": {
                    name: round(found["bits_per_byte"], 6) for name, found in line.items() if isinstance(found, dict)
                },
            }
            for line in lines
            if line["kind"] == "eval"
        ],
    }
