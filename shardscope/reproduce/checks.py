"""What would end a reproduction late, looked for before anything long begins.

Each phase checks itself when it starts, but the anneal starts hours after the command was given, and so do the
questions.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from shardscope.checkpoint import checkpoint_folder, list_checkpoints
from shardscope.config import ConfigError, Source, user_path
from shardscope.data import as_source, files_of, kind_of, located
from shardscope.evals.suite import check_tasks
from shardscope.files import check_writable_folder, existing_part
from shardscope.reproduce.pair import Pair, Run, bytes_of_checkpoint
from shardscope.tokenizer import Tokenizer
from shardscope.train.objective import compiles
from shardscope.train.probes import check_lags
from shardscope.train.schedule import phase_of
from shardscope.train.setup import require_even_batch, require_room


def check_machine(pair: Pair, out: Path, processes: int, device: torch.device) -> None:
    """Raises ConfigError where this machine has too little for it: GPUs, memory, or room on the disk."""
    if device.type == "cuda" and processes > (there := torch.cuda.device_count()):
        raise ConfigError(f"--processes {processes}: GPUs on this machine: {there}; use {there} at most")
    for run in pair.runs():
        with _naming(run):
            require_room(run.recipe, pair.model, device)
            compiles(run.recipe.train, device)
    left = sum(not checkpoint_folder(run.folder, step).is_dir() for run, step in pair.checkpoints())
    needed, free = left * bytes_of_checkpoint(pair.model), shutil.disk_usage(existing_part(out)).free
    if needed > free:
        raise ConfigError(
            f"--out {out}: {left} checkpoints take about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            "there; free some, name a folder on another disk, or ask for fewer with --checkpoints"
        )


def check(pair: Pair, out: Path, tasks: tuple[str, ...], data: Path | None, processes: int) -> None:
    """Raises ConfigError, WriteError or ModuleNotFoundError where a stage could not be done on any machine."""
    check_writable_folder(out, "--out")
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder; lay it out like the test sets under evals/sample")
    check_tasks(tasks, data)
    for run in pair.runs():
        with _naming(run):
            _check_run(run, processes)
    with _naming(pair.pretrain):
        _check_pretrain(pair)
    with _naming(pair.anneal):
        _check_anneal(pair)


def _check_run(run: Run, processes: int) -> None:
    """What a start of either phase needs, short of reading its text."""
    recipe = run.recipe
    require_even_batch(recipe, processes)
    check_lags(recipe.probe.lags, recipe.data.seq_len)
    for logger in recipe.train.loggers:
        if find_spec(logger) is None:
            raise ConfigError(f"train.loggers names {logger!r}, which is not installed; pip install 'shardscope[log]'")
    for source in (*recipe.data.sources, *map(as_source, recipe.data.benchmarks)):
        _check_files(located(source))


def _check_files(source: Source) -> None:
    for path in (source.path, source.holdout):
        kind = kind_of(path)
        if kind == "hf" and find_spec("datasets") is None:
            raise ModuleNotFoundError("No module named 'datasets'", name="datasets")
        if path and kind == "files":
            files_of(path)


def _check_pretrain(pair: Pair) -> None:
    recipe, model = pair.pretrain.recipe, pair.model
    ends_in = phase_of(recipe.schedule.steps - 1, recipe.schedule)
    if ends_in != "stable":
        raise ConfigError(
            f"schedule: the pretraining ends in its {ends_in}, and an anneal starts from the stable phase; "
            "set schedule.kind = 'wsd' and schedule.decay = 0"
        )
    if recipe.tokenizer.path:
        entries = Tokenizer.load(user_path(recipe.tokenizer.path, "tokenizer.path")).vocab_size
        if entries > model.vocab_size:
            raise ConfigError(
                f"tokenizer.path: the tokenizer has {entries} entries, model.vocab_size is only {model.vocab_size}; "
                "raise it"
            )


def _check_anneal(pair: Pair) -> None:
    anneal, pretrain = pair.anneal.recipe, pair.pretrain.recipe
    if anneal.data.seq_len > pair.model.n_ctx:
        raise ConfigError(
            f"data.seq_len={anneal.data.seq_len} is longer than the model's context, model.n_ctx={pair.model.n_ctx}; "
            "lower data.seq_len"
        )
    if anneal.optimizer.name != pretrain.optimizer.name:
        raise ConfigError(
            f"optimizer.name={anneal.optimizer.name!r}, and the pretraining has {pretrain.optimizer.name!r}, whose "
            "state the anneal takes over; use the same"
        )
    if list_checkpoints(anneal.folder) and not list_checkpoints(pretrain.folder):
        raise ConfigError(
            f"{anneal.folder}: holds an anneal, and no pretraining lies beside it; delete it, or give --out another "
            "folder"
        )


@contextmanager
def _naming(run: Run) -> Iterator[None]:
    """Errors within name the recipe's file."""
    try:
        yield
    except ConfigError as error:
        raise type(error)(f"{run.file}: {error}") from None
