"""Both phases of training as processes of their own, the first of them paused once by a signal and resumed.

A process is what a user would start: `python -m shardscope.recipes.pretrain RECIPE`, or torchrun with several of them.
It can be killed at any time; started again, it goes on from its newest checkpoint.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardscope.checkpoint import list_checkpoints, read_facts
from shardscope.config import ConfigError
from shardscope.files import locked, read_json, write_json
from shardscope.reproduce.pair import Run
from shardscope.train.metrics import read_metrics
from shardscope.train.run import LOCK, run_status

SECONDS_BETWEEN_LOOKS = 0.2


class TrainingStopped(ConfigError):
    """A training ended before its time; the message says why, and what to do."""


class Signalled(KeyboardInterrupt):
    """SIGINT or SIGTERM came; a training that was running was told, and has saved and ended."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def train_to_pause(run: Run, pause_at: int, processes: int = 1) -> dict[str, Any]:
    """Train until the log shows step `pause_at`, then send SIGTERM; what the run says of its pause.

    A run that was past that step already, or that ended before the signal came, is left as it is.
    """
    _start(run, processes, pause_at)
    status = run_status(run.folder)
    if status["status"] == "unfinished":
        raise TrainingStopped(f"{run.folder}: {_ended_early(run.phase)}")
    return {"asked_at": pause_at, **{key: status[key] for key in ("step", "status", "reason")}}


def train_to_end(run: Run, processes: int = 1, start: str | None = None) -> dict[str, Any]:
    """Train, from the start or from where the run stands, to its last step; the run in figures.

    `start`: the digest of the weights that an anneal begins with. Raises TrainingStopped where the folder holds an
    anneal of others, and where the training does not come to its end.
    """
    if start is not None:
        _require_start(run, start)
    _start(run, processes)
    status = run_status(run.folder)
    if status["status"] != "finished":
        why = f" ({status['reason']})" if status.get("reason") else ""
        raise TrainingStopped(f"{run.folder}: {_ended_early(run.phase)}; it is {status['status']}{why}")
    return figures(run)


def figures(run: Run) -> dict[str, Any]:
    """What checkpoint and log say of a run that has ended."""
    facts, lines = read_facts(run.last), read_metrics(run.folder)
    events = [line for line in lines if line["kind"] == "event"]
    starts = [line for line in events if line["event"] == "start"]
    rates = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    return {
        "steps": facts["step"],
        "tokens": run.steps * run.recipe.train.batch_size * run.recipe.data.seq_len,
        "seconds": facts["seconds"],
        "tokens_per_second": round(statistics.median(rates), 1),
        "weights": facts["weights"],
        "tokenizer": facts["tokenizer"],
        "code": facts["code"],
        "n_params": starts[-1]["n_params"],
        "skipped_steps": facts["skipped_steps"],
        "starts": [line["resumed_at"] for line in starts],
        "pauses": [{"step": p["step"], "reason": p["reason"]} for p in events if p["event"] == "paused early"],
        "troubles": [f"{line['trouble']} at step {line['since']}" for line in events if line["event"] == "trouble"],
        "sources": starts[-1]["sources"],
    }


def _require_start(run: Run, weights: str) -> None:
    for checkpoint in list_checkpoints(run.folder)[-1:]:
        if read_facts(checkpoint)["ancestors"][-1]["weights"] != weights:
            raise TrainingStopped(
                f"{run.folder}: holds an anneal of another pretraining; delete it, or give --out another folder"
            )


def _start(run: Run, processes: int, pause_at: int | None = None) -> None:
    """Start the training and wait for its end; send it SIGTERM when its log shows `pause_at`.

    Where a reproduction was killed its training may have gone on: that one comes to its end, or to the pause, first.
    """
    if (left := LeftBehind.find(run)) is not None:
        _until_its_end(left, run, left.began, pause_at)
    _wait_for_another(run.folder)
    if pause_at is not None and _newest_step(run.folder) >= pause_at:
        return
    began = time.time()
    # A session of its own: Ctrl+C reaches the training once, through us, and not a second time from the terminal.
    child = subprocess.Popen(command(run, processes), start_new_session=True)
    write_json(_process_file(run), {"pid": child.pid, "began": began})
    _until_its_end(child, run, began, pause_at)
    _process_file(run).unlink()
    # torchrun ends with an error after a signal, though the run was saved: its own state counts.
    if child.returncode and not (pause_at is not None and run_status(run.folder)["status"] == "paused early"):
        raise TrainingStopped(f"{run.folder}: {_ended_early(run.phase)} (status {child.returncode})")


def _until_its_end(process: subprocess.Popen[bytes] | LeftBehind, run: Run, began: float, pause_at: int | None) -> None:
    asked = pause_at is None or _newest_step(run.folder) >= pause_at
    with _handing_on_signals(process) as came:
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if not asked and pause_at is not None and _logged(run.folder, pause_at, since=began):
                asked = True
                process.send_signal(signal.SIGTERM)
    if came:
        raise Signalled(came[0])


class LeftBehind:
    """The training that a reproduction had started and that goes on since it was killed."""

    def __init__(self, run: Run, pid: int, began: float) -> None:
        self.began, self._run, self._pid = began, run, pid

    @classmethod
    def find(cls, run: Run) -> LeftBehind | None:
        """None where there is none."""
        try:
            known = read_json(_process_file(run), ConfigError)
            found = cls(run, int(known["pid"]), float(known["began"]))
        except (ConfigError, OSError, LookupError, TypeError, ValueError):
            return None
        if found.poll() is not None:
            return None
        print(f"{run.folder}: the training that was left behind goes on there; it comes first", flush=True)
        return found

    def poll(self) -> int | None:
        """None while it trains; another process of the same number has another command line."""
        words = [part for word in command(self._run, 1)[1:] for part in word.split()]
        return None if _command_line(self._pid)[-len(words) :] == words else 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._pid, number)


def _process_file(run: Run) -> Path:
    """Says which process trains, for a start after this one was killed."""
    return run.folder.with_name(f"{run.folder.name}.process.json")


def _command_line(pid: int) -> list[str]:
    """The words of a process's command line; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").split()
    except OSError:  # it has ended, or this is no Linux
        with suppress(OSError):
            return subprocess.run(
                ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True
            ).stdout.split()
        return []


def command(run: Run, processes: int) -> list[str]:
    """The command line that trains."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    flags = [f"--{key}={value}" for key, value in run.flags.items()]
    return [
        sys.executable, *(launcher if processes > 1 else []), "-m", f"shardscope.recipes.{run.phase}", str(run.file),
        *flags,
    ]  # fmt: skip


@contextmanager
def _handing_on_signals(child: subprocess.Popen[bytes] | LeftBehind) -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the child, which saves and ends; the list fills with what came."""
    came: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        came.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_another(folder: Path) -> None:
    """Until no process trains in the folder."""
    said = False
    while _held(folder):
        if not said:
            print(f"{folder}: another process is still training there; waiting for its end", flush=True)
            said = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _held(folder: Path) -> bool:
    """Whether a process trains in the folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("r+") as lock:
        return not locked(lock.fileno())


def _newest_step(folder: Path) -> int:
    saved = list_checkpoints(folder)
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def _logged(folder: Path, step: int, since: float) -> bool:
    """Whether a start of the run that began after `since` has logged the step."""
    lines = read_metrics(folder, "train")
    return bool(lines) and lines[-1]["step"] >= step and lines[-1]["time"] >= since


def _ended_early(phase: str) -> str:
    return f"the {phase} ended before its last step; see what it said above, then give the same command to go on"
