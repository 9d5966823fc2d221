"""The language model: embed, run the plan, read the logits.

Read this file, then ``block.py`` and ``attention.py``, and you know the model; every optional part stands in a file of its own.
Legend: B batch, T positions, D model width, V vocabulary, N = B*T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bytefit.model.attention import Attention, AttentionConfig, LayerCache, Shared, takes
from bytefit.model.bigram import BigramHashConfig
from bytefit.model.block import Block
from bytefit.model.head import HeadConfig
from bytefit.model.lanes import Lanes, ParallelLanesConfig, merge_lanes
from bytefit.model.linear import OrthogonalInit, Table, rms_norm
from bytefit.model.loop_positions import LoopPositionsConfig
from bytefit.model.mlp import MlpConfig
from bytefit.model.plan import Plan, check_plan, num_blocks, num_positions, num_skips
from bytefit.model.roles import ParameterInfo, Role, parameter, role_of
from bytefit.model.rotary import rotary_table
from bytefit.model.smear import SmearGateConfig
from bytefit.model.trigram import TrigramHashConfig
from bytefit.model.value_embedding import ValueEmbeddingConfig

MAX_CONTEXT = 65_536


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that the weights' shapes and meaning depend on. A part that is None is not there.

    Attributes:
        vocab_size: ids of the tokenizer (taken from the dataset when a run starts).
        dim: width of the residual stream.
        context: longest window in tokens that the model is used with; sets the length of the position tables.
        plan: which block runs when; the number of blocks follows from it.
        embed_init_std: standard deviation of the embedding table at the start.
        depth_scaled_norm: the norms of block l are multiplied by 1/sqrt(l + 1) (layer-norm scale, PR #315).
        lanes: two residual streams from some block on.
        orthogonal_init: orthogonal starts instead of PyTorch's.
    """

    vocab_size: int
    dim: int
    context: int
    plan: Plan
    bigram: BigramHashConfig | None = None
    trigram: TrigramHashConfig | None = None
    loop_positions: LoopPositionsConfig | None = None
    smear: SmearGateConfig | None = None
    attention: AttentionConfig
    value_embedding: ValueEmbeddingConfig | None = None
    mlp: MlpConfig
    depth_scaled_norm: bool = False
    lanes: ParallelLanesConfig | None = None
    head: HeadConfig
    embed_init_std: float = 0.005
    orthogonal_init: OrthogonalInit | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 65_536:
            raise ValueError(f"vocab_size {self.vocab_size} must lie in 2..65536")
        if not 2 <= self.dim <= 65_536:
            raise ValueError(f"dim {self.dim} must lie in 2..65536")
        if not 2 <= self.context <= MAX_CONTEXT:
            raise ValueError(f"context {self.context} must lie in 2..{MAX_CONTEXT}")
        if self.embed_init_std < 0:
            raise ValueError(f"embed_init_std {self.embed_init_std} must not be negative")
        check_plan(self.plan)
        check_positions(self, self.plan)
        if self.loop_positions is not None and self.loop_positions.count > self.dim:
            raise ValueError(f"loop_positions count {self.loop_positions.count} is more than dim {self.dim} has orthogonal directions")
        self.attention.check_width(self.dim)
        for name, blocks in self._block_sets():
            for block in blocks:
                if not 0 <= block < num_blocks(self.plan):
                    raise ValueError(f"{name} names block {block}; the plan has the blocks 0..{num_blocks(self.plan) - 1}")

    def _block_sets(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every set of blocks that a part names."""
        attention = self.attention
        yield "attention.exclusive", (attention.exclusive and attention.exclusive.blocks) or ()
        yield "attention.output_gate", (attention.output_gate and attention.output_gate.blocks) or ()
        yield "value_embedding", self.value_embedding.blocks if self.value_embedding else ()
        yield "lanes", (self.lanes.start,) if self.lanes else ()

    def build(self, *, orthogonalise: bool = True) -> LanguageModel:
        """A freshly initialised model (torch's global generator decides the weights).

        Args:
            orthogonalise: False leaves the orthogonal start out, where the weights will be overwritten anyway.
        """
        model = LanguageModel(self)
        if orthogonalise and self.orthogonal_init is not None:
            self.orthogonal_init.apply(model)
        return model

    def build_block(self, block: int) -> Block:
        embeds_values = self.value_embedding is not None and takes(self.value_embedding.blocks, block)
        attention = Attention(
            self.attention, self.dim, block=block, is_first=block == self.plan[0].block, embeds_values=embeds_values
        )  # fmt: skip
        norm_scale = (block + 1) ** -0.5 if self.depth_scaled_norm else 1.0
        lanes = self.lanes.build() if self.lanes is not None and block >= self.lanes.start else None
        return Block(self.dim, attention, self.mlp, norm_scale=norm_scale, lanes=lanes)


def check_positions(config: ModelConfig, plan: Plan) -> None:
    """Raises ValueError where the plan asks for loop positions that the model does not have."""
    held = config.loop_positions.count if config.loop_positions else 0
    if num_positions(plan) > held:
        raise ValueError(f"the plan asks for {num_positions(plan)} loop positions; model.loop_positions has {held}")


class Cache:
    """Keys and values of every plan step for incremental decoding of up to ``capacity`` positions, and the last tokens read."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        attention = config.attention
        head_dim = config.dim // attention.num_heads
        self.layers = [LayerCache(batch, capacity, attention.num_kv_heads, head_dim, dtype, device) for _ in config.plan]
        self.length = 0  # positions held; set it back to 0 to forget them all
        self.last_ids = torch.zeros(batch, 0, dtype=torch.int64, device=device)


class LanguageModel(nn.Module):
    """Maps token ids to next-token logits.

    Attributes:
        plan: the plan that runs; the config's, but for a curriculum that starts with another one (``run_plan``).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.plan = config, config.plan
        self.embedding = Table(torch.randn(config.vocab_size, config.dim) * config.embed_init_std)
        self.bigram = config.bigram.build(config.dim) if config.bigram else None
        self.trigram = config.trigram.build(config.dim) if config.trigram else None
        self.smear = config.smear.build(config.dim) if config.smear else None
        kv_dim = config.attention.kv_dim(config.dim)
        self.value_embedding = config.value_embedding.build(config.vocab_size, kv_dim) if config.value_embedding else None
        self.blocks = nn.ModuleList(config.build_block(block) for block in range(num_blocks(config.plan)))
        self.loop_positions: nn.Parameter | None = config.loop_positions.build(config.dim) if config.loop_positions else None
        self.skip_scales = parameter(torch.ones(num_skips(config.plan), config.dim), Role.GAIN)
        self.head = config.head.build(config.vocab_size, config.dim)
        cos, sin = rotary_table(config.attention.rotary, config.dim // config.attention.num_heads, config.context)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def run_plan(self, plan: Plan) -> None:
        """Run another plan over the same blocks from now on.

        Raises:
            ValueError: it names other blocks than the config's plan, has more steps, skips or loop positions, or starts elsewhere with a
                value residual.
        """
        check_plan(plan)
        check_positions(self.config, plan)
        own = self.config.plan
        for what, asked, held in (("skips", num_skips(plan), num_skips(own)), ("steps", len(plan), len(own))):
            if asked > held:
                raise ValueError(f"the plan has {asked} {what}, more than model.plan ({held})")
        if num_blocks(plan) != num_blocks(own):
            raise ValueError(f"the plan must run the same blocks as model.plan: it has {num_blocks(plan)}, not {num_blocks(own)}")
        if self.config.attention.value_residual is not None and plan[0].block != own[0].block:
            raise ValueError(f"with a value residual the plan must start with block {own[0].block}, not {plan[0].block}")
        self.plan = plan

    def embed(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Seam "embed": the table's rows (B, T, D), what is added to them, the norm, the smear gate."""
        x = self.embedding(ids_BT, dtype)
        if self.bigram is not None:
            x = x + self.bigram(ids_BT, dtype)
        if self.trigram is not None:
            x = x + self.trigram(ids_BT, dtype)
        x = rms_norm(x)
        return x if self.smear is None else self.smear(ids_BT, x)

    @property
    def lookback(self) -> int:
        """How many tokens before its own ``embed`` needs for a position."""
        return max((table.lookback for table in (self.bigram, self.trigram) if table is not None), default=0) + (self.smear is not None)

    def hidden(self, ids_BT: Tensor, dtype: torch.dtype, cache: Cache | None = None) -> Tensor:
        """The normed last hidden state (B, T, D), computed in ``dtype``.

        With a cache, ``ids`` continue the positions that it holds, and are appended to it.
        """
        start = cache.length if cache is not None else 0
        end = start + ids_BT.size(1)
        if end > self.config.context:
            raise ValueError(f"{end} positions are more than the model's context of {self.config.context}")
        if cache is None:
            x0 = self.embed(ids_BT, dtype)
        else:
            seen_BT = torch.cat([cache.last_ids, ids_BT], dim=1) if start else ids_BT
            x0 = self.embed(seen_BT, dtype)[:, -ids_BT.size(1) :]
            cache.last_ids = seen_BT[:, max(0, seen_BT.size(1) - self.lookback) :]
            cache.length = end
        extra_values = self.value_embedding(ids_BT, dtype) if self.value_embedding is not None else None
        shared = Shared(self.cos[start:end], self.sin[start:end], x0, extra_values, start=start)
        lanes: Lanes = (x0,)
        skips: list[Tensor] = []
        for i, step in enumerate(self.plan):
            if step.position is not None:
                assert self.loop_positions is not None
                position = self.loop_positions[step.position].to(dtype)
                lanes = tuple(lane + position for lane in lanes)
            if step.pop is not None:
                skip = self.skip_scales[step.pop].to(dtype) * skips.pop()
                lanes = tuple(lane + skip for lane in lanes)
            lanes = self.blocks[step.block](lanes, shared, cache.layers[i] if cache is not None else None)
            if step.push:
                skips.append(merge_lanes(lanes))
        return rms_norm(merge_lanes(lanes))

    def raw_logits(self, x_BTD: Tensor) -> Tensor:
        return self.head.raw_logits(x_BTD, self.embedding)

    def head_logits(self, x_BTD: Tensor) -> Tensor:
        """Logits (B, T, V) in fp32 from hidden states."""
        return self.head.cap(self.raw_logits(x_BTD))

    def logits(self, ids_BT: Tensor, dtype: torch.dtype = torch.float32, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) in fp32: position t predicts token t + 1 from tokens 0..t."""
        return self.head_logits(self.hidden(ids_BT, dtype, cache))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` given ``ids``: the training loss."""
        return self.head.loss(self.raw_logits(self.hidden(ids_BT, dtype)).flatten(0, 1), targets_BT.flatten())

    def parameter_infos(self) -> Iterator[ParameterInfo]:
        """Every parameter once, with its role and block, in the order in which the model holds them."""
        for name, made in self.named_parameters():
            owner = name.split(".")
            block = int(owner[1]) if owner[0] == "blocks" else None
            yield ParameterInfo(name, made, role_of(made), block)
