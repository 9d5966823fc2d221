"""What an error in a matrix costs: ``½ Σ_i rows_i · δ_i · columns · δ_iᵀ``, in nats a token.

``columns`` is the second moment of the inputs, E[x xᵀ]; ``rows`` that of the outputs' gradients, E[g_i²] (the two factors of
K-FAC, arXiv 1503.05671). Without gradients ``rows`` is one and the cost is the squared error of the outputs, as GPTQ takes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bytefit.errors import UserError
from bytefit.progress import say

SINGLE_PRECISION_FROM = 0.005  # of the mean diagonal: then the condition number is below some hundreds of thousands
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
        carry: (cols, cols) float32 with columns in that order; below the diagonal, row k says what column k takes over from an error of
            one in each column before it.
        costs: (cols,) float32, in that order: what a squared error still costs after that.
        of_weights: whether an error is what the code leaves of the weight itself, or of what the weight had become by then.
        dead: (cols,) bool, as the matrix stands: inputs that were never anything but zero.
        damp: share of the mean diagonal that was added in the end.
    """

    order: Tensor
    carry: Tensor
    costs: Tensor
    of_weights: bool
    dead: Tensor
    damp: float


def factorise(columns: Tensor, *, damp: float, times: int = 1, order: str = "descending", downdate: bool = True, name: str = "") -> Factor:
    """What GPTQ (arXiv 2210.17323) takes from the damped second moment.

    GPTQ is usually written with the upper Cholesky factor U of the inverse: column k takes over ``-Σ_{j<k} e_j U_jk`` of the errors
    ``e_j = (t_j - q_j) / U_jj`` that the codes q leave of the targets t. The second moment's own upper factor R, with ``R Rᵀ = H``, says
    the same of the errors of the weights: ``Σ_{j<k} (w_j - q_j) R_jk / R_kk``, because the damage is
    ``Σ_k (δ_k R_kk + Σ_{j<k} δ_j R_jk)²``, and needs no inverse.

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
    if not torch.isfinite(columns.sum()):
        raise UserError(f"the second moment of the inputs{' of ' + name if name else ''} holds NaN or infinite values; the run diverged")
    dead = diagonal <= 0
    diagonal = diagonal.where(~dead, diagonal[~dead].mean() if not dead.all() else 1.0)
    if order == "given":
        permutation = torch.arange(len(diagonal), device=columns.device)
    else:
        permutation = torch.argsort(diagonal, descending=order == "descending", stable=True)
    # With rows and columns in reverse, the second moment's usual factor is R transposed.
    backwards = permutation.flip(0)
    matrix, diagonal = columns.index_select(0, backwards).index_select(1, backwards), diagonal[backwards]
    share = damp
    while (upper := _upper_factor(matrix, diagonal, times * share)) is None:
        if share > MAX_DAMP:
            raise UserError(f"the second moment of the inputs{' of ' + name if name else ''} cannot be inverted, whatever is added")
        share = max(share * 10, 1e-6)
    if share != damp:
        say(f"{name or 'a matrix'}: the inputs' second moment is singular; damped by {share:g} of its mean diagonal instead of {damp:g}")
    if downdate:
        pivots = upper.diagonal().clone()
        carry = upper.div_(pivots[:, None])
        costs = pivots.square_()
    else:
        inverse = torch.cholesky_inverse(upper, upper=True)
        pivots = inverse.diagonal().clone()
        carry = -inverse / pivots
        costs = 1 / pivots
    return Factor(permutation, carry.float().flip(0, 1), costs.float().flip(0), downdate, dead, share)


def _upper_factor(matrix: Tensor, diagonal: Tensor, share: float) -> Tensor | None:
    """The upper Cholesky factor, with ``share`` of the mean diagonal added; None where there is none.

    In single precision where what is added keeps the matrix well away from singular, else (or where that fails) in double.
    """
    added = diagonal + share * diagonal.mean()
    for dtype in (torch.float32, torch.float64) if share >= SINGLE_PRECISION_FROM else (torch.float64,):
        damped = matrix.to(dtype, copy=True)
        damped.diagonal().copy_(added)
        upper, failed = torch.linalg.cholesky_ex(damped, upper=True)
        if not failed and torch.isfinite(upper.diagonal().reciprocal().sum()):
            return upper
    return None
