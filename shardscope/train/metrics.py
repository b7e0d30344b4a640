"""Where a run's numbers go: metrics.jsonl always, the progress line, and TensorBoard or Weights & Biases on request.

A line of metrics.jsonl is one JSON object with `kind` ("train", "eval", "sentinel", "sample" or "event"), `step`
(optimizer steps done when it was written) and `time` (seconds since the epoch). A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shardscope.config import ConfigError, Recipe
from shardscope.files import appending, parse_json, write_text

FILE = "metrics.jsonl"


@runtime_checkable
class Logger(Protocol):
    """A guest that is told the scalars as they come."""

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Appends to metrics.jsonl, one flushed line at a time, and hands numbers on to the loggers."""

    def __init__(self, folder: Path, loggers: Sequence[Logger] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.loggers = loggers
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with appending(self.path):
            self._file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            self._file.flush()
        scalars = {f"{kind}/{name}": value for name, value in _flat(values) if isinstance(value, (int, float))}
        for logger in self.loggers:
            logger.log(scalars, step)

    def close(self) -> None:
        with suppress(OSError):  # each line was flushed, or its failure was said
            self._file.close()
        for logger in self.loggers:
            logger.close()


class NoMetrics(Metrics):
    """What ranks other than the first write: nothing."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, step: int, **values: Any) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first. What is no such line, as one cut off by a kill, is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = parse_json(text, str(path), ConfigError)
        except ConfigError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and kind in (None, line.get("kind")):
            lines.append(line)
    return lines


def rewind(folder: Path, step: int | None) -> None:
    """Drop what was logged after `step` (None: everything): a resumed run writes those lines again."""
    if not (folder / FILE).exists():
        return
    kept = [line for line in read_metrics(folder) if step is not None and line["step"] <= step]
    write_text(folder / FILE, "".join(json.dumps(line) + "\n" for line in kept))


def open_loggers(recipe: Recipe) -> list[Logger]:
    """The guests that `train.loggers` names. Raises ConfigError when one is not installed."""
    makers: dict[str, Callable[[Recipe], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    loggers: list[Logger] = []
    for name in recipe.train.loggers:
        try:
            loggers.append(makers[name](recipe))
        except ImportError as error:
            raise ConfigError(
                f"train.loggers names {name!r}, which is not installed ({error}); pip install 'shardscope[log]'"
            ) from None
    return loggers


class TensorBoard:
    def __init__(self, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(recipe.folder / "tensorboard"))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    def __init__(self, recipe: Recipe) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project="shardscope", name=recipe.name, id=recipe.name, resume="allow", config=recipe.to_dict(),
                dir=str(recipe.folder),
            )  # fmt: skip
        except wandb.Error as error:
            raise ConfigError(f"train.loggers names 'wandb', which says: {error} Or set WANDB_MODE=offline.") from None

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


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
