"""Multi-token prediction: while it trains, a model also says what comes after the next token (tried in PR #578; arXiv 2404.19737)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bytefit.model.language_model import LanguageModel
from bytefit.model.linear import Linear
from bytefit.model.roles import ParameterInfo, Role


@dataclass(frozen=True, kw_only=True)
class MultiTokenConfig:
    """Head k reads the token k + 1 places after this one from the last hidden state. The heads are left behind when training ends.

    Attributes:
        heads: how many; each has an output matrix of its own that starts at zero and is trained with the blocks' matrices.
        weight: of the mean of their losses beside the next token's.
    """

    heads: int = 2
    weight: float = 0.15

    def __post_init__(self) -> None:
        if not 1 <= self.heads <= 64:
            raise ValueError(f"multi_token heads {self.heads} must lie in 1..64")
        if not self.weight >= 0:
            raise ValueError(f"multi_token weight {self.weight} must not be negative")

    def build(self, model: LanguageModel) -> MultiToken:
        return MultiToken(self, model)


class MultiToken(nn.Module):
    """The training loss of ``model`` with more heads beside its own."""

    def __init__(self, config: MultiTokenConfig, model: LanguageModel):
        super().__init__()
        self.model, self.weight = model, config.weight
        vocab_size, dim = model.config.vocab_size, model.config.dim
        self.heads = nn.ModuleList(Linear(dim, vocab_size, Role.MLP, zero_init=True) for _ in range(config.heads))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its value is the next token's loss alone, so that runs with and without can be compared; its gradient is that of all heads."""
        model = self.model
        x_BTD = model.hidden(ids_BT, dtype)
        next_token = model.head.loss(model.raw_logits(x_BTD).flatten(0, 1), targets_BT.flatten())
        later = [
            model.head.loss(head(x_BTD[:, :-ahead]).flatten(0, 1), targets_BT[:, ahead:].flatten())
            for ahead, head in enumerate(self.heads, 1)
        ]
        total = next_token + self.weight * torch.stack(later).mean()
        return next_token.detach() + (total - total.detach())

    def own_infos(self) -> Iterator[ParameterInfo]:
        """The heads' parameters."""
        for name, made in self.heads.named_parameters():
            yield ParameterInfo(f"heads.{name}", made, Role.MLP, None)
