"""Data flows one way: nothing earlier imports anything later."""

from __future__ import annotations

import ast
from pathlib import Path

import bytefit

ROOT = Path(bytefit.__file__).parent
# Each layer may import the layers before it. Files at the top of the package are the common ground.
LAYERS = "base data model optim quant train artifact score recipes report page run audit submit hub tools cli".split()
BASE_FILES = {"compiled", "dtypes", "errors", "extras", "config", "ledger", "files", "progress", "ranks", "__init__"}


def layer_of(module: str) -> str:
    parts = module.split(".")
    second = parts[1] if len(parts) > 1 else "__init__"
    return "base" if second in BASE_FILES else "cli" if second == "__main__" else second


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {f"bytefit.{alias.name}" for alias in node.names} if node.module == "bytefit" else {node.module}
    return {name for name in found if name.split(".")[0] == "bytefit"}


def test_every_folder_is_a_layer() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(LAYERS) - {"base"}


def test_imports_go_backwards_only() -> None:
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        module = ".".join(("bytefit", *file.relative_to(ROOT).with_suffix("").parts))
        for imported in imported_modules(file):
            if imported == "bytefit.__version__":
                continue
            if LAYERS.index(layer_of(imported)) > LAYERS.index(layer_of(module)):
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_files_stay_readable() -> None:
    long = {str(file.relative_to(ROOT)): n for file in ROOT.rglob("*.py") if (n := len(file.read_text().splitlines())) > 400}
    assert long == {}
