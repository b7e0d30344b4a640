"""Long work in stages, each done once: a stage is known to be done by a hash of everything that it was made from.

A folder holds a JSON file for each stage that has ended: what it was made from, what came out, and what it cost. A
stage whose inputs have changed since is done again, and so is everything that was made from what it gave.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardscope.config import ConfigError
from shardscope.files import read_json, write_json
from shardscope.reproduce.meter import Meter
from shardscope.train.lineage import code_version

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of work. `seconds` is a guess of how long it takes, which finished stages of its kind (`kind/…`) correct.

    `made_from` is asked when the turn comes to the stage, so it may look at what earlier stages have left.
    `still_there` says that what the stage left outside its record, as a checkpoint, has not been deleted since.
    """

    name: str
    says: str
    made_from: Callable[[], Mapping[str, Any]]
    work: Callable[[], Result]
    seconds: float = 1.0
    still_there: Callable[[], bool] = lambda: True

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A stage that has ended. `joules` is None where nobody measured them."""

    name: str
    key: str
    made_from: dict[str, Any]
    seconds: float
    joules: float | None
    ended: str
    code: str
    result: Result


class Ledger:
    """The records of a folder."""

    def __init__(self, folder: Path, gpus: Sequence[str] = ()) -> None:
        self.folder, self._gpus = folder, gpus

    def find(self, name: str) -> Record | None:
        """The record of a stage; None if it has never ended. Raises ConfigError for a damaged one."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return Record(**read_json(path, ConfigError))
        except TypeError as error:
            raise ConfigError(f"{path}: not the record of a stage ({error}); delete it to do the stage again") from None

    def result(self, name: str) -> Result:
        """What a stage gave that has ended."""
        found = self.find(name)
        assert found is not None, f"{name} comes first"
        return found.result

    def key(self, name: str) -> str:
        """What names all that a stage that has ended was made from."""
        found = self.find(name)
        assert found is not None, f"{name} comes first"
        return found.key

    def run(self, stages: Sequence[Stage], say: Callable[[str], None] = print) -> dict[str, Record]:
        """Do what is not done yet, in order; the records of all of them by name."""
        done: dict[str, Record] = {}
        for number, stage in enumerate(stages, start=1):
            made_from = json.loads(json.dumps(stage.made_from()))
            key = key_of(made_from)
            place, found = f"[{number}/{len(stages)}] {stage.says}", self.find(stage.name)
            if found is not None and found.key == key and stage.still_there():
                say(f"{place}: done before, in {duration(found.seconds)}")
            else:
                say(f"{place}; about {duration(time_left(stages[number - 1 :], stages, done))} to go")
                found = self._do(stage, made_from, key)
                say(f"{place}: done in {duration(found.seconds)}")
            done[stage.name] = found
        return done

    def _do(self, stage: Stage, made_from: dict[str, Any], key: str) -> Record:
        account = self._path(stage.name).with_suffix(f".{key[:8]}.running")
        with Meter(account, self._gpus).running() as meter:
            result = stage.work()
        record = Record(
            name=stage.name, key=key, made_from=made_from, seconds=round(meter.seconds, 1),
            joules=None if meter.joules is None else round(meter.joules, 1),
            ended=time.strftime("%Y-%m-%d", time.gmtime()), code=code_version(), result=result,
        )  # fmt: skip
        write_json(self._path(stage.name), asdict(record))
        account.unlink()
        return record

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def key_of(made_from: Mapping[str, Any]) -> str:
    """SHA-256 of what a stage is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def time_left(ahead: Sequence[Stage], stages: Sequence[Stage], done: Mapping[str, Record]) -> float:
    """Seconds that the stages ahead will take: as guessed, times how far off the guesses for their kind were so far."""
    guessed, taken = dict[str, float](), dict[str, float]()
    for stage in stages:
        if stage.name in done:
            guessed[stage.kind] = guessed.get(stage.kind, 0.0) + stage.seconds
            taken[stage.kind] = taken.get(stage.kind, 0.0) + done[stage.name].seconds
    return sum(stage.seconds * taken.get(stage.kind, 1.0) / guessed.get(stage.kind, 1.0) for stage in ahead)


def duration(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `3.5 h`, `4,488 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 3600:,.0f} h"
