"""Checkpoints: every tensor of a run in one safetensors file, everything else in ``state.json``.

``state.json`` names the tensor file and is written last, by renaming: a run killed while saving keeps its previous
checkpoint whole. Nothing is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bytefit.errors import UserError
from bytefit.files import read_bytes, read_json, write_bytes, write_json


@dataclass
class Checkpoint:
    """Where a run stands.

    Attributes:
        weights: the live weights by parameter name.
        average: the averaged weights, empty without an average.
        optimizers: each optimizer's state tensors, by ``"{parameter index}.{key}"``.
        progress: step, seconds by ledger entry, whether the run is finished, and what it was made from.
    """

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizers: list[dict[str, Tensor]]
    progress: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Raises UserError where the disk is full; the previous checkpoint stays valid."""
    tensors = {f"weights/{name}": tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in checkpoint.average.items()}
    for i, state in enumerate(checkpoint.optimizers):
        tensors |= {f"optimizer{i}/{name}": tensor for name, tensor in state.items()}
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    name = f"step-{checkpoint.progress['step']:08d}.safetensors"
    write_bytes(folder / name, data)
    write_json(folder / "state.json", {"tensors": name, "optimizers": len(checkpoint.optimizers), **checkpoint.progress})
    for old in [*folder.glob("step-*.safetensors"), *folder.glob(".step-*.partial")]:  # a kill while writing leaves the latter
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Raises UserError where there is none, or it is damaged."""
    state = read_json(folder / "state.json")
    try:
        name, count = state.pop("tensors"), state.pop("optimizers")
        tensors = safetensors.torch.load(read_bytes(folder / name))
    except (KeyError, AttributeError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"the checkpoint in {folder} is damaged ({error}); train again without --resume") from None

    def below(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return Checkpoint(below("weights/"), below("average/"), [below(f"optimizer{i}/") for i in range(count)], state)
