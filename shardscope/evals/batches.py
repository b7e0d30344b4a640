"""Which contexts are computed at once: those of nearly one length, each with its continuations, as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch

from shardscope.config import ConfigError
from shardscope.evals.errors import HarnessError

T = TypeVar("T")
R = TypeVar("R")

CHOICES = 8  # continuations of a context, on average, that batch_size leaves room for


class Group(NamedTuple):
    """A context, and the numbers of the requests that continue it."""

    context: list[int]
    own: list[int]


def grouped(contexts: Sequence[list[int]]) -> list[Group]:
    """Every context with the numbers of the requests that have it, the longest first.

    So contexts of nearly the same length go together, and memory runs out at once or never.
    """
    alone: list[Group] = []
    together: dict[tuple[int, ...], Group] = {}
    for index, context in enumerate(contexts):
        if len(context) == 1:  # as before a whole document: nothing worth sharing
            alone.append(Group(context, [index]))
        else:
            together.setdefault(tuple(context), Group(context, [])).own.append(index)
    return sorted([*alone, *together.values()], key=lambda group: (-len(group.context), group.context))


def batches_of(
    groups: Sequence[Group], lengths: Sequence[int], size: int | None, most: int, budget: int | None
) -> Iterator[list[Group]]:
    """At most `size` contexts and `most` continuations, and `budget` tokens, where these are not None.

    `lengths` are the continuations', by the number of the request. A context with more continuations comes in several
    batches.
    """
    batch: list[Group] = []
    spent = choices = 0
    for context, own in groups:
        longest = max(lengths[index] for index in own)
        fit = most if budget is None else max(1, min(most, budget // longest))
        for first in range(0, len(own), fit):
            piece = Group(context, own[first : first + fit])
            price = len(context) + sum(lengths[index] for index in piece.own)
            full = len(batch) == size or choices + len(piece.own) > most
            if batch and (full or (budget is not None and spent + price > budget)):
                yield batch
                batch, spent, choices = [], 0, 0
            batch.append(piece)
            spent += price
            choices += len(piece.own)
    if batch:
        yield batch


def halving(batch: list[T], run: Callable[[list[T]], R], divide: Callable[[list[T]], list[list[T]]]) -> Iterator[R]:
    """What `run` makes of a batch; in parts, if memory runs out."""
    try:
        done = run(batch)
    except torch.OutOfMemoryError:
        parts = divide(batch)
    except ConfigError as error:  # logits that are not finite, above all
        raise HarnessError(str(error)) from None
    else:
        yield done
        return
    # Only here, after the handler, is the memory of the failed attempt free.
    if not parts:
        raise HarnessError("memory runs out on a single request; pass a smaller max_length or another device")
    torch.cuda.empty_cache()
    for part in parts:
        yield from halving(part, run, divide)


def in_two(batch: list[T]) -> list[list[T]]:
    return [batch[: len(batch) // 2], batch[len(batch) // 2 :]] if len(batch) > 1 else []


def divided(batch: list[Group]) -> list[list[Group]]:
    """Two batches of contexts; or of one context with half of its continuations each."""
    if len(batch) > 1:
        return in_two(batch)
    ((context, own),) = batch
    return [[Group(context, half)] for half in in_two(own)]
