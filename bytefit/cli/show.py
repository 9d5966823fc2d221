"""``show``: what a recipe costs, before training."""

from __future__ import annotations

import argparse
from typing import Any

from bytefit.cli.options import Verbs, add_recipe_options, add_verb, recipe_of, show_result
from bytefit.config import to_json
from bytefit.model.inspect import PartCost, attention_multiply_adds, cost_by_part
from bytefit.recipes.recipe import Recipe


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "show",
        "  bytefit show baseline --size full\n  bytefit show pocket --set model.dim=96 --json",
    )  # fmt: skip
    add_recipe_options(verb)
    verb.set_defaults(do=do_show)


def do_show(options: argparse.Namespace) -> None:
    recipe = recipe_of(options)
    rows = cost_by_part(recipe.model)
    total = sum(row.parameters for row in rows)
    forward = sum(row.multiply_adds for row in rows) + attention_multiply_adds(recipe.model, recipe.train.seq_len)
    record = {
        "recipe": to_json(recipe),
        "num_parameters": total,
        "budget_bytes": recipe.pack.budget_bytes,
        "bits_per_parameter": 8 * recipe.pack.artifact_bytes / total,
        "training_flops_per_token": 6 * forward,
        "parts": [
            {
                "name": r.part,
                "role": r.role.value,
                "shape": list(r.shape),
                "parameters": r.parameters,
                "budget_share_bytes": round(r.parameters * recipe.pack.artifact_bytes / total),
                "multiply_adds": r.multiply_adds,
            }
            for r in rows
        ],
    }
    show_result(options, record, _tree(recipe, rows, record))


def _tree(recipe: Recipe, rows: list[PartCost], record: dict[str, Any]) -> str:
    heading = f"  {'parameter':<18} {'role':<10} {'shape':>12} {'parameters':>12} {'bytes*':>12} {'mul-adds':>12}"
    lines = [f"{recipe.name} ({recipe.size})", "", heading]
    above = ""
    for row in rows:
        *owner, name = row.part.split(".")
        if ".".join(owner) != above:
            above = ".".join(owner)
            lines.append(f"{above}")
        shape = " x ".join(map(str, row.shape))
        share = row.parameters * record["bits_per_parameter"] / 8
        lines.append(f"  {name:<18} {row.role.value:<10} {shape:>12} {row.parameters:>12,} {share:>12,.0f} {row.multiply_adds:>12,}")
    plan = " ".join(f"{step.block}{'+' if step.push else ''}{'-' if step.pop is not None else ''}" for step in recipe.model.plan)
    lines += [
        "",
        "* the part's share of the byte budget, were every parameter to take the same; mul-adds are per token, forward",
        f"plan: {plan}   (+ pushes a skip, - pops one)",
        f"num_parameters: {record['num_parameters']}",
        f"budget_bytes: {record['budget_bytes']}",
        f"bits_per_parameter: {record['bits_per_parameter']:.3f}",
        f"training_flops_per_token: {record['training_flops_per_token']}",
    ]
    return "\n".join(lines)
