"""What stands in the pages: fenced blocks, the commands in them, and commands within sentences."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("bytefit", "torchrun", "python", "make", "pip", "bash", "cmp", "ls", ".")


@dataclass(frozen=True)
class Block:
    """
    Attributes:
        info: what stands behind the opening fence.
    """

    info: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """Shell commands, without their comments."""
        if self.info == "console":
            return [line.removeprefix("$ ") for line in self.lines if line.startswith("$ ")]
        if self.info:
            return []
        return [command for line in self.lines if (command := without_comment(line)).partition(" ")[0] in PROGRAMS]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).rstrip()


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    lines: list[str] | None = None
    info = ""
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            if lines is None:
                lines, info = [], line.removeprefix("```").strip()
            else:
                found.append(Block(info, tuple(lines)))
                lines = None
        elif lines is not None:
            lines.append(line)
    assert lines is None, f"{page.name}: a block is not closed"
    return found


def commands_of(page: Path) -> list[str]:
    return [command for block in blocks_of(page) for command in block.commands]


def mentioned(page: Path) -> list[list[str]]:
    """Commands of bytefit within sentences, as words."""
    return [shlex.split(code) for code in _code_in_prose(page) if re.match(r"(torchrun .* -m )?bytefit ", code)]


def benchmarks_of(page: Path) -> list[list[str]]:
    """Commands of ``benchmarks/`` within sentences, as words."""
    return [shlex.split(code) for code in _code_in_prose(page) if code.startswith("python benchmarks/") and "|" not in code]


def _code_in_prose(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
