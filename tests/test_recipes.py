"""Recipes of the contest's size hold the originals' numbers; the form as submitted differs where the original did not do what it said."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from bytefit.config import to_json
from bytefit.model.language_model import Cache
from bytefit.model.linear import Linear, Table
from bytefit.model.loop_positions import LoopPositionsConfig
from bytefit.model.plan import looped_plan
from bytefit.model.trigram import TrigramHashConfig
from bytefit.quant.calibrate import CalibrationConfig, ModelText
from bytefit.recipes import AS_SUBMITTED, SYSTEMS, find_recipe
from bytefit.recipes.sizes import LAB, Known, scaled

ELEVEN = {
    "model.context": 2048,
    "train.seq_len": 2048,
    "train.batch_tokens": 786_432,
    "train.schedule.steps": 3500,
    "train.warmup_steps": 20,
    "train.optimizer.matrices.lr": 0.025,
    "train.optimizer.tables.lr": 0.035,
    "train.optimizer.gains.lr": 0.025,
    "train.optimizer.matrices.weight_decay": 0.04,
    "train.optimizer.tables.weight_decay": 0.04,
    "train.optimizer.gains.weight_decay": 0.04,
    "train.optimizer.matrices.momentum_start": 0.92,
    "train.optimizer.matrices.momentum": 0.99,
    "train.optimizer.matrices.momentum_warmup_steps": 1500,
    "train.optimizer.clip_norm": 0.3,
    "train.average.ema_decay": 0.997,
    "model.attention.rotary.dims": 16,
    "model.depth_scaled_norm": True,
    "model.value_embedding.blocks": [9, 10],
    "model.value_embedding.dim": 128,
    "model.bigram.dim": 128,
    "score.stride": 64,
    "pack.budget_bytes": 16_000_000,
}
LAST_TWO = {
    "score.adapt.optimizer.lr": 1e-4,
    "score.adapt.optimizer.betas": [0.9, 0.999],
    "score.adapt.optimizer.weight_decay": 0.0,
    "score.adapt.trains.last_blocks": 2,
    "score.adapt.clip_norm": 1.0,
}
NUMBERS = {
    "baseline": {
        "train.seq_len": 1024,
        "train.batch_tokens": 524_288,
        "train.schedule.steps": 1200,
        "train.optimizer.matrices.lr": 0.04,
        "train.optimizer.tables.lr": 0.05,
        "train.optimizer.gains.lr": 0.04,
        "train.optimizer.matrices.momentum_start": 0.85,
        "train.optimizer.matrices.momentum": 0.95,
        "train.optimizer.matrices.momentum_warmup_steps": 500,
        "model.mlp.width": 2.0,
        "pack.codec": "zlib",
        "score.headline": "full",
    },
    "pr128": {
        "train.seq_len": 4096,
        "train.batch_tokens": 393_216,
        "train.schedule.steps": 3000,
        "train.optimizer.matrices.lr": 0.02,
        "train.optimizer.tables.lr": 0.03,
        "train.optimizer.gains.lr": 0.02,
        "train.optimizer.matrices.momentum_start": 0.92,
        "train.optimizer.matrices.momentum": 0.99,
        "train.fake_quant.highest": 31,
        "model.mlp.width": 3.0,
        "score.stride": 64,
        "score.headline": "sliding",
    },
    "pr578": ELEVEN
    | {
        "model.bigram.buckets": 2048,
        "model.mlp.width": 3.0,
        "model.mlp.slope": 0.0,
        "model.attention.num_kv_heads": 4,
        "model.attention.exclusive.blocks": [7, 8, 9, 10],
        "train.fake_quant.below": 0.5,
        "pack.quant.mlp.grid.highest": 31,
        "pack.quant.mlp.rounding.block": 128,
        "pack.quant.mlp.rounding.damp": 0.01,
        "pack.codec": "zstd",
        "calibrate.windows": 256,
        "score.adapt.chunk_tokens": 32_768,
        "score.adapt.optimizer.lr": 0.002,
        "score.adapt.optimizer.momentum": 0.9,
        "score.adapt.epochs": 3,
        "score.adapt.trains.first_blocks_frozen": 2,
        "score.adapt.train_chunks": 200,
        "score.adapt.ema_decay": 0.995,
        "score.adapt.clip_norm": 1.0,
        "score.headline": "adapt",
    },
    "pr606": ELEVEN
    | LAST_TWO
    | {
        "model.bigram.buckets": 8192,
        "model.mlp.width": 3.5,
        "model.mlp.slope": 0.5,
        "model.attention.num_kv_heads": 8,
        "model.attention.exclusive.blocks": None,
        "train.fake_quant.below": 0.5,
        "train.fake_quant.rounding.type": "SoftRound",
        "train.average.swa.every": 50,
        "train.average.swa.below": 0.2,
        "pack.quant.prune.share": 0.02,
        "pack.quant.mlp.grid.highest": 15,
        "pack.quant.mlp.rounding.block": 128,
        "pack.quant.mlp.rounding.damp": 0.01,
        "pack.codec": "zstd",
        "score.adapt.stride": 32,
        "score.adapt.chunk_tokens": 131_072,
        "score.adapt.epochs": 3,
        "score.adapt.temperature": 0.98,
        "score.headline": "adapt",
    },
    "pr693": ELEVEN
    | {
        "model.bigram.buckets": 3072,
        "model.mlp.width": 3.0,
        "model.mlp.slope": 0.5,
        "model.attention.value_residual.type": "ValueResidualConfig",
        "train.schedule.steps": 4000,
        "train.average.swa.every": 50,
        "train.average.swa.below": 0.2,
        "train.average.use": "blend",
        "train.average.swa_share": 0.5,
        "train.replay.batches": 100,
        "train.replay.epochs": 2,
        "train.replay.lr_scale": 0.1,
        "train.crown_q.weight": 0.01,
        "train.fake_quant.below": 0.15,
        "pack.quant.mlp.grid.highest": 31,
        "pack.quant.mlp.rounding.damp": 0.01,
        "pack.codec": "lzma",
        "calibrate.windows": 12_288,
        "score.headline": "sliding",
    },
    "pr1171": ELEVEN
    | LAST_TWO
    | {
        "model.bigram.buckets": 6144,
        "model.mlp.width": 3.5,
        "model.mlp.slope": 0.5,
        "model.attention.num_kv_heads": 8,
        "model.attention.exclusive.blocks": None,
        "train.optimizer.matrices.state_dtype": "bfloat16",
        "train.optimizer.clip_when": "before averaging",
        "train.loader.anneal_steps": 1800,
        "train.loader.exponent_start": 0.9,
        "train.loader.exponent_end": 0.5,
        "train.fake_quant.below": 0.15,
        "train.average.swa.every": 50,
        "pack.quant.prune.share": 0.03,
        "pack.quant.mlp.grid.highest": 15,
        "pack.quant.mlp.rounding.block": 64,
        "pack.quant.mlp.rounding.damp": 0.002,
        "pack.codec": "zstd",
        "calibrate.windows": 256,
        "score.adapt.chunk_tokens": 262_144,
        "score.adapt.epochs": 5,
        "score.headline": "adapt",
    },
}  # fmt: skip

GPTQ = {"pack.quant.attention.rounding.downdate": False, "pack.quant.mlp.rounding.downdate": False}
NOT_ROUNDED = {"train.fake_quant": None}
ONE_AVERAGE = {"train.average.use": "ema"}
AFTER_THE_CLOCK = {"train.reserve_seconds": 0.0}
NO_HEAD = {"score.adapt.trains.everywhere": ["gain"]}
BLURRED = {"model.attention.rotary.table_dtype": "bfloat16"}
REALLY_RAN = {
    "baseline": BLURRED,
    "pr128": BLURRED,
    "pr578": GPTQ | NOT_ROUNDED | ONE_AVERAGE | AFTER_THE_CLOCK | {"train.average.swa": None},
    "pr606": GPTQ | NOT_ROUNDED | ONE_AVERAGE | AFTER_THE_CLOCK | NO_HEAD,
    "pr693": NOT_ROUNDED | AFTER_THE_CLOCK,
    "pr1171": GPTQ
    | NOT_ROUNDED
    | ONE_AVERAGE
    | AFTER_THE_CLOCK
    | NO_HEAD
    | {"calibrate.source.type": "RandomIds", "calibrate.source.temperature": None},
}


def at(recipe, path: str):
    value = to_json(recipe)
    for name in path.split("."):
        value = value.get(name) if value is not None else None
    return value


def differences(one, other, path: str = "") -> dict[str, object]:
    """Paths at which the other differs, and what it has there."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {p: v for key in one | other for p, v in differences(one.get(key), other.get(key), f"{path}.{key}".lstrip(".")).items()}
    return {} if one == other else {path: other}


