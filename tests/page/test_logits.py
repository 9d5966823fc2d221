"""The page's logits are PyTorch's, for every part of the model."""

from __future__ import annotations

import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.recipes import AS_SUBMITTED, SYSTEMS, find_recipe
from tests.model.parts import CONFIGS, random_model, tokens
from tests.page.artifacts import for_bytes, in_browser_codecs, write_artifact

RECIPES = ["pocket", *SYSTEMS, *(name + AS_SUBMITTED for name in SYSTEMS)]
MODELS = CONFIGS | {"tiny embeddings": CONFIGS["untied head"]} | {f"recipe {name}": find_recipe(name, "tiny").model for name in RECIPES}
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def both(node, tmp_path_factory):
    """By model the logits (T, V) of the page and of PyTorch, from one artifact."""
    folder = tmp_path_factory.mktemp("models")
    ids_BT = tokens(1, NUM_TOKENS)
    models = {name: random_model(for_bytes(config)) for name, config in MODELS.items()}
    with torch.no_grad():
        models["tiny embeddings"].embedding.weight.mul_(1e-4)  # what the norms add to a mean square matters
    paths = [write_artifact(folder / f"{i}.bytefit", model) for i, model in enumerate(models.values())]
    got = node("logits", [{"path": in_browser_codecs(path), "ids": ids_BT[0].tolist()} for path in paths])
    with torch.no_grad():
        want = [load_artifact(path).model.logits(ids_BT)[0] for path in paths]
    return {name: (torch.tensor(page), torch_) for name, page, torch_ in zip(MODELS, got, want, strict=True)}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_pytorchs(both, name) -> None:
    page, torch_ = both[name]
    assert torch_.std() > 0.1
    torch.testing.assert_close(page, torch_, rtol=0, atol=1e-3)


def test_the_parts_differ(both) -> None:
    """What makes the tests above able to fail: a forward pass without the part would be far off."""
    base = both["base"][1]
    alike = [name for name in CONFIGS if name != "base" and (both[name][1] - base).abs().max() < 0.05]
    assert alike == []
