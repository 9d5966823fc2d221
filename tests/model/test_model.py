"""What the tables of parts do not cover: position tables, kernels, the loss, types, and plans."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bytefit.model import attention
from bytefit.model.attention import EXPLICIT_MAX_TOKENS, attend, attend_explicit
from bytefit.model.head import HeadConfig, LearnedCaps
from bytefit.model.plan import Step, unet_plan
from bytefit.model.rotary import RotaryConfig, rotary_table, rotate
from bytefit.recipes import find_recipe
from tests.model.parts import CONFIGS, configured, random_model, tokens


def test_rotary_tables_stay_fp32_and_tell_positions_apart() -> None:
    cos, sin = rotary_table(RotaryConfig(), 64, 4096)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (4096, 1, 32)
    assert len(torch.cat([cos, sin], -1).unique(dim=0)) == 4096
    x = torch.randn(1, 4096, 2, 64)
    assert torch.allclose(rotate(x, cos, sin).norm(dim=-1), x.norm(dim=-1), rtol=1e-4)


def test_bf16_rotary_tables_collapse_positions() -> None:
    """Above 256 onto multiples of 2, above 512 of 4, above 1024 of 8, above 2048 of 16 (Parameter Golf baseline; partial: PR #315)."""
    cos, sin = rotary_table(RotaryConfig(table_dtype="bfloat16"), 64, 4096)
    assert cos.dtype == sin.dtype == torch.float32
    position = torch.arange(4096)
    for first, multiple in ((0, 1), (256, 2), (512, 4), (1024, 8), (2048, 16)):
        here = (first <= position) & (position < max(256, 2 * first))
        kept = position[here & (position % multiple == 0)]
        rows = torch.cat([cos, sin], -1)[:, 0]
        assert len(rows[here].unique(dim=0)) == pytest.approx(len(kept), abs=1)
        assert len(rows[kept].unique(dim=0)) == len(kept)


def test_stretched_base_is_the_eleven_layer_systems() -> None:
    rotary = find_recipe("pr578", "full").model.attention.rotary
    assert rotary.stretched_base(64) == pytest.approx(22_082, abs=1)
    assert RotaryConfig(reference_length=1024, length=4096).stretched_base(64) == pytest.approx(10_000 * 4 ** (64 / 62))
    assert RotaryConfig(dims=16).stretched_base(64) == 10_000
    stretched, usual = (rotary_table(config, 64, 2048) for config in (rotary, RotaryConfig(dims=16, base=22_081.7)))
    assert torch.allclose(stretched[0], usual[0], atol=2e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_computes_in_the_type_asked_for(name) -> None:
    """No part lifts bf16 back to fp32 but the logits, and bf16 gives about the fp32 result."""
    model, ids = random_model(CONFIGS[name]), tokens(2, 16)
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            assert model.hidden(ids, dtype).dtype == dtype
            assert model.logits(ids, dtype).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        similar = F.cosine_similarity(model.hidden(ids, torch.bfloat16).float(), model.hidden(ids, torch.float32), dim=-1)
        assert similar.median() > 0.99


def test_tables_outlive_a_cast_only_where_nobody_casts() -> None:
    """``.to(bfloat16)`` would take the position tables with it; computing in bf16 leaves them alone."""
    model, ids = random_model(CONFIGS["base"]), tokens(1, 16)
    model.hidden(ids, torch.bfloat16)
    assert model.cos.dtype == torch.float32
    assert model.to(torch.bfloat16).cos.dtype == torch.bfloat16


@pytest.mark.parametrize(("heads", "pairs"), [(6, 3), (6, 6), (6, 1)])
def test_explicit_attention_equals_sdpa_and_the_formula(heads, pairs) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 33, heads, 8), torch.randn(2, 33, pairs, 8), torch.randn(2, 33, pairs, 8)
    k_all, v_all = (x.repeat_interleave(heads // pairs, dim=2) for x in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k_all) / 8**0.5
    weights = scores.masked_fill(torch.ones(33, 33).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshk->bthk", weights, v_all)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), expected)
        torch.testing.assert_close(attend(q[:, 20:], k, v), expected[:, 20:])  # the last queries of a longer past
        torch.testing.assert_close(attend(q[:, 32:], k, v), expected[:, 32:])
    torch.testing.assert_close(attend(q, k, v), expected)
    torch.testing.assert_close(attend_explicit(q, k, v), expected)


def test_groups_are_written_out_where_only_the_slow_kernel_takes_them(monkeypatch) -> None:
    assert attention.wants_equal_heads("cuda", torch.float32)
    assert not attention.wants_equal_heads("cuda", torch.bfloat16)
    assert not attention.wants_equal_heads("cpu", torch.float32)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 33, heads, 8, requires_grad=True) for heads in (6, 2, 2))
    plain = attend(q, k, v)
    gradients = torch.autograd.grad(plain.square().sum(), (q, k, v))
    calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "wants_equal_heads", lambda *_: True)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *qkv, **how: calls.append((qkv, how)) or sdpa(*qkv, **how))
    spelled = attend(q, k, v)
    torch.testing.assert_close(spelled, plain)
    torch.testing.assert_close(torch.autograd.grad(spelled.square().sum(), (q, k, v)), gradients)
    ((heads, how),) = calls
    assert {x.size(1) for x in heads} == {6}
    assert not how["enable_gqa"]


