"""Which modules a program needs: what its entry imports, what that imports, and so on.

Read from the source, without running it, so that an import inside a function counts as much as one at the top. Only what stands under
``if TYPE_CHECKING`` is for the type checker alone and is left out.

Importing ``a.b`` needs the package ``a`` as a place, but not what its ``__init__`` does. So a package's own code is part of the closure
only where the package is imported by its own name; elsewhere it is empty.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bytefit

ROOT = Path(bytefit.__file__).parent


@dataclass(frozen=True)
class Closure:
    """What an entry module needs.

    Attributes:
        sources: the source of each module of bytefit, by name, in order of names.
        packages: dotted names that are imported from outside of bytefit and of the standard library.
    """

    sources: dict[str, str]
    packages: frozenset[str]


def closure(entry: str) -> Closure:
    """Everything that importing the module ``entry`` of bytefit can lead to."""
    sources: dict[str, str] = {}
    packages: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module in sources:
            continue
        file = _file(module)
        if file is None:
            raise ModuleNotFoundError(f"there is no module {module}", name=module)
        sources[module] = file.read_text()
        for name in imported(ast.parse(sources[module])):
            top = name.partition(".")[0]
            if top == "bytefit":
                waiting.append(name)
            elif top not in sys.stdlib_module_names:
                packages.add(name)
    return Closure(dict(sorted(sources.items())), frozenset(packages))


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of modules that the code imports; ``from a import b`` names ``a.b`` where that is a module of bytefit."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _file(inner) is not None else node.module
        yield from imported(node)


def _file(module: str) -> Path | None:
    """Where a module of bytefit stands; None for anything else."""
    top, *rest = module.split(".")
    if top != "bytefit":
        return None
    place = ROOT.joinpath(*rest)
    found = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return found if found.exists() else None
