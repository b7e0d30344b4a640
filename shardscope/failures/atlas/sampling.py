"""Sampling: every prompt at every temperature and seed as rows of one batch, checkpoint after checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from shardscope.checkpoint import checkpoint_folder, fingerprint, load, resolve_checkpoint, step_of
from shardscope.config import ShardConfig
from shardscope.failures.atlas.records import (
    SETTINGS,
    Atlas,
    AtlasColumn,
    AtlasSample,
    checkpoints_of,
    column_lines,
    folder_of,
    head_of,
    names_of,
    read_column,
    rules_digest,
    run_of,
)
from shardscope.failures.atlas.settings import AtlasError, AtlasSettings
from shardscope.failures.labels import label
from shardscope.failures.loop_xray.rows import CACHE_BYTES
from shardscope.failures.prompts import SuitePrompt, for_model
from shardscope.failures.text_model import TextModel, text_model_of
from shardscope.files import write_json, write_text
from shardscope.generation import SamplingConfig, StopReason, stream
from shardscope.model import Shard

Progress = Callable[[float, str], None]  # the share that is done, and what is being done

MOST_ROWS = {"cpu": 256, "cuda": 2048}  # of one batch


@dataclass
class _Row:
    """One sample that is being written."""

    prompt: SuitePrompt
    prompt_ids: list[int]
    temperature: float
    seed: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stop_reason: StopReason = "length"


def make_atlas(
    paths: Sequence[str | Path | None],
    settings: AtlasSettings | None = None,
    *,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> Atlas:
    """Sample every checkpoint of each run (of a checkpoint: itself; None: the built-in model), and write the samples
    under the run's folder.

    What was sampled before, with the same settings and the same weights, is read and not sampled again; where a rule of
    the labels has changed since, it is labelled anew. Raises CheckpointError or AtlasError, with the path, before
    anything is sampled where that can be seen.
    """
    settings = settings or AtlasSettings()
    runs = [_run(path) for path in paths]
    for at, run in enumerate(runs):
        if run.resolve() in [other.resolve() for other in runs[:at]]:
            raise AtlasError(f"{run} is named twice; name each run once")
    todo = [
        (run, name, checkpoint, _file(run, checkpoint, settings))
        for run, name in zip(runs, names_of(runs), strict=True)
        for checkpoint in checkpoints_of(run)
    ]
    for *_, file in todo:
        if file.exists() and not file.is_file():
            raise AtlasError(f"{file}: is not a file, and samples are to be written there; remove it")
    prints = {file: fingerprint(checkpoint) for *_, checkpoint, file in todo}
    missing = [file for file in prints if head_of(file).get("fingerprint") != prints[file]]
    columns, done = [], 0
    for run, name, checkpoint, file in todo:
        if file not in missing:
            column = read_column(file, run, name)
            if head_of(file).get("rules") != rules_digest(run_of(checkpoint)):
                column = relabelled(column, settings, load(checkpoint, device="cpu"), text_model_of(run_of(checkpoint)))
                write_text(file, "".join(column_lines(column)))
            columns.append(column)
            continue

        def tell(share: float, done: int = done, checkpoint: Path = checkpoint) -> None:
            if progress is not None:
                progress((done + share) / len(missing), checkpoint.name)

        model = load(checkpoint, device=device)
        text_model = text_model_of(run_of(checkpoint))
        samples, left_out = sample_prompts(model, settings, text_model=text_model, progress=tell)
        column = AtlasColumn(
            run=name,
            step=step_of(checkpoint) or 0,
            checkpoint=checkpoint,
            fingerprint=prints[file],
            samples=samples,
            left_out=left_out,
        )
        write_json(file.parent / SETTINGS, settings.to_dict())
        write_text(file, "".join(column_lines(column)))
        columns.append(column)
        done += 1
    return Atlas(settings=settings, columns=tuple(columns))


def _run(path: str | Path | None) -> Path:
    """The run or the checkpoint that is meant. Raises CheckpointError where there is none."""
    checkpoint = resolve_checkpoint(path)  # says what is wrong with a path that is none of both
    return checkpoint if path is None else Path(path)


def _file(run: Path, checkpoint: Path, settings: AtlasSettings) -> Path:
    return folder_of(run) / settings.digest / f"{checkpoint_folder(run, step_of(checkpoint) or 0).name}.jsonl"


def sample_prompts(
    model: Shard,
    settings: AtlasSettings,
    *,
    text_model: TextModel | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[tuple[AtlasSample, ...], tuple[str, ...]]:
    """The labelled samples of one model, in the order of `settings.rows()`, and the prompts that do not fit into it.

    A prompt fits if `max_new_tokens` follow it within the context. Raises AtlasError where none does, and ConfigError
    for a model without a tokenizer.
    """
    written = {prompt.id: prompt for prompt in for_model(settings.prompts, model, room=settings.max_new_tokens)}
    if not written:
        raise AtlasError(
            f"none of the {len(settings.prompts)} prompts and {settings.max_new_tokens} new tokens fit into the "
            f"model's context of {model.config.n_ctx}; sample fewer new tokens, or shorter prompts"
        )
    tokenizer = model.tokenizer
    assert tokenizer is not None, "for_model asks for it"
    ids = {name: tokenizer.encode(prompt.text, bos=True) for name, prompt in written.items()}
    names = [prompt.id for prompt in settings.prompts]
    rows = [
        _Row(written[names[number]], ids[names[number]], temperature, seed)
        for number, temperature, seed in settings.rows()
        if names[number] in written
    ]
    config = SamplingConfig(max_new_tokens=settings.max_new_tokens)
    done, total = 0, len(rows) * settings.max_new_tokens
    for batch in _batches(rows, model, settings.max_new_tokens):
        events = stream(
            model, [row.prompt_ids for row in batch], config,
            seeds=[row.seed for row in batch], temperatures=[row.temperature for row in batch],
        )  # fmt: skip
        for event in events:
            row = batch[event.row]
            row.text += event.text
            if event.id is not None:
                row.ids.append(event.id)
                done += 1
            if event.stop_reason is not None:
                row.stop_reason = event.stop_reason
                done += settings.max_new_tokens - len(row.ids)
            if progress is not None:
                progress(done / total)
    samples = tuple(_labelled(row, model, text_model) for row in rows)
    return samples, tuple(name for name in names if name not in written)


def _batches(rows: Sequence[_Row], model: Shard, new: int) -> Iterator[list[_Row]]:
    """Rows of like length together, as many as the memory for their keys and values allows."""
    kind = model.device.type
    most_rows, memory = MOST_ROWS.get(kind, MOST_ROWS["cpu"]), CACHE_BYTES.get(kind, CACHE_BYTES["cpu"])
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.prompt_ids)):
        size = cache_bytes(model.config, len(row.prompt_ids) + new, model.embed.W_E.element_size())
        if batch and (len(batch) == most_rows or (len(batch) + 1) * size > memory):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def cache_bytes(config: ShardConfig, positions: int, element_size: int) -> int:
    """Memory of the keys and values of one sequence; a sliding layer keeps no more than its window."""
    kept = sum(positions if window is None else min(positions, window) for window in config.windows)
    return 2 * kept * config.n_heads * config.d_head * element_size


def relabelled(
    column: AtlasColumn, settings: AtlasSettings, model: Shard, text_model: TextModel | None = None
) -> AtlasColumn:
    """The same samples, labelled by the rules of today. `model` writes out its prompts and has the tokenizer."""
    prompts = {prompt.id: prompt for prompt in for_model(settings.prompts, model)}
    samples = tuple(
        _labelled(
            _Row(prompts[s.prompt], [], s.temperature, s.seed, list(s.ids), s.text, s.stop_reason), model, text_model
        )
        for s in column.samples
        if s.prompt in prompts
    )
    return replace(column, samples=samples)


def _labelled(row: _Row, model: Shard, text_model: TextModel | None) -> AtlasSample:
    prompt = row.prompt
    labels = label(
        row.text, prompt=prompt.text, domain=prompt.domain, gold=prompt.gold,
        ids=row.ids, stop_reason=row.stop_reason, tokenizer=model.tokenizer,
        text_model=text_model,
    )  # fmt: skip
    return AtlasSample(
        prompt=prompt.id,
        temperature=row.temperature,
        seed=row.seed,
        stop_reason=row.stop_reason,
        flags=labels.flags,
        text=row.text,
        ids=tuple(row.ids),
    )
