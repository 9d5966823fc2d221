"""Orthogonalising a stack of matrices by an odd polynomial iteration (Muon, Keller Jordan 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CoefficientsName = Literal["quintic", "polar_express"]

QUINTIC = (3.4445, -4.7750, 2.0315)  # Keller Jordan's, the same polynomial every time
# One polynomial an iteration, each the best for the range that the one before leaves (Polar Express, arXiv 2505.16932); the last one,
# which is that of Newton and Schulz, stays the same from there on, and alone goes without the safety factor below. As published.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01  # rounding may push a singular value above the range that a polynomial was made for
EPSILON = 1e-7


def coefficients_of(name: CoefficientsName, iterations: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of ``x ← a x + b x³ + c x⁵`` for each iteration."""
    if name == "quintic":
        return [QUINTIC] * iterations
    safe = [*((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]), POLAR_EXPRESS[-1]]
    return [safe[min(i, len(safe) - 1)] for i in range(iterations)]


def orthogonalise(stacks: list[Tensor], coefficients: list[tuple[float, float, float]], dtype: torch.dtype) -> list[Tensor]:
    """Push the singular values of every matrix towards 1.

    Args:
        stacks: each (count, rows, cols), all of one shape or its transpose: they go through the same batched matmuls.
        dtype: of the arithmetic; the results have it too.
    """
    wide = [stack.mT if stack.size(1) > stack.size(2) else stack for stack in stacks]
    x = torch.cat([stack.to(dtype) for stack in wide])
    x = x / (x.norm(dim=(1, 2), keepdim=True) + EPSILON)
    for a, b, c in coefficients:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    parts = torch.split(x, [stack.size(0) for stack in stacks])
    return [part if part.shape == stack.shape else part.mT for part, stack in zip(parts, stacks, strict=True)]


def normalise_rows(updates: Tensor) -> Tensor:
    """Each row divided by its length, before orthogonalising (MuonEq-R)."""
    return updates / (updates.norm(dim=-1, keepdim=True) + EPSILON)
