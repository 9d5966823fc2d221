"""Muon: momentum, then every matrix's update orthogonalised; equal shapes share one batched iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bytefit.optim.newton_schulz import orthogonalise


class Muon(torch.optim.Optimizer):
    """``m ← μm + g``, ``u = g + μm``, ``W ← (1 − lr·wd) W − lr·sqrt(max(1, rows/cols))·NS(u)`` (spec 1.8).

    Args:
        parameters: 2-D parameters; those of one shape form one group and keep one stacked momentum.
        lr: the step; multiplied by the schedule through ``group["lr"]``.
        dtype: arithmetic of the Newton–Schulz iteration.
    """

    def __init__(
        self, parameters: list[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, iterations: int, dtype: torch.dtype
    ):
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__([{"params": group} for group in by_shape.values()], defaults)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; every parameter must have a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters: list[Tensor] = group["params"]
            updates = torch.stack([_gradient(parameter) for parameter in parameters])
            state = self.state[parameters[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(updates)
            momentum: Tensor = state["momentum"]
            momentum.mul_(group["momentum"]).add_(updates)
            updates.add_(momentum, alpha=group["momentum"])
            directions = orthogonalise(updates, group["iterations"], self._dtype).to(updates.dtype)
            rows, cols = updates.shape[1:]
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(directions.unbind()), alpha=-group["lr"] * max(1, rows / cols) ** 0.5)


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError(f"a matrix of shape {tuple(parameter.shape)} got no gradient; it does not take part in the loss")
    return parameter.grad
