"""A tiny run that dies in every way there is, and is started again: what was lost?

Run as a program, which is the parent of every run that dies: it imports everything once and forks. It never trains
itself, because threads of a library do not survive a fork.

    python tests/hostile/deaths.py RECIPE FOLDER WAY=CASES [WAY=CASES ...] [--seed N]

WAY names one of WAYS, CASES is a number or `all`. Prints a JSON list with, for each way, how many cases were tried, in
how many of them a sentence said what is intact, and those in which something was lost.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401, because importing it takes every run a second at its first hook

from shardscope import files
from shardscope.checkpoint import list_checkpoints, read_tensors
from shardscope.config import ConfigError, Recipe, load_recipe
from shardscope.files import read_json
from shardscope.train import Interrupted, TrainingError, train
from shardscope.train.lineage import weights_digest
from shardscope.train.metrics import BIOGRAPHY, Metrics, read_metrics

SETTINGS = {
    "schedule.steps": "12", "schedule.warmup": "0", "train.save_every": "3", "train.eval_every": "6",
    "train.sentinel_every": "6", "train.sample_every": "6", "train.keep": "1",
    "probe.every": "6", "probe.budget": "1",
}  # fmt: skip
DONE, SENTENCE, INTERRUPTED, TRACEBACK = 0, 3, 4, 5
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}


# ------------------------------------------------------------------------------------------------ faults


class Faults:
    """Counts what this process changes below a folder, and strikes at the change of a number, or from it on."""

    def __init__(self, below: Path, strike: Callable[[int, str], None]) -> None:
        self.below, self.strike, self.count = str(below), strike, 0

    def install(self) -> None:
        """Audit hooks see what Python opens and renames; what they do not see is wrapped."""
        sys.addaudithook(self._hear)
        flush, exchange, write_all = os.fsync, files._exchanged_in_one_step, Metrics.write_all

        def fsync(handle: int) -> None:
            self._changed("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            flush(handle)

        def exchanged(one: Path, other: Path) -> bool:
            self._changed("exchange", str(other))
            return exchange(one, other)

        def torn(metrics: Metrics, kind: str, step: int, many: Any) -> None:
            """A line of which half is there when it happens."""
            with files.appending(metrics.path):
                metrics._file.write('{"kind": "' + kind)
                metrics._file.flush()
                self._changed("half a line", str(metrics.path))
                metrics._file.truncate(metrics._file.tell() - len('{"kind": "' + kind))
            write_all(metrics, kind, step, many)

        os.fsync, files._exchanged_in_one_step, Metrics.write_all = fsync, exchanged, torn  # type: ignore[assignment]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._changed("open", path)
        elif event in CHANGES:
            self._changed(event, arguments[0])

    def _changed(self, what: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.below):
            self.count += 1
            self.strike(self.count, what)


def no_fault(count: int, what: str) -> None:
    pass


def kill_at(at: int) -> Callable[[int, str], None]:
    def strike(count: int, what: str) -> None:
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def fail_from(at: int, number: int) -> Callable[[int, str], None]:
    """From a change on, the disk is full (deleting still works) or read-only."""

    def strike(count: int, what: str) -> None:
        if count >= at and not (number == errno.ENOSPC and what in ("os.remove", "os.rmdir", "os.chmod")):
            raise OSError(number, os.strerror(number))

    return strike


# -------------------------------------------------------------------------------------------------- runs


def probe(model: Any) -> list[dict[str, Any]]:
    return [{"prompt": "one"}, {"prompt": "two"}]


def start(recipe: Recipe, strike: Callable[[int, str], None] | None = None) -> int:
    """Fork a run of the recipe; its process id. What it has to say goes to `said.txt` beside the run."""
    child = os.fork()
    if child:
        return child
    case = recipe.folder.parent
    status = TRACEBACK
    try:
        faults = Faults(case, strike or no_fault)
        if strike is not None:
            faults.install()
        train(recipe, probe=probe, progress=False)
        (case.parent / "count.txt").write_text(str(faults.count))
        status = DONE
    except (ConfigError, TrainingError) as error:
        status = SENTENCE
        (case.parent / f"said-{case.name}.txt").write_text(str(error))
    except Interrupted:
        status = INTERRUPTED
    except BaseException:
        (case.parent / f"said-{case.name}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def end_of(child: int) -> int:
    """The exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def scheduled_parent(parent: dict[str, str]) -> str | None:
    """The weights that a checkpoint says it came from; None if those were saved by a pause, between two others."""
    step = int(parent["checkpoint"].rpartition("-")[2])
    return parent["weights"] if step % int(SETTINGS["train.save_every"]) == 0 else None


