"""A run as a text log: its steps, then what was packed, scored, proven and audited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bytefit.audit.checklist import as_text
from bytefit.submit.entry import SeedRun

FIRST_STEPS = 10  # logged one by one; after them about so many:
MOST_STEPS = 500


def log_of(run: SeedRun) -> str:
    """The log, as lines that end with a line feed."""
    return "".join(f"{line}\n" for line in _lines(run))


def _lines(run: SeedRun) -> Iterator[str]:
    evidence = run.evidence
    summary, packed, proof = evidence.summary, evidence.pack, evidence.proof
    yield f"recipe {run.recipe.name} size {run.recipe.size} seed {run.seed}"
    for machine in (evidence.state["machine"], *evidence.state["earlier_machines"]):
        yield f"machine {json.dumps(machine)}"
    yield f"dataset {evidence.dataset.sha256}"
    yield f"parameters {summary['num_parameters']}"
    every = max(1, len(evidence.metrics) // MOST_STEPS)
    for i, record in enumerate(evidence.metrics):
        if i < FIRST_STEPS or i % every == 0 or i + 1 == len(evidence.metrics):
            yield _pairs(record)
    yield f"trained {_pairs({'steps': summary['steps'], 'tokens': summary['tokens_seen'], 'seconds': summary['train_seconds']})}"
    yield f"ledger (seconds) {_pairs(summary['ledger'])}"
    yield f"packed {_pairs({'bytes': packed['bytes'], 'dial': packed['dial'], 'attempts': packed['attempts']})}"
    yield f"parts (bytes) {_pairs(packed['parts'])}"
    for name, score in evidence.scores.items():
        if isinstance(score, dict):
            keys = ("bits_per_byte", "nats", "targets", "bytes", "dtype", "seconds", "learned_steps")
            yield f"score {name} {_pairs({key: score[key] for key in keys})}"
            yield f"  protocol {json.dumps(score['protocol'])}"
    if proof:
        yield f"proof {_pairs({key: proof[key] for key in ('bytes_in', 'bytes_out', 'restored', 'agreement')})}"
    yield "audit"
    yield from as_text(run.findings).splitlines()


def _pairs(record: dict[str, Any]) -> str:
    return " ".join(f"{key}:{value}" for key, value in record.items())
