"""What a script needs besides Python itself: packages, their versions here, and what each is for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

# By the name that is imported: the name that is installed, and its purpose.
PURPOSES: dict[str, tuple[str, str]] = {
    "brotli": ("brotli", "packing and reading: tried for the sections that are not codes (config, tokenizer)"),
    "google.protobuf": ("protobuf", "the tokenizer's model in the artifact"),
    "numba": ("numba", "compiles the entropy coder of codes and the rounding of weights"),
    "numpy": ("numpy", "arrays"),
    "safetensors": ("safetensors", "checkpoints and calibration, without pickle"),
    "sentencepiece": ("sentencepiece", "the tokenizer"),
    "torch": ("torch", "the model, its training and its scores"),
    "tqdm": ("tqdm", "progress on stderr"),
    "zstandard": ("zstandard", "packing and reading: tried for the sections that are not codes, and the codec of some recipes"),
}


def needed(imported: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By installed name: version and purpose of every package among the dotted names that are imported.

    Raises:
        KeyError: a package that this table does not know: say there what it is for.
    """
    found = {}
    for name in imported:
        known = next((known for known in PURPOSES if f"{name}.".startswith(f"{known}.")), name)
        package, purpose = PURPOSES[known]
        found[package] = importlib.metadata.version(package), purpose
    return dict(sorted(found.items()))


def requirements(packages: dict[str, tuple[str, str]]) -> str:
    """``requirements.txt``; the build of torch (+cpu, +cu128) is left to the index."""
    return "".join(f"{name}=={version.partition('+')[0]}\n" for name, (version, _) in packages.items())
