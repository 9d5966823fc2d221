"""Exclusive self-attention (XSA): a head's output loses its component along the position's own value (PR #287, #578 and later)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ExclusiveConfig:
    """``y ← y − (y·v̂) v̂`` per query head; v̂ is the unit value of the same position, of the key/value head that serves it.

    Attributes:
        blocks: which blocks; None is all.
    """

    blocks: tuple[int, ...] | None = None


def exclude_own_value(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """No parameters; the query heads of a group are broadcast against its value, nothing is repeated in memory."""
    B, T, H, K = y_BTHK.shape
    y_BTGRK = y_BTHK.view(B, T, v_BTGK.size(2), -1, K)
    unit_BTG1K = F.normalize(v_BTGK, dim=-1)[:, :, :, None]
    return (y_BTGRK - (y_BTGRK * unit_BTG1K).sum(-1, keepdim=True) * unit_BTG1K).view(B, T, H, K)
