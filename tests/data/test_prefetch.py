from __future__ import annotations

import threading
import time

import pytest
import torch

from shardscope.data import Batch, DataError, Prefetcher


def batch_of(step: int) -> Batch:
    return Batch(torch.full((2, 3), step), torch.zeros(2, dtype=torch.int64))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "batches"]


def test_batches_come_in_order_and_the_thread_ends() -> None:
    with Prefetcher(batch_of, start=3, stop=50) as batches:
        assert [int(batch.tokens[0, 0]) for batch in batches] == list(range(3, 50))
    assert threads() == []


def test_it_works_ahead_but_not_too_far() -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return batch_of(step)

    with Prefetcher(make, 0, 1000, depth=2) as batches:
        next(iter(batches))
        time.sleep(0.3)
        assert 3 <= len(made) <= 4  # taken, two ready, one waiting for a place


def test_an_error_is_raised_where_its_batch_is_asked_for() -> None:
    def make(step: int) -> Batch:
        if step == 2:
            raise DataError("step 2 is broken")
        return batch_of(step)

    with Prefetcher(make, 0, 10) as prefetcher:
        batches = iter(prefetcher)
        assert [int(next(batches).tokens[0, 0]) for _ in range(2)] == [0, 1]
        with pytest.raises(DataError, match="step 2 is broken"):
            next(batches)
    assert threads() == []


def test_leaving_early_ends_the_thread() -> None:
    with Prefetcher(batch_of, 0, 10**9) as batches:
        next(iter(batches))
    assert threads() == []
    batches.close()
    assert list(batches) == []


def test_no_steps_give_no_batches() -> None:
    with Prefetcher(batch_of, 5, 5) as batches:
        assert list(batches) == []
