"""Tokens a second of the pocket training step against a plain spelling of the same network, in one run.

The plain spelling is what one writes first: fp32, separate query/key/value projections, SDPA, tanh softcap and PyTorch's
cross-entropy, one Newton–Schulz iteration a matrix, eager. The rows between change one thing each. Variants are timed in
turns (A B C … A B C …), so that a machine that slows down slows all of them; medians are quoted.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bytefit.model.attention as attention_module
from bytefit.dtypes import faster_dtype
from bytefit.model.language_model import LanguageModel
from bytefit.optim.groups import build_optimizers
from bytefit.recipes import find_recipe
from bytefit.train.machine import describe_machine, keep_freed_memory

RECIPE = find_recipe("pocket", "lab")
SEQ_LEN, BATCH_TOKENS = RECIPE.train.seq_len, RECIPE.train.batch_tokens


def plain_loss(model: LanguageModel, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same network written without any of the package's tricks."""
    config = model.config
    heads, groups = config.attention.num_heads, config.attention.num_kv_heads
    width = config.dim // heads

    def norm(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def turn(x: Tensor) -> Tensor:
        cos, sin = model.cos[: ids_BT.size(1)], model.sin[: ids_BT.size(1)]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)

    x = x0 = norm(model.embedding[ids_BT])
    skips: list[Tensor] = []
    for step in config.plan:
        if step.pop is not None:
            x = x + model.skip_scales[step.pop] * skips.pop()
        block = model.blocks[step.block]
        x = block.mix_stream * x + block.mix_embedding * x0
        h, part = norm(x), block.attention
        q = turn(norm(F.linear(h, part.query.weight).unflatten(-1, (heads, width)))) * part.q_gain[:, None]
        k = turn(norm(F.linear(h, part.key.weight).unflatten(-1, (groups, width))))
        v = F.linear(h, part.value.weight).unflatten(-1, (groups, width))
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=heads != groups
        )
        x = x + block.attention_scale * F.linear(y.transpose(1, 2).flatten(2), part.out.weight)
        x = x + block.mlp_scale * F.linear(F.relu(F.linear(norm(x), block.mlp.up.weight)).square(), block.mlp.down.weight)
        if step.push:
            skips.append(x)
    logits = F.linear(norm(x), model.embedding)
    logits = 30.0 * torch.tanh(logits / 30.0)
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
                p.add_(x.T if tall else x, alpha=-group["lr"])


def make_step(*, package_model: bool, package_muon: bool, dtype: torch.dtype, compiled: bool, explicit: bool) -> Callable[[], float]:
    """A training step on random tokens; returns its loss."""
    torch.manual_seed(0)
    model = RECIPE.model.build()
    optimizers = build_optimizers(RECIPE.train.optimizer, model.parameter_infos(), faster_dtype("cpu"))
    if not package_muon:
        muon, adam = optimizers
        optimizers = [PlainMuon([p for group in muon.param_groups for p in group["params"]], 0.02), adam]
    loss_of: Callable[..., Tensor] = model if package_model else lambda ids, targets, dtype: plain_loss(model, ids, targets, dtype)
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    generator = torch.Generator().manual_seed(1)

    def step() -> float:
        attention_module.EXPLICIT_MAX_TOKENS = 512 if explicit else 0
        tokens = torch.randint(0, RECIPE.model.vocab_size, (BATCH_TOKENS // SEQ_LEN, SEQ_LEN + 1), generator=generator)
        loss = loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), dtype)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


FP32, BF16 = torch.float32, torch.bfloat16
VARIANTS = {
    "plain spelling (fp32, eager)": {"package_model": False, "package_muon": False, "dtype": FP32, "compiled": False, "explicit": False},
    "plain spelling, compiled": {"package_model": False, "package_muon": False, "dtype": FP32, "compiled": True, "explicit": False},
    "bytefit, fp32, eager": {"package_model": True, "package_muon": True, "dtype": FP32, "compiled": False, "explicit": True},
    "bytefit, bf16, eager, SDPA": {"package_model": True, "package_muon": True, "dtype": BF16, "compiled": False, "explicit": False},
    "bytefit, bf16, eager": {"package_model": True, "package_muon": True, "dtype": BF16, "compiled": False, "explicit": True},
    "bytefit, fp32, compiled": {"package_model": True, "package_muon": True, "dtype": FP32, "compiled": True, "explicit": True},
    "bytefit, bf16, compiled, plain Muon": {
        "package_model": True, "package_muon": False, "dtype": BF16, "compiled": True, "explicit": True,
    },
    "bytefit, bf16, compiled": {"package_model": True, "package_muon": True, "dtype": BF16, "compiled": True, "explicit": True},
}  # fmt: skip


def measure(rounds: int, steps: int) -> list[dict[str, object]]:
    runs: dict[str, Callable[[], float]] = {}
    first: dict[str, float] = {}
    for name, settings in VARIANTS.items():
        runs[name] = make_step(**settings)  # type: ignore[arg-type]
        start = time.perf_counter()
        runs[name]()
        first[name] = time.perf_counter() - start
        runs[name]()
        print(f"{name}: first step {first[name]:.1f} s", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, step in runs.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            times[name].append((time.perf_counter() - start) / steps)
    plain = statistics.median(times["plain spelling (fp32, eager)"])
    return [
        {
            "variant": name,
            "milliseconds": round(1e3 * statistics.median(values), 2),
            "milliseconds_all": [round(1e3 * value, 2) for value in values],
            "tokens_per_second": round(BATCH_TOKENS / statistics.median(values)),
            "speedup": round(plain / statistics.median(values), 3),
            "first_step_seconds": round(first[name], 2),
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--default-allocator", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.default_allocator:
        keep_freed_memory()
    torch._dynamo.config.recompile_limit = 64
    rows = measure(options.rounds, options.steps)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "benchmark": "throughput", "command": shlex.join(["python", *sys.argv]), "commit": commit, "machine": describe_machine(),
        "allocator": "default" if options.default_allocator else "keep_freed_memory",
        "model": dataclasses.asdict(RECIPE.model), "seq_len": SEQ_LEN, "batch_tokens": BATCH_TOKENS, "rows": rows,
    }  # fmt: skip
    for row in rows:
        print(f"{row['variant']:<38} {row['milliseconds']:>8} ms  {row['tokens_per_second']:>7,} tokens/s  {row['speedup']:.2f}x")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
