"""Where the parameters start."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bytefit.model.head import HeadConfig
from bytefit.model.language_model import LanguageModel, ModelConfig
from bytefit.model.linear import OrthogonalInit
from bytefit.model.loop_positions import LoopPositionsConfig
from bytefit.recipes import find_recipe
from tests.model.parts import OTHER_FORMS, TOGETHER, configured

GAIN = 0.3
SIDE_TABLES = {part: dataclasses.replace(TOGETHER[part], orthogonal_gain=GAIN) for part in ("bigram", "trigram", "value_embedding")}
STARTS_AT_ZERO = ("attention.out.weight", "mlp.down.weight", "head.matrix.weight", "bigram.table.weight", "trigram.table.weight")
BECOMES_ORTHOGONAL = ("query.weight", "key.weight", "value.weight", "mlp.up.weight", "mlp.gate.weight", "projection.weight")


def built(config: ModelConfig, *, orthogonalise: bool = True) -> LanguageModel:
    torch.manual_seed(0)
    return config.build(orthogonalise=orthogonalise)


def gain_of(weight: torch.Tensor) -> float | None:
    """The factor that every singular value of an orthogonal start equals; None where they differ."""
    values = torch.linalg.svdvals(weight.detach().double())
    return float(values.mean()) if values.max() - values.min() < 1e-5 else None


@pytest.mark.parametrize("forms", [TOGETHER, OTHER_FORMS], ids=["relu squared", "swiglu"])
@pytest.mark.parametrize(
    ("min_size", "default"), [(10, []), (11, ["projection"]), (12, ["projection"]), (13, ["projection", "key", "value"])]
)
def test_orthogonal_starts(forms, min_size, default) -> None:
    """Linear maps with both sides of at least ``min_size`` become orthogonal, but those that start at zero; nothing else changes.

    Side tables are 10 wide and their projections have a gain of their own; keys and values are 12 wide (24 in the other forms).
    """
    config = configured(forms | SIDE_TABLES | {"orthogonal_init": OrthogonalInit(min_size=min_size)})
    if config.attention.num_kv_heads == 4:
        default = [name for name in default if name == "projection"]
    model, usual = built(config), dict(built(config, orthogonalise=False).named_parameters())
    for name, p in model.named_parameters():
        owner = name.removesuffix(".weight").split(".")[-1]
        if name.endswith(STARTS_AT_ZERO):
            assert not p.any(), name
        elif owner in default or not name.endswith(BECOMES_ORTHOGONAL):
            assert torch.equal(p, usual[name]), name
        else:
            assert gain_of(p) == pytest.approx(GAIN if owner == "projection" else 1.0, rel=1e-5), name
            assert gain_of(usual[name]) is None, name


def test_loop_positions_start_orthogonal_and_of_their_length() -> None:
    """Whether or not maps start so: as many as the model is wide still are."""
    model = built(configured({"loop_positions": LoopPositionsConfig(count=24, scale=0.01)}))
    torch.testing.assert_close(model.loop_positions @ model.loop_positions.T, 1e-4 * torch.eye(24), rtol=0, atol=1e-9)


def test_no_two_orthogonal_starts_are_the_same() -> None:
    model = built(configured(TOGETHER | {"orthogonal_init": OrthogonalInit(min_size=1)}))
    queries = [block.attention.query.weight for block in model.blocks]
    assert not torch.allclose(queries[0], queries[1], atol=1e-2)
    assert not torch.allclose(queries[1], queries[2], atol=1e-2)


def test_without_orthogonal_init_starts_are_pytorchs() -> None:
    model = built(configured(OTHER_FORMS))
    for name, p in model.named_parameters():
        if name.endswith(("query.weight", "up.weight", "projection.weight")):
            bound = 1 / math.sqrt(p.size(1))
            assert 0.8 * bound < float(p.detach().abs().max()) <= bound, name
            assert float(p.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2), name


def test_starts_are_the_originals() -> None:
    model = built(configured({"dim": 96, "vocab_size": 1024} | {k: v for k, v in TOGETHER.items() if k != "attention.q_gain_init"}))
    starts = dict(model.named_parameters())
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.005, rel=0.03)
    assert float(starts["value_embedding.table.weight"].detach().std()) == pytest.approx(0.01, rel=0.03)
    assert not starts["bigram.table.weight"].any()
    constants = {
        "bigram.scale": 0.05,
        "value_embedding.scale": 0.1,
        "smear.gate": 0.0,
        "skip_scales": 1.0,
        "head.caps": 20.0,
        "attention.q_gain": 1.5,
        "attention.extra_value_scale": 1.0,
        "attention.output_gate.weight": 0.0,
        "mix_stream": 1.0,
        "mix_embedding": 0.0,
        "attention_scale": 1.0,
        "mlp_scale": 1.0,
        "lanes.weight": 1.0,
    }
    for end, start in constants.items():
        found = [p for name, p in starts.items() if name.endswith(end)]
        assert found, end
        assert all(torch.equal(p, torch.full_like(p, start)) for p in found), end
    mixes = [p.tolist() for name, p in starts.items() if name.endswith("value_residual.mix")]
    assert mixes == [pytest.approx([0.01, 0.99])] * 2  # in the two blocks after the first


def test_untied_head_starts_at_zero() -> None:
    model = built(configured({"head": HeadConfig(tied=False)}))
    assert model.head.matrix is not None
    assert not model.head.matrix.weight.any()


@pytest.mark.parametrize("name", ["pr578", "pr606", "pr693", "pr1171"])
def test_contest_systems_start_orthogonal(name) -> None:
    """Both sides of 64 or more, side tables' projections by 1/sqrt(22) in all but the last."""
    config = find_recipe(name, "full").model
    assert config.orthogonal_init == OrthogonalInit(min_size=64)
    assert config.bigram is not None
    assert config.value_embedding is not None
    gain = 1.0 if name == "pr1171" else 22**-0.5
    assert config.bigram.orthogonal_gain == config.value_embedding.orthogonal_gain == pytest.approx(gain)
    small = built(dataclasses.replace(config, dim=128, attention=dataclasses.replace(config.attention, num_heads=4, num_kv_heads=4)))
    assert small.bigram is not None
    assert gain_of(small.bigram.projection.weight) == pytest.approx(gain, rel=1e-5)
