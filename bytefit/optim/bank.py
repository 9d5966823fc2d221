"""Banks: equal-shaped matrices in one piece of memory, updated together and shared out over the ranks (PR #1171).

The original keeps a bank parameter *and* the per-layer matrices, which then go stale. Here the layers' parameters are views of
the bank: there is one copy of each weight, and whoever reads a layer's parameter (the forward pass, averages, quantisation,
export) reads the bank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bytefit.ranks import Ranks, Wait


class Bank:
    """N equal-shaped matrices, padded to a multiple of the number of ranks.

    Each rank owns an equal share of the padded stack: it gets that share of the mean gradient, makes its update, and hands the
    update to the others.

    Args:
        parameters: 2-D, of one shape; their memory becomes the bank's.
        dtype: in which gradients travel and momentum is kept.
    """

    def __init__(self, parameters: list[nn.Parameter], ranks: Ranks, dtype: torch.dtype):
        self.parameters, self.ranks, self.dtype = parameters, ranks, dtype
        count, shape, device = len(parameters), parameters[0].shape, parameters[0].device
        self.share_size = -(-count // ranks.world)
        self.weights = torch.stack([parameter.detach() for parameter in parameters])
        for parameter, view in zip(parameters, self.weights.unbind(), strict=True):
            parameter.data = view
        self._gradients = torch.zeros(self.share_size * ranks.world, *shape, dtype=dtype, device=device)
        self._share: Tensor | None = None  # of the mean gradient, once it was asked for
        self._wait: Wait | None = None
        self._update: tuple[Tensor, Wait] | None = None  # every rank's shares, on their way

    def start_reduce(self) -> None:
        """Start sharing out the mean of all ranks' gradients.

        Raises:
            RuntimeError: a matrix got no gradient; it does not take part in the loss.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) < len(self.parameters):
            raise RuntimeError(f"a matrix of shape {tuple(self.parameters[0].shape)} got no gradient; it does not take part in the loss")
        torch._foreach_copy_(list(self._gradients[: len(gradients)].unbind()), gradients)
        self._share, self._wait = self.ranks.scatter_sum_started(self._gradients)

    def gradient_share(self) -> Tensor:
        """This rank's share of the mean gradient (share_size, rows, cols); may be changed in place."""
        if self._share is None:
            self.start_reduce()
        assert self._share is not None
        if self._wait is not None:
            self._wait()
            self._wait = None
            if self.ranks.world > 1:
                self._share /= self.ranks.world
        return self._share

    def start_gather(self, update: Tensor) -> None:
        """Start handing this rank's share of the update to the others."""
        self._share = None
        self._update = self.ranks.gather_started(update)

    @torch.no_grad()
    def apply(self, *, decay: float, step: float) -> None:
        """``W ← decay·W − step·update``, once every rank's share is here."""
        assert self._update is not None
        update, wait = self._update
        wait()
        if decay != 1.0:
            self.weights.mul_(decay)
        self.weights.add_(update[: len(self.parameters)], alpha=-step)
        self._update = None
