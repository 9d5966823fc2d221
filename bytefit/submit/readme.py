"""The record's own README: what it is, its results, how to make and check them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from bytefit import __version__
from bytefit.recipes.recipe import Recipe
from bytefit.submit.alone import CONTEST_DATA
from bytefit.submit.entry import Entry, SeedRun

STEPS = ("model", "train", "calibrate", "pack", "score")


def readme_of(entry: Entry, submission: dict[str, Any], packages: dict[str, tuple[str, str]]) -> str:
    """The page, in Markdown."""
    spread = submission["val_bpb_std"]
    mean = f"**{submission['val_bpb']:.5f} bits per byte**"
    mean += f" (mean of {len(entry.runs)} seeds, sample standard deviation {spread:.5f})" if spread is not None else " (one seed)"
    sections = [
        f"# {submission['name']}",
        f"{mean}, {submission['bytes_total']:,} of {entry.cap:,} bytes, code included. Made with bytefit {__version__}.",
        f"{submission['blurb']}.",
        "## Results\n\n" + _results(entry),
        "## Bytes\n\n" + _bytes(entry, submission),
        "## Make and check it\n\n" + _commands(entry),
        "## Settings\n\n" + _settings(entry.recipe),
        "## Time\n\n" + _ledger(entry),
        "## Audit\n\n" + _audit(entry),
        "## Packages\n\n" + "\n".join(f"- `{name}` {version}: {purpose}" for name, (version, purpose) in packages.items()),
    ]
    return "\n\n".join(sections) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _results(entry: Entry) -> str:
    head = ["seed", "val_bpb", "val_loss", "val_bpb before rounding", "steps", "training s", "evaluation s", "model bytes", "total bytes"]
    rows = [
        [
            str(run.seed), f"{run.val_bpb:.5f}", f"{run.val_loss:.5f}", f"{run.evidence.scores['float_full']['bits_per_byte']:.5f}",
            f"{run.evidence.summary['steps']:,}", f"{run.evidence.summary['train_seconds']:.1f}", f"{run.score['seconds']:.1f}",
            f"{run.artifact_bytes:,}", f"{len(entry.script) + run.artifact_bytes:,}",
        ]
        for run in entry.runs
    ]  # fmt: skip
    score = entry.runs[0].score
    return (
        f"{_table(head, rows)}\n\nProtocol: `{json.dumps(score['protocol'])}`, {score['dtype']}; {score['targets']:,} targets, "
        f"{score['bytes']:,} bytes of text. Before rounding, the float weights are scored in windows that do not overlap.\n\n"
        f"Hardware: {', '.join(dict.fromkeys(_machine(run) for run in entry.runs))}."
    )


def _machine(run: SeedRun) -> str:
    summary = run.evidence.summary
    return "; before that ".join(
        f"{hardware['ranks']} x {hardware['gpu'] or hardware['cpu']}, threads: {hardware['threads']}, {hardware['system']}"
        for hardware in (summary["hardware"], *summary["earlier_hardware"])
    )


def _bytes(entry: Entry, submission: dict[str, Any]) -> str:
    code, model = submission["bytes_code"], submission["bytes_model"]
    return (
        f"{code:,} (`train_gpt.py`, as it lies here and as it is executed) + {model:,} (the largest artifact) = "
        f"{submission['bytes_total']:,} of {entry.cap:,}. The script holds all code that runs, training included, and imports "
        "nothing else but the packages below; tokenizer and settings are inside the artifact and counted with it. "
        "`python train_gpt.py --unpack DIR` writes the modules out to be read."
    )


def _commands(entry: Entry) -> str:
    lines = ["pip install -r requirements.txt"]
    for run in entry.runs:
        lines.append(f"python train_gpt.py --data DIR --evaluate model_seed{run.seed}.bytefit   # {run.val_bpb:.5f}")
    for run in entry.runs:
        lines.append(f"python train_gpt.py --data DIR --seed {run.seed}   # trains, packs and evaluates in run_seed{run.seed}/")
    lines.append(
        f"torchrun --standalone --nproc-per-node 8 train_gpt.py --data DIR --seed {entry.runs[0].seed}   # the same batch on 8 GPUs"
    )
    return (
        "```\n" + "\n".join(lines) + f"\n```\n\nDIR holds `*train*.bin` and `*val*.bin` shards and the tokenizer; without `--data` it is "
        f"`{CONTEST_DATA}`. Scores are equal to the last digit on the same hardware, torch version and number of threads; elsewhere sums "
        "are rounded in another order."
    )


def _settings(recipe: Recipe) -> str:
    plan = " ".join(f"{step.block}{'+' if step.push else ''}{'-' if step.pop is not None else ''}" for step in recipe.model.plan)
    rows = [f"| `{path}` | {value} |" for path, value in components(recipe)]
    return "\n".join(
        [
            f"Techniques: {', '.join(techniques(recipe)) or 'none that is off by default'}.",
            f"Blocks in the order of the forward pass (+ pushes a skip, - pops one): {plan}.",
            "",
            "Every part and its settings, without those that are null; `recipe.json` has them all.",
            "",
            "| part | settings |",
            "| --- | --- |",
            *rows,
        ]
    )


def techniques(recipe: Recipe) -> list[str]:
    """Dotted paths of the parts that are off unless a recipe turns them on."""
    return [
        f"{path}.{field.name}"
        for path, part in _parts(recipe)
        for field in dataclasses.fields(part)
        if (field.default is None and dataclasses.is_dataclass(getattr(part, field.name)))
        or (path == "model" and field.default is False and getattr(part, field.name))
    ]


def components(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Dotted path and settings of every part; one that is as the part beside it says so, and its own parts are left out."""
    seen: dict[Any, str] = {}
    alike = "nowhere"
    for path, part in _parts(recipe):
        if path.startswith(f"{alike}."):
            continue
        first = seen.setdefault(part, path)
        if first != path and first.rpartition(".")[0] == path.rpartition(".")[0]:
            alike = path
            yield path, f"as `{first}`"
            continue
        own = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name != "plan"}
        shown = [f"{name}={value!r}" for name, value in own.items() if value is not None and not dataclasses.is_dataclass(value)]
        yield path, f"`{type(part).__name__}({', '.join(shown)})`"


