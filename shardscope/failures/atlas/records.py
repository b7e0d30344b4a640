"""Samples of checkpoints as files: `RUN/atlas/SETTINGS/settings.json`, and beside it a `step-00001000.jsonl` for each
checkpoint. Its first line says which weights were sampled, every other line is a sample with its flags.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from shardscope.checkpoint import BUILT_IN, RUNS, WEIGHTS, checkpoint_folder, list_checkpoints
from shardscope.failures.atlas.settings import AtlasError, AtlasSettings
from shardscope.failures.labels import ORDER, Failure, Flag, primary_failure
from shardscope.failures.text_model import FILE_NAME, MOST_BYTES, has_own
from shardscope.files import MOST_TEXT, parse_json, read_json, read_text, regular_file
from shardscope.generation import StopReason
from shardscope.visible import visible

FOLDER, SETTINGS = "atlas", "settings.json"
FORMAT = 1
RULES = Path(__file__).parents[1]  # the folder of what labels depend on
MOST = 8 * MOST_TEXT  # bytes of the samples of one checkpoint
SHIPPED = Path(__file__).with_name("built_in.jsonl.xz")


@dataclass(frozen=True, kw_only=True)
class AtlasSample:
    """One prompt, by its id, continued once. `ids` and `text` are the output; `flags` point into `ids`."""

    prompt: str
    temperature: float
    seed: int
    stop_reason: StopReason
    flags: tuple[Flag, ...]
    text: str
    ids: tuple[int, ...]

    @property
    def primary(self) -> Failure | Literal["no flag"]:
        return primary_failure(self.flags)


@dataclass(frozen=True, kw_only=True)
class AtlasColumn:
    """All samples of one checkpoint. `left_out` are the prompts that its context has no room for."""

    run: str
    step: int
    checkpoint: Path
    fingerprint: str
    samples: tuple[AtlasSample, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The same settings at one checkpoint after the other, run by run."""

    settings: AtlasSettings
    columns: tuple[AtlasColumn, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The prompts that do not fit every model; they count nowhere."""
        missing = {name for column in self.columns for name in column.left_out}
        return tuple(prompt.id for prompt in self.settings.prompts if prompt.id in missing)


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; of a checkpoint itself."""
    return [path] if (path / WEIGHTS).exists() else list_checkpoints(path)


def run_of(path: Path) -> Path:
    """The run that a checkpoint belongs to; anything else itself."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def names_of(paths: Sequence[Path]) -> list[str]:
    """Each run by its folder's name, or by its path where two folders have the same; as any terminal can show it."""
    names = ["built-in" if _is_built_in(path) else run_of(path).resolve().name for path in paths]
    return [visible(str(path) if names.count(name) > 1 else name) for path, name in zip(paths, names, strict=True)]


def folder_of(path: Path) -> Path:
    """Where the atlases of a run or of a checkpoint lie; what is built in is left as it is."""
    return (RUNS / "built-in" if _is_built_in(path) else run_of(path)) / FOLDER


def _is_built_in(path: Path) -> bool:
    return path.resolve() == BUILT_IN.resolve()


def list_atlases(path: str | Path) -> list[AtlasSettings]:
    """The settings that a run was sampled with, the last first; what is no atlas is left out."""
    files = folder_of(Path(path)).glob(f"*/{SETTINGS}")
    found: list[tuple[float, AtlasSettings]] = []
    for file in files:
        try:
            settings = read_settings(file)
            found.append((file.stat().st_mtime, settings))
        except (AtlasError, OSError):
            continue
    return [settings for _, settings in sorted(found, key=lambda one: (-one[0], one[1].digest))]


def read_atlas(paths: str | Path | Sequence[str | Path], settings: AtlasSettings | None = None) -> Atlas:
    """What was sampled of one run, or of several side by side. By default with the settings used last on the first.

    Only checkpoints that were sampled are in it. Raises AtlasError where there is none, or where a file is not whole.
    """
    runs = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if settings is None:
        known = list_atlases(runs[0])
        if not known:
            raise AtlasError(f"{runs[0]}: no atlas was made of it; make one with `shardscope atlas {runs[0]}`")
        settings = known[0]
    columns = [
        read_column(file, run, name)
        for run, name in zip(runs, names_of(runs), strict=True)
        for file in _files(run, settings)
    ]
    if not columns:
        raise AtlasError(f"{runs[0]}: holds no atlas {settings.digest}; make one with `shardscope atlas {runs[0]}`")
    return Atlas(settings=settings, columns=tuple(columns))


def _files(run: Path, settings: AtlasSettings) -> list[Path]:
    folder = folder_of(run) / settings.digest
    found = [file for file in folder.glob("step-*.jsonl") if re.fullmatch(r"step-\d+\.jsonl", file.name)]
    return sorted(found, key=lambda file: int(file.stem.removeprefix("step-")))


@cache
def built_in_atlas() -> Atlas:
    """The built-in model's atlas, which ships with the package: one column."""
    first, rest = lzma.decompress(SHIPPED.read_bytes()).decode("utf-8").split("\n", 1)
    settings = AtlasSettings.from_dict(json.loads(first))
    return Atlas(settings=settings, columns=(parse_column(rest, str(SHIPPED), BUILT_IN, "built-in"),))


def read_settings(file: Path) -> AtlasSettings:
    """Raises AtlasError, with the file."""
    values = read_json(file, AtlasError)
    try:
        settings = AtlasSettings.from_dict(values)
    except AtlasError as error:
        raise AtlasError(f"{file}: {error}") from None
    if settings.digest != file.parent.name:
        raise AtlasError(f"{file}: these are not the settings of the folder {file.parent.name}; one was changed")
    return settings


def read_column(file: Path, path: Path, name: str) -> AtlasColumn:
    """The samples of one checkpoint of the run `path`, which is called `name`. Raises AtlasError, with the line."""
    return parse_column(read_text(file, AtlasError, MOST), str(file), path, name)


def head_of(file: Path) -> dict[str, Any]:
    """The first line of a file of samples; {} for what is none."""
    try:
        with regular_file(file).open(encoding="utf-8") as opened:
            head = json.loads(opened.readline(MOST_TEXT))
        return head if isinstance(head, dict) else {}
    except (OSError, ValueError, RecursionError):  # ReadError is a ValueError
        return {}


def parse_column(text: str, where: str, path: Path, name: str) -> AtlasColumn:
    """The column of the run or checkpoint `path` that `column_lines` wrote. Raises AtlasError, with the line."""
    lines = text.removesuffix("\n").split("\n")
    head, *rows = [
        parse_json(line, f"{where}, line {number}", AtlasError) for number, line in enumerate(lines, start=1)
    ]
    try:
        if head["format"] != FORMAT or head["samples"] != len(rows):
            raise ValueError(f"the first line does not fit the {len(rows)} others")
        if type(head["step"]) is not int or head["step"] < 0:
            raise ValueError(f"step={head['step']!r}")
        run = run_of(path)
        alone = run == path and (path / WEIGHTS).exists()
        return AtlasColumn(
            run=name,
            step=head["step"],
            checkpoint=path if alone else checkpoint_folder(run, head["step"]),
            fingerprint=str(head["fingerprint"]),
            samples=tuple(map(_sample, rows)),
            left_out=tuple(map(str, head["left_out"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AtlasError(f"{where}: not the samples of a checkpoint ({error}); delete it and sample again") from None


def _sample(row: Any) -> AtlasSample:
    flags = tuple(Flag(**flag) for flag in row["flags"])
    numbers = [row["seed"], *row["ids"], *(place for flag in flags for place in (flag.start, flag.end))]
    texts = [row["prompt"], row["text"], *(flag.kind for flag in flags)]
    if not all(type(number) is int and number >= 0 for number in numbers) or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"a sample of {str(row['prompt'])[:60]!r} holds something else than text and numbers")
    temperature = row["temperature"]
    if type(temperature) not in (int, float) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature!r}")
    if row["stop_reason"] not in get_args(StopReason) or any(flag.failure not in ORDER for flag in flags):
        raise ValueError(f"a sample of {row['prompt'][:60]!r} has an unknown stop reason or label")
    return AtlasSample(
        prompt=row["prompt"],
        temperature=float(temperature),
        seed=row["seed"],
        stop_reason=row["stop_reason"],
        flags=flags,
        text=row["text"],
        ids=tuple(row["ids"]),
    )


def rules_digest(run: Path) -> str:
    """Twelve digits that differ where any rule or limit of the labels does, or the run's own model of text.

    Raises ConfigError where that is none.
    """
    if not has_own(run):
        return _digest_of_package()
    own = regular_file(run / FILE_NAME, AtlasError)
    if own.stat().st_size > MOST_BYTES:
        raise AtlasError(f"{own}: not a text model ({own.stat().st_size:,} bytes); delete it, or fit it again")
    return hashlib.sha256(_digest_of_package().encode() + own.read_bytes()).hexdigest()[:12]


@cache
def _digest_of_package() -> str:
    files = sorted(file for file in RULES.iterdir() if file.suffix in (".py", ".json", ".npz"))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()[:12]


def column_lines(column: AtlasColumn) -> Iterable[str]:
    """Lines of JSON, each with its end: the head, then the samples."""
    head = {
        "format": FORMAT,
        "step": column.step,
        "fingerprint": column.fingerprint,
        "rules": rules_digest(run_of(column.checkpoint)),
        "left_out": list(column.left_out),
        "samples": len(column.samples),
    }
    yield json.dumps(head) + "\n"
    for sample in column.samples:
        values = asdict(sample)
        ids, text = values.pop("ids"), values.pop("text")
        yield json.dumps({**values, "failure": sample.primary, "text": text, "ids": ids}, ensure_ascii=False) + "\n"
