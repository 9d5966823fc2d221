"""The plain spelling that throughput is measured against computes the same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from bytefit.recipes import RECIPES, find_recipe

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("as_submitted")])
def test_plain_spelling_is_the_same_network(name) -> None:
    recipe = find_recipe(name, "tiny")
    torch.manual_seed(0)
    model = recipe.model.build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    tokens = torch.randint(0, recipe.model.vocab_size, (2, recipe.train.seq_len + 1))
    ours = model(tokens[:, :-1], tokens[:, 1:])
    plain = load("plain").plain_loss(model, tokens[:, :-1], tokens[:, 1:])
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    names = [name for name, p in model.named_parameters() if p.numel()]
    for mine, theirs, parameter in zip(
        torch.autograd.grad(ours, [p for p in model.parameters() if p.numel()]),
        torch.autograd.grad(plain, [p for p in model.parameters() if p.numel()]),
        names,
        strict=True,
    ):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-7, parameter
