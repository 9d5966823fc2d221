"""What the systems are made of: for every technique the settings that take it out of a system, and those that put it into the baseline.

Settings are those of ``--set``, at lab size, so that every row of the ablation can be repeated by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from bytefit.config import to_json
from bytefit.model.plan import looped_plan
from bytefit.recipes import find_recipe

Stage = Literal["train", "pack"]


@dataclass(frozen=True)
class Technique:
    """
    Attributes:
        home: the system that it is taken out of (or put into, where that is ours to try).
        change: settings that do so.
        into: settings that put it into the baseline; None where it makes no sense there.
        ours: the change puts it in.
        stage: the first step of a run that it changes; weights are trained again only for ``train``.
        judged: which bits per byte show it: of the float weights, or of the packed ones.
        both: settings that the run without it has as well, in ``home``: what would otherwise change with it.
        both_into: the same in the baseline.
        late: the runs of a pair are the same until late in training, or to its end, so that they come out nearer to one another.
        other_text: the runs of a pair read other text, or the same in other batches, so that they come out further apart.
        note: those in words, or what else there is to know.
    """

    name: str
    home: str
    change: tuple[str, ...]
    into: tuple[str, ...] | None = None
    ours: bool = False
    stage: Stage = "train"
    judged: Literal["float", "packed"] = "float"
    both: tuple[str, ...] = ()
    both_into: tuple[str, ...] = ()
    late: bool = False
    other_text: bool = False
    note: str = ""

    def shared(self, recipe: str) -> tuple[str, ...]:
        """What both runs of a pair have in this recipe."""
        return self.both if recipe == self.home else self.both_into

    @property
    def way(self) -> Literal["out", "in"]:
        return "in" if self.ours else "out"


def _set(path: str, value: Any) -> str:
    return f"{path}={json.dumps(value)}"


def _both(path: str, out: Any, into: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (_set(path, out),), (_set(path, into),)


def _every(paths: list[str], value: Any) -> tuple[str, ...]:
    return tuple(_set(path, value) for path in paths)


_PLAN_OF_6 = [{"block": b, "push": True} for b in range(3)] + [{"block": b, "pop": 5 - b} for b in range(3, 6)]
_DECAYS = [f"train.optimizer.{group}.weight_decay" for group in ("matrices", "tables", "gains")]
_RATES = ("matrices", "tables", "gains")
_GPTQ_MATRICES = ["pack.quant.attention", "pack.quant.mlp"]
_SEQUENTIAL = {"type": "SequentialConfig", "num_spans": 8}
_SHUFFLED = {"type": "ShuffledConfig"}
_COPRIME = {"type": "CoprimeConfig", "anneal_steps": 360, "shard_tokens": 65_536}
_EMA = {"type": "AverageConfig", "ema_decay": 0.985}
_EMA_SWA = _EMA | {"swa": {"type": "SnapshotConfig", "every": 10, "below": 0.2}}
_LATER_FIXED = (_set("train.fake_quant", None), _set("train.average", _EMA))
_STE62 = {"type": "FakeQuantConfig", "rounding": {"type": "StraightThrough"}, "lowest": -62, "highest": 62, "clip": {"type": "RowMaximum"}}

MODEL = (
    Technique("MLP three times as wide, not twice", "pr578", *_both("model.mlp.width", 2.0, 3.0)),
    Technique("leaky slope 0.5 in relu²", "pr693", *_both("model.mlp.slope", 0.0, 0.5)),
    Technique("leaky slope 0.5 in relu²", "pr1171", (_set("model.mlp.slope", 0.0),)),
    Technique(
        "bigram hash",
        "pr1171",
        *_both("model.bigram", None, {"type": "BigramHashConfig", "buckets": 1536, "dim": 40, "orthogonal_gain": 1.0}),
    ),
    Technique("smear gate", "pr578", *_both("model.smear", None, {"type": "SmearGateConfig"})),
    Technique(
        "value embedding",
        "pr578",
        *_both("model.value_embedding", None, {"type": "ValueEmbeddingConfig", "blocks": [4], "dim": 40, "orthogonal_gain": 0.29}),
    ),
    Technique("XSA in the last blocks", "pr578", *_both("model.attention.exclusive", None, {"type": "ExclusiveConfig", "blocks": [3, 4]})),
    Technique("XSA in every block", "pr1171", *_both("model.attention.exclusive", None, {"type": "ExclusiveConfig"})),
    Technique("value residual", "pr693", *_both("model.attention.value_residual", None, {"type": "ValueResidualConfig"})),
    Technique("rotary positions in a quarter of each head", "pr578", *_both("model.attention.rotary.dims", None, 20)),
    Technique(
        "rotary positions stretched to twice the length",
        "pr578",
        _every(["model.attention.rotary.reference_length", "model.attention.rotary.length"], None),
        (_set("model.attention.rotary.reference_length", 256), _set("model.attention.rotary.length", 512)),
    ),
    Technique("rotary tables in fp32", "baseline", (_set("model.attention.rotary.table_dtype", "bfloat16"),)),
    Technique("norms scaled by depth", "pr578", *_both("model.depth_scaled_norm", False, True)),
    Technique("orthogonal start", "pr578", *_both("model.orthogonal_init", None, {"type": "OrthogonalInit", "min_size": 20})),
    Technique("a key and value head for each query head", "pr1171", *_both("model.attention.num_kv_heads", 1, 2)),
    Technique(
        "six blocks, not five",
        "pr128",
        (),
        (_set("model.plan", _PLAN_OF_6),),
        note="eleven and nine at full size; only into the baseline",
    ),
    Technique(
        "windows twice as long",
        "pr128",
        (_set("train.seq_len", 512), _set("train.loader.num_spans", 8), _set("score.window", 512)),
        (_set("model.context", 1024), _set("train.seq_len", 1024), _set("train.loader.num_spans", 4), _set("score.window", 1024)),
        other_text=True,
        note="4,096 and 2,048 tokens at full size",
    ),
)

TRAINING = (
    Technique("weight decay 0.04", "pr578", _every(_DECAYS, 0.0), _every(_DECAYS, 0.04)),
    Technique(
        "momentum 0.99 (warmed up from 0.92), not 0.95 (from 0.85)",
        "pr578",
        (_set("train.optimizer.matrices.momentum", 0.95), _set("train.optimizer.matrices.momentum_start", 0.85)),
        (_set("train.optimizer.matrices.momentum", 0.99), _set("train.optimizer.matrices.momentum_start", 0.92)),
    ),
    Technique(
        "learning rates of 0.025 to 0.035, not 0.04 to 0.05",
        "pr578",
        tuple(_set(f"train.optimizer.{group}.lr", lr) for group, lr in zip(_RATES, (0.04, 0.05, 0.04), strict=True)),
        tuple(_set(f"train.optimizer.{group}.lr", lr) for group, lr in zip(_RATES, (0.025, 0.035, 0.025), strict=True)),
    ),
    Technique("gradients clipped at 0.3", "pr578", *_both("train.optimizer.clip_norm", None, 0.3)),
    Technique(
        "warm-down over half the run, not a tenth",
        "pr578",
        *_both("train.schedule.fraction", 0.09, 0.5),
        both=_LATER_FIXED,
        note="both without fake quantisation and snapshots, which begin with it",
    ),
    Technique("average of the weights (EMA)", "pr578", *_both("train.average", None, _EMA), both=(_set("train.average", _EMA),), late=True),
    Technique(
        "EMA blended with late snapshots",
        "pr693",
        (_set("train.average.use", "ema"),),
        (_set("train.average", _EMA_SWA | {"use": "blend"}),),
        both_into=(_set("train.average", _EMA),),
        late=True,
    ),
    Technique(
        "average chosen on held-out training text",
        "pr1171",
        (_set("train.average.use", "ema"),),
        other_text=True,
        note="without the held-out text the coprime loader walks another way from the first step on",
    ),
    Technique(
        "average chosen on held-out training text",
        "pr578",
        (_set("train.average.use", "ema"),),
        (_set("train.average", _EMA_SWA | {"use": "held_out", "held_out_tokens": 8192}),),
        both_into=(_set("train.average", _EMA),),
        late=True,
    ),
    Technique("average chosen on held-out training text", "pr606", (_set("train.average.use", "ema"),), late=True),
    Technique("coprime loader", "pr1171", *_both("train.loader", _SEQUENTIAL, _COPRIME), other_text=True),
    Technique("windows from all over the text", "pr578", *_both("train.loader", _SHUFFLED, _SHUFFLED), ours=True, other_text=True),
    Technique("side tables' projections under AdamW", "pr1171", (_set("train.optimizer.projections", "matrices"),)),
    Technique(
        "bf16 momentum",
        "pr1171",
        *_both("train.optimizer.matrices.state_dtype", "float32", "bfloat16"),
    ),
    Technique(
        "burst replay",
        "pr693",
        *_both("train.replay", None, {"type": "ReplayConfig", "batches": 20, "epochs": 2, "lr_scale": 0.1}),
        note="its steps shorten what comes before, warm-down included",
    ),
    Technique(
        "fake quantisation from the first step",
        "pr128",
        (_set("train.fake_quant", None),),
        (_set("train.fake_quant", _STE62 | {"below": 1.01}),),
        judged="packed",
        note="in the baseline at the 62 levels a side that its cap leaves",
    ),
    Technique("late fake quantisation, straight through", "pr578", (_set("train.fake_quant", None),), judged="packed"),
    Technique("late fake quantisation, soft rounding", "pr606", (_set("train.fake_quant", None),), judged="packed"),
    Technique("late fake quantisation, sigmoid gradient", "pr693", (_set("train.fake_quant", None),), judged="packed", late=True),
    Technique("late fake quantisation on banks", "pr1171", (_set("train.fake_quant", None),), judged="packed", late=True),
    Technique(
        "CROWN-Q",
        "pr693",
        (_set("train.crown_q", None),),
        (_set("train.crown_q", {"type": "CrownQConfig", "weight": 0.01, "levels": 15, "below": 0.15}),),
        judged="packed",
        late=True,
    ),
)

NEAREST = {"type": "Nearest"}
PACKING = (
    *(
        Technique(
            "feedback (GPTQ)", home, _every([f"{path}.rounding" for path in _GPTQ_MATRICES], NEAREST), stage="pack", judged="packed"
        )
        for home in ("pr578", "pr606", "pr693", "pr1171")
    ),
    *(
        Technique(
            "Cholesky factor in GPTQ, not the inverse as it is",
            home,
            _every([f"{path}.rounding.downdate" for path in _GPTQ_MATRICES], False),
            stage="pack",
            judged="packed",
        )
        for home in ("pr578", "pr606", "pr693", "pr1171")
    ),
    *(
        Technique(
            "clip searched among five percentiles",
            home,
            _every([f"{path}.grid.clip" for path in _GPTQ_MATRICES], {"type": "RowMaximum"}),
            stage="pack",
            judged="packed",
        )
        for home in ("pr578", "pr606", "pr693", "pr1171")
    ),
    Technique("2 % pruned", "pr606", (_set("pack.quant.prune", None),), stage="pack", judged="packed"),
    Technique("3 % pruned", "pr1171", (_set("pack.quant.prune", None),), stage="pack", judged="packed"),
    Technique("up to 10 % of ±1 codes to zero, for finer steps", "pr693", (_set("pack.zero_ones", 0.0),), stage="pack", judged="packed"),
    Technique("calibration on its own text, not on training text", "pr1171",
              (_set("calibrate.source", {"type": "TrainingText"}),), stage="pack", judged="packed"),
    Technique("calibration on its own text, not on random ids", "pr1171",
              (_set("calibrate.source", {"type": "RandomIds"}),), stage="pack", judged="packed"),
    *(
        Technique("zstd (lzma), not zlib", home, (_set("pack.codec", "zlib"),), stage="pack", judged="packed")
        for home in ("pr128", "pr578", "pr606", "pr693", "pr1171")
    ),
    *(
        Technique("our coder of codes", home, (_set("pack.codec", "context"),), ours=True, stage="pack", judged="packed")
        for home in ("baseline", "pr128", "pr578", "pr606", "pr693", "pr1171")
    ),
    *(
        Technique(
            "equal damage and our coder",
            home,
            (
                *_every(
                    [f"pack.quant.{role}" for role in ("table", "head", "attention", "mlp", "projection")],
                    {"type": "MatrixQuant", "grid": {"type": "EqualDamageGrid"}, "rounding": NEAREST},
                ),
                _set("pack.quant.prune", None),
                _set("pack.zero_ones", 0.0),
                _set("pack.quant.gain_step", 1 / 256),
                _set("pack.codec", "context"),
                _set("calibrate", {"type": "CalibrationConfig", "source": {"type": "TrainingText"}, "windows": 128, "batch_windows": 16}),
            ),
            ours=True,
            stage="pack",
            judged="packed",
        )
        for home in ("baseline", "pr128", "pr578", "pr606", "pr693", "pr1171")
    ),
)  # fmt: skip


def _tried(name: str, *settings: str) -> Technique:
    return Technique(name, "pocket", settings, ours=True)


_EIGHT_BITS = to_json(find_recipe("pr578", "lab").pack.quant.attention)
_EIGHT_BITS["grid"] |= {"lowest": -127, "highest": 127}
_STAGES = [{"type": "LengthStage", "until": until / 12, "seq_len": seq_len} for until, seq_len in ((1, 64), (2, 128), (3, 256))]
_TWICE = (
    _set("model.plan", to_json(looped_plan(3, (0, 1)))),
    _set("model.loop_positions", {"type": "LoopPositionsConfig", "count": 3}),
)
_CADENCE = {"type": "CadenceConfig", "plan": to_json(looped_plan(3, (2,)))}


def _experiment(name: str, *settings: str, both: tuple[str, ...] = (), other_text: bool = False, note: str = "") -> Technique:
    return Technique(name, "pr578", settings, ours=True, both=both, other_text=other_text, note=note)


EXPERIMENTS = (  # on the list of PR #578, and not in what it submitted; numbers as there, lengths and widths at this size
    _experiment("trigram hash", _set("model.trigram", {"type": "TrigramHashConfig", "buckets": 512, "dim": 15})),
    _experiment("two more heads for later tokens", _set("train.multi_token", {"type": "MultiTokenConfig"})),
    _experiment("SwiGLU, as many weights", _set("model.mlp", {"type": "SwigluConfig", "width": 2.0})),
    _experiment("D2Z schedule", _set("train.schedule.fraction", 1.0), _set("train.schedule.ramp_steps", 40),
                both=_LATER_FIXED, note="both without fake quantisation and snapshots, which begin with the warm-down"),
    _experiment("Mousse", _set("train.optimizer.matrices.mousse_beta", 0.99)),
    _experiment("windows that lengthen", _set("train.lengths", _STAGES), other_text=True),
    _experiment(
        "batches that grow",
        _set("train.batch_warmup", {"type": "BatchWarmupConfig", "tokens": 1365, "steps": 200}),
        both=(_set("train.micro_batch_tokens", 1024),),
        other_text=True,
    ),
    _experiment("distillation from the EMA in the last steps", _set("train.distil", {"type": "DistilConfig", "steps": 70}),
                note="5 % of the steps, by which what comes before is shorter"),
    Technique("eight bits for attention's outputs", "pr578", (_set("pack.quant.attention_out", _EIGHT_BITS),), ours=True, stage="pack",
              judged="packed"),
)  # fmt: skip

_EMA_99 = {"type": "AverageConfig", "ema_decay": 0.99}
POCKET = (
    Technique("bigram hash", "pocket", (_set("model.bigram", None),)),
    Technique("smear gate", "pocket", (_set("model.smear", None),)),
    Technique("XSA in every block", "pocket", (_set("model.attention.exclusive", None),)),
    Technique("value embedding", "pocket", (_set("model.value_embedding", None),)),
    Technique("leaky slope 0.5 in relu²", "pocket", (_set("model.mlp.slope", 0.0),)),
    Technique("windows of 128 tokens, not 256", "pocket", (_set("train.seq_len", 256), _set("score.window", 256)), other_text=True),
    _tried("value residual", _set("model.attention.value_residual", {"type": "ValueResidualConfig"})),
    _tried("attention output gate", _set("model.attention.output_gate", {"type": "OutputGateConfig"})),
    _tried("MLP four times as wide", _set("model.mlp.width", 4.0)),
    _tried("rotary positions in a quarter of each head", _set("model.attention.rotary.dims", 16)),
    _tried("norms scaled by depth", _set("model.depth_scaled_norm", True)),
    _tried("weight decay 0.04", *_every(_DECAYS, 0.04)),
    _tried("gradients clipped at 0.3", _set("train.optimizer.clip_norm", 0.3)),
    Technique("average of the weights (EMA 0.99)", "pocket", (_set("train.average", _EMA_99),), ours=True, late=True),
    _tried("warm-down over the whole run", _set("train.schedule.fraction", 1.0)),
    _tried("Polar Express", _set("train.optimizer.matrices.coefficients", "polar_express")),
    _tried("rows of the momentum normalised", _set("train.optimizer.matrices.row_normalise", True)),
    _tried("its three blocks twice, with loop positions", *_TWICE),
    _tried("its three blocks twice, at every third step", *_TWICE, _set("train.cadence", _CADENCE)),
    Technique(
        "half the tokens a step",
        "pocket",
        (_set("train.batch_tokens", 2048), _set("train.micro_batch_tokens", 2048)),
        ours=True,
        other_text=True,
    ),
)

TECHNIQUES: tuple[Technique, ...] = (*MODEL, *TRAINING, *PACKING, *EXPERIMENTS, *POCKET)
