"""What each parameter is for. Optimizers, quantisation and reports read roles; nothing matches names.

A part gives every parameter its role in the line that makes it:

    self.weight = parameter(torch.empty(rows, cols), Role.MLP)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import nn


class Role(enum.Enum):
    """The kinds of parameters."""

    TABLE = "table"  # rows looked up by id (a tied embedding too)
    ATTENTION = "attention"  # query, key and value matrices
    ATTENTION_OUT = "attention_out"  # output matrices of attention, which quantise worse than the others (PR #578)
    MLP = "mlp"  # matrices of the MLP
    PROJECTION = "projection"  # matrices that bring a side table's rows to the width of a stream
    HEAD = "head"  # an untied output matrix
    GAIN = "gain"  # per-channel, per-head and scalar factors


MATRIX_ROLES = (Role.ATTENTION, Role.ATTENTION_OUT, Role.MLP)  # the blocks' matrices: what Muon is made for


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a model.

    Attributes:
        block: index of the block that owns it, or None outside the blocks.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    block: int | None


def parameter(tensor: torch.Tensor, role: Role) -> nn.Parameter:
    """A trainable tensor that knows its role."""
    made = nn.Parameter(tensor)
    made.role = role  # type: ignore[attr-defined]
    return made


def role_of(made: nn.Parameter) -> Role:
    """The role given when the parameter was made.

    Raises:
        LookupError: it was made without ``parameter(...)``; a bug in the part that owns it.
    """
    role = getattr(made, "role", None)
    if role is None:
        raise LookupError(f"a parameter of shape {tuple(made.shape)} has no role; make it with bytefit.model.roles.parameter")
    return role
