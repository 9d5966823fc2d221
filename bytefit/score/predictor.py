"""A language model as a predictor of a walk, compiled where the text is long enough to pay for compiling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bytefit.compiled import DoesNotCompile, graphs_allowed
from bytefit.model.language_model import LanguageModel
from bytefit.progress import say
from bytefit.score.temperature import tempered

Shape = tuple[int, int, int]  # of a batch of windows: how many, their inputs, and how many inputs stand before the first scored target

# From this much work in windows of one shape (multiplications in the blocks) they are compiled. On a CPU core so much takes 50 to 80 s,
# compiling 10 to 20 s, and compiled windows about half of the time (benchmarks/scoring.py). The GPU's is a guess: nothing was measured.
COMPILE_FROM = {"cpu": 1e12, "cuda": 5e15}


@dataclass
class ModelPredictor:
    """A language model as a predictor (``harness.Predictor``).

    Attributes:
        temperature: see ``Adapt``.
        compiled_for: batches of this shape go through ``torch.compile``; None where none does.
    """

    model: LanguageModel
    dtype: torch.dtype
    temperature: float = 1.0
    compiled_for: Shape | None = None

    def __post_init__(self) -> None:
        self._compiled: Callable[[Tensor, int], Tensor] | None = None

    def logits(self, ids_BT: Tensor, skip: int) -> Tensor:
        ids_BT = ids_BT.to(self.model.embedding.weight.device)
        if (*ids_BT.shape, skip) != self.compiled_for:
            return self._logits(ids_BT, skip)
        if self._compiled is not None:
            return self._compiled(ids_BT, skip)
        self._compiled = torch.compile(self._logits, dynamic=False)
        try:
            with graphs_allowed():
                return self._compiled(ids_BT, skip)
        except DoesNotCompile as error:
            say(f"torch.compile does not work here ({error}); scoring eagerly, which is slower (is g++ installed?)")
            self._compiled = self._logits
            return self._logits(ids_BT, skip)

    def _logits(self, ids_BT: Tensor, skip: int) -> Tensor:
        hidden = self.model.hidden(ids_BT, self.dtype)
        return tempered(self.model.head_logits(hidden[:, skip:]), self.temperature)


def worth_compiling(model: LanguageModel, shapes: Counter[Shape]) -> Shape | None:
    """The shape that most of a walk's work is in, if compiling pays for it.

    It depends on the whole text and never on where a walk is, so that one that was stopped goes on to the same bits.

    Args:
        shapes: how many batches of each shape the walk will have.
    """
    if not shapes:
        return None
    device = model.embedding.weight.device.type
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    multiplications = sum(sizes[step.block] for step in model.plan)
    shape = max(shapes, key=lambda shape: shapes[shape] * shape[0] * shape[1])
    return shape if multiplications * shapes[shape] * shape[0] * shape[1] >= COMPILE_FROM[device] else None
