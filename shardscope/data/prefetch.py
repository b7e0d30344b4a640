"""The next batches, made by a thread while the model works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType

from shardscope.data.mixture import Batch


class Prefetcher:
    """Iterates over make(start), make(start + 1) … make(stop - 1), at most `depth` batches ahead.

    An exception in `make` is raised where its batch is asked for. Leaving the `with` block, or `close`, ends the
    thread. `pin` puts batches in page-locked memory, from which CUDA copies without waiting.
    """

    def __init__(
        self, make: Callable[[int], Batch], start: int, stop: int, *, depth: int = 2, pin: bool = False
    ) -> None:
        self._make, self._steps, self._pin = make, range(start, stop), pin
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed.is_set():
            item = self._ready.get()
            if item is None:
                self.close()
            elif isinstance(item, BaseException):
                self.close()
                raise item
            else:
                yield item

    def close(self) -> None:
        """End the thread and forget what it made. May be called twice."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            for step in self._steps:
                batch = self._make(step)
                if not self._put(_pinned(batch) if self._pin else batch):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Wait for a free place; False if nobody will take the item any more."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def _pinned(batch: Batch) -> Batch:
    return replace(batch, tokens=batch.tokens.pin_memory(), sources=batch.sources.pin_memory())
