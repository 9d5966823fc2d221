"""Which weights of a finished run are packed: the recipe's fixed choice, or the best on held-out training text."""

from __future__ import annotations

import torch

from bytefit.data.shards import TokenStream
from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.optim.average import AverageName, Averages, Weights
from bytefit.progress import say
from bytefit.train.config import TrainConfig


def hold_out(config: TrainConfig, stream: TokenStream) -> tuple[TokenStream, TokenStream | None]:
    """What is trained on, and the end of the split that is not (None where the recipe chooses nothing by it).

    Raises:
        UserError: the split is too short to hold anything out.
    """
    if config.average is None or not config.chooses_on_text:
        return stream, None
    kept = len(stream) - config.average.held_out_tokens
    if kept < config.seq_len + 1:
        raise UserError(
            f"the training split holds {len(stream)} tokens; holding out {config.average.held_out_tokens} leaves too few; "
            "lower train.average.held_out_tokens"
        )
    return stream.part(0, kept), stream.part(kept, len(stream))


def choose_weights(
    model: LanguageModel,
    averages: Averages | None,
    held_out: TokenStream | None,
    config: TrainConfig,
    dtype: torch.dtype,
    *,
    tell: bool = True,
) -> tuple[AverageName, Weights, dict[str, float]]:
    """The name and the fp32 weights to pack, and the held-out losses (nats a token) of all candidates where they decided."""
    last = dict(model.named_parameters())
    if averages is None:
        return "last", {name: p.detach().float() for name, p in last.items()}, {}
    candidates = averages.candidates(last)
    use = averages.config.use
    if use != "held_out":
        if use in candidates:
            return use, candidates[use], {}
        if tell:
            say(f"no snapshot was taken for train.average.use={use} (the run is shorter than its swa.every or never below swa.below)")
        fallback: AverageName = "ema" if "ema" in candidates else "last"
        return fallback, candidates[fallback], {}
    assert held_out is not None
    losses = {name: _loss_under(model, weights, held_out, config, dtype) for name, weights in candidates.items()}
    best = min(losses, key=lambda name: losses[name])
    return best, candidates[best], {str(name): loss for name, loss in losses.items()}


@torch.no_grad()
def _loss_under(model: LanguageModel, weights: Weights, held_out: TokenStream, config: TrainConfig, dtype: torch.dtype) -> float:
    """Mean loss of the held-out text's windows with these weights; the model keeps its own."""
    parameters = dict(model.named_parameters())
    kept = {name: p.clone() for name, p in parameters.items()}
    seq_len, rows = min(config.seq_len, len(held_out) - 1), max(1, config.micro_batch_tokens // config.seq_len)
    starts = list(range(0, len(held_out) - seq_len, seq_len))
    total = 0.0
    try:
        for name, p in parameters.items():
            p.copy_(weights[name])
        for first in range(0, len(starts), rows):
            batch = starts[first : first + rows]
            tokens = torch.stack([torch.from_numpy(held_out.read(start, seq_len + 1)) for start in batch]).to(model.embedding.weight.device)
            total += float(model(tokens[:, :-1], tokens[:, 1:], dtype)) * len(batch)
    finally:
        for name, p in parameters.items():
            p.copy_(kept[name])
    return total / len(starts)
