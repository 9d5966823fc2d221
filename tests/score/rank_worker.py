"""Scores one text under several protocols on this rank and its peers, and writes what each target cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from bytefit.ranks import join_ranks
from bytefit.score.adapt import AdamW, Adapt, DocumentLora, Sgd
from bytefit.score.harness import Watch
from bytefit.score.scorer import new_tape, score_tapes
from bytefit.score.windows import Full, Sliding
from tests.score.conftest import make_model

PROTOCOLS = {
    "full": Full(window=8),
    "sliding": Sliding(window=8, stride=3),
    "contest": Sliding(window=8, stride=2, contest=True),
    # The schedule of eight ranks with two sequences each: sixteen sequences a step, whoever computes them.
    "sgd": Adapt(window=8, stride=3, chunk_tokens=150, optimizer=Sgd(lr=0.05), batch_sequences=16, ema_decay=0.5),
    "uneven": Adapt(window=8, stride=3, chunk_tokens=37, optimizer=AdamW(lr=0.01), batch_sequences=3),
    "documents": DocumentLora(window=8, chunk_tokens=4, lr=0.02, batch_documents=2),
}


def text() -> np.ndarray:
    rng = np.random.default_rng(3)
    pieces = [np.concatenate([[1], np.resize(rng.integers(3, 37, 5), length)]) for length in (60, 9, 130, 44, 100)]
    return np.concatenate(pieces).astype(np.int64)


def score_all(out: Path) -> int:
    ranks = join_ranks()
    model, results = make_model(), {}
    for name, protocol in PROTOCOLS.items():
        tape = new_tape(text(), protocol)
        steps = score_tapes(model, [tape], protocol, torch.float32, Watch(ranks=ranks))
        results |= {
            f"{name}.nats": torch.from_numpy(tape.nats),
            f"{name}.times": torch.from_numpy(tape.times),
            f"{name}.steps": torch.tensor(steps),
        }
    if ranks.is_first:
        safetensors.torch.save_file(results, out)
    ranks.barrier()
    return 0