def _parts(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Every dataclass in a recipe's steps, outer ones first."""
    waiting = [(kind, getattr(recipe, kind)) for kind in STEPS]
    while waiting:
        path, part = waiting.pop(0)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield path, part
            inner = [(f"{path}.{field.name}", getattr(part, field.name)) for field in dataclasses.fields(part)]
            waiting = inner + waiting


def _ledger(entry: Entry) -> str:
    ledgers = [run.evidence.summary["ledger"] for run in entry.runs]
    names = list(dict.fromkeys(name for ledger in ledgers for name in ledger))
    rows = [[name, *(f"{ledger.get(name, 0.0):.1f}" for ledger in ledgers)] for name in names]
    return (
        _table(["seconds", *(f"seed {run.seed}" for run in entry.runs)], rows)
        + "\n\n`strict` is every second that touches data or weights, `customary` the training loop alone."
    )


def _audit(entry: Entry) -> str:
    lines = []
    for run in entry.runs:
        counts = [f"{sum(f.verdict == verdict for f in run.findings)} {verdict}" for verdict in ("pass", "fail", "not applicable")]
        active = next(finding.evidence for finding in run.findings if finding.number == 39)
        lines.append(f"- seed {run.seed}: {', '.join(counts)} of {len(run.findings)} classes. {active[0].upper()}{active[1:]}.")
        if run.evidence.proof:
            proof = run.evidence.proof
            sizes = f"{proof['bytes_in']:,} bytes of validation text were compressed with the artifact to {proof['bytes_out']:,}"
            lines.append(f"  {sizes} and restored.")
    return "Every class of fault with its evidence stands at the end of the seed's log.\n\n" + "\n".join(lines)
