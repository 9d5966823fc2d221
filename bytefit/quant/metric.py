"""What an error in a matrix costs: ``½ Σ_i rows_i · δ_i · columns · δ_iᵀ``, in nats a token.

``columns`` is the second moment of the inputs, E[x xᵀ]; ``rows`` that of the outputs' gradients, E[g_i²] (the two factors of
K-FAC, arXiv 1503.05671). Without gradients ``rows`` is one and the cost is the squared error of the outputs, as GPTQ takes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bytefit.errors import UserError
from bytefit.progress import say

MAX_DAMP = 10.0  # times the mean diagonal: by then the matrix is all but a multiple of the identity


@dataclass(frozen=True)
class Metric:
    """
    Attributes:
        columns: (cols, cols), fp32, symmetric.
        rows: (rows,), fp32, not negative.
    """

    columns: Tensor
    rows: Tensor

    def cost(self, error: Tensor) -> float:
        """Nats a token that an error (rows, cols) costs, to second order."""
        return 0.5 * float(((error @ self.columns * error).sum(-1) * self.rows).sum())


@dataclass(frozen=True)
class Factor:
    """An order of the columns, and how an error in one of them is made good by those after it.

    Attributes:
        order: (cols,) int64: the columns in the order in which they are rounded.
        upper: (cols, cols) float32 with columns in that order; its row j, divided by its diagonal, says what each later column takes
            over. ``1 / upper[j, j]²`` is what a squared error in column j still costs after that.
        dead: (cols,) bool, as the matrix stands: inputs that were never anything but zero.
        damp: share of the mean diagonal that was added in the end.
    """

    order: Tensor
    upper: Tensor
    dead: Tensor
    damp: float


def factorise(columns: Tensor, *, damp: float, times: int = 1, order: str = "descending", downdate: bool = True, name: str = "") -> Factor:
    """The upper Cholesky factor of the inverse of the damped second moment (GPTQ, arXiv 2210.17323), in float64.

    Args:
        columns: (cols, cols).
        damp: share of the mean diagonal that is added; ten times more, and a word about it, as long as the matrix is not positive definite.
        times: how often it is added (PR #693 adds it twice).
        order: columns with the largest diagonal first (``descending``), last (``ascending``, PR #578) or as they stand (``given``).
        downdate: False leaves the inverse itself in place of its Cholesky factor (PR #578, #606, #1171), which makes good exactly only
            the first column's errors.

    Raises:
        UserError: no damping helps (NaN or infinite values).
    """
    diagonal = columns.diagonal().double()
    if not torch.isfinite(columns).all():
        raise UserError(f"the second moment of the inputs{' of ' + name if name else ''} holds NaN or infinite values; the run diverged")
    dead = diagonal <= 0
    diagonal = diagonal.where(~dead, diagonal[~dead].mean() if not dead.all() else 1.0)
    if order == "given":
        permutation = torch.arange(len(diagonal), device=columns.device)
    else:
        permutation = torch.argsort(diagonal, descending=order == "descending", stable=True)
    # With rows and columns in reverse, the lower factor L of H is an upper one, R Rᵀ = H, and R⁻¹ is the upper factor of H⁻¹: one
    # factorisation and one triangular inverse, instead of inverting H and factorising the result.
    backwards = permutation.flip(0)
    matrix = columns[backwards][:, backwards].double()
    identity = torch.eye(len(diagonal), dtype=torch.float64, device=columns.device)
    share = damp
    while True:
        matrix.diagonal().copy_(diagonal[backwards] + times * share * diagonal.mean())
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            if torch.isfinite(inverse).all():
                break
        if share > MAX_DAMP:
            raise UserError(f"the second moment of the inputs{' of ' + name if name else ''} cannot be inverted, whatever is added")
        share = max(share * 10, 1e-6)
    upper = inverse.float().flip(0, 1)
    if share != damp:
        say(f"{name or 'a matrix'}: the inputs' second moment is singular; damped by {share:g} of its mean diagonal instead of {damp:g}")
    if not downdate:
        upper = upper.T @ upper
    return Factor(permutation, upper, dead, share)


def shared_factors(metrics: Iterable[tuple[str, Metric]], **how: object) -> dict[str, Factor]:
    """A factor for every name; matrices that see the same input (query, key, value) share theirs."""
    made: dict[int, Factor] = {}
    factors = {}
    for name, metric in metrics:
        key = metric.columns.data_ptr()
        if key not in made:
            made[key] = factorise(metric.columns, name=name, **how)  # type: ignore[arg-type]
        factors[name] = made[key]
    return factors
