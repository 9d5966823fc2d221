"""One process or several: the few collective operations that training needs.

Started by ``torchrun`` there are several ranks (gloo on CPUs, NCCL on GPUs); started plainly there is one and every
operation here is free. Those that end in ``_started`` return at once; the result is there when ``wait`` of what they
returned is called.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from bytefit.progress import say

Wait = Callable[[], object]
LEAVES_TOGETHER = (0, 130)  # exit codes that all ranks have in common: done, and interrupted
MOST_THREADS = 8
PATIENCE = timedelta(hours=2)  # the others wait while the first rank packs
# torch 2.13 has new names for them and warns of the old ones, the only ones before it.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: str

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean_started(self, tensors: list[torch.Tensor]) -> Wait:
        """Replace each tensor by its mean over the ranks (fp32), once waited for."""
        if self.world == 1 or not tensors:
            return _nothing
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        work = dist.all_reduce(flat, async_op=True)

        def finish() -> None:
            work.wait()
            pieces = torch.split(flat / self.world, [tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

        return finish

    def scatter_sum_started(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Wait]:
        """This rank's share, along the first axis, of the sum over ranks; the axis must divide by the number of ranks."""
        if self.world == 1:
            return tensor, _nothing
        share = tensor.new_empty(tensor.size(0) // self.world, *tensor.shape[1:])
        return share, _reduce_scatter(share, tensor, async_op=True).wait

    def gather_started(self, share: torch.Tensor) -> tuple[torch.Tensor, Wait]:
        """Every rank's share, one after another along the first axis."""
        if self.world == 1:
            return share, _nothing
        whole = share.new_empty(share.size(0) * self.world, *share.shape[1:])
        return whole, _all_gather(whole, share.contiguous(), async_op=True).wait

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over ranks."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, values: list[float]) -> list[float]:
        """The first rank's numbers, on every rank: it alone decides about the clock."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return tensor.tolist()

    def copy_from_first(self, tensors: list[torch.Tensor]) -> None:
        """Give every rank the first one's tensors, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world == 1:
            return flag
        tensor = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor.item())

    def barrier(self) -> None:
        if self.world > 1:
            index = torch.device(self.device).index  # None on a CPU
            dist.barrier(device_ids=None if index is None else [index])


def join_ranks() -> Ranks:
    """Join the process group when ``torchrun`` started us, else be the only rank."""
    cuda = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        return Ranks(0, 1, "cuda" if cuda else "cpu")
    local_world = int(os.environ["LOCAL_WORLD_SIZE"])  # torchrun's own contract, not configuration of ours
    if cuda and torch.cuda.device_count() < local_world:
        cuda = False
        if os.environ["LOCAL_RANK"] == "0":
            say(f"{torch.cuda.device_count()} GPUs are too few for {local_world} processes here: computing on the CPU")
    local = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local)  # NCCL takes the current one
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), f"cuda:{local}" if cuda else "cpu")


def leave_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def all_cores(ranks: Ranks) -> Iterator[None]:
    """More cores for what the first rank does while the others wait: ``torchrun`` leaves each rank one thread. Not more than
    ``MOST_THREADS``, because text is restored with as many as it was compressed with."""
    threads = torch.get_num_threads()
    if ranks.world > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(threads, min(cores, MOST_THREADS)))
    try:
        yield
    finally:
        if ranks.world > 1:
            torch.set_num_threads(threads)


def run_process(do: Callable[[], int]) -> NoReturn:
    """Do it and leave the process with the code that it returns; an error that nobody expected shows its traceback, on every rank."""
    if not dist.is_torchelastic_launched():
        sys.exit(do())
    try:
        code = do()
    except Exception:
        traceback.print_exc()
        code = 1
    end_process(code)


def end_process(code: int) -> NoReturn:
    """Leave the ranks and the process.

    A rank ends without the interpreter's teardown: gloo's threads now and then abort it ("terminate called without an active exception"),
    when everything is written and said. A rank that failed does not say good-bye to the others, who may wait in another operation and
    would hold it (NCCL); ``torchrun`` sees its code and ends them. Starting plainly changes nothing.
    """
    if code in LEAVES_TOGETHER:
        leave_ranks()
    if dist.is_torchelastic_launched():
        with suppress(OSError, ValueError):  # the reader went away (| head)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
