"""What a model costs before it is trained: parameters and arithmetic by part, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bytefit.model.language_model import ModelConfig
from bytefit.model.roles import MATRIX_ROLES, Role


@dataclass(frozen=True)
class PartCost:
    """Parameters and forward multiply-adds a token of one part (a block's attention, the embedding, …)."""

    part: str
    role: Role
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def cost_by_part(config: ModelConfig) -> list[PartCost]:
    """One row a parameter. Weights are never allocated, so the full-size recipes cost nothing to inspect."""
    with torch.device("meta"):
        model = config.build(orthogonalise=False)
    applications = [sum(step.block == block for step in config.plan) for block in range(len(model.blocks))]
    rows = []
    for info in model.parameter_infos():
        size = info.parameter.numel()
        times = applications[info.block] if info.block is not None else 1
        is_output = info.role is Role.HEAD or (info.parameter is model.embedding.weight and config.head.tied)
        work = size * times if info.role in MATRIX_ROLES else size if is_output or info.role is Role.PROJECTION else 0
        rows.append(PartCost(info.name, info.role, tuple(info.parameter.shape), size, work))
    return rows


def num_parameters(config: ModelConfig) -> int:
    return sum(row.parameters for row in cost_by_part(config))


def attention_multiply_adds(config: ModelConfig, seq_len: int) -> int:
    """Multiply-adds a token of the scores and the weighted sum, averaged over a causal window of ``seq_len``."""
    return len(config.plan) * 2 * config.dim * (seq_len + 1) // 2
