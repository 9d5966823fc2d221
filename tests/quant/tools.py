"""One matrix through the package's whole rounding, inputs that are correlated and uneven as real ones are, and a tiny model."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from bytefit.data.tokenizer import ByteTokenizer
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import ParameterInfo, Role, parameter
from bytefit.quant.codes import Codes
from bytefit.quant.gptq import Nearest, Rounding
from bytefit.quant.grid import Grid, StepGrid
from bytefit.quant.metric import Metric
from bytefit.quant.quantise import MatrixQuant, QuantConfig, QuantisedModel, Quantiser
from bytefit.recipes import find_recipe

TOKENIZER = ByteTokenizer()
VOCAB = TOKENIZER.vocab_size
COARSE = MatrixQuant(grid=StepGrid(fineness=4.0))


def config_of(quant: MatrixQuant, **others: object) -> QuantConfig:
    """The same rounding for every role."""
    roles = dict.fromkeys(("table", "attention", "mlp", "projection", "head"), quant)
    return QuantConfig(**roles, **others)


def info(name: str, shape: tuple[int, ...], role: Role = Role.MLP, block: int | None = 0) -> ParameterInfo:
    return ParameterInfo(name, parameter(torch.zeros(shape), role), role, block)


def quantise_model(
    weights: dict[str, Tensor],
    infos: list[ParameterInfo],
    config: QuantConfig,
    statistics: dict[str, Metric] | None = None,
    dial: float = 1.0,
) -> QuantisedModel:
    """Every parameter rounded by its role's rule, at one position of the dial."""
    return Quantiser(weights, infos, config, statistics or {}).at(dial)


def quantise_all(
    weights: dict[str, np.ndarray], config: QuantConfig, metrics: dict[str, Metric] | None = None, *, dial: float = 1.0
) -> QuantisedModel:
    infos = [info(name, w.shape) for name, w in weights.items()]
    return quantise_model({name: torch.from_numpy(w) for name, w in weights.items()}, infos, config, metrics, dial)


def quantise(
    W: np.ndarray,
    grid: Grid,
    rounding: Rounding | None = None,
    *,
    H: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    dial: float = 1.0,
    **others: object,
) -> Codes:
    """The codes of one matrix; ``H`` is the second moment of its inputs, ``rows`` what its outputs' errors cost."""
    config = config_of(MatrixQuant(grid=grid, rounding=rounding or Nearest()), **others)
    metrics = {} if H is None else {"w": metric(H, len(W) if rows is None else rows)}
    return quantise_all({"w": W}, config, metrics, dial=dial).codes["w"]


def metric(H: np.ndarray, rows: int | np.ndarray) -> Metric:
    outputs: Tensor = torch.ones(rows) if isinstance(rows, int) else torch.from_numpy(rows.astype(np.float32))
    return Metric(torch.from_numpy(H.astype(np.float32)), outputs)


def normal_weights(rows: int, cols: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    """Weights whose rows differ in size."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.normal(size=(rows, cols)) * np.exp(spread * rng.normal(size=(rows, 1)))).astype(np.float32)


def uneven_inputs(count: int, cols: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """(count, cols): columns share hidden causes and differ widely in size."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(count, max(2, cols // 3))) @ rng.normal(size=(max(2, cols // 3), cols))
    return (causes + 0.3 * rng.normal(size=(count, cols))) * np.exp(spread * rng.normal(size=cols))


def second_moment(X: np.ndarray) -> np.ndarray:
    """E[x xᵀ], as float32 holds it."""
    return (X.T @ X / len(X)).astype(np.float32)


def tiny_model(recipe: str = "pocket", *, spread: float = 0.3, **model_changes: object) -> LanguageModel:
    """Untrained, but with no weight at zero, so that gradients reach everything."""
    torch.manual_seed(0)
    model = dataclasses.replace(find_recipe(recipe, "tiny").model, vocab_size=VOCAB, **model_changes).build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn_like(p))
    return model.eval()
