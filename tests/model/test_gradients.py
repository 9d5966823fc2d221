"""Every parameter of every part and recipe is trained; where none arrives at first, the reason is written here."""

from __future__ import annotations

import pytest
import torch

from bytefit.model.language_model import LanguageModel
from bytefit.optim.groups import Optimizers
from bytefit.recipes import RECIPES, find_recipe
from tests.model.parts import CONFIGS, configured, random_model, tokens

# Ends of names. Attention's and the MLP's output projections start at zero, and so does the table of the bigram hash: what stands
# behind them (the value embedding stands behind attention) gets nothing until the first step has moved them.
SILENT_AT_START = {
    "attention.query.weight": "behind the zero output projection of attention",
    "attention.key.weight": "behind the zero output projection of attention",
    "attention.value.weight": "behind the zero output projection of attention",
    "attention.q_gain": "behind the zero output projection of attention",
    "attention.extra_value_scale": "behind the zero output projection of attention",
    "attention.value_residual.mix": "behind the zero output projection of attention",
    "value_embedding.table.weight": "behind the zero output projection of attention",
    "value_embedding.projection.weight": "behind the zero output projection of attention",
    "value_embedding.scale": "behind the zero output projection of attention",
    "attention_scale": "multiplies attention's output, which is zero",
    "mlp.up.weight": "behind the zero output projection of the MLP",
    "mlp_scale": "multiplies the MLP's output, which is zero",
    "bigram.projection.weight": "multiplies rows of the zero table",
    "bigram.scale": "multiplies the projected rows of the zero table",
}


def silent(model: LanguageModel) -> list[str]:
    """Parameters whose gradient is missing or zero."""
    return [name for name, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_a_part_gets_a_gradient(name) -> None:
    model = random_model(CONFIGS[name])
    model(tokens(2, 32), tokens(2, 32, seed=1)).backward()
    assert silent(model) == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_every_parameter(name) -> None:
    """At the start all but those behind a zero; after two real steps all."""
    recipe = find_recipe(name, "tiny")
    torch.manual_seed(0)
    model = recipe.model.build()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, recipe.model.vocab_size, (4, recipe.train.seq_len + 1), generator=generator)
    optimizers = Optimizers(recipe.train.optimizer, model.parameter_infos(), torch.float32)
    for step in range(3):
        model(rows[:, :-1], rows[:, 1:]).backward()
        expected = [n for n, _ in model.named_parameters() if n.endswith(tuple(SILENT_AT_START))] if step == 0 else []
        if step != 1:
            assert silent(model) == expected
        optimizers.step(lr_scale=1.0, step=step)
        assert all(p.isfinite().all() for p in model.parameters())


def test_every_reason_is_needed() -> None:
    """Each end of a name above belongs to a parameter of some recipe."""
    names = [name for recipe in RECIPES for name, _ in find_recipe(recipe, "tiny").model.build().named_parameters()]
    assert [end for end in SILENT_AT_START if not any(name.endswith(end) for name in names)] == []


@pytest.mark.parametrize("name", ["all together", "all together, other forms"])
def test_looked_up_rows_get_a_gradient_and_no_others(name) -> None:
    """A tied table is the output matrix too: there every row gets one."""
    model, ids = random_model(CONFIGS[name]), tokens(2, 10)
    model(ids, tokens(2, 10, seed=1)).backward()
    assert model.bigram is not None
    assert model.trigram is not None
    assert model.value_embedding is not None
    used = {
        model.embedding.weight: range(model.config.vocab_size) if model.config.head.tied else ids.unique().tolist(),
        model.value_embedding.table.weight: ids.unique().tolist(),
        model.bigram.table.weight: model.bigram.rows(ids).unique().tolist(),
        model.trigram.table.weight: model.trigram.rows(ids).unique().tolist(),
    }
    for table, rows in used.items():
        assert table.grad is not None
        assert table.grad.any(-1).nonzero().flatten().tolist() == list(rows)
    assert 1 < len(used[model.bigram.table.weight]) < model.bigram.buckets


def test_unlooked_rows_of_an_untied_table_stay_without() -> None:
    model = random_model(configured({"head": CONFIGS["untied head"].head}))
    ids = torch.tensor([[1, 5, 5, 9]])
    model(ids, ids).backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.any(-1).nonzero().flatten().tolist() == [1, 5, 9]
