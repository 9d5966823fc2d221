"""The benchmark of GPUs, as far as it can be tried without one: what its check of arithmetic catches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bytefit.model import attention
from bytefit.recipes import SYSTEMS, find_recipe

ATTEND = attention.attend


def through_sdpa(q, k, v, *, causal: bool):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.size(1) != k.size(1)).transpose(1, 2)


BROKEN = {
    "none": lambda q, k, v: 0 * ATTEND(q, k, v),
    "to the future": lambda q, k, v: through_sdpa(q, k, v, causal=False),
    "random": lambda q, k, v: 0 * ATTEND(q, k, v) + 0.1 * torch.randn_like(q),
    "another scale": lambda q, k, v: ATTEND(0.8 * q, k, v),
    "nothing at the last position": lambda q, k, v: torch.cat([ATTEND(q, k, v)[:, :-1], torch.zeros_like(q[:, -1:])], dim=1),
}


@pytest.fixture
def case():
    """A model whose every part matters, tokens, and what it computes in fp32."""
    from agreement import model_that_matters, outputs

    def of(name: str):
        recipe = find_recipe(name, "tiny")
        model = model_that_matters(recipe)
        tokens = torch.randint(recipe.model.vocab_size, (2, recipe.train.seq_len + 1))
        return model, tokens, outputs(model, tokens, torch.float32)

    return of


@pytest.mark.parametrize("name", SYSTEMS)
def test_other_arithmetic_passes(case, monkeypatch, name) -> None:
    from agreement import LIMITS, agrees, outputs

    model, tokens, reference = case(name)
    in_bf16 = outputs(model, tokens, torch.bfloat16).errors(reference)
    assert all(0 < error < LIMITS["bfloat16"] / 2 for error in in_bf16.values()), in_bf16
    monkeypatch.setattr(attention, "attend", lambda q, k, v: through_sdpa(q, k, v, causal=True))  # not the kernel of short windows
    in_fp32 = outputs(model, tokens, torch.float32).errors(reference)
    assert all(0 < error < LIMITS["float32"] / 10 for error in in_fp32.values()), in_fp32
    assert agrees({"float32": in_fp32, "bfloat16": in_bf16, "bfloat16 compiled": in_bf16})


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ["baseline", "pr693", "pr1171"])
def test_a_broken_model_is_caught_in_any_arithmetic(case, monkeypatch, name, how) -> None:
    from agreement import LIMITS, outputs

    model, tokens, reference = case(name)
    monkeypatch.setattr(attention, "attend", BROKEN[how])
    for dtype in (torch.float32, torch.bfloat16):
        errors = outputs(model, tokens, dtype).errors(reference)
        assert all(error > LIMITS["bfloat16"] for error in errors.values()), errors


def test_a_wrong_backward_pass_is_caught(case, monkeypatch) -> None:
    from agreement import LIMITS, outputs

    model, tokens, reference = case("pr578")
    monkeypatch.setattr(attention, "attend", lambda q, k, v: ATTEND(q, k.detach(), v))
    errors = outputs(model, tokens, torch.float32).errors(reference)
    assert errors["logits"] < LIMITS["float32"]
    assert errors["gradient"] > LIMITS["bfloat16"]


def test_what_is_no_number_does_not_agree() -> None:
    from agreement import agrees

    assert agrees({"bfloat16": {"logits": 0.01, "gradient": 0.01}})
    assert not agrees({"bfloat16": {"logits": 0.01, "gradient": float("nan")}})
