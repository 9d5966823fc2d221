"""Causal self-attention with grouped key/value heads, and its key/value cache.

Legend: B batch, T query positions, S key positions, D model width, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bytefit.model.exclusive import ExclusiveConfig, exclude_own_value
from bytefit.model.linear import Linear, multiply, rms_norm
from bytefit.model.output_gate import OutputGate, OutputGateConfig
from bytefit.model.roles import Role, parameter
from bytefit.model.rotary import RotaryConfig, rotate
from bytefit.model.value_residual import ValueResidual, ValueResidualConfig

# Longest window for which training on a CPU spells attention out, by dtype. In bf16 with matrix units two batched matmuls and a fused
# softmax are faster than SDPA, whose backward alone was a third of a step; in fp32 SDPA is the faster one (benchmarks/throughput.py).
# The T x S weights are kept in memory.
EXPLICIT_MAX_TOKENS = {torch.bfloat16: 512}


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """
    Attributes:
        num_heads: query heads; must divide the model width.
        num_kv_heads: key/value heads; must divide ``num_heads``.
        q_gain_init: start of the learned per-head factor on q.
        exclusive: XSA on the heads' outputs.
        output_gate: a gate on each head's output.
        value_residual: values mixed with the first block's, in all blocks but that one.
    """

    num_heads: int
    num_kv_heads: int
    q_gain_init: float = 1.5
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    exclusive: ExclusiveConfig | None = None
    output_gate: OutputGateConfig | None = None
    value_residual: ValueResidualConfig | None = None

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")

    def check_width(self, dim: int) -> None:
        """Raises ValueError where the heads do not fit a stream of ``dim`` channels."""
        if dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide dim {dim}")
        head_dim, rotated = dim // self.num_heads, self.rotary.dims or dim // self.num_heads
        if rotated > head_dim or rotated % 2:
            raise ValueError(f"rotary dims {rotated} do not fit a head of {head_dim} channels (an even number of them, at most all)")
        if rotated == 2 and self.rotary.reference_length is not None:
            raise ValueError("2 rotary dims cannot be stretched; use at least 4, or set reference_length and length to null")
        if self.output_gate is not None and self.output_gate.channels > dim:
            raise ValueError(f"output_gate channels {self.output_gate.channels} are more than dim {dim}")

    def kv_dim(self, dim: int) -> int:
        """Width of keys and of values over all their heads."""
        return self.num_kv_heads * (dim // self.num_heads)


@dataclass
class Shared:
    """What the blocks of one forward pass have in common.

    Attributes:
        cos, sin: rotary tables of the T positions.
        x0_BTD: the normed embedding.
        extra_values: the shared value embedding (B, T, G*K), where the model has one.
        first_values: the first block's values (B, T, G, K), once it has run.
        start: position of the first of the T tokens in the cache.
    """

    cos: Tensor
    sin: Tensor
    x0_BTD: Tensor
    extra_values: Tensor | None = None
    first_values: Tensor | None = None
    start: int = 0


class LayerCache:
    """Keys and values of one plan step, in memory that is allocated once: (B, capacity, G, K) each."""

    def __init__(self, batch: int, capacity: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str):
        self.k_BSGK = torch.zeros(batch, capacity, num_kv_heads, head_dim, dtype=dtype, device=device)
        self.v_BSGK = torch.zeros_like(self.k_BSGK)

    def append(self, k_BTGK: Tensor, v_BTGK: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write at positions ``start``…; return everything up to and including the new positions."""
        end = start + k_BTGK.size(1)
        self.k_BSGK[:, start:end] = k_BTGK
        self.v_BSGK[:, start:end] = v_BTGK
        return self.k_BSGK[:, :end], self.v_BSGK[:, :end]


def attend(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
    """Causal softmax attention with scale 1/sqrt(K); the T queries are the last of the S positions. Returns (B, T, H, K)."""
    num_queries, num_keys = q_BTHK.size(1), k_BSGK.size(1)
    longest = EXPLICIT_MAX_TOKENS.get(q_BTHK.dtype, 0)
    if torch.is_grad_enabled() and q_BTHK.device.type == "cpu" and num_queries == num_keys <= longest:
        return attend_explicit(q_BTHK, k_BSGK, v_BSGK)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    grouped = q.size(1) != k.size(1)
    if grouped and wants_equal_heads(q.device.type, q.dtype):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), 1) for x in (k, v))
        grouped = False
    if num_queries == num_keys:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif num_queries == 1:
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    else:
        mask_TS = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, enable_gqa=grouped)
    return y.transpose(1, 2)


