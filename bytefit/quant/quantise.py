"""A whole model's weights to codes, by role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bytefit.model.roles import ParameterInfo, Role
from bytefit.quant.grid import Codes, Grid, quantise


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """The grid of each role, under the role's own name; gains pass through in fp32."""

    table: Grid
    attention: Grid
    mlp: Grid
    projection: Grid
    head: Grid

    def grid_of(self, role: Role) -> Grid | None:
        """None for roles that are not quantised."""
        return getattr(self, role.value, None)


@dataclass(frozen=True)
class QuantisedModel:
    """Codes by parameter name (in the model's order), and the parameters that pass through, fp32."""

    codes: dict[str, Codes]
    gains: dict[str, np.ndarray]


def quantise_model(weights: dict[str, Tensor], infos: Iterable[ParameterInfo], config: QuantConfig, dial: float = 1.0) -> QuantisedModel:
    """Quantise every parameter whose role has a grid. ``dial`` scales the number of steps of all grids together."""
    codes: dict[str, Codes] = {}
    gains: dict[str, np.ndarray] = {}
    for info in infos:
        grid = config.grid_of(info.role)
        array = weights[info.name].numpy()
        if grid is None:
            gains[info.name] = array.astype(np.float32)
        else:
            codes[info.name] = quantise(array, grid, dial)
    return QuantisedModel(codes, gains)
