"""A score's progress on disk: what was booked, and what was learned, at the end of a chunk.

A score that is stopped and started again with the same model, tokens, protocol and dtype goes on from there, to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from bytefit.files import write_bytes
from bytefit.progress import say
from bytefit.ranks import Ranks
from bytefit.score.tape import Tape

if TYPE_CHECKING:
    from bytefit.score.harness import Learns

EVERY_SECONDS = 15.0


@dataclass
class Journal:
    """
    Attributes:
        key: what is being scored and how (JSON data); a file with another key is not taken up.
        every_seconds: the least time between two saves.
    """

    path: Path
    key: dict[str, Any]
    every_seconds: float = EVERY_SECONDS
    _saved: float = field(default_factory=time.monotonic)

    def save(self, tapes: list[Tape], learner: Learns | None, chunks: int, ranks: Ranks, *, now: bool = False) -> None:
        """Write the state after so many chunks, where it is time."""
        if not ranks.is_first or not (now or time.monotonic() - self._saved >= self.every_seconds):
            return
        tensors = {f"learner.{name}": value.contiguous().cpu() for name, value in (learner.state() if learner else {}).items()}
        for i, tape in enumerate(tapes):
            tensors |= {f"nats.{i}": torch.from_numpy(tape.nats), f"times.{i}": torch.from_numpy(tape.times)}
        data = safetensors.torch.save(tensors, {"key": json.dumps(self.key), "chunks": str(chunks)})
        write_bytes(self.path, data + hashlib.sha256(data).digest())
        self._saved = time.monotonic()

    def restore(self, tapes: list[Tape], learner: Learns | None) -> int:
        """How many chunks are done already; the tapes and the learner are brought to where they were."""
        if not self.path.exists():
            return 0
        raw = self.path.read_bytes()
        data, digest = raw[:-32], raw[-32:]
        if hashlib.sha256(data).digest() != digest:
            say(f"{self.path} is damaged; the score starts again from the beginning")
            return 0
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if json.loads(header["key"]) != json.loads(json.dumps(self.key)):
            say(f"{self.path} holds the progress of another score; this one starts from the beginning")
            return 0
        tensors = safetensors.torch.load(data)
        for i, tape in enumerate(tapes):
            tape.nats, tape.times = tensors[f"nats.{i}"].numpy().copy(), tensors[f"times.{i}"].numpy().astype(np.int64)
        if learner is not None:
            learner.load_state({name.removeprefix("learner."): value for name, value in tensors.items() if name.startswith("learner.")})
        chunks = int(header["chunks"])
        say(f"going on with the score in {self.path}: {chunks} chunks are done")
        return chunks

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
