"""Contest-size recipes on one GPU or several. ``benchmarks/gpu.sh`` calls it; a line of JSON a recipe.

For each recipe: logits and gradients of one batch on the GPU (bf16, bf16 compiled, fp32) against the CPU's with the same weights
(``agreement.py``); then a few steps, timed, without what begins late in a run (late fake quantisation, CROWN-Q, replay); then a whole run:
training for ``--seconds`` with torch.compile and bf16 (warm-up and compilation outside), packing into 16,000,000 bytes, scoring, a proof
on a slice of text, the audit. One GPU takes fewer steps than the eight that the recipes' lengths were made for: warm-down, momentum
warm-up, averages, annealing and replay are shortened with the steps that fit (``lengths.py``).

* A step's milliseconds are the median of the timed steps; tokens a second follow from them.
* Memory is what PyTorch held at most while training, on the first GPU.
* MFU counts 6 operations a token for every weight that is multiplied with, and causal attention's products (forward and backward), over
  the dense bf16 rate of the GPUs' data sheet. Attention is PyTorch's SDPA, not the FlashAttention 3 of the contest's scripts.

A recipe can be measured in a call of its own: its line takes the place of an earlier one of the same recipe, size, seed and number of GPUs.
With ``--resume`` a run that was stopped goes on, and a finished one is not made again.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from agreement import agreement, agrees
from lengths import settings_for
from record import audited, provenance, put_row
from torch.nn.attention import SDPBackend, sdpa_kernel

from bytefit.config import apply_settings
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.files import read_json, write_json
from bytefit.model.language_model import LanguageModel
from bytefit.model.roles import MATRIX_ROLES, Role
from bytefit.recipes import AS_SUBMITTED, SYSTEMS, find_recipe
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import fit_recipe_to, new_model
from bytefit.train.metrics import read_metrics

DENSE_BF16 = {
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "H20": 148e12,
}  # operations a second


def multiplied_weights(model: LanguageModel) -> int:
    """Weights that every token is multiplied with: the blocks' matrices, side tables' projections and the output matrix."""
    roles = (*MATRIX_ROLES, Role.PROJECTION, Role.HEAD)
    count = sum(info.parameter.numel() for info in model.parameter_infos() if info.role in roles)
    return count + (model.embedding.weight.numel() if model.head.matrix is None else 0)


def operations_a_token(model: LanguageModel, recipe: Recipe) -> float:
    """Forward and backward. Attention: two products of T/2 keys on average by ``dim``, two operations each, three times."""
    attention = 6 * len(recipe.model.plan) * recipe.model.dim * recipe.train.seq_len
    return 6 * multiplied_weights(model) + attention


def command_of(verb: str, name: str, options: argparse.Namespace) -> list[str]:
    """The first words behind ``python -m``: a process a GPU where there are several."""
    ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(options.gpus), "-m"] if options.gpus > 1 else []
    return [*ranks, "bytefit", verb, name, "--size", options.size, "--seed", str(options.seed)]


def timed_steps(name: str, recipe: Recipe, options: argparse.Namespace) -> list[float]:
    """Seconds of each of ``--timed-steps`` steps in the main part of a run."""
    path = options.runs / f"gpu-{name}-{options.size}-timing"
    shutil.rmtree(path, ignore_errors=True)
    late = ["train.crown_q=null", "train.replay=null"]
    if recipe.train.fake_quant is not None and not recipe.train.fake_quant.always:
        late.append("train.fake_quant=null")
    command = [*command_of("train", name, options), "--steps", str(options.timed_steps + 1)]
    command += [word for setting in [*late, *options.set] for word in ("--set", setting)]
    subprocess.run([sys.executable, "-m", *command, "--data", str(options.data), "--out", str(path)], check=True)
    clock = [record["seconds"] for record in read_metrics(RunFolder(path).metrics)]
    shutil.rmtree(path)
    return [after - before for before, after in pairwise(clock)]


def step_seconds(name: str, recipe: Recipe, path: Path, options: argparse.Namespace) -> float:
    """The median, left beside the run's folder: a run can only go on with the lengths that it was started with."""
    held = path.with_name(f"{path.name}-step.json")
    if not (options.resume and held.exists()):
        write_json(held, statistics.median(timed_steps(name, recipe, options)))
    seconds: float = read_json(held)
    return seconds


def apart(do: Callable[..., Any], *arguments: object) -> Any:
    """What ``do`` returns, from a process of its own: what it held of the GPU is free again, and a fault of the GPU ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(do, *arguments).result()


def before_training(recipe: Recipe, data: Path, device: str) -> dict[str, Any]:
    """What is measured of a recipe that is not trained, for its row."""
    found: dict[str, Any] = {"errors_of_one_batch": agreement(recipe, open_dataset(data), device)}
    return found | ({"attention_ms": attention_milliseconds(recipe)} if device == "cuda" else {})


def attention_milliseconds(recipe: Recipe) -> dict[str, float]:
    """Forward and backward of one layer's attention on a micro-batch: by the kernel that PyTorch chooses, as in training, and by those
    that it is made to take."""
    config, T = recipe.model.attention, recipe.train.seq_len
    rows, head_dim = max(1, recipe.train.micro_batch_tokens // T), recipe.model.dim // config.num_heads
    found = {}
    for name, backend in (("chosen", None), ("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        q = torch.randn(rows, config.num_heads, T, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.randn(rows, config.num_kv_heads, T, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "kv")
        dy, times = torch.randn_like(q), []
        try:
            with nullcontext() if backend is None else sdpa_kernel(backend):
                for _ in range(12):
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.size(1) != q.size(1))
                    torch.autograd.grad(y, (q, k, v), dy)
                    end.record()
                    torch.cuda.synchronize()
                    times.append(start.elapsed_time(end))
        except RuntimeError:
            continue  # this build or GPU lacks it
        found[name] = statistics.median(times[2:])
    return found


def peak_rate() -> float | None:
    """The GPU's dense bf16 operations a second, where its name is known."""
    name = torch.cuda.get_device_name()
    return next((rate for known, rate in DENSE_BF16.items() if known in name), None)


