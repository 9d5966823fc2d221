"""Entropy-adaptive temperature (PR #606): the less certain a prediction, the nearer the temperature is to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COLDEST, HOTTEST = 0.9, 1.05


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits (…, V) over ``clamp(1 - (1 - temperature) (1 - H / ln V), 0.9, 1.05)``, H their entropy in nats. 1 changes nothing.

    It depends on the distribution alone, never on the target, so what comes out is a distribution again.
    """
    if temperature == 1.0:
        return logits
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    share = 1 - entropy / math.log(logits.size(-1))
    return logits / (1 - (1 - temperature) * share).clamp(COLDEST, HOTTEST)
