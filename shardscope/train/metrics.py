"""Where a run's numbers go: metrics.jsonl always, the progress line, and TensorBoard or Weights & Biases on request.

A line of metrics.jsonl is one JSON object with `kind` ("train", "eval", "sentinel", "sample" or "event"), `step`
(optimizer steps done when it was written) and `time` (seconds since the epoch). A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shardscope.checkpoint import MOST_STEPS
from shardscope.config import ConfigError, Recipe
from shardscope.files import appending, parse_json, read_text, write_text

FILE, BIOGRAPHY = "metrics.jsonl", "biography.jsonl"
MOST_METRICS = 2**28  # bytes; a run of a million steps that logs every tenth writes a sixth of it


@runtime_checkable
class Logger(Protocol):
    """Is told the scalars of each line as it comes, named `kind/name`."""

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Appends to a run's metrics.jsonl, one flushed line at a time, and hands numbers on to the loggers.

    With `file`, to another log of such lines.
    """

    def __init__(self, folder: Path, loggers: Sequence[Logger] = (), file: str = FILE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / file
        self.loggers = loggers
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        self.write_all(kind, step, [values])

    def write_all(self, kind: str, step: int, many: Sequence[Mapping[str, Any]]) -> None:
        """Lines that belong together: after a kill the log has all of them or the first few, never one twice."""
        now = round(time.time(), 3)
        lines = [{"kind": kind, "step": step, "time": now, **values} for values in many]
        with appending(self.path):
            self._file.write("".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines))
            self._file.flush()
        for logger in self.loggers:
            for line in lines:
                logger.log(kind, step, scalars_of(line))

    def flush(self) -> None:
        """Until the disk has every line."""
        with appending(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # each line was flushed, or its failure was said
            self._file.close()
        for logger in self.loggers:
            logger.close()


class NoMetrics(Metrics):
    """What ranks other than the first write: nothing."""

    def __init__(self) -> None:
        pass

    def write_all(self, kind: str, step: int, many: Sequence[Mapping[str, Any]]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(folder: Path, kind: str | None = None, file: str = FILE) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; with `file`, of another log of such lines.

    What is no such line, as one cut off by a kill, is left out. Raises ReadError for what is no file, or larger than
    any run's.
    """
    path = folder / file
    if not path.exists():
        return []
    lines = []
    for text in read_text(path, most=MOST_METRICS, errors="replace").splitlines():
        try:
            line = parse_json(text, str(path), ConfigError)
        except ConfigError:
            continue
        if _is_line(line) and kind in (None, line["kind"]):
            lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("kind"), str)
        and type(line.get("step")) is int
        and 0 <= line["step"] < MOST_STEPS
    )


def rewind(folder: Path, step: int | None, file: str = FILE) -> set[tuple[str, int]]:
    """Drop what was logged after `step` (None: everything): a resumed run writes those lines again.

    The samples of `step` itself go too, because a kill may have come between them.
    Returns (kind, step) of all lines that there were: what other loggers have been told.
    """
    lines = read_metrics(folder, file=file)
    if (folder / file).exists():
        kept = [line for line in lines if step is not None and line["step"] + (line["kind"] == "sample") <= step]
        write_text(folder / file, "".join(json.dumps(line) + "\n" for line in kept))
    return {(line["kind"], line["step"]) for line in lines}


def scalars_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by `kind/name`, nested names joined by a slash."""
    inside = {name: value for name, value in line.items() if name not in ("kind", "step", "time")}
    return {f"{line['kind']}/{name}": value for name, value in _flat(inside) if isinstance(value, (int, float))}


def open_loggers(recipe: Recipe, told: Set[tuple[str, int]]) -> list[Logger]:
    """What `train.loggers` names. `told` are the (kind, step) that earlier starts of this run have logged.

    Raises ConfigError when one is not installed.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(recipe.folder),
        "wandb": lambda: WeightsAndBiases(recipe, told),
    }
    loggers: list[Logger] = []
    for name in recipe.train.loggers:
        try:
            loggers.append(makers[name]())
        except ImportError as error:
            raise ConfigError(
                f"train.loggers names {name!r}, which is not installed ({error}); pip install 'shardscope[log]'"
            ) from None
    return loggers


class TensorBoard:
    """Event files that say what metrics.jsonl says: they are made anew from it when a run is started again."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder))
        for line in read_metrics(run):
            self.log(line["kind"], line["step"], scalars_of(line), line.get("time"))

    def log(self, kind: str, step: int, scalars: Mapping[str, float], when: float | None = None) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step, walltime=when)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One W&B run for each folder. What it was told cannot be taken back, so it is never told a step twice."""

    def __init__(self, recipe: Recipe, told: Set[tuple[str, int]]) -> None:
        import wandb

        self._told = told
        try:
            self.run = wandb.init(
                project="shardscope", name=recipe.name, id=_wandb_id(recipe.folder), resume="allow",
                config=recipe.to_dict(), dir=str(recipe.folder),
            )  # fmt: skip
        except wandb.Error as error:
            raise ConfigError(f"train.loggers names 'wandb', which says: {error} Or set WANDB_MODE=offline.") from None

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        if (kind, step) not in self._told:
            self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


def _wandb_id(run: Path) -> str:
    """A name of its own for each folder, whatever the recipe is called."""
    stored = run / "wandb-id.txt"
    if not stored.exists():
        write_text(stored, secrets.token_hex(8) + "\n")
    return read_text(stored).strip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
