"""Protocols that learn, the obvious way: one target at a time, float64, plain loops, nothing shared with the package but the model.

Written from the definitions (docs/scoring.md), not from ``bytefit/score``.
"""

from __future__ import annotations

import copy
import math

import torch


def double(model):
    """A float64 copy. Parameters keep their roles."""
    roles = [p.role for p in model.parameters()]
    made = copy.deepcopy(model).double()
    for p, role in zip(made.parameters(), roles, strict=True):
        p.role = role
    return made


def log_probabilities(model, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """(V,) of what follows ``ids``."""
    x = model.hidden(torch.tensor([ids]), torch.float64)[0, -1]
    cap = model.config.head.softcap
    logits = cap * torch.tanh(model.embedding.weight @ x / cap)
    if temperature != 1.0:
        p = torch.softmax(logits, -1)
        entropy = -sum(float(q) * math.log(float(q)) for q in p)
        t = 1 - (1 - temperature) * (1 - entropy / math.log(len(p)))
        logits = logits / min(1.05, max(0.9, t))
    return torch.log_softmax(logits, -1)


def context_start(target: int, window: int, stride: int) -> int:
    """The first input that a target may be seen from: windows end at window, window + stride, …"""
    if target <= window:
        return 0
    return math.ceil((target - window) / stride) * stride


def window_first(target: int, window: int, stride: int) -> int:
    """The first target of the window that scores this one."""
    return 1 if target <= window else window + (math.ceil((target - window) / stride) - 1) * stride + 1


def adapt(model, tokens: list[int], protocol, trains: list) -> list[float]:
    """Nats of every target under ``Adapt`` with SGD or AdamW, written out by hand; ``trains`` are the parameters that learn."""
    config, n = protocol, len(tokens) - 1
    num_chunks = math.ceil(n / config.chunk_tokens)
    learned = num_chunks - 1 if config.train_chunks is None else min(config.train_chunks, num_chunks - 1)
    live = [p.detach().clone() for p in trains]
    momenta = [torch.zeros_like(p) for p in trains]
    squares = [torch.zeros_like(p) for p in trains]
    updates = 0
    nats = [0.0] * n
    for chunk in range(num_chunks):
        for target in range(1, n + 1):
            if (window_first(target, config.window, config.stride) - 1) // config.chunk_tokens == chunk:
                with torch.no_grad():
                    ids = tokens[context_start(target, config.window, config.stride) : target]
                    nats[target - 1] = -float(log_probabilities(model, ids, config.temperature)[tokens[target]])
        if chunk >= learned:
            continue
        average = [p.detach().clone() for p in trains]
        if config.ema_decay is not None:
            for p, w in zip(trains, live, strict=True):
                p.data.copy_(w)
        part = tokens[chunk * config.chunk_tokens : (chunk + 1) * config.chunk_tokens + 1]
        sequences = [part[i : i + config.window + 1] for i in range(0, len(part) - 1, config.window)]
        batches = [sequences[i : i + config.batch_sequences] for i in range(0, len(sequences), config.batch_sequences)]
        steps = config.epochs * len(batches)
        for step in range(steps):
            scale = 1.0
            span = num_chunks if config.train_chunks is None else config.train_chunks
            if config.schedule == "cosine" and span > 1:
                scale = 0.5 * (1 + math.cos(math.pi * chunk / (span - 1)))
            if config.within_chunk == "cosine" and steps > 1:
                scale *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / (steps - 1)))
            batch = batches[step % len(batches)]

            def gradient(batch=batch):
                total, count = 0.0, 0
                for sequence in batch:
                    for i in range(1, len(sequence)):
                        total = total - log_probabilities(model, sequence[:i])[sequence[i]]
                        count += 1
                return list(torch.autograd.grad(total / count, trains))

            grads = gradient()
            if config.sam_radius is not None:
                norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
                kept = [p.detach().clone() for p in trains]
                for p, g in zip(trains, grads, strict=True):
                    p.data += config.sam_radius * g / norm
                grads = gradient()
                for p, w in zip(trains, kept, strict=True):
                    p.data.copy_(w)
            if config.clip_norm is not None:
                norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
                grads = [g * min(1.0, config.clip_norm / (norm + 1e-6)) for g in grads]  # as PyTorch does
            updates += 1
            rate = config.optimizer.lr * scale
            for i, (p, g) in enumerate(zip(trains, grads, strict=True)):
                if hasattr(config.optimizer, "betas"):
                    b1, b2 = config.optimizer.betas
                    momenta[i] = b1 * momenta[i] + (1 - b1) * g
                    squares[i] = b2 * squares[i] + (1 - b2) * g * g
                    p.data *= 1 - rate * config.optimizer.weight_decay
                    p.data -= rate * (momenta[i] / (1 - b1**updates)) / ((squares[i] / (1 - b2**updates)).sqrt() + 1e-8)
                else:
                    momenta[i] = config.optimizer.momentum * momenta[i] + g
                    p.data -= rate * momenta[i]
        if config.ema_decay is not None:
            live = [p.detach().clone() for p in trains]
            for p, mean in zip(trains, average, strict=True):
                p.data.copy_(config.ema_decay * mean + (1 - config.ema_decay) * p.data)
    return nats
