"""The plain spelling of a recipe's network and of its optimizer: what one writes first, without any of the package's tricks.

fp32, separate query/key/value projections, SDPA, tanh softcap, PyTorch's cross-entropy, values repeated for each query head, one
Newton–Schulz iteration a matrix. It computes the same numbers (tests compare it) and is what throughput is measured against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.language_model import LanguageModel


def norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def plain_loss(model: LanguageModel, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The training loss of every contest system and of ``pocket``, from the model's own weights."""
    config = model.config
    heads, groups = config.attention.num_heads, config.attention.num_kv_heads
    width = config.dim // heads
    cos, sin = model.cos[: ids_BT.size(1)], model.sin[: ids_BT.size(1)]

    def turn(x: Tensor) -> Tensor:
        half = cos.size(-1)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)

    x = model.embedding.weight[ids_BT]
    if model.bigram is not None:
        rows = torch.full_like(ids_BT, model.bigram.buckets - 1)
        rows[:, 1:] = ((36313 * ids_BT[:, 1:]) ^ (27191 * ids_BT[:, :-1])) % (model.bigram.buckets - 1)
        x = x + model.bigram.scale * F.linear(model.bigram.table.weight[rows], model.bigram.projection.weight)
    x = norm(x)
    if model.smear is not None:
        g = torch.sigmoid(model.smear.gate)
        x = (1 - g) * x + g * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    x0, first_values = x, None
    skips: list[Tensor] = []
    for step in config.plan:
        if step.pop is not None:
            x = x + model.skip_scales[step.pop] * skips.pop()
        block = model.blocks[step.block]
        part = block.attention
        x = block.mix_stream * x + block.mix_embedding * x0
        h = norm(x) * block.norm_scale
        q = turn(norm(F.linear(h, part.query.weight).unflatten(-1, (heads, width)))) * part.q_gain[:, None]
        k = turn(norm(F.linear(h, part.key.weight).unflatten(-1, (groups, width))))
        v = F.linear(h, part.value.weight)
        if part.extra_value_scale is not None:
            extra = model.value_embedding
            v = v + part.extra_value_scale * extra.scale * F.linear(extra.table.weight[ids_BT], extra.projection.weight)
        v = v.unflatten(-1, (groups, width))
        first_values = v if first_values is None else first_values
        if part.value_residual is not None:
            v = part.value_residual.mix[0] * first_values + part.value_residual.mix[1] * v
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=heads != groups
        ).transpose(1, 2)
        if part.exclusive:
            unit = F.normalize(v.repeat_interleave(heads // groups, dim=2), dim=-1)
            y = y - (y * unit).sum(-1, keepdim=True) * unit
        x = x + block.attention_scale * F.linear(y.flatten(2), part.out.weight)
        u = F.linear(norm(x) * block.norm_scale, block.mlp.up.weight)
        x = x + block.mlp_scale * F.linear(torch.where(u > 0, u, block.mlp.slope * u).square(), block.mlp.down.weight)
        if step.push:
            skips.append(x)
    logits = F.linear(norm(x), model.embedding.weight)
    logits = config.head.softcap * torch.tanh(logits / config.head.softcap)
    return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())


class PlainMuon(torch.optim.Optimizer):
    """One matrix at a time, fp32."""

    def __init__(self, parameters: list[nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(0.95).add_(p.grad)
                x = p.grad + 0.95 * momentum
                tall = x.size(0) > x.size(1)
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                p.add_(x.T if tall else x, alpha=-group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)
