"""The package's logits equal the plain spelling in ``reference.py``, for each part alone and for all together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bytefit.model.language_model import LanguageModel
from tests.model.parts import CONFIGS, random_model, tokens
from tests.model.reference import Plain


def plain(model: LanguageModel, dtype: torch.dtype) -> Plain:
    """The reference with the model's parameters, for a model that computes in ``dtype``."""
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    if model.smear is not None:  # its sigmoid is taken in fp32: hand the reference the gate that it amounts to
        g = torch.sigmoid(model.smear.gate.detach()).double().numpy()
        weights["smear.gate"] = np.log(g / (1 - g))
    return Plain(model.config, weights, torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_formula(name) -> None:
    model, ids = random_model(CONFIGS[name]), tokens(1, 14)
    with torch.no_grad():
        in_float64 = model.raw_logits(model.hidden(ids, torch.float64))[0]
        in_fp32 = model.logits(ids)[0]
    with_gradients = model.logits(ids)[0].detach()  # on CPUs another spelling of attention
    np.testing.assert_allclose(in_float64.numpy(), plain(model, torch.float64).raw_logits(ids[0].tolist()), rtol=1e-9, atol=1e-9)
    expected = plain(model, torch.float32).logits(ids[0].tolist())
    assert np.abs(expected).max() > 5  # large enough for softcaps to bend them
    for logits in (in_fp32, with_gradients):
        np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_moves_the_reference() -> None:
    """The comparison would miss a term that does not matter; here each of them does."""
    model, ids = random_model(CONFIGS["all together"]), tokens(1, 14)[0].tolist()
    reference = plain(model, torch.float64)
    before = reference.logits(ids)
    random = np.random.default_rng(0)
    for name, weight in reference.weights.items():
        moved = {**reference.weights, name: weight + 0.1 * random.standard_normal(weight.shape)}
        assert np.abs(Plain(model.config, moved, reference.eps).logits(ids) - before).max() > 1e-3, name
