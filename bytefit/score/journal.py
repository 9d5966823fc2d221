"""A score's progress on disk: what was booked, and what was learned, at the end of a chunk.

A score that is stopped and started again with the same model, tokens, protocol and dtype goes on from there, to the same bits; a finished
one has nothing left to do. Whoever keeps the result removes the file.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from bytefit.errors import UserError
from bytefit.files import write_bytes
from bytefit.progress import say
from bytefit.ranks import Ranks
from bytefit.score.tape import Tape

if TYPE_CHECKING:
    from bytefit.score.harness import Learns

EVERY_SECONDS = 15.0
PATIENCE = 20  # times what the last save took, at the least, before the next one


@dataclass
class Journal:
    """
    Attributes:
        key: what is being scored and how (JSON data); a file with another key is not taken up.
        every_seconds: the least time between two saves.
        steps: optimizer steps so far, where they are not the learner's own to know.
        earlier_seconds: what was spent before this process took the score up.
    """

    path: Path
    key: dict[str, Any]
    every_seconds: float = EVERY_SECONDS
    steps: int = 0
    earlier_seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _next: float = 0.0
    _can_write: bool = True

    def __post_init__(self) -> None:
        self._next = self._started + self.every_seconds

    @classmethod
    def of(cls, folder: Path, stem: str, key: dict[str, Any]) -> Journal:
        """In a file whose name tells one score from another."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        return cls(folder / f".{stem}.{digest}.progress", key)

    @staticmethod
    def clear(folder: Path, stem: str) -> None:
        """Remove the progress of everything that was scored under this name."""
        for path in folder.glob(f".{stem}.*.progress"):
            path.unlink(missing_ok=True)

    def save(self, tapes: list[Tape], learner: Learns | None, chunks: int, ranks: Ranks, *, now: bool = False) -> None:
        """Write the state after so many chunks, where it is time. Where the file cannot be written the score goes on without."""
        began = time.monotonic()
        if not ranks.is_first or not self._can_write or not (now or began >= self._next):
            return
        tensors = {f"learner.{name}": value.contiguous().cpu() for name, value in (learner.state() if learner else {}).items()}
        for i, tape in enumerate(tapes):
            booked = np.flatnonzero(tape.times)
            end = int(booked[-1]) + 1 if len(booked) else 0
            tensors |= {f"nats.{i}": torch.from_numpy(tape.nats[:end]), f"times.{i}": torch.from_numpy(tape.times[:end].astype(np.int32))}
        record = {"chunks": chunks, "steps": self.steps, "seconds": self.earlier_seconds + began - self._started}
        data = safetensors.torch.save(tensors, {"key": json.dumps(self.key), "record": json.dumps(record)})
        try:
            write_bytes(self.path, data + hashlib.sha256(data).digest())
        except UserError as error:
            say(f"the progress of this score is not kept: {error}")
            self._can_write = False
        ended = time.monotonic()
        self._next = ended + max(self.every_seconds, PATIENCE * (ended - began))

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
        tensors, record = safetensors.torch.load(data), json.loads(header["record"])
        for i, tape in enumerate(tapes):
            nats, times = tensors[f"nats.{i}"].numpy(), tensors[f"times.{i}"].numpy()
            tape.nats[: len(nats)], tape.times[: len(times)] = nats, times
        if learner is not None:
            learner.load_state({name.removeprefix("learner."): value for name, value in tensors.items() if name.startswith("learner.")})
        self.steps, self.earlier_seconds = record["steps"], record["seconds"]
        say(f"going on with the score in {self.path}: {record['chunks']} chunks are done")
        return int(record["chunks"])
