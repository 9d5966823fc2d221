"""An artifact as a folder of files that other tools read, and back: ``model.safetensors``, ``config.json``, the tokenizer, a model card.

The weights are what the artifact's codes decode to, in fp32, so that the folder computes the same numbers; it is larger than the artifact,
which stays the thing that was measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from bytefit.artifact.load import Artifact, build_model
from bytefit.config import from_json, to_json
from bytefit.data.byte_table import byte_table
from bytefit.data.tokenizer import read_tokenizer
from bytefit.errors import UserError
from bytefit.files import read_bytes, read_json, write_bytes, write_json
from bytefit.model.language_model import LanguageModel, ModelConfig

FORMAT = 1  # of config.json
WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.model", "README.md"
UNPACKED = (WEIGHTS, CONFIG, TOKENIZER, CARD)


def unpack_artifact(artifact: Artifact, out: Path) -> None:
    """Write the folder.

    Raises:
        UserError: ``out`` holds something else, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_unpacked(out))):
        raise UserError(f"{out} exists and is not an unpacked artifact; choose another --out")
    weights = {name: parameter.detach().contiguous() for name, parameter in artifact.model.named_parameters()}
    write_bytes(out / WEIGHTS, safetensors.torch.save(weights, {"format": "pt"}))
    write_bytes(out / TOKENIZER, artifact.tokenizer.to_bytes())
    write_json(out / CONFIG, config_of(artifact))
    write_bytes(out / CARD, model_card(artifact).encode())


def is_unpacked(folder: Path) -> bool:
    """Whether its ``config.json`` is ours: other models' folders have files of the same names."""
    try:
        config = read_json(folder / CONFIG)
    except UserError:
        return False
    return isinstance(config, dict) and config.get("model_type") == "bytefit"


def config_of(artifact: Artifact) -> dict[str, Any]:
    """What ``config.json`` holds: the model, and what is known of the artifact that it came from."""
    return {
        "model_type": "bytefit",
        "format": FORMAT,
        "model": to_json(artifact.model.config),
        "notes": artifact.notes,
        "artifact": {"bytes": artifact.size, "sha256": artifact.sha256, "bytes_by_part": artifact.parts, "codec": artifact.codec},
    }


def load_unpacked(folder: Path) -> Artifact:
    """The artifact that :func:`unpack_artifact` wrote to ``folder``; its logits are the same, bit for bit.

    Raises:
        UserError: missing or damaged files, or files that do not belong together.
    """
    config = read_json(folder / CONFIG)
    try:
        if (config["model_type"], config["format"]) != ("bytefit", FORMAT):
            raise UserError(f"{folder / CONFIG} is not of an artifact that this version unpacked; unpack it again")
        model_config = from_json(ModelConfig, config["model"], "model")
        notes, packed = config["notes"], config["artifact"]
        known = packed["bytes"], packed["sha256"], packed["bytes_by_part"], notes, packed["codec"]
    except TypeError as error:
        raise UserError(f"{folder / CONFIG} is damaged ({error}); unpack the artifact again") from None
    tokenizer = read_tokenizer(folder / TOKENIZER)
    if tokenizer.vocab_size != model_config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, its model {model_config.vocab_size}")
    return Artifact(_read_weights(model_config, folder / WEIGHTS).eval(), tokenizer, byte_table(tokenizer), *known, {})


def _read_weights(config: ModelConfig, path: Path) -> LanguageModel:
    data = read_bytes(path)
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); unpack the artifact again") from None
    model = build_model(config, len(data))
    parameters = dict(model.named_parameters())
    if {name: p.shape for name, p in parameters.items()} != {name: t.shape for name, t in weights.items()}:
        raise UserError(f"{path} holds other weights than the model in {CONFIG} has; unpack the artifact again")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return model


def model_card(artifact: Artifact) -> str:
    """``README.md``: what the file itself and its notes say, and nothing that was not measured."""
    config = artifact.model.config
    parameters = sum(parameter.numel() for parameter in artifact.model.parameters())
    name = " ".join(str(artifact.notes[key]) for key in ("recipe", "size") if key in artifact.notes)
    parts = "\n".join(f"| {part} | {size:,} |" for part, size in artifact.parts.items())
    notes = "\n".join(f"| {key} | `{json.dumps(value)}` |" for key, value in artifact.notes.items())
    return f"""\
---
library_name: bytefit
pipeline_tag: text-generation
tags:
- bytefit
---

# {name or "A bytefit language model"}

A language model that fits in one file of **{artifact.size:,} bytes**: weights, tokenizer, config and header.
It has {parameters:,} parameters, reads up to {config.context:,} tokens and knows {config.vocab_size:,} of them.

`{WEIGHTS}` holds what the artifact's codes decode to, in fp32, under the names of bytefit's own model; it is not made for other programs'
model classes.

```python
from bytefit.hub import from_pretrained

artifact = from_pretrained(".")  # this folder, or the name of a repository on the hub
logits = artifact.model.logits(ids)  # ids: int64 (B, T); logits: fp32 (B, T, V)
```

| part of the artifact | bytes |
| --- | ---: |
{parts}
| **all** | **{artifact.size:,}** |

SHA-256 of the artifact: `{artifact.sha256}`

What was noted when it was packed:

| note | value |
| --- | --- |
{notes}

Scores belong to a text and a protocol: measure yours with `bytefit score`.
"""
