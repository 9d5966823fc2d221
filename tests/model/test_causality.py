"""No part lets a later token move an earlier logit, and with ``mask_documents`` nothing crosses a document's start."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.smear import SmearGateConfig
from tests.model.parts import BIGRAM, CONFIGS, TRIGRAM, VOCAB, Changes, configured, random_model, tokens


@pytest.mark.parametrize("gradients", [False, True])  # two spellings of attention on CPUs
@pytest.mark.parametrize("name", CONFIGS)
def test_later_tokens_never_move_earlier_logits(name, gradients) -> None:
    model, ids = random_model(CONFIGS[name]), tokens(2, 16)
    with torch.set_grad_enabled(gradients):
        before = model.logits(ids)
        for t in (0, 3, 7, 14):
            changed = ids.clone()
            changed[:, t + 1 :] = (changed[:, t + 1 :] + 1 + torch.arange(15 - t)) % VOCAB  # every later token is another one
            after = model.logits(changed)
            assert torch.equal(after[:, : t + 1], before[:, : t + 1])
            assert not torch.isclose(after[:, t + 1 :], before[:, t + 1 :]).all(-1).any()  # and every later position sees it


@pytest.mark.parametrize("name", CONFIGS)
def test_every_earlier_token_moves_the_last_logits(name) -> None:
    """What makes the test above able to fail: logits do look back, over the whole window."""
    model, ids = random_model(CONFIGS[name]), tokens(1, 16)
    with torch.no_grad():
        before = model.logits(ids)[0, -1]
        for t in range(15):
            changed = ids.clone()
            changed[0, t] = 3 if ids[0, t] != 3 else 4
            assert (model.logits(changed)[0, -1] - before).abs().max() > 1e-4


MASKED_BIGRAM, MASKED_SMEAR = dataclasses.replace(BIGRAM, mask_documents=True), SmearGateConfig(mask_documents=True)
MASKED_TRIGRAM = dataclasses.replace(TRIGRAM, mask_documents=True)
SEAMS: dict[str, tuple[Changes, int]] = {  # parts at the seam "embed" -> how many positions of a document see the one before
    "neither part": ({}, 0),
    "bigram": ({"bigram": BIGRAM}, 1),
    "bigram, masked": ({"bigram": MASKED_BIGRAM}, 0),
    "smear": ({"smear": SmearGateConfig()}, 1),
    "smear, masked": ({"smear": MASKED_SMEAR}, 0),
    "trigram": ({"trigram": TRIGRAM}, 2),
    "trigram, masked": ({"trigram": MASKED_TRIGRAM}, 0),
    "trigram and smear": ({"trigram": TRIGRAM, "smear": SmearGateConfig()}, 3),
    "all three, trigram not masked": ({"bigram": MASKED_BIGRAM, "trigram": TRIGRAM, "smear": MASKED_SMEAR}, 3),
    "all three, masked": ({"bigram": MASKED_BIGRAM, "trigram": MASKED_TRIGRAM, "smear": MASKED_SMEAR}, 0),
    "both": ({"bigram": BIGRAM, "smear": SmearGateConfig()}, 2),
    "both, bigram masked": ({"bigram": MASKED_BIGRAM, "smear": SmearGateConfig()}, 1),
    "both, smear masked": ({"bigram": BIGRAM, "smear": MASKED_SMEAR}, 2),
    "both, masked": ({"bigram": MASKED_BIGRAM, "smear": MASKED_SMEAR}, 0),
}


@pytest.mark.parametrize("name", SEAMS)
def test_what_of_a_document_depends_on_the_one_before(name) -> None:
    changes, leaks = SEAMS[name]
    model = random_model(configured(changes))
    start = 6
    ids = tokens(1, 16)
    ids[0, start] = BOS_ID
    ids[0, start + 1 :] = torch.arange(20, 29)  # one document to the end
    embedded = model.embed(ids, torch.float32)[0, start:]
    seen = torch.zeros(len(embedded), dtype=torch.bool)
    for position in range(start):
        for token in (2, 3, 5, 40, BOS_ID):
            changed = ids.clone()
            changed[0, position] = token
            seen |= (model.embed(changed, torch.float32)[0, start:] != embedded).any(-1)
    assert seen.tolist() == [t < leaks for t in range(len(embedded))]


@pytest.mark.parametrize("name", ["bigram, masked", "smear, masked", "both, masked", "all three, masked"])
def test_masked_document_starts_as_it_does_alone(name) -> None:
    """A document in the middle of a window is embedded as at the start of one."""
    model, ids = random_model(configured(SEAMS[name][0])), tokens(1, 16)
    ids[0, 6], ids[0, 7:] = BOS_ID, torch.arange(20, 29)
    torch.testing.assert_close(model.embed(ids, torch.float32)[:, 6:], model.embed(ids[:, 6:], torch.float32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SEAMS)
def test_lookback_is_what_the_seam_needs(name) -> None:
    """With ``lookback`` tokens before it a position is embedded as in the whole window."""
    model, ids = random_model(configured(SEAMS[name][0])), tokens(1, 16)
    whole = model.embed(ids, torch.float32)
    for t in range(model.lookback, 16):
        part = model.embed(ids[:, t - model.lookback : t + 1], torch.float32)
        torch.testing.assert_close(part[:, -1], whole[:, t], rtol=0, atol=1e-6)
