"""Work captured as a CUDA graph: by one thread at a time, on a stream of the device that it is for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")

PLAIN = 3  # times that work is done plainly before it is captured: compiling is over by then

# The driver knows of one capture in a process.
_ONE = Lock()


def captured(work: Callable[[], T], device: torch.device, warm_up: bool = False) -> tuple[Callable[[], None], T]:
    """(a function that replays `work`, what `work` returned: tensors that every replay writes anew).

    `warm_up`: do the work once before, so that libraries set themselves up. Raises RuntimeError for work that cannot be
    captured; this process should then capture nothing more.
    """
    with _ONE, torch.cuda.device(device):
        stream = _stream(device.index if device.index is not None else torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if warm_up:
                work()
            graph = torch.cuda.CUDAGraph()
            # Other threads, which fetch the next batch, say, may go on reserving memory.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = work()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, result


@cache
def _stream(index: int) -> torch.cuda.Stream:
    # One for all: libraries keep memory for every stream that they were called on.
    return torch.cuda.Stream(index)
