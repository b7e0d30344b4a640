"""What a stage costs: seconds, and the energy of the GPUs it runs on where `nvidia-smi` says what they draw."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from shardscope.config import ConfigError
from shardscope.files import read_json, write_json

SECONDS_BETWEEN_LOOKS = 5.0


class Meter:
    """Seconds and joules since it was made, on top of what an earlier process, killed meanwhile, had spent.

    What was spent is on the disk after each look, so a kill loses a few seconds of the account at most.
    """

    def __init__(self, file: Path, gpus: Sequence[str] = (), every: float = SECONDS_BETWEEN_LOOKS) -> None:
        """`file` holds the account, `gpus` are UUIDs as nvidia-smi has them. Raises ConfigError for a damaged file."""
        self._file, self._gpus, self._every = file, tuple(gpus), every
        before = read_json(file, ConfigError) if file.exists() else {}
        self._seconds_before = float(before.get("seconds") or 0.0)
        self.joules: float | None = before.get("joules")
        self._began = self._looked = time.monotonic()
        self._power = power_draw(self._gpus)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def look(self) -> None:
        """Add the energy since the last look, as the mean of the power then and now, and write down the account."""
        now, power = time.monotonic(), power_draw(self._gpus)
        if power is not None:
            mean = power if self._power is None else (power + self._power) / 2
            self.joules = (self.joules or 0.0) + mean * (now - self._looked)
        self._looked, self._power = now, power
        write_json(self._file, {"seconds": round(self.seconds, 1), "joules": self.joules})

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self.look()

    @contextmanager
    def running(self) -> Iterator[Meter]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()
            self.look()


def power_draw(gpus: Sequence[str]) -> float | None:
    """Watts that the GPUs draw together now; None without GPUs, without nvidia-smi, or where it does not know."""
    if not gpus:
        return None
    command = ["nvidia-smi", f"--id={','.join(gpus)}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        watts = [float(line) for line in told.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return sum(watts) if len(watts) == len(gpus) else None


def gpus_of(device: torch.device, processes: int) -> list[str]:
    """The UUIDs of the GPUs that so many processes compute on; none on other devices."""
    if device.type != "cuda":
        return []
    numbers = range(processes) if processes > 1 else [device.index or 0]
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in numbers]
