"""One rank of the tests of Parallel Muon: twenty steps down a quadratic, whose global gradient does not depend on the number of ranks."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from bytefit.model.roles import ParameterInfo, Role, parameter
from bytefit.optim.groups import AdamConfig, MuonConfig, OptimizerConfig, Optimizers
from bytefit.optim.muon import Muon
from bytefit.ranks import Ranks, join_ranks

SHAPES = [(12, 8)] * 5 + [(8, 16)] * 2
SHARDS = 4  # of the global batch


def targets() -> list[list[torch.Tensor]]:
    """The minimum that each shard of the global batch pulls each matrix to."""
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(SHARDS)]


def set_gradients(parameters: list[nn.Parameter], ranks: Ranks) -> None:
    """The mean gradient over this rank's shards."""
    mine = targets()[ranks.rank * SHARDS // ranks.world : (ranks.rank + 1) * SHARDS // ranks.world]
    for i, p in enumerate(parameters):
        p.grad = sum(p.detach() - shard[i] for shard in mine) / len(mine)


def fresh() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator) * 3) for shape in SHAPES]


def walk(muon: Muon, parameters: list[nn.Parameter], ranks: Ranks, steps: int) -> None:
    for _ in range(steps):
        set_gradients(parameters, ranks)
        muon.step()


def run_muon(ranks: Ranks, state_dtype: torch.dtype, out: dict[str, torch.Tensor], name: str, mousse_beta: float | None = None) -> None:
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "mousse_beta": mousse_beta, "state_dtype": state_dtype, "ranks": ranks}
    parameters = fresh()
    out |= {f"{name}/start{i}": p.detach().clone() for i, p in enumerate(parameters)}
    muon = Muon(parameters, **settings)
    walk(muon, parameters, ranks, 10)
    half = [p.detach().clone() for p in parameters]
    saved = {key: value.clone() for key, value in muon.state_tensors().items()}
    walk(muon, parameters, ranks, 10)
    out |= {f"{name}/weights{i}": p.detach().clone() for i, p in enumerate(parameters)}
    out |= {f"{name}/state{key}": value.float().clone() for key, value in muon.state_tensors().items()}
    again = [nn.Parameter(w) for w in half]
    resumed = Muon(again, **settings)
    resumed.load_state_tensors(saved)
    walk(resumed, again, ranks, 10)
    out |= {f"{name}/resumed{i}": p.detach().clone() for i, p in enumerate(again)}


def run_clipped(ranks: Ranks, when: str, out: dict[str, torch.Tensor]) -> None:
    """All optimizers together: a matrix and a vector, with a clip that always bites."""
    generator = torch.Generator().manual_seed(2)
    matrices = [parameter(torch.randn(8, 8, generator=generator), Role.MLP) for _ in range(3)]
    vector = parameter(torch.randn(8, generator=generator), Role.GAIN)
    named = {f"m{i}": m for i, m in enumerate(matrices)} | {"v": vector}
    infos = [ParameterInfo(name, p, p.role, None) for name, p in named.items()]  # type: ignore[attr-defined]
    config = OptimizerConfig(
        matrices=MuonConfig(lr=0.05), tables=AdamConfig(lr=0.1), gains=AdamConfig(lr=0.05, eps=0.1), clip_norm=0.01, clip_when=when
    )  # type: ignore[arg-type]
    optimizers = Optimizers(config, infos, torch.float32, ranks)
    pulls = torch.randn(SHARDS, 9, generator=generator)
    for step in range(10):
        mine = range(ranks.rank * SHARDS // ranks.world, (ranks.rank + 1) * SHARDS // ranks.world)
        for i, p in enumerate(named.values()):
            p.grad = sum((1 + 5 * shard) * (p.detach() - pulls[shard, i]) for shard in mine) / len(mine)
        optimizers.step(lr_scale=1.0, step=step)
    out |= {f"clip {when.split()[0]}/{name}": p.detach().clone() for name, p in named.items()}


def walk_all(out: Path) -> int:
    here = join_ranks()
    results: dict[str, torch.Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        run_muon(here, dtype, results, str(dtype).removeprefix("torch."))
    run_muon(here, torch.float32, results, "mousse", mousse_beta=0.9)
    for moment in ("after averaging", "before averaging"):
        run_clipped(here, moment, results)
    if here.is_first:
        safetensors.torch.save_file({name: value.contiguous() for name, value in results.items()}, out)
    here.barrier()
    return 0
