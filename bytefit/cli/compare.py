"""``compare``: groups of runs, with statistics."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bytefit.cli.options import Verbs, add_verb, check_outputs, show_result
from bytefit.errors import UserError
from bytefit.files import write_bytes
from bytefit.report.chart import strip_chart


def add_verbs(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "compare",
        "  bytefit compare runs/a-s1 runs/a-s2 runs/a-s3\n"
        "  bytefit compare runs/a-s1 runs/a-s2 runs/b-s1 runs/b-s2 --plot compare.svg\n"
        "  bytefit compare runs/a-s* --published 1.1145,1.1141,1.1150\n\n"
        "runs whose recipes differ in the seed alone are one group; every other group is compared with the first.",
    )  # fmt: skip
    verb.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    verb.add_argument("--published", metavar="LIST", help="bits per byte that somebody published, with commas: one more group")
    verb.add_argument(
        "--protocol", choices=("headline", "float_full", "full", "sliding", "adapt"), default="headline",
        help="which score (default: each recipe's headline)",
    )  # fmt: skip
    verb.add_argument("--equivalence", type=float, metavar="BPB", help="margin of equivalence (default: 0.005 nats a token)")
    verb.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG with a dot a run")
    verb.set_defaults(do=do_compare)


def do_compare(options: argparse.Namespace) -> None:
    from bytefit.report.compare import Group, as_text, compare, read_groups  # scipy's statistics take seconds, and --help lists all verbs

    groups, bytes_a_token = read_groups(options.runs, options.protocol)
    if options.equivalence is not None and not 0 < options.equivalence < math.inf:
        raise UserError(f"--equivalence {options.equivalence} must be above 0, and finite")
    if options.published is not None:
        groups.append(Group("published", published(options.published)))
    comparisons = [compare(groups[0], other, bytes_a_token, options.equivalence) for other in groups[1:]]
    if options.plot is not None:
        check_outputs([options.plot], [], option="--plot")
        rows = {group.label: group.values for group in groups}
        write_bytes(options.plot, strip_chart(rows, x_label="bits per byte (lower is better)").encode())
    record = {"groups": [group.to_json() for group in groups], "comparisons": [found.to_json() for found in comparisons]}
    show_result(options, record, as_text(groups, comparisons), options.plot)


def published(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--published {text}: write numbers with commas, for example --published 1.1145,1.1141,1.1150") from None
    if not all(0 < value < 100 for value in values):
        raise UserError(f"--published {text}: bits per byte lie above 0 and below 100")
    return values