@pytest.mark.parametrize(
    ("dtype", "length", "spelled_out"),
    [(torch.bfloat16, 64, True), (torch.bfloat16, EXPLICIT_MAX_TOKENS[torch.bfloat16] + 1, False), (torch.float32, 64, False)],
)
def test_training_takes_the_attention_that_is_faster(dtype, length, spelled_out, monkeypatch) -> None:
    """Spelled out in bf16 for windows that are not long, else SDPA; either way the same result."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, heads, 4).to(dtype) for heads in (2, 1, 1))
    exact, taken = attend_explicit(q.float(), k.float(), v.float()), []
    monkeypatch.setattr(attention, "attend_explicit", lambda *qkv: taken.append(qkv) or attend_explicit(*qkv))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(attend(q, k, v).float(), exact, **tolerance)
    assert bool(taken) == spelled_out


CAPS = {"fixed": 30.0, "tight": 2.0, "widest": 60.0, "none": None, "learned": LearnedCaps(init=30.0)}


@pytest.mark.parametrize("name", CAPS)
def test_caps_and_loss_equal_the_plain_spelling(name) -> None:
    torch.manual_seed(0)
    head = HeadConfig(softcap=CAPS[name]).build(300, 8)
    logits, targets = (torch.randn(50, 300) * 40).requires_grad_(), torch.randint(0, 300, (50,))
    if head.caps is not None:
        with torch.no_grad():
            head.caps.copy_(torch.tensor([11.0, 23.0]))
        expected = torch.where(logits > 0, 11 * torch.tanh(logits / 11), 23 * torch.tanh(logits / 23))
    else:
        cap = CAPS[name]
        expected = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(head.cap(logits), expected, rtol=1e-5, atol=1e-4)
    loss, plain = head.loss(logits, targets), F.cross_entropy(expected, targets)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    actual, wanted = (torch.autograd.grad(x, logits)[0] for x in (loss, plain))
    torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", CAPS)
def test_extreme_logits_keep_loss_and_gradient_finite(name) -> None:
    head = HeadConfig(softcap=CAPS[name]).build(3, 8)
    for row in ([1e6, -1e6, 0.0], [-1e6, -1e6, -1e6], [1e6, 1e6, 1e6], [0.0, 0.0, 0.0]):
        logits = torch.tensor([row], requires_grad=True)
        loss = head.loss(logits, torch.tensor([1]))
        loss.backward()
        assert logits.grad is not None
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


def test_loss_is_the_mean_over_all_positions() -> None:
    model, ids, targets = random_model(CONFIGS["all together"]), tokens(3, 16), tokens(3, 16, seed=1)
    expected = F.cross_entropy(model.logits(ids).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(ids, targets), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_a_batch_do_not_see_each_other(rows) -> None:
    model, ids = random_model(CONFIGS["all together"]), tokens(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids[:rows]), model.logits(ids)[:rows], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("blocks", "pushes"), [(9, 4), (11, 5), (2, 1), (1, 0)])
def test_unet_plans_are_the_contests(blocks, pushes) -> None:
    """The first half pushes; each later step pops, last in first out; with an odd number the last step pops nothing."""
    plan = unet_plan(blocks)
    assert [step.block for step in plan] == list(range(blocks))
    assert [step.push for step in plan] == [True] * pushes + [False] * (blocks - pushes)
    assert [step.pop for step in plan] == [None] * pushes + list(range(pushes)) + [None] * (blocks - 2 * pushes)


def test_looped_plan_of_the_late_leaderboard() -> None:
    """17 applications of 11 blocks (PR #1334), as a U-Net."""
    order = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    plan = unet_plan(order)
    assert [step.block for step in plan] == order
    assert plan[7] == Step(block=4, push=True)
    assert plan[8] == Step(block=5, pop=0)


@pytest.mark.parametrize(("width", "hidden"), [(2.0, 48), (3.55, 85), (1.7, 40), (0.01, 1)])
def test_hidden_width_is_any_multiple(width, hidden) -> None:
    for name in ("base", "swiglu"):
        model = random_model(configured({"mlp": type(CONFIGS[name].mlp)(width=width)}))
        assert model.blocks[0].mlp.up.weight.shape == (hidden, 24)
        assert model.blocks[0].mlp.down.weight.shape == (24, hidden)


def test_value_residual_and_gates_sit_where_they_should() -> None:
    """Parameters exist in the blocks that a part names, and nowhere else."""
    names = [name for name, _ in random_model(CONFIGS["all together"]).named_parameters()]

    def blocks_with(end: str) -> list[int]:
        return [int(name.split(".")[1]) for name in names if name.endswith(end)]

    assert blocks_with("value_residual.mix") == [1, 2]
    assert blocks_with("output_gate.weight") == [1, 2]
    assert blocks_with("extra_value_scale") == [0, 2]
    assert blocks_with("lanes.weight") == [2]
