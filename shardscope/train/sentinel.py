"""The rank sentinel: are Muon's matrices still of full rank?

Looks at the smallest and the largest singular value of every matrix that Muon trains. A ratio under 1e-4 means that
some directions of the matrix no longer carry anything: rank loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from shardscope.train.muon import as_matrix, split_parameters
from shardscope.train.sharding import whole

RANK_LOSS = 1e-4


@dataclass(frozen=True)
class Singular:
    """The extreme singular values of one matrix."""

    name: str
    smallest: float
    largest: float

    @property
    def ratio(self) -> float:
        return self.smallest / self.largest if self.largest > 0 else 0.0

    @property
    def lost_rank(self) -> bool:
        # A ratio that is not a number is no full rank either.
        return not self.ratio >= RANK_LOSS


@torch.no_grad()
def singular_values(model: nn.Module) -> list[Singular]:
    """The extreme singular values of every Muon matrix, in the model's order; computed in float32, batched by shape.

    Where ranks share the weights, all of them have to call this.
    """
    by_shape: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    order = []
    for name, parameter in split_parameters(model)[0].items():
        matrix = as_matrix(name, whole(parameter)).float()
        by_shape.setdefault(tuple(matrix.shape), {})[name] = matrix
        order.append(name)
    found: dict[str, Singular] = {}
    for matrices in by_shape.values():
        batch = torch.stack(list(matrices.values()))
        # The decomposition raises on matrices that are not finite; those are reported as nan instead.
        finite = batch.isfinite().all(dim=(1, 2))
        values = torch.linalg.svdvals(torch.where(finite[:, None, None], batch, 0.0))
        extremes = torch.stack([values[:, -1], values[:, 0]], dim=1).where(finite[:, None], torch.nan).tolist()
        found |= {name: Singular(name, *pair) for name, pair in zip(matrices, extremes, strict=True)}
    return [found[name] for name in order]


def report(found: Iterable[Singular]) -> str:
    """One line: which matrices lost rank, or the worst ratio when none did."""
    found = list(found)
    if not found:
        return "no matrices"
    lost = [s for s in found if s.lost_rank]
    if lost:
        names = ", ".join(f"{s.name} ({s.ratio:.1e})" for s in lost)
        return f"rank loss in {len(lost)} of {len(found)} matrices: {names}"
    worst = min(found, key=lambda s: s.ratio)
    return f"full rank; smallest ratio {worst.ratio:.1e} in {worst.name}"