def wants_equal_heads(device: str, dtype: torch.dtype) -> bool:
    """Whether key/value heads are better written out for every query head: in fp32 only the kernel that makes all T x T scores takes
    groups on a GPU (flash and cuDNN refuse fp32, the memory-efficient one refused groups up to torch 2.13)."""
    return device == "cuda" and dtype is torch.float32


def attend_explicit(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    """The same, written as two batched matmuls; query heads of one group are rows of one matmul."""
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.size(2)
    q_BGRK = q_BTHK.transpose(1, 2).reshape(B, G, H // G * T, K)
    k, v = k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
    future_TT = torch.ones(T, T, dtype=torch.bool, device=q_BTHK.device).triu(1)
    scores = (q_BGRK @ k.transpose(-1, -2)).view(B, G, H // G, T, T) * K**-0.5
    weights = scores.masked_fill(future_TT, -torch.inf).softmax(-1)
    y_BHTK = (weights.view(B, G, H // G * T, T) @ v).view(B, H, T, K)
    return y_BHTK.transpose(1, 2)


def takes(blocks: tuple[int, ...] | None, block: int) -> bool:
    """Whether a part's set of blocks names this one (None names all)."""
    return blocks is None or block in blocks


class Attention(nn.Module):
    """Projections without bias, RMS-normalised q and k, rotary positions, a learned gain on q (Parameter Golf baseline), and the
    optional parts.

    Args:
        block: index of the block that it belongs to.
        is_first: whether its values are the ones that the value residual hands on.
        embeds_values: whether the shared value embedding is added here.
    """

    def __init__(self, config: AttentionConfig, dim: int, *, block: int = 0, is_first: bool = True, embeds_values: bool = False):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim, self.kv_dim = dim // config.num_heads, config.kv_dim(dim)
        self.query = Linear(dim, dim, Role.ATTENTION)
        self.key = Linear(dim, self.kv_dim, Role.ATTENTION)
        self.value = Linear(dim, self.kv_dim, Role.ATTENTION)
        self.out = Linear(dim, dim, Role.ATTENTION_OUT, zero_init=True)
        self.q_gain = parameter(torch.full((self.num_heads,), config.q_gain_init), Role.GAIN)
        self.extra_value_scale = parameter(torch.ones(()), Role.GAIN) if embeds_values else None
        self.value_residual: ValueResidual | None = None
        if config.value_residual is not None and not is_first:
            self.value_residual = config.value_residual.build()
        self.exclusive = config.exclusive is not None and takes(config.exclusive.blocks, block)
        self.output_gate: OutputGate | None = None
        if config.output_gate is not None and takes(config.output_gate.blocks, block):
            self.output_gate = config.output_gate.build(self.num_heads)

    def forward(self, x_BTD: Tensor, shared: Shared, cache: LayerCache | None = None) -> Tensor:
        """``cache``: keys and values of earlier positions; the new ones are appended."""
        B, T, D = x_BTD.shape
        q, k, v = multiply(x_BTD, (self.query, self.key, self.value))
        # Seam "qk": norm, rotary positions, gain.
        q_BTHK = rms_norm(q.view(B, T, self.num_heads, self.head_dim))
        k_BTGK = rms_norm(k.view(B, T, self.num_kv_heads, self.head_dim))
        q_BTHK = rotate(q_BTHK, shared.cos, shared.sin) * self.q_gain.to(q.dtype)[:, None]
        k_BTGK = rotate(k_BTGK, shared.cos, shared.sin)
        v_BTGK = self._values(v, shared)
        keys, values = (k_BTGK, v_BTGK) if cache is None else cache.append(k_BTGK, v_BTGK, shared.start)
        y_BTHK = attend(q_BTHK, keys, values)
        # Seam "attn_out": what becomes of the heads' outputs before the output projection.
        if self.exclusive:
            y_BTHK = exclude_own_value(y_BTHK, v_BTGK)
        if self.output_gate is not None:
            y_BTHK = self.output_gate(y_BTHK, x_BTD)
        return self.out(y_BTHK.reshape(B, T, D))

    def _values(self, v_BTF: Tensor, shared: Shared) -> Tensor:
        """Seam "value": what becomes of v before it is attended to. Returns (B, T, G, K)."""
        if self.extra_value_scale is not None and shared.extra_values is not None:
            v_BTF = v_BTF + self.extra_value_scale.to(v_BTF.dtype) * shared.extra_values
        v_BTGK = v_BTF.view(*v_BTF.shape[:2], self.num_kv_heads, self.head_dim)
        if shared.first_values is None:
            shared.first_values = v_BTGK
        if self.value_residual is not None:
            v_BTGK = self.value_residual(v_BTGK, shared.first_values)
        return v_BTGK
