"""One process or several: the few collective operations that training needs.

Started by ``torchrun`` there are several ranks (gloo on CPUs, NCCL on GPUs); started plainly there is one and every
operation here is free.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: str

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean_(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the ranks."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def from_first(self, values: list[float]) -> list[float]:
        """The first rank's numbers, on every rank: it alone decides about the clock."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world == 1:
            return flag
        tensor = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor.item())

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def join_ranks() -> Ranks:
    """Join the process group when ``torchrun`` started us, else be the only rank."""
    cuda = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        return Ranks(0, 1, "cuda" if cuda else "cpu")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if cuda:
        local = int(os.environ["LOCAL_RANK"])  # torchrun's own contract, not configuration of ours
        torch.cuda.set_device(local)
        return Ranks(rank, world, f"cuda:{local}")
    return Ranks(rank, world, "cpu")


def leave_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
