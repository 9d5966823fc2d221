from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bytefit.model.attention import AttentionConfig, attend, attend_explicit
from bytefit.model.head import HeadConfig, cap_logits, cross_entropy
from bytefit.model.inspect import num_parameters
from bytefit.model.language_model import Cache, LanguageModel, ModelConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import Step, unet_plan
from bytefit.model.rotary import RotaryConfig, rotary_table, rotate
from bytefit.recipes import find_recipe

SMALL = ModelConfig(
    vocab_size=300,
    dim=32,
    context=48,
    plan=unet_plan(5),
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, rotary=RotaryConfig(dims=4)),
    mlp=ReluSquaredConfig(width=2),
    head=HeadConfig(),
)


def random_model(config: ModelConfig = SMALL) -> LanguageModel:
    """Every parameter away from its start, so that nothing is hidden behind a zero."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1.0 if p.ndim == 1 else 0.0))
    return model


def reference_logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """Spec 1.7 in float64, one position and one head at a time."""
    config, w = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    heads, groups = config.attention.num_heads, config.attention.num_kv_heads
    width, dims = config.dim // heads, config.attention.rotary.dims or config.dim // heads

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)

    def turn(x: torch.Tensor, position: int) -> torch.Tensor:
        out = x.clone()
        for j in range(dims // 2):
            angle = position * config.attention.rotary.base ** (-2 * j / dims)
            a, b = x[j], x[j + dims // 2]
            out[j] = a * math.cos(angle) + b * math.sin(angle)
            out[j + dims // 2] = -a * math.sin(angle) + b * math.cos(angle)
        return out

    def attention(prefix: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (x @ w[f"{prefix}.{part}.weight"].T for part in ("query", "key", "value"))
        rows = []
        for t in range(len(x)):
            outs = []
            for h in range(heads):
                g = h // (heads // groups)
                qh = turn(norm(q[t, h * width : (h + 1) * width]), t) * w[f"{prefix}.q_gain"][h]
                part = slice(g * width, (g + 1) * width)
                scores = torch.stack([qh @ turn(norm(k[s, part]), s) / math.sqrt(width) for s in range(t + 1)])
                outs.append(torch.softmax(scores, 0) @ v[: t + 1, part])
            rows.append(torch.cat(outs))
        return torch.stack(rows) @ w[f"{prefix}.out.weight"].T

    x = x0 = norm(w["embedding"][ids])
    skips: list[torch.Tensor] = []
    for step in config.plan:
        if step.pop is not None:
            x = x + w["skip_scales"][step.pop] * skips.pop()
        b = f"blocks.{step.block}"
        x = w[f"{b}.mix_stream"] * x + w[f"{b}.mix_embedding"] * x0
        x = x + w[f"{b}.attention_scale"] * attention(f"{b}.attention", norm(x))
        hidden = torch.relu(norm(x) @ w[f"{b}.mlp.up.weight"].T) ** 2
        x = x + w[f"{b}.mlp_scale"] * (hidden @ w[f"{b}.mlp.down.weight"].T)
        if step.push:
            skips.append(x)
    logits = norm(x) @ w["embedding" if config.head.tied else "output"].T
    cap = config.head.softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, head=HeadConfig(tied=False, softcap=None)),
        dataclasses.replace(SMALL, plan=(Step(block=0, push=True), Step(block=1), Step(block=1), Step(block=0, pop=0))),
        dataclasses.replace(SMALL, plan=(Step(block=0), Step(block=1)), attention=AttentionConfig(num_heads=4, num_kv_heads=4)),
    ],
    ids=["baseline", "untied", "shared blocks", "full rotary, no grouping"],
)
def test_logits_equal_the_formula(config) -> None:
    model = random_model(config)
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    expected = reference_logits(model, ids[0])
    with torch.no_grad():
        assert torch.allclose(model.logits(ids)[0].double(), expected, atol=2e-3, rtol=1e-4)
    assert torch.allclose(model.logits(ids)[0].double(), expected, atol=2e-3, rtol=1e-4)  # the path with gradients


def test_baseline_has_exactly_the_contests_parameters() -> None:
    assert num_parameters(find_recipe("baseline", "full").model) == 17_059_912


def test_future_never_moves_the_past() -> None:
    model = random_model()
    ids = torch.randint(0, 300, (1, 40))
    changed = ids.clone()
    changed[0, 20:] = torch.randint(0, 300, (20,))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(model.logits(ids)[0, :20], model.logits(changed)[0, :20])
            assert not torch.equal(model.logits(ids)[0, 20:], model.logits(changed)[0, 20:])


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 1, 12, 19]])
def test_cache_gives_the_same_logits(pieces) -> None:
    model = random_model()
    ids = torch.randint(0, 300, (3, 40))
    cache = Cache(SMALL, 3, 48, torch.float32)
    with torch.no_grad():
        parts = [model.logits(part, cache=cache) for part in ids.split(pieces, dim=1)]
        assert torch.allclose(torch.cat(parts, 1), model.logits(ids), atol=1e-4)
        cache.length = 0  # forgetting: old entries must not leak
        assert torch.allclose(model.logits(ids[:, 5:15], cache=cache), model.logits(ids[:, 5:15]), atol=1e-4)


def test_explicit_attention_equals_sdpa() -> None:
    q, k, v = torch.randn(2, 33, 6, 8), torch.randn(2, 33, 3, 8), torch.randn(2, 33, 3, 8)
    with torch.no_grad():
        assert torch.allclose(attend_explicit(q, k, v), attend(q, k, v), atol=1e-5)


def test_rotary_tables_stay_fp32_and_tell_positions_apart() -> None:
    """bf16 tables collapse positions above 256 (spec 2.5); ours must not, even when the model computes in bf16."""
    cos, sin = rotary_table(RotaryConfig(), 64, 4096)
    assert cos.dtype == torch.float32
    assert cos.shape == (4096, 1, 32)
    assert not torch.allclose(cos[3000], cos[3001])
    x = torch.randn(1, 4096, 2, 64)
    assert torch.allclose(rotate(x, cos, sin).norm(dim=-1), x.norm(dim=-1), rtol=1e-4)
    assert random_model().to(torch.bfloat16).cos.dtype == torch.bfloat16  # .to() would break it …
    assert random_model().hidden(torch.zeros(1, 2, dtype=torch.long), torch.bfloat16).dtype == torch.bfloat16  # … so we never call it


def test_softcap_and_loss_equal_the_plain_spelling() -> None:
    logits = torch.randn(50, 300) * 40
    targets = torch.randint(0, 300, (50,))
    capped = 30 * torch.tanh(logits / 30)
    assert torch.allclose(cap_logits(logits, 30.0), capped, atol=1e-4)
    for cap, plain in ((30.0, capped), (None, logits)):
        assert torch.allclose(cross_entropy(logits, targets, cap), torch.nn.functional.cross_entropy(plain, targets), rtol=1e-5)
    extreme = torch.tensor([[1e6, -1e6]], requires_grad=True)
    cross_entropy(extreme, torch.tensor([1]), 30.0).backward()
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()


def test_every_parameter_gets_a_gradient_and_a_role() -> None:
    model = random_model(dataclasses.replace(SMALL, head=HeadConfig(tied=False)))
    ids = torch.randint(0, 300, (4, 48))
    model(ids, ids).backward()
    infos = list(model.parameter_infos())
    assert len(infos) == len(list(model.parameters()))
    assert [info.name for info in infos if info.parameter.grad is None or not info.parameter.grad.any()] == []
    assert {info.block for info in infos} == {None, 0, 1, 2, 3, 4}


def test_compiled_and_bf16_losses_agree() -> None:
    model, ids = random_model(), torch.randint(0, 300, (2, 48))
    plain = model(ids, ids)
    assert torch.allclose(torch.compile(model, dynamic=False)(ids, ids, torch.float32), plain, rtol=1e-4)
    assert torch.allclose(model(ids, ids, torch.bfloat16), plain, rtol=3e-2)


def test_unet_plan_is_the_baselines() -> None:
    plan = unet_plan(9)
    assert [step.push for step in plan] == [True] * 4 + [False] * 5
    assert [step.pop for step in plan] == [None] * 4 + [0, 1, 2, 3, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": ()}, "plan is empty"),
        ({"plan": (Step(block=1),)}, "without a gap"),
        ({"plan": (Step(block=0, pop=0),)}, "empty skip stack"),
        ({"plan": (Step(block=0, push=True),)}, "unused"),
        ({"vocab_size": 70_000}, "vocab_size"),
        ({"context": 1}, "context"),
    ],
)
def test_impossible_configs_say_why(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="num_kv_heads 3 must divide num_heads 4"):
        AttentionConfig(num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="must divide dim 32"):
        dataclasses.replace(SMALL, attention=AttentionConfig(num_heads=5, num_kv_heads=5))
