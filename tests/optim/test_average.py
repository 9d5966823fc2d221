from __future__ import annotations

import pytest
import torch

from bytefit.optim.average import AverageConfig, Averages, SnapshotConfig


def walk(config: AverageConfig, scales: list[float], dtype=torch.float32):
    """The weights 1, 2, 3, … after steps with these factors on the learning rates; returns the averages and the last weights."""
    weights = {"w": torch.zeros(2, dtype=dtype), "v": torch.zeros((), dtype=dtype)}
    averages = Averages(config, weights)
    for step, scale in enumerate(scales, 1):
        weights["w"] += 1
        weights["v"] += 2
        averages.update(weights, step=step, lr_scale=scale)
    return averages, weights


def test_ema_is_the_formula_and_leaves_the_weights_alone() -> None:
    averages, weights = walk(AverageConfig(ema_decay=0.9), [1.0] * 4)
    expected = 0.0
    for value in (1, 2, 3, 4):
        expected = 0.9 * expected + 0.1 * value
    assert averages.ema["w"].tolist() == pytest.approx([expected] * 2)
    assert averages.ema["v"].item() == pytest.approx(2 * expected)
    assert weights["w"].tolist() == [4.0, 4.0]


def test_snapshots_are_taken_late_and_every_so_often() -> None:
    config = AverageConfig(swa=SnapshotConfig(every=2, below=0.5), use="swa")
    averages, _ = walk(config, [1.0, 0.9, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert averages.snapshots == 2  # after steps 6 and 8
    assert averages.swa["w"].tolist() == [7.0, 7.0]
    assert walk(config, [1.0] * 8)[0].swa == {}


def test_blend_is_fixed_and_everything_is_fp32() -> None:
    """bf16 weights near 257 cannot even hold odd integers; the averages can."""
    config = AverageConfig(ema_decay=0.5, swa=SnapshotConfig(every=1, below=1.01), use="blend", swa_share=0.25)
    weights = {"w": torch.full((1,), 256.0, dtype=torch.bfloat16)}
    averages = Averages(config, weights)
    weights["w"].fill_(258.0)
    averages.update(weights, step=1, lr_scale=1.0)
    weights["w"].fill_(260.0)
    averages.update(weights, step=2, lr_scale=1.0)
    found = averages.candidates(weights)
    assert {name: value["w"].dtype for name, value in found.items()} == dict.fromkeys(("last", "ema", "swa", "blend"), torch.float32)
    assert found["ema"]["w"].item() == 258.5
    assert found["swa"]["w"].item() == 259.0
    assert found["blend"]["w"].item() == pytest.approx(0.75 * 258.5 + 0.25 * 259.0)


def test_a_saved_average_goes_on_as_if_nothing_had_happened() -> None:
    config = AverageConfig(ema_decay=0.9, swa=SnapshotConfig(every=1, below=1.01), use="blend")
    whole, _ = walk(config, [1.0] * 6)
    half, weights = walk(config, [1.0] * 3)
    taken_up = Averages(config, weights)
    taken_up.load_tensors({n: t.clone() for n, t in half.tensors().items()}, half.snapshots, "cpu")
    for step in (4, 5, 6):
        weights["w"] += 1
        weights["v"] += 2
        taken_up.update(weights, step=step, lr_scale=1.0)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, taken_up.tensors()[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs what it averages"),
        ({"ema_decay": 0.9, "use": "blend"}, "use 'blend' needs"),
        ({"ema_decay": 0.9, "use": "swa"}, "use 'swa' needs"),
        ({"use": "held_out"}, "use 'held_out' needs"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"ema_decay": 0.9, "swa_share": 2.0}, "swa_share 2.0"),
        ({"ema_decay": 0.9, "held_out_tokens": 1}, "held_out_tokens 1"),
    ],
)
def test_bad_settings_are_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        AverageConfig(**settings)
    with pytest.raises(ValueError, match="every 0"):
        SnapshotConfig(every=0)
