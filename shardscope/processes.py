"""One process or many: which one this is under torchrun, and how they wait for each other and share what they found."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shardscope.config import ConfigError

T = TypeVar("T")
Own = TypeVar("Own", bound="Processes")

# One process may have to wait for another that tokenizes a corpus, or has the longer questions; the library's default
# of ten to thirty minutes would end the run.
PATIENCE = timedelta(hours=12)


class ProcessError(ConfigError):
    """Another process of the same run has ended, so this one cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run; a single one waits for nobody. A context manager: leaving it ends the process group.

    What is exchanged here are counts, flags and results, on the host, whatever the device that the run computes on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @staticmethod
    def of_torchrun() -> Processes:
        """From the variables that torchrun sets; without them, one process."""
        names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
        return Processes(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})

    def connect(self, backend: str = "gloo") -> None:
        """Make the process group, unless there is one or nobody to talk to. It ends with this process at the latest."""
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group(backend, timeout=PATIENCE)
            # gloo's threads have aborted a process that ended with the group open ("terminate called", exit code -6).
            atexit.register(self.disconnect)

    def disconnect(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *exception: object) -> None:
        self.disconnect()

    @property
    def main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.size > 1 else None

    def wait(self) -> None:
        """Until every process is here. Raises ProcessError, as all that follow do, when one of them has ended."""
        if self.size > 1:
            with self._others_alive():
                dist.barrier()

    def main_first(self, work: Callable[[], T]) -> T:
        """Every process does `work`, the main one before the others: what it wrote, they find."""
        if self.size == 1:
            return work()
        done = work() if self.main else None
        self.wait()
        return done if self.main and done is not None else work()

    def any(self, flag: bool) -> bool:
        """True everywhere if it is true anywhere: all processes have to stop at the same step."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))  # on the host: nobody waits for a GPU to hear of it
        with self._others_alive():
            dist.all_reduce(flags)
        return bool(flags.item())

    def gather(self, tensor: Tensor) -> Tensor:
        """Every process's tensor, joined along the first axis (a scalar counts as one entry), in the order of ranks."""
        own = torch.atleast_1d(tensor).cpu()
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._others_alive():
            dist.all_gather(parts, own)
        return torch.cat(parts)

    def gather_objects(self, value: Any, to: int = 0) -> list[Any] | None:
        """Every process's value, on process `to`; None on the others."""
        if self.size == 1:
            return [value]
        parts: list[Any] | None = [None] * self.size if self.rank == to else None
        with self._others_alive():
            dist.gather_object(value, parts, to)
        return parts

    @contextmanager
    def _others_alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # the library's own errors say which socket was closed, and no more
            self.disconnect()  # a group with a broken connection may abort the interpreter when it ends
            raise ProcessError(
                f"process {self.rank} of {self.size} has lost another one, which has ended or cannot be reached; see "
                f"what that one says, then start all of them again ({str(error).splitlines()[0]})"
            ) from None


def is_main_process() -> bool:
    """True outside torchrun and in its process of rank 0."""
    return Processes.of_torchrun().main
