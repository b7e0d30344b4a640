"""The rank sentinel: are Muon's matrices still of full rank?

Looks at the singular values of every matrix that Muon trains. A ratio of the smallest to the largest under 1e-4 means
that some directions of the matrix no longer carry anything: rank loss.
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
    """The extreme singular values of one matrix, and its stable rank ‖W‖²_F / σ²: at most its rank, and robust.

    A few large singular values make the stable rank small (Rudelson & Vershynin 2007, arXiv:math/0503442).
    """

    name: str
    smallest: float
    largest: float
    stable_rank: float

    @property
    def ratio(self) -> float:
        return self.smallest / self.largest if self.largest > 0 else 0.0

    @property
    def lost_rank(self) -> bool:
        # A ratio that is not a number is no full rank either.
        return not self.ratio >= RANK_LOSS


@torch.no_grad()
def singular_values(model: nn.Module) -> list[Singular]:
    """The singular values of every Muon matrix, in the model's order; matrices of one shape as a batch.

    They are the roots of the eigenvalues of W Wᵀ, or of Wᵀ W if that is smaller: a half to a quarter of the time that a
    decomposition of W takes. In float64, so the smallest is right to 1e-8 of the largest.
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
        batch = (batch.cpu() if batch.is_mps else batch).double()  # Apple's GPUs have no float64
        # The decomposition raises on matrices that are not finite; those are reported as nan instead.
        finite = batch.isfinite().all(dim=(1, 2))
        batch = torch.where(finite[:, None, None], batch, 0.0)
        gram = batch @ batch.mT if batch.shape[1] <= batch.shape[2] else batch.mT @ batch
        squares = torch.linalg.eigvalsh(gram).clamp(min=0)
        extremes = squares[:, [0, -1]].sqrt()
        stable_rank = torch.nan_to_num(squares.sum(dim=1) / squares[:, -1])  # of a matrix of zeros: 0
        numbers = torch.cat([extremes, stable_rank[:, None]], dim=1).where(finite[:, None], torch.nan).tolist()
        found |= {name: Singular(name, *values) for name, values in zip(matrices, numbers, strict=True)}
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
