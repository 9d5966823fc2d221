"""Muon: momentum, then every matrix's update orthogonalised. On several ranks each makes its share of every bank's update.

With one rank this is plain Muon with one batched iteration a shape; with several it is Parallel Muon (PR #1171): reduce-scatter
the gradients, orthogonalise one's share, all-gather the updates, while the next bank is being worked on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bytefit.optim.bank import Bank
from bytefit.optim.mousse import Mousse
from bytefit.optim.newton_schulz import CoefficientsName, coefficients_of, normalise_rows, orthogonalise
from bytefit.ranks import Ranks

ONE_RANK = Ranks(0, 1, "cpu")


class Muon:
    """``m ← μm + g``, ``u = g + μm``, ``W ← (1 − lr·wd) W − lr·sqrt(max(1, rows/cols))·NS(u)`` (Keller Jordan 2024).

    Not a ``torch.optim.Optimizer``: its state is shared out over the ranks, and is saved and loaded by calls that all of them make.
    ``param_groups`` look like one's.

    Args:
        parameters: 2-D parameters; those of one shape form one group and one bank, whose momentum is shared out over the ranks.
        lr: the step; multiplied by the schedule through ``group["lr"]``.
        row_normalise: divide each row of u by its length first (MuonEq-R).
        mousse_beta: bring u's rows and columns to one size first, by running means with this decay; None leaves them.
        dtype: arithmetic of the iteration.
        state_dtype: of momentum, and of gradients on their way between ranks.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        coefficients: CoefficientsName = "quintic",
        row_normalise: bool = False,
        mousse_beta: float | None = None,
        dtype: torch.dtype = torch.float32,
        state_dtype: torch.dtype = torch.float32,
        ranks: Ranks = ONE_RANK,
    ):
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        # The largest bank first: its gradients travel while the others' are still being sent.
        members = sorted(by_shape.values(), key=lambda group: -sum(p.numel() for p in group))
        settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups = [{"params": group} | settings for group in members]
        self.banks = [Bank(group, ranks, state_dtype) for group in members]
        # Banks whose matrices are each other's transposes go through one iteration together: more matrices keep more cores busy.
        shapes = [tuple(sorted(bank.weights.shape[1:])) for bank in self.banks]
        self._families = [[i for i, shape in enumerate(shapes) if shape == family] for family in dict.fromkeys(shapes)]
        self._momenta = [bank.weights.new_zeros(bank.share_size, *bank.weights.shape[1:], dtype=state_dtype) for bank in self.banks]
        self._mousse = [Mousse(share, mousse_beta) for share in self._momenta] if mousse_beta is not None else None
        self._coefficients, self._row_normalise, self._dtype = coefficients_of(coefficients, iterations), row_normalise, dtype

    def start(self) -> None:
        """Send every bank's gradients on their way; ``step`` does it otherwise."""
        for bank in self.banks:
            bank.start_reduce()

    def gradient_shares(self) -> list[Tensor]:
        """This rank's shares of the mean gradients, to measure or to scale in place (clipping)."""
        return [bank.gradient_share() for bank in self.banks]

    @torch.no_grad()
    def step(self) -> None:
        """One update; every parameter must have a gradient."""
        travelling: list[int] = []
        for family in self._families:
            directions = orthogonalise([self._momentum_step(i) for i in family], self._coefficients, self._dtype)
            for i, direction in zip(family, directions, strict=True):
                self.banks[i].start_gather(direction)
            for i in travelling:  # the family before this one has been travelling meanwhile
                self._apply(i)
            travelling = family
        for i in travelling:
            self._apply(i)

    def zero_grad(self) -> None:
        for bank in self.banks:
            for parameter in bank.parameters:
                parameter.grad = None

    def _momentum_step(self, index: int) -> Tensor:
        """Nesterov's update of this rank's share of a bank."""
        gradient, share, momentum = self.banks[index].gradient_share(), self._momenta[index], self.param_groups[index]["momentum"]
        share.mul_(momentum).add_(gradient)
        update = gradient.add_(share, alpha=momentum)
        if self._mousse is not None:
            update = self._mousse[index](update)
        return normalise_rows(update) if self._row_normalise else update

    def _apply(self, index: int) -> None:
        group, bank = self.param_groups[index], self.banks[index]
        rows, cols = bank.weights.shape[1:]
        bank.apply(decay=1 - group["lr"] * group["weight_decay"], step=group["lr"] * max(1, rows / cols) ** 0.5)

    def _states(self, index: int) -> dict[str, Tensor]:
        """This rank's share of a bank's states, a row a matrix, by name."""
        return {"momentum": self._momenta[index]} | (self._mousse[index].states() if self._mousse is not None else {})

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole states of each bank, on every rank (all of them must ask): what a checkpoint keeps."""
        whole = {}
        for i, bank in enumerate(self.banks):
            for name, share in self._states(i).items():
                gathered, wait = bank.ranks.gather_started(share)
                wait()
                whole[f"{i}.{name}"] = gathered[: len(bank.parameters)]
        return whole

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take this rank's share of what ``state_tensors`` gave, whatever the number of ranks then was.

        Raises:
            KeyError, ValueError: they belong to other banks.
        """
        for i, bank in enumerate(self.banks):
            for name, share in self._states(i).items():
                whole, expected = tensors[f"{i}.{name}"], (len(bank.parameters), *share.shape[1:])
                if whole.shape != expected:
                    raise ValueError(f"{name} of shape {tuple(whole.shape)} for a bank that has {expected}")
                first = bank.ranks.rank * bank.share_size
                mine = whole[first : first + bank.share_size]
                share[: len(mine)] = mine