def measure(name: str, options: argparse.Namespace, dataset: Dataset, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
    settings = [item.partition("=")[::2] for item in options.set]
    recipe = fit_recipe_to(apply_settings(find_recipe(name, options.size), settings), dataset)
    row: dict[str, Any] = {"recipe": name, "size": options.size, "seed": options.seed, "gpus": options.gpus}
    row |= apart(before_training, recipe, options.data, device)
    if not agrees(row["errors_of_one_batch"]):
        raise RuntimeError(f"{device} does not compute what the CPU does (relative errors: {row['errors_of_one_batch']}); not trained")
    path = options.runs / f"gpu-{name}-{options.size}-s{options.seed}-x{options.gpus}-{made_by['commit'][:10]}"
    step = step_seconds(name, recipe, path, options)
    loop_seconds = replace(recipe.train, seconds=options.seconds, steps=None).loop_seconds
    assert loop_seconds is not None
    steps = loop_seconds / step
    folder = RunFolder(path)
    if not options.resume:
        shutil.rmtree(path, ignore_errors=True)
    folder.summary.unlink(missing_ok=True)  # made again where the run goes well; an old one would hide that it did not
    known = SYSTEMS[name.removesuffix(AS_SUBMITTED)][1]
    lengths = settings_for(recipe, steps / known.steps) if options.size == "full" else []
    sets = [*lengths, f"score.max_bytes={options.max_bytes}", f"score.proof_bytes={options.proof_bytes}", *options.set]
    command = [*command_of("run", name, options), "--seconds", str(options.seconds)]
    command += [word for setting in sets for word in ("--set", setting)]
    where = ["--data", str(options.data), "--out", str(path), "--resume", "--json"]
    done = subprocess.run([sys.executable, "-m", *command, *where], stdout=subprocess.PIPE, text=True)
    if not folder.summary.exists():
        raise RuntimeError(f"{name} ended with code {done.returncode} before it had a summary; its own words stand above")
    row |= {"command": shlex.join(["python", "-m", *command]), "summary": read_json(folder.summary)}
    row["audit_fails"] = audited(folder)["fail"]
    tokens_per_second = recipe.train.batch_tokens / step
    row |= {"milliseconds_a_step": 1e3 * step, "tokens_per_second": tokens_per_second}
    row |= {key: read_json(folder.checkpoint / "state.json")[key] for key in ("peak_memory_bytes", "compiled")}
    rate = peak_rate() if device == "cuda" else None
    row["mfu"] = operations_a_token(new_model(recipe), recipe) * tokens_per_second / (options.gpus * rate) if rate else None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder, best with the contest's 1,024 tokens")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training, for each recipe")
    parser.add_argument("--timed-steps", type=int, default=20, help="for a step's milliseconds")
    parser.add_argument("--recipes", nargs="+", default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--gpus", type=int, default=1, help="a process for each, started by torchrun")
    parser.add_argument("--resume", action="store_true", help="go on with the runs of an earlier call at this commit")
    parser.add_argument("--size", default="full")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--max-bytes", type=int, default=5_000_000, help="of validation text")
    parser.add_argument(
        "--proof-bytes", type=int, default=16_384, help="of text that is compressed and restored (on the CPU: slow at this size)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="further settings of every recipe")
    parser.add_argument("--anywhere", action="store_true", help="also without a GPU: a try of this script at a small --size")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    options = parser.parse_args()
    if dist.is_torchelastic_launched():
        sys.exit("start this without torchrun: --gpus N starts a process a GPU where that is wanted")
    if not torch.cuda.is_available() and not options.anywhere:
        sys.exit(f"no CUDA device is visible to PyTorch {torch.__version__}; nothing is measured (--anywhere tries the script on a CPU)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not 1 <= options.gpus <= torch.cuda.device_count():
        sys.exit(f"--gpus {options.gpus}: PyTorch sees {torch.cuda.device_count()}")
    made_by = {key: value for key, value in provenance().items() if key != "command"}
    dataset = open_dataset(options.data)
    failed: list[str] = []
    for name in options.recipes:
        try:
            row = measure(name, options, dataset, device, made_by) | made_by
        except Exception as error:  # whatever befell one recipe, the others are measured
            print(f"{name}: not measured: {type(error).__name__}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        put_row(options.out, row, key=("recipe", "size", "seed", "gpus"))
        summary, mfu = row["summary"], "unknown" if row["mfu"] is None else f"{row['mfu']:.1%}"
        print(
            f"{name}: {row['tokens_per_second']:,.0f} tokens/s, {row['milliseconds_a_step']:.1f} ms a step, "
            f"{row['peak_memory_bytes'] / 2**30:.1f} GiB, MFU {mfu}, {summary['val_bpb']:.4f} bits per byte, "
            f"{summary['artifact_bytes']:,} bytes{'' if row['compiled'] else '; trained eagerly: torch.compile failed'}",
            file=sys.stderr,
        )
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
