"""Groups of runs against each other: seeds, means, tests, equivalence, and the contest's rule for a record.

Runs are of one group where their recipes differ in the seed alone. The statistics are scipy's.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from bytefit.config import first_difference
from bytefit.errors import UserError
from bytefit.files import read_json
from bytefit.recipes.recipe import as_written_now
from bytefit.report.files import same_text

Protocol = Literal["headline", "float_full", "full", "sliding", "adapt"]
Alternative = Literal["two-sided", "less", "greater"]
RECORD_NATS, RECORD_P = 0.005, 0.01  # the contest's rule: better by so many nats a token, at such a p
EQUIVALENCE_P = 0.05


@dataclass(frozen=True)
class Group:
    """
    Attributes:
        values: bits per byte, one a run.
        seeds: of the runs, in the same order; empty for published figures.
        dtypes: that the runs were scored in, which is what they trained in unless they were scored on another machine.
        budget_bytes: of an artifact, and of the code where that was counted; None for published figures.
    """

    label: str
    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    budget_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        spread = statistics.stdev(self.values) if len(self.values) > 1 else None
        return asdict(self) | {"runs": len(self.values), "mean": statistics.fmean(self.values), "std": spread}


@dataclass(frozen=True)
class Comparison:
    """Two groups. Differences are in bits per byte, the second group's minus the first's: above zero the first is better.

    Attributes:
        interval: of the difference, 95 %, by Welch; None where no spread is known.
        paired_p, pairs: two-sided t test over the seeds that both have; None with fewer than two.
        welch_p: two-sided t test without equal variances. A single run is taken to spread as the several runs do; a single published
            figure is taken as exact.
        record_margin: what 0.005 nats a token are in bits per byte here.
        record_p: of the first being better by at least that (one-sided).
        equivalence_p: of the difference lying within the margin of equivalence (two one-sided tests; the larger p).
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None
    pairs: int
    paired_difference: float | None
    paired_p: float | None
    welch_p: float | None
    record_margin: float
    record_p: float | None
    equivalence_margin: float
    equivalence_p: float | None

    @property
    def is_record(self) -> bool:
        return self.record_p is not None and self.record_p < RECORD_P

    @property
    def equivalent(self) -> bool:
        return self.equivalence_p is not None and self.equivalence_p < EQUIVALENCE_P

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"is_record": self.is_record, "equivalent": self.equivalent}


def read_groups(runs: list[Path], protocol: Protocol) -> tuple[list[Group], float]:
    """The runs' groups, in the order in which they are first met, and the bytes of text a token has.

    Raises:
        UserError: a run is not finished, was scored on other text than the first, lacks the protocol, or a seed comes twice.
    """
    found: list[tuple[dict[str, Any], dict[int, float], set[str]]] = []
    first_text: tuple[dict[str, Any], int] | None = None
    bytes_a_token = 0.0
    for run in runs:
        recipe, scores = as_written_now(read_json(run / "recipe.json")), read_json(run / "score.json")
        name = recipe["score"]["headline"] if protocol == "headline" else protocol
        if name not in scores:
            raise UserError(
                f"{run} has no score by the protocol {name}; it has: {', '.join(k for k in scores if isinstance(scores[k], dict))}"
            )
        score = scores[name]
        if first_text is None:
            first_text, bytes_a_token = (scores, score["bytes"]), score["bytes"] / score["targets"]
        if not same_text(first_text[0], scores) or first_text[1] != score["bytes"]:
            raise UserError(f"{run} was scored on other text than {runs[0]} (other documents or number of bytes); score both alike")
        seed = recipe.pop("seed")
        seeds, dtypes = next(((seeds, dtypes) for known, seeds, dtypes in found if not first_difference(known, recipe)), ({}, set()))
        if not seeds:
            found.append((recipe, seeds, dtypes))
        if seed in seeds:
            raise UserError(f"{run} has the seed {seed} of another run of the same recipe; leave one of them out")
        seeds[seed] = score["bits_per_byte"]
        dtypes.add(score["dtype"])
    labels = _different([_label(recipe, found[0][0]) for recipe, _, _ in found])
    groups = [
        Group(label, tuple(seeds.values()), tuple(seeds), tuple(sorted(dtypes)), recipe["pack"]["budget_bytes"])
        for label, (recipe, seeds, dtypes) in zip(labels, found, strict=True)
    ]
    return groups, bytes_a_token


def _different(labels: list[str]) -> list[str]:
    """The same labels, the second of a kind and those after it numbered."""
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return found


def _label(recipe: dict[str, Any], first: dict[str, Any]) -> str:
    """The recipe's name, and how it differs from the first one where the name is the same."""
    name = f"{recipe['name']}, {recipe['size']}"
    if recipe is first or (recipe["name"], recipe["size"]) != (first["name"], first["size"]):
        return name
    return f"{name} ({first_difference(recipe, first)[:80]})"


def compare(first: Group, second: Group, bytes_a_token: float, equivalence_margin: float | None = None) -> Comparison:
    """
    Args:
        bytes_a_token: of the text, to turn nats a token into bits per byte.
        equivalence_margin: in bits per byte; None takes the contest's 0.005 nats a token.
    """
    margin = RECORD_NATS / math.log(2) / bytes_a_token
    within = margin if equivalence_margin is None else equivalence_margin
    common = [seed for seed in first.seeds if seed in second.seeds]
    differences = [second.values[second.seeds.index(s)] - first.values[first.seeds.index(s)] for s in common]
    paired = len(differences) > 1
    low, high = (_p(first, second, shift, side) for shift, side in ((-within, "greater"), (within, "less")))
    return Comparison(
        first=first.label,
        second=second.label,
        difference=statistics.fmean(second.values) - statistics.fmean(first.values),
        interval=_interval(first, second),
        pairs=len(differences),
        paired_difference=statistics.fmean(differences) if differences else None,
        paired_p=_one_sample_p(differences, 0.0, "two-sided") if paired else None,
        welch_p=_p(first, second, 0.0, "two-sided"),
        record_margin=margin,
        record_p=_p(first, second, margin, "greater"),
        equivalence_margin=within,
        equivalence_p=None if low is None or high is None else max(low, high),
    )


