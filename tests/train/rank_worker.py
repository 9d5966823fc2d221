"""Trains on this rank and its peers from weights that differ in a last bit, as another kind of machine may draw them from the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bytefit.data.dataset import open_dataset
from bytefit.ledger import Ledger
from bytefit.ranks import join_ranks
from bytefit.recipes import find_recipe
from bytefit.run.steps import fit_recipe_to, new_model
from bytefit.train.loop import train


def start_unequal(data: Path, folder: Path) -> int:
    """0 where all ranks end with the same weights."""
    ranks, dataset = join_ranks(), open_dataset(data)
    recipe = fit_recipe_to(find_recipe("pocket", "tiny"), dataset, tell=False)
    model = new_model(recipe)
    with torch.no_grad():
        model.embedding.weight.mul_(1 + 1e-6 * ranks.rank)
    settings = replace(recipe.train, steps=2, seconds=None, dtype="float32", compile=False, warmup_steps=1)
    train(model, settings, dataset.train, seed=5, folder=folder, ledger=Ledger(), ranks=ranks)
    return 0 if all(torch.equal(p * ranks.world, ranks.sum(p.detach().clone())) for p in model.parameters()) else 1