def result(recipe: Recipe) -> dict[str, Any]:
    """All that a run leaves which has to be the same however often it died."""
    run = recipe.folder
    lines = read_metrics(run)
    (last,) = list_checkpoints(run)[-1:]
    return {
        "weights": weights_digest(read_tensors(last / "model.safetensors")),
        "optimizer": weights_digest(read_tensors(last / "optimizer.safetensors")),
        "checkpoints": [checkpoint.name for checkpoint in list_checkpoints(run)],
        "status": read_json(last / "state.json")["status"],
        "parent": scheduled_parent(read_json(last / "state.json")["parent"]),
        "losses": [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"],
        "looks": sorted(
            (line["kind"], line["step"]) for line in lines if line["kind"] in ("eval", "sentinel", "sample")
        ),
        "probes": [line["step"] for line in read_metrics(run, file=BIOGRAPHY)],
        "ends": [line["step"] for line in lines if line.get("event") == "finished"],
        # Other processes may be writing to a cache of tokens; what is left there is removed after a day.
        "left over": sorted(path.name for path in run.rglob(".*") if path.name != ".lock"),
    }


class Cases:
    """Every case has a folder of its own, with nothing in it: the run, and the cache of its tokens."""

    def __init__(self, recipe: Path, folder: Path, seed: int) -> None:
        self.path, self.folder, self.random = recipe, folder, random.Random(seed)
        self.tried, self.lost, self.sentences = 0, [], 0  # type: ignore[var-annotated]
        folder.mkdir(parents=True, exist_ok=True)
        whole = self.recipe("whole")
        assert end_of(start(whole, no_fault)) == DONE, (folder / "said-whole.txt").read_text()
        self.expected = result(whole)
        self.changes = int((folder / "count.txt").read_text())

    def recipe(self, name: str, **more: str) -> Recipe:
        case = self.folder / name
        return load_recipe(
            self.path, {**SETTINGS, "run_dir": str(case / "run"), "data.cache_dir": str(case / "cache"), **more}
        )

    @contextmanager
    def case(self, name: str) -> Iterator[Recipe]:
        """What goes wrong inside is a loss."""
        self.tried += 1
        recipe = self.recipe(name)
        try:
            yield recipe
            self.require(end_of(start(recipe)) == DONE, f"cannot go on: {self.said(name)}")
            found = result(recipe)
            different = [key for key in found if found[key] not in (self.expected[key], None)]
            self.require(not different, f"not as never disturbed: { {k: found[k] for k in different} }")
        except AssertionError as error:
            self.lost.append(f"{name}: {error}")
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise AssertionError(what)

    def said(self, name: str) -> str:
        path = self.folder / f"said-{name}.txt"
        return path.read_text() if path.exists() else "nothing"

    def some(self, cases: int) -> list[int]:
        """Numbers of changes: all of them, or a sample."""
        every = range(1, self.changes + 1)
        return list(every) if cases >= self.changes else sorted(self.random.sample(every, cases))


# ---------------------------------------------------------------------------------------------- ways to die


def kills_at_changes(cases: Cases, n: int) -> None:
    """SIGKILL at a change of a file; another one while it is started again."""
    for at in cases.some(n):
        with cases.case(f"kill-{at}") as recipe:
            cases.require(end_of(start(recipe, kill_at(at))) == -signal.SIGKILL, "it did not die")
            end_of(start(recipe, kill_at(cases.random.randint(1, max(2, cases.changes // 4)))))


def kills_at_moments(cases: Cases, n: int) -> None:
    """SIGKILL at a random moment, up to three times."""
    longest = _seconds(cases)
    for number in range(n):
        with cases.case(f"moment-{number}") as recipe:
            for _ in range(cases.random.randint(1, 3)):
                _signal_after(start(recipe), cases.random.uniform(0, longest), signal.SIGKILL)


def signals(cases: Cases, n: int) -> None:
    """SIGTERM or SIGINT at a random moment, and in half of the cases a second one a moment later."""
    longest = _seconds(cases)
    for number in range(n):
        with cases.case(f"signal-{number}") as recipe:
            child = start(recipe)
            time.sleep(cases.random.uniform(0, longest))
            first = cases.random.choice([signal.SIGTERM, signal.SIGINT])
            with suppress(ProcessLookupError):
                os.kill(child, first)
                if number % 2:
                    time.sleep(cases.random.uniform(0, 0.05))
                    os.kill(child, signal.SIGTERM)
            status = end_of(child)
            # A signal before train() is entered, or a second one, ends the process as it ends any other.
            allowed = (
                DONE,
                INTERRUPTED,
                -signal.SIGTERM,
                -signal.SIGINT,
                TRACEBACK if first == signal.SIGINT else DONE,
            )
            cases.require(status in allowed, f"status {status}: {cases.said(recipe.folder.parent.name)}")


def full_disk(cases: Cases, n: int) -> None:
    """From a change on there is no room; then there is."""
    _failing_disk(cases, n, errno.ENOSPC)


def read_only(cases: Cases, n: int) -> None:
    """From a change on the file system is read-only; then it is not."""
    _failing_disk(cases, n, errno.EROFS)


def _failing_disk(cases: Cases, n: int, number: int) -> None:
    for at in cases.some(n):
        name = f"errno{number}-{at}"
        with cases.case(name) as recipe:
            status = end_of(start(recipe, fail_from(at, number)))
            said = cases.said(name)
            if status == DONE:  # nothing but an attempt to tidy up failed
                continue
            cases.require(status == SENTENCE, f"status {status}: {said}")
            cases.require("\n" not in said and recipe.folder.parent.name in said, f"no sentence: {said}")
            cases.sentences += 1


def two_trainers(cases: Cases, n: int) -> None:
    """Two processes begin the same run at once: one trains, the other says so."""
    for number in range(n):
        name = f"two-{number}"
        with cases.case(name) as recipe:
            both = [start(recipe), start(recipe)]
            statuses = sorted(map(end_of, both))
            cases.require(statuses in ([DONE, SENTENCE], [DONE, DONE]), f"{statuses}: {cases.said(name)}")
            if SENTENCE in statuses:
                cases.require("another process is training there" in cases.said(name), cases.said(name))
                cases.sentences += 1


def forks_of_a_run_that_deletes(cases: Cases, n: int) -> None:
    """Anneals begin from a run that keeps only its newest checkpoint, while it trains; ten from each such run."""
    often = {"schedule.steps": "100000", "train.save_every": "1", "train.eval_every": "100000"}
    for first in range(0, n, 10):
        parent = cases.recipe(f"parent-{first}", **often)
        child = start(parent)
        while not list_checkpoints(parent.folder):
            time.sleep(0.01)
        for number in range(first, min(first + 10, n)):
            cases.tried += 1
            folder = cases.folder / f"fork-{number}" / "run"
            settings = {"start_from": str(parent.folder), "run_dir": str(folder)}
            _has_to_end_well(cases, folder, start(load_recipe(cases.path.with_name("anneal.toml"), settings)))
        os.kill(child, signal.SIGTERM)
        _has_to_end_well(cases, parent.folder, child)


def _has_to_end_well(cases: Cases, run: Path, child: int) -> None:
    if (status := end_of(child)) != DONE:
        cases.lost.append(f"{run.parent.name}: status {status}: {cases.said(run.parent.name)}")
    shutil.rmtree(run.parent)


WAYS = {
    way.__name__: way
    for way in (
        kills_at_changes,
        kills_at_moments,
        signals,
        full_disk,
        read_only,
        two_trainers,
        forks_of_a_run_that_deletes,
    )
}


def _seconds(cases: Cases) -> float:
    began = time.monotonic()
    end_of(start(cases.recipe("timed")))
    return time.monotonic() - began


def _signal_after(child: int, seconds: float, number: int) -> None:
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(child, number)
    end_of(child)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ways", nargs="+", metavar="WAY=CASES")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = Cases(arguments.recipe, arguments.folder, arguments.seed)
    found = []
    for word in arguments.ways:
        way, _, n = word.partition("=")
        cases.tried, cases.sentences, cases.lost = 0, 0, []
        WAYS[way](cases, cases.changes if n == "all" else int(n))
        found.append({"way": way, "tried": cases.tried, "sentences": cases.sentences, "lost": cases.lost})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
