"""Scoring a token sequence with a model under a protocol. Sums are float64."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bytefit.config import to_json
from bytefit.data.byte_table import ByteTable
from bytefit.dtypes import dtype_name
from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.progress import progress_bar
from bytefit.score.windows import Protocol, Window

# Positions in one forward pass. Their logits (fp32, V columns) are the largest tensor of a score.
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Score:
    """A scored sequence.

    Attributes:
        nats: summed cross-entropy of all targets, BOS targets (document ends) included.
        targets: how many tokens were scored; equals the sequence's length minus one.
        bytes: bytes of text that the targets stand for.
    """

    nats: float
    targets: int
    bytes: int
    protocol: Protocol
    dtype: str
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"protocol": to_json(self.protocol), "bits_per_byte": self.bits_per_byte}


def target_nats(model: LanguageModel, tokens: np.ndarray, protocol: Protocol, dtype: torch.dtype, *, title: str = "scoring") -> np.ndarray:
    """Cross-entropy in nats of every target.

    Args:
        tokens: int64 (N,); the first is context only.

    Returns:
        float64 (N - 1,): entry t is the cost of token t + 1.

    Raises:
        UserError: the model's position tables are shorter than the protocol's window.
    """
    if protocol.window > model.config.context:
        raise UserError(f"window {protocol.window} is longer than the model's context of {model.config.context} tokens")
    windows = protocol.windows(len(tokens))
    nats = np.full(max(0, len(tokens) - 1), np.nan)
    device = model.embedding.weight.device
    sequence = torch.from_numpy(tokens).to(device)
    with torch.inference_mode(), progress_bar(total=len(windows), desc=title, unit=" windows") as bar:
        done_nats = done_targets = 0.0
        for batch in _batches(windows):
            # Windows of one batch are equally long, so one forward pass serves them all.
            ids = torch.stack([sequence[w.start : w.end] for w in batch])
            logits = model.logits(ids, dtype)
            for row, w in zip(logits, batch, strict=True):
                skip = w.first - 1 - w.start
                costs = torch.nn.functional.cross_entropy(row[skip:], sequence[w.first : w.end + 1], reduction="none")
                nats[w.first - 1 : w.end] = costs.double().cpu().numpy()
                done_nats += float(nats[w.first - 1 : w.end].sum())
                done_targets += w.end + 1 - w.first
            bar.set_postfix_str(f"{done_nats / max(done_targets, 1) / math.log(2):.4f} bits/token", refresh=False)
            bar.update(len(batch))
    if np.isnan(nats).any():
        raise UserError("the model gave NaN probabilities; its weights are damaged or it diverged in training")
    return nats


def _batches(windows: list[Window]) -> list[list[Window]]:
    """Runs of equally long windows, at most ``BATCH_TOKENS`` positions each."""
    batches: list[list[Window]] = []
    for window in windows:
        length = window.end - window.start
        last = batches[-1] if batches else []
        if last and last[0].end - last[0].start == length and (len(last) + 1) * length <= BATCH_TOKENS:
            last.append(window)
        else:
            batches.append([window])
    return batches


def score(
    model: LanguageModel, tokens: np.ndarray, table: ByteTable, protocol: Protocol, dtype: torch.dtype, *, title: str = "scoring"
) -> Score:
    """Score a sequence: bits per byte under ``protocol``.

    Raises:
        UserError: fewer than two tokens, or tokens that stand for no text.
    """
    if len(tokens) < 2:
        raise UserError(f"cannot score {len(tokens)} tokens; at least 2 are needed")
    start = time.perf_counter()
    nats = target_nats(model, tokens, protocol, dtype, title=title)
    num_bytes = int(table.count(tokens[1:], tokens[:-1]).sum())
    if num_bytes == 0:
        raise UserError("the tokens to score stand for no text at all (only control ids)")
    return Score(float(nats.sum()), len(nats), num_bytes, protocol, dtype_name(dtype), time.perf_counter() - start)
