"""How far apart float32 may put one log-probability: on another CPU, with other threads, in another order of sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

A_TOKEN = 2e-5  # nats; of one log-probability, whose logits are sums of products. Three times the largest seen.
A_LOGIT = 1e-4  # of the tests' small models, whose sharp heads magnify each rounding. Six times the largest seen.
A_SUM = 4 * torch.finfo(torch.float32).eps  # of the sum's size


def nats(expected: float, tokens: int) -> Any:
    """Equal to a sum of `tokens` log-probabilities: each has its rounding, and so has their sum."""
    return pytest.approx(expected, rel=0, abs=A_TOKEN * tokens + A_SUM * abs(expected))


def all_nats(expected: Sequence[float], tokens: Sequence[int]) -> list[Any]:
    """Equal to several such sums."""
    return [nats(*pair) for pair in zip(expected, tokens, strict=True)]
