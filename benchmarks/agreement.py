"""Whether a device computes what the CPU computes, under weights for which it matters.

A fresh model's loss says nothing: its table is so small that the loss is about ln(vocabulary) and moves by 0.003 at most, whatever the
blocks do. Here the rows of the tables have length 1 on average and what starts at zero is filled. A model without attention, or one that
attends to the future, is then off by half at some position; bf16 by 1 to 2 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bytefit.compiled import DoesNotCompile, graphs_allowed
from bytefit.data.dataset import Dataset
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import Role
from bytefit.progress import say
from bytefit.recipes.recipe import Recipe
from bytefit.run.steps import new_model

LIMITS = {"float32": 1e-3, "bfloat16": 0.05}  # largest relative error
ROWS = 2


@dataclass(frozen=True)
class Outputs:
    """
    Attributes:
        logits: (B, T, V).
        gradient: of the loss by all query, key and value matrices, as one vector: it comes back through every block and its attention.
    """

    logits: Tensor
    gradient: Tensor

    def errors(self, reference: Outputs) -> dict[str, float]:
        """Relative: of the worst position's logits, and of the gradient."""
        logits = (self.logits - reference.logits).norm(dim=-1) / reference.logits.norm(dim=-1)
        gradient = (self.gradient - reference.gradient).norm() / reference.gradient.norm()
        return {"logits": float(logits.max()), "gradient": float(gradient)}


def model_that_matters(recipe: Recipe) -> LanguageModel:
    model = new_model(recipe)
    torch.manual_seed(1)
    with torch.no_grad():
        for info in model.parameter_infos():
            if info.role is Role.TABLE or not info.parameter.any():
                info.parameter.normal_(std=info.parameter.size(-1) ** -0.5)
    return model


def outputs(model: LanguageModel, tokens: Tensor, dtype: torch.dtype, *, compiled: bool = False) -> Outputs:
    """Of rows of tokens (B, T + 1), on the device that they and the model are on."""
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def forward() -> tuple[Tensor, Tensor]:
        raw = model.raw_logits(model.hidden(ids, dtype))
        return model.head.cap(raw), model.head.loss(raw.flatten(0, 1), targets.flatten())

    if compiled:
        torch.compiler.reset()  # every recipe compiles this function anew, and there is a limit to how often
    logits, loss = torch.compile(forward, dynamic=False)() if compiled else forward()
    gradients = torch.autograd.grad(loss, [info.parameter for info in model.parameter_infos() if info.role is Role.ATTENTION])
    return Outputs(logits.detach().cpu(), torch.cat([gradient.flatten() for gradient in gradients]).cpu())


def agreement(recipe: Recipe, dataset: Dataset, device: str) -> dict[str, dict[str, float]]:
    """The errors of one batch in fp32, bf16 and compiled bf16 there, against fp32 here; without the last where nothing compiles."""
    model = model_that_matters(recipe)
    seq_len = recipe.train.seq_len
    tokens = torch.from_numpy(dataset.train.read(0, ROWS * (seq_len + 1))).view(ROWS, seq_len + 1)
    reference = outputs(model, tokens, torch.float32)
    model, tokens = model.to(device), tokens.to(device)
    found = {
        "float32": outputs(model, tokens, torch.float32).errors(reference),
        "bfloat16": outputs(model, tokens, torch.bfloat16).errors(reference),
    }
    try:
        with graphs_allowed():
            found["bfloat16 compiled"] = outputs(model, tokens, torch.bfloat16, compiled=True).errors(reference)
    except DoesNotCompile as error:
        say(f"torch.compile does not work here ({error}): compiled arithmetic is not compared, and training will be eager")
    return found


def agrees(found: dict[str, dict[str, float]]) -> bool:
    """An error that is no number is not within its limit either."""
    return all(error <= LIMITS[way.split()[0]] for way, errors in found.items() for error in errors.values())
