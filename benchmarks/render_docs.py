"""What ``render.py`` writes into other pages than docs/results.md: output of the quick start's commands, the audit's classes."""

from __future__ import annotations

from typing import Any

from bytefit.audit.findings import CLASSES

PROMPT = "$ "


def console_commands(page: str) -> list[str]:
    """The commands of a page's ``console`` blocks, in order."""
    return [line.removeprefix(PROMPT) for line in _in_console(page) if line.startswith(PROMPT)]


def _in_console(page: str) -> list[str]:
    found, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```console"
        elif inside:
            found.append(line)
    return found


def with_outputs(page: str, record: dict[str, Any]) -> str:
    """The page with each command's recorded output under it, in place of what stood there."""
    outputs = {step["command"]: step["output"].rstrip().splitlines() for step in record["steps"]}
    lines, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```console"
            lines.append(line)
        elif not inside:
            lines.append(line)
        elif line.startswith(PROMPT):
            command = line.removeprefix(PROMPT)
            lines += [line, *outputs.get(command, [])]
    return "\n".join(lines) + "\n"


def classes_table() -> str:
    rows = [f"| {number} | {title} |" for number, title in CLASSES.items()]
    return "\n".join(["| | class |", "| ---: | --- |", *rows])
