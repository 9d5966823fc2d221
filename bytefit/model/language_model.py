"""The language model: embed, run the plan, read the logits.

Read this file, then ``block.py`` and ``attention.py``, and you know the model. Legend: B batch, T positions, D model
width, V vocabulary, N = B*T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.attention import AttentionConfig, LayerCache
from bytefit.model.block import Block
from bytefit.model.head import HeadConfig, cap_logits, cross_entropy
from bytefit.model.linear import rms_norm
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import Plan, check_plan, num_blocks, num_skips
from bytefit.model.roles import ParameterInfo, Role, parameter, role_of
from bytefit.model.rotary import rotary_table

MAX_CONTEXT = 65_536


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that the weights' shapes and meaning depend on.

    Attributes:
        vocab_size: ids of the tokenizer (taken from the dataset when a run starts).
        dim: width of the residual stream.
        context: longest window in tokens that the model is used with; sets the length of the position tables.
        plan: which block runs when; the number of blocks follows from it.
        embed_init_std: standard deviation of the embedding table at the start.
    """

    vocab_size: int
    dim: int
    context: int
    plan: Plan
    attention: AttentionConfig
    mlp: ReluSquaredConfig
    head: HeadConfig
    embed_init_std: float = 0.005

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 65_536:
            raise ValueError(f"vocab_size {self.vocab_size} must lie in 2..65536")
        if self.dim < 2:
            raise ValueError(f"dim {self.dim} must be at least 2")
        if not 2 <= self.context <= MAX_CONTEXT:
            raise ValueError(f"context {self.context} must lie in 2..{MAX_CONTEXT}")
        check_plan(self.plan)
        self.attention.check_width(self.dim)

    def build(self) -> LanguageModel:
        """A freshly initialised model (torch's global generator decides the weights)."""
        return LanguageModel(self)


class Cache:
    """Keys and values of every plan step for incremental decoding of up to ``capacity`` positions."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype):
        attention = config.attention
        head_dim = config.dim // attention.num_heads
        self.layers = [LayerCache(batch, capacity, attention.num_kv_heads, head_dim, dtype) for _ in config.plan]
        self.length = 0  # positions held; set it back to forget


class LanguageModel(nn.Module):
    """Maps token ids to next-token logits."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = parameter(torch.randn(config.vocab_size, config.dim) * config.embed_init_std, Role.TABLE)
        self.blocks = nn.ModuleList(Block(config.dim, config.attention, config.mlp) for _ in range(num_blocks(config.plan)))
        self.skip_scales = parameter(torch.ones(num_skips(config.plan), config.dim), Role.GAIN)
        self.output = None if config.head.tied else parameter(torch.zeros(config.vocab_size, config.dim), Role.HEAD)
        cos, sin = rotary_table(config.attention.rotary, config.dim // config.attention.num_heads, config.context)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids_BT: Tensor, dtype: torch.dtype, cache: Cache | None = None) -> Tensor:
        """The normed last hidden state (B, T, D), computed in ``dtype``.

        With a cache, ``ids`` continue the positions that it holds, and are appended to it.
        """
        start = cache.length if cache is not None else 0
        end = start + ids_BT.size(1)
        cos, sin = self.cos[start:end], self.sin[start:end]
        # Seam "embed": whatever is added to the table's rows, before or after the norm.
        x = x0 = rms_norm(F.embedding(ids_BT, self.embedding).to(dtype))
        skips: list[Tensor] = []
        for i, step in enumerate(self.config.plan):
            if step.pop is not None:
                x = x + self.skip_scales[step.pop].to(dtype) * skips.pop()
            x = self.blocks[step.block](x, x0, cos, sin, cache.layers[i] if cache is not None else None, start)
            if step.push:
                skips.append(x)
        if cache is not None:
            cache.length = end
        return rms_norm(x)

    def raw_logits(self, x_BTD: Tensor) -> Tensor:
        table = self.embedding if self.output is None else self.output
        return F.linear(x_BTD, table.to(x_BTD.dtype))

    def head_logits(self, x_BTD: Tensor) -> Tensor:
        """Logits (B, T, V) in fp32 from hidden states."""
        return cap_logits(self.raw_logits(x_BTD), self.config.head.softcap)

    def logits(self, ids_BT: Tensor, dtype: torch.dtype = torch.float32, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) in fp32: position t predicts token t + 1 from tokens 0..t."""
        return self.head_logits(self.hidden(ids_BT, dtype, cache))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` given ``ids``: the training loss."""
        logits_NV = self.raw_logits(self.hidden(ids_BT, dtype)).flatten(0, 1)
        return cross_entropy(logits_NV, targets_BT.flatten(), self.config.head.softcap)

    def parameter_infos(self) -> Iterator[ParameterInfo]:
        """Every parameter once, with its role and block, in the order in which the model holds them."""
        for name, made in self.named_parameters():
            owner = name.split(".")
            block = int(owner[1]) if owner[0] == "blocks" else None
            yield ParameterInfo(name, made, role_of(made), block)
