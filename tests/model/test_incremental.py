"""Decoding in pieces through the cache gives the logits of one pass, for every part."""

from __future__ import annotations

import pytest
import torch

from bytefit.model.language_model import Cache
from tests.model.parts import CONFIGS, CONTEXT, random_model, tokens

PIECES = {"one by one": [1] * 18, "threes": [3] * 6, "mixed": [5, 1, 1, 7, 4], "whole": [18]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_pieces_equal_one_pass(name, dtype) -> None:
    """Also after forgetting: nothing that was read before may leak into what is read next."""
    model = random_model(CONFIGS[name])
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    cache = Cache(model.config, 2, CONTEXT, dtype)
    with torch.no_grad():
        for seed, pieces in enumerate(PIECES.values()):
            ids = tokens(2, 18, seed=seed)
            cache.length = 0
            parts = [model.hidden(part, dtype, cache) for part in ids.split(pieces, dim=1)]
            assert cache.length == 18
            torch.testing.assert_close(torch.cat(parts, 1), model.hidden(ids, dtype), rtol=0, atol=tolerance)


def test_logits_take_the_cache_too() -> None:
    model, ids = random_model(CONFIGS["all together"]), tokens(1, 9)
    cache = Cache(model.config, 1, 9, torch.float32)
    with torch.no_grad():
        parts = [model.logits(part, cache=cache) for part in ids.split([1, 2, 6], dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model.logits(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["base", "all together"])
def test_pieces_without_what_came_before_differ(name) -> None:
    """What makes the tests above able to fail: the cache matters."""
    model, ids = random_model(CONFIGS[name]), tokens(1, 12)
    with torch.no_grad():
        alone = torch.cat([model.hidden(part, torch.float32) for part in ids.split(3, dim=1)], 1)
        assert (alone - model.hidden(ids, torch.float32))[:, 3:].abs().amax(-1).min() > 1e-2