@pytest.mark.parametrize("name", NUMBERS)
def test_settings_are_the_originals(name) -> None:
    recipe = find_recipe(name, "full")
    assert {path: at(recipe, path) for path in NUMBERS[name]} == NUMBERS[name]


@pytest.mark.parametrize("name", REALLY_RAN)
@pytest.mark.parametrize("size", ["full", "lab"])
def test_as_submitted_differs_in_what_really_ran_and_in_nothing_else(name, size) -> None:
    found = differences(to_json(find_recipe(name, size)), to_json(find_recipe(name + AS_SUBMITTED, size)))
    assert found.pop("name") == name + AS_SUBMITTED
    assert found == REALLY_RAN[name]


@pytest.mark.parametrize(("name", "ends"), [("pr128", 22), ("pr578", 10), ("pr606", 5), ("pr693", 10), ("pr1171", 5)])
def test_smaller_sizes_round_to_the_codes_that_their_cap_leaves(name, ends) -> None:
    """What the byte solver made of int6 and int5 at lab size (``dial`` in a run's pack.json), not the contest's ends."""
    assert find_recipe(name, "lab").train.fake_quant.highest == ends


def test_a_full_size_model_writes_its_calibration_text_in_few_passes_that_fit_a_gpu() -> None:
    """A forward pass a token, one after the other; then calibration holds what every matrix of a batch sees."""
    recipe = find_recipe("pr1171", "full")
    windows, seq_len = recipe.calibrate.batch_windows, recipe.train.seq_len
    assert -(-recipe.calibrate.windows // windows) * seq_len < 10_000
    layers = Cache(recipe.model, windows, seq_len, torch.float32, "meta").layers
    cached = sum(held.nbytes for layer in layers for held in (layer.k_BSGK, layer.v_BSGK))

    class Seen(dict):
        def multiplied(self, x, y) -> None:
            self[id(x)] = x

        def looked_up(self, ids, rows) -> None:
            pass

    model, seen = recipe.model.build(orthogonalise=False), Seen()
    for module in model.modules():
        if isinstance(module, Linear | Table):
            module.observer = seen
    with torch.no_grad():
        model.logits(torch.zeros(1, 8, dtype=torch.int64))
    measured = sum(x.nbytes for x in seen.values()) // 8 * windows * seq_len
    assert (round(cached / 1e9, 1), round(measured / 1e9, 1)) == (5.9, 19.6)
    assert find_recipe("pr1171", "lab").calibrate == CalibrationConfig(source=ModelText(), windows=128, batch_windows=16)


def test_side_tables_shrink_with_the_size_and_loops_are_not_guessed() -> None:
    full = find_recipe("pr578", "full")
    with_trigram = replace(full, model=replace(full.model, trigram=TrigramHashConfig(buckets=2048, dim=48)))
    trigram = scaled(with_trigram, LAB, Known(steps=7000)).model.trigram
    assert (trigram.buckets, trigram.dim) == (512, 15)  # a quarter of the rows, 160 of 512 channels
    looped = replace(full.model, loop_positions=LoopPositionsConfig(count=1), plan=looped_plan(11, (0,)))
    with pytest.raises(ValueError, match="no smaller size"):
        scaled(replace(full, model=looped), LAB, Known(steps=7000))


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_size_keeps_the_list_of_techniques(name) -> None:
    """What is there at full size is there at lab and tiny size, with the same choices."""

    def techniques(recipe):
        model, training = recipe.model, recipe.train
        found = {field.name for field in fields(model) if getattr(model, field.name) not in (None, False)}
        parts = fields(model.attention)
        found |= {f"attention.{part.name}" for part in parts if getattr(model.attention, part.name) is not None}
        found |= {field.name for field in fields(training) if getattr(training, field.name) not in (None, False)}
        choices = (training.optimizer.projections, training.optimizer.clip_norm, training.optimizer.clip_when, type(training.loader))
        choices += (training.average and training.average.use, type(model.mlp), model.mlp, recipe.pack.codec)
        choices += (type(recipe.score.adapt), recipe.score.headline)
        return found - {"seconds", "reserve_seconds", "steps", "compile"}, choices

    full = techniques(find_recipe(name, "full"))
    for size in ("lab", "tiny"):
        assert techniques(find_recipe(name, size)) == full