def _p(first: Group, second: Group, shift: float, alternative: Any) -> float | None:
    """Of the second's mean minus the first's being ``shift``, against an alternative; None with a single run on both sides."""
    a, b = np.array(first.values), np.array(second.values) - shift
    if len(a) < 2 and len(b) < 2:
        return None
    if len(a) < 2:
        return _against_one_p(b.tolist(), float(a[0]), bool(first.seeds), alternative)
    if len(b) < 2:
        return _against_one_p((-a).tolist(), -float(b[0]), bool(second.seeds), alternative)
    if a.std() == 0 and b.std() == 0:
        return _certain(float(b[0] - a[0]), alternative)
    return float(stats.ttest_ind(b, a, equal_var=False, alternative=alternative).pvalue)


def _against_one_p(values: list[float], one: float, is_a_run: bool, alternative: Alternative) -> float:
    """Of several values' mean being that of one more: a run, which spreads as they do, or an exact figure."""
    if not is_a_run or min(values) == max(values):
        return _one_sample_p(values, one, alternative)
    t = (statistics.fmean(values) - one) / _standard_error(values)
    tails = {"two-sided": 2 * stats.t.sf(abs(t), len(values) - 1), "greater": stats.t.sf(t, len(values) - 1)}
    return float(tails.get(alternative, stats.t.cdf(t, len(values) - 1)))


def _standard_error(values: list[float]) -> float:
    """Of the difference between their mean and one more value of the same spread."""
    return statistics.stdev(values) * math.sqrt(1 + 1 / len(values))


def _one_sample_p(values: list[float], mean: float, alternative: Alternative) -> float:
    if min(values) == max(values):
        return _certain(values[0] - mean, alternative)
    return float(stats.ttest_1samp(values, mean, alternative=alternative).pvalue)


def _certain(difference: float, alternative: Alternative) -> float:
    """Without any spread: 0 where the alternative holds, else 1."""
    holds = {"two-sided": difference != 0, "greater": difference > 0, "less": difference < 0}[alternative]
    return 0.0 if holds else 1.0


def _interval(first: Group, second: Group) -> tuple[float, float] | None:
    a, b = np.array(first.values), np.array(second.values)
    if len(a) > 1 and len(b) > 1 and a.std() + b.std() > 0:
        ends = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
        return float(ends.low), float(ends.high)
    several, single, sign = (b, a, 1.0) if len(a) == 1 else (a, b, -1.0)
    if len(several) < 2 or len(single) > 1 or several.std() == 0:
        return None
    is_a_run = bool((first if len(a) == 1 else second).seeds)
    error = _standard_error(several.tolist()) if is_a_run else float(several.std(ddof=1)) / math.sqrt(len(several))
    middle, half = sign * float(several.mean() - single[0]), float(stats.t.ppf(0.975, len(several) - 1)) * error
    return middle - half, middle + half


def as_text(groups: list[Group], comparisons: list[Comparison]) -> str:
    """A table of the groups, then what each comparison says."""
    width = max(len(group.label) for group in groups)
    lines = [f"{'':{width}}  runs     mean      std  values (bits per byte)"]
    for group in groups:
        held = group.to_json()
        spread = "       –" if held["std"] is None else f"{held['std']:8.5f}"
        values = "  ".join(f"{value:.5f}" for value in group.values)
        lines.append(f"{group.label:{width}}  {held['runs']:4d}  {held['mean']:7.5f} {spread}  {values}")
    if len({dtype for group in groups for dtype in group.dtypes}) > 1:
        named = "; ".join(f"{group.label}: {', '.join(group.dtypes)}" for group in groups if group.dtypes)
        lines += ["", f"computed in different dtypes, which alone moves a score ({named}); set train.dtype to compare like with like"]
    budgets = {group.label: group.budget_bytes for group in groups if group.budget_bytes is not None}
    if len(set(budgets.values())) > 1:
        lines += ["", f"of different budgets ({'; '.join(f'{label}: {size:,} bytes' for label, size in budgets.items())})"]
    for found in comparisons:
        better, other = (found.first, found.second) if found.difference >= 0 else (found.second, found.first)
        lines += ["", f"{better} is better than {other} by {abs(found.difference):.5f} bits per byte"]
        if found.interval is not None:
            lines.append(
                f"  95 % interval of the difference: {found.interval[0]:+.5f} to {found.interval[1]:+.5f} (above zero: the first is better)"
            )
        if found.paired_p is not None and found.paired_difference is not None:
            lines.append(f"  paired t test over {found.pairs} seeds: {found.paired_difference:+.5f}, p = {found.paired_p:.2g}")
        if found.welch_p is None:
            lines.append("  one run on each side: no test can be made; add seeds")
            continue
        lines.append(f"  t test: p = {found.welch_p:.2g}")
        verdict = "yes" if found.is_record else "no"
        lines.append(
            f"  a record by the contest's rule (better by {RECORD_NATS} nats a token, here {found.record_margin:.5f} bits per byte, at "
            f"p < {RECORD_P}): {verdict} (p = {found.record_p:.2g})"
        )
        verdict = "yes" if found.equivalent else "not shown"
        lines.append(f"  equivalent within {found.equivalence_margin:.5f}: {verdict} (p = {found.equivalence_p:.2g})")
    return "\n".join(lines)
