"""What every result says about where it came from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from bytefit.dtypes import dtype_name, faster_dtype
from bytefit.files import read_json
from bytefit.run.folder import RunFolder
from bytefit.train.machine import describe_machine


@functools.cache
def dtype() -> str:
    """What this machine computes runs in that are held against each other: the faster of bf16 and fp32 there, found once for all of them.

    Every row says it. Which it is, and which processor computes it, may move a run as far as another seed (``arithmetic.json``,
    ``systems_again.jsonl``).
    """
    return dtype_name(faster_dtype("cpu"))


def arithmetic() -> tuple[str, str]:
    """The settings that say so."""
    return f"train.dtype={dtype()}", f"train.optimizer.matrices.dtype={dtype()}"


def computed_by(row: dict[str, Any]) -> tuple[Any, ...]:
    """The dtype of a row and the kind of its processor: of one seed, runs that have both in common are one run until something differs in
    what they do; where they have not, rounding parts them."""
    return row["dtype"], *(row["machine"].get(key) for key in ("cpu", "cpu_capability", "cpu_bf16"))


def hide_gpus() -> None:
    """From this process, which must not have looked for one yet, and from those that it starts: what is said to run on a CPU does."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def provenance() -> dict[str, Any]:
    """Command, commit and machine. Folders of the command's arguments are left out: they are this machine's own."""
    words = [Path(word).name if Path(word).is_absolute() or word.startswith("..") else word for word in sys.argv[1:]]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        commit = ""
    return {"command": shlex.join(["python", sys.argv[0], *words]), "commit": commit or "unknown", "machine": describe_machine()}


def commits(rows: list[dict[str, Any]]) -> str:
    """Those that they were made at, each once."""
    return ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(row["commit"] for row in rows))


def hardware(records: list[dict[str, Any]]) -> str:
    """The processors that they were made on, in words, each once."""
    machines = [record["machine"] for record in records]
    has_bf16 = {None: "", "none": ", no bf16"}
    named = [f"{m['cpu']}, {m['cpu_capability']}" + has_bf16.get(m.get("cpu_bf16"), f", {m.get('cpu_bf16')}") for m in machines]
    return "; ".join(dict.fromkeys(named))


def digest(recipe: dict[str, Any]) -> str:
    """What tells one recipe (as JSON) from another: everything but its seed, its budget of training, the text and how much of it is scored.
    What it computes in is no part of it either: ``auto`` says nothing, so rows say it themselves. A setting that is null is left out, so
    that a new technique, which the rows so far do without, leaves them what they are.

    Rows of one name that have another digest are of another recipe.
    """
    left = {"train": ("steps", "seconds", "reserve_seconds", "dtype"), "model": ("vocab_size",), "score": ("max_bytes",)}
    kept = {key: value for key, value in recipe.items() if key not in ("seed", "tokenizer")}
    for part, names in left.items():
        kept[part] = {key: value for key, value in kept[part].items() if key not in names}
    optimizer = kept["train"]["optimizer"]
    matrices = {key: value for key, value in optimizer["matrices"].items() if key != "dtype"}
    kept["train"]["optimizer"] = optimizer | {"matrices": matrices}
    return hashlib.sha256(json.dumps(_without_nulls(kept), sort_keys=True).encode()).hexdigest()[:16]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value


def audited(folder: RunFolder) -> dict[str, list[int]]:
    """Audit a run; the classes by verdict. Raises RuntimeError where the audit itself fails."""
    folder.audit.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-m", "bytefit", "audit", str(folder.path)], capture_output=True, text=True)
    if done.returncode not in (0, 1) or not folder.audit.exists():
        raise RuntimeError(f"the audit of {folder.path} ended with code {done.returncode}: {done.stderr[-500:]}")
    findings = read_json(folder.audit)
    return {verdict: [found["class"] for found in findings if found["verdict"] == verdict] for verdict in ("pass", "fail")}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of one JSON document a line, to which lines may then be added: where everything stopped while a line was being written, its
    beginning is taken out of the file."""
    if not path.exists():
        return []
    whole, newline, rest = path.read_text().rpartition("\n")
    rows = [json.loads(line) for line in whole.splitlines()]
    if rest:
        try:
            rows.append(json.loads(rest))
            path.write_text(f"{whole}{newline}{rest}\n")
        except ValueError:
            path.write_text(whole + newline)
    return rows


def put_row(path: Path, row: dict[str, Any], *, key: tuple[str, ...]) -> None:
    """Add a row to a file of lines, in place of one that has the same under every name of the key."""
    others = [held for held in read_lines(path) if any(held.get(name) != row[name] for name in key)]
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(held, ensure_ascii=False) + "\n" for held in [*others, row]))
    new.replace(path)


def write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
