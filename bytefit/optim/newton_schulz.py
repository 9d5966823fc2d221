"""Orthogonalising a stack of matrices by a Newton–Schulz iteration (Muon, Keller Jordan 2024; spec 1.8)."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


def orthogonalise(updates: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Push the singular values of every matrix towards 1.

    Args:
        updates: (count, rows, cols); equal shapes go through one batched matmul together.
        dtype: of the arithmetic; the result has it too.
    """
    a, b, c = COEFFICIENTS
    x = updates.to(dtype)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT.contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + EPSILON)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
