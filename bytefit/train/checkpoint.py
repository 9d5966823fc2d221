"""Checkpoints: every tensor of a run in one safetensors file, everything else in ``state.json``.

``state.json`` names the tensor file and is written last, by renaming: a run killed while saving keeps its previous
checkpoint whole. The finished state has a file of its own, since it lacks the averages of the one that it may follow at the same step.
Nothing is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bytefit.errors import UserError
from bytefit.files import read_bytes, read_json, write_bytes, write_json

PARTS = ("weights", "average", "final", "optimizer")  # the fields of a checkpoint that hold tensors


@dataclass
class Checkpoint:
    """Where a run stands.

    Attributes:
        weights: the live weights by parameter name.
        average: the averages so far, by ``"{average}/{parameter}"``; empty without any, and once the run is finished.
        final: the weights to pack, by parameter name; empty until the run is finished, and where they are the live ones.
        optimizer: the optimizers' state tensors.
        progress: step, seconds by ledger entry, whether the run is finished, and what it was made from.
    """

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    final: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Raises UserError where the disk is full; the previous checkpoint stays valid."""
    parts = {part: getattr(checkpoint, part) for part in PARTS}
    tensors = {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    name = f"step-{checkpoint.progress['step']:08d}{'-finished' if checkpoint.progress['finished'] else ''}.safetensors"
    write_bytes(folder / name, data)
    write_json(folder / "state.json", {"tensors": name, **checkpoint.progress})
    for old in [*folder.glob("step-*.safetensors"), *folder.glob(".step-*.partial")]:  # a kill while writing leaves the latter
        if old.name != name:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Raises UserError where there is none, or it is damaged."""
    state = read_json(folder / "state.json")
    try:
        name = state.pop("tensors")
        tensors = safetensors.torch.load(read_bytes(folder / name))
    except (KeyError, AttributeError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"the checkpoint in {folder} is damaged ({error}); remove that folder, and --resume begins anew") from None

    def below(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return Checkpoint(**{part: below(f"{part}/") for part in PARTS}, progress=state)
