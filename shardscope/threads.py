"""How many of the CPU's cores PyTorch's threads use: all of them, or those that other programs leave free.

PyTorch's threads meet after every operation and spin until the last one comes. Where another program has taken one's
core, all of them wait for it thousands of times a second, and a token takes 3 to 50 times as long as with one thread
less. Waiting without spinning (OMP_WAIT_POLICY=passive) avoids that, and costs an idle machine 30 to 50 % of its speed;
`shardscope bench threads` compares the three. So work that is made of small operations looks around between them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

# Whoever set one of these has chosen the number of threads.
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LOOK_EVERY = 0.25  # seconds; a look takes about 0.1 ms
# Counters move in steps of 10 ms, and what was long ago says nothing about now.
SHORTEST, LONGEST = 0.1, 5.0
# Cores. What a desktop does beside us leaves ours alone; our threads' own waiting is no longer nothing.
SPARE, WAITED = 0.3, 0.05


class Use(NamedTuple):
    """Core-seconds up to now: of every program together, of this process, and what its threads waited for a core."""

    everyone: float
    own: float
    waited: float


def use_so_far() -> Use:
    """Read from the operating system, for those cores on which this process may run."""
    cores = _own_cores()
    everyone = sum(
        value
        for number, core in enumerate(psutil.cpu_times(percpu=True))
        if cores is None or number in cores
        for name, value in core._asdict().items()
        # Linux counts a guest's time within the user's.
        if name not in ("idle", "iowait", "guest", "guest_nice")
    )
    own = os.times()
    return Use(everyone, own.user + own.system, _waited())


def _own_cores() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _waited() -> float:
    """Seconds that this process's threads could have run and had no core; 0 where the system does not say."""
    nanoseconds = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            nanoseconds += int(task.read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended meanwhile
            continue
    return nanoseconds / 1e9


@dataclass
class FreeCores:
    """Sets PyTorch's threads to the cores that other programs leave, in whichever thread of Python it is called.

    `most` is the number that PyTorch began with. A number that somebody else sets meanwhile is left alone.
    """

    most: int
    n_cores: int
    use: Callable[[], Use] = use_so_far
    clock: Callable[[], float] = time.monotonic
    _last: Use = field(init=False)
    _last_at: float = field(init=False)
    _due: float = field(init=False)
    _waiting: bool = False
    _set: threading.local = field(default_factory=threading.local)
    _ours: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self._last, self._last_at = self.use(), self.clock()
        self._due = self._last_at + SHORTEST
        self._ours = {self.most}

    def look(self) -> None:
        """Once in a while, between two small operations."""
        now = self.clock()
        if now < self._due:
            return
        number = torch.get_num_threads()
        # In a thread that has just begun, PyTorch's number is what was set last in any other.
        if number != getattr(self._set, "number", number if number in self._ours else None):
            return
        use, passed = self.use(), now - self._last_at
        before, self._last, self._last_at = self._last, use, now
        if passed > LONGEST:
            self._due = now + SHORTEST
            return
        self._due = now + LOOK_EVERY
        wanted = self._wanted(number, before, use, passed)
        if wanted != number:
            torch.set_num_threads(wanted)
        self._set.number = wanted
        self._ours.add(wanted)

    def _wanted(self, number: int, before: Use, after: Use, passed: float) -> int:
        others = (after.everyone - before.everyone - (after.own - before.own)) / passed
        free = int(self.n_cores - others + SPARE)
        # Twice, because threads that have just begun wait once in an idle machine too.
        waiting, self._waiting = self._waiting, (after.waited - before.waited) / passed > WAITED
        if waiting and self._waiting:
            free = min(free, number - 1)
        return min(max(free, 1), self.most)


_free_cores: FreeCores | None = None
if torch.get_num_threads() > 1 and not any(name in os.environ for name in CHOSEN_BY):
    _free_cores = FreeCores(torch.get_num_threads(), len(_own_cores() or ()) or os.cpu_count() or 1)


def use_free_cores(device: torch.device) -> None:
    """Called between small operations: lets go of cores that another program has taken, and takes them back.

    Does nothing on another device than the CPU, where the environment says how many threads there are, or where
    `torch.set_num_threads` was called.
    """
    if _free_cores is not None and device.type == "cpu":
        _free_cores.look()
