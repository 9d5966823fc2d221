"""The corpus that is always there: documentation of Python's standard library and of this project's own dependencies.

One document a module: its docstrings in the order of the file. Long doctest listings are cut short and paragraphs whose words
stood before are left out (generated documentation repeats itself). No download: the same versions give the same text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import platformdirs

from bytefit.config import to_json
from bytefit.data.build import build_dataset, split_documents
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.errors import UserError
from bytefit.progress import progress_bar, say

VERSION = 2  # part of the cache key: raise it when the text changes
PACKAGES = ("torch", "sympy", "networkx", "numpy", "mpmath", "jinja2", "fsspec")
VAL_FRACTION = 0.04
MIN_DOCUMENT_CHARS = 300
MAX_DOCTEST_LINES = 6
MIN_REPEATED_CHARS = 60  # shorter paragraphs ("Returns", "See Also") may repeat
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def embedded_dataset(tokenizer: TokenizerConfig) -> Path:
    """The dataset folder of the embedded corpus for this tokenizer; built on first use into the user's cache.

    Raises:
        UserError: the cache cannot be written.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    key = hashlib.sha256(json.dumps([VERSION, versions, to_json(tokenizer)], sort_keys=True).encode()).hexdigest()[:12]
    folder = _cache() / f"embedded-{key}"
    if not (folder / "dataset.json").exists():
        say("no --data given: building the embedded corpus (documentation of Python and of the installed libraries), once")
        documents = thin(read_embedded_documents())
        how = {"source": "embedded", "builder_version": VERSION, "versions": versions}
        build_dataset(split_documents(documents, VAL_FRACTION, None), folder, tokenizer, how=how)
    return folder


def is_embedded(folder: Path) -> bool:
    """Whether it is a dataset of the embedded corpus, which may be there no longer."""
    return folder.parent == _cache().resolve() and folder.name.startswith("embedded-")


def _cache() -> Path:
    return platformdirs.user_cache_path("bytefit")


def module_files() -> list[tuple[str, Path]]:
    """(module name, file) of every module that is read, in sorted order."""
    roots = [("", Path(sysconfig.get_path("stdlib")))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(f"the package {name} is not installed, so the embedded corpus cannot be built; run make setup, or give --data")
        roots.append((name, Path(spec.origin).parent))
    found = []
    for package, root in roots:
        for file in root.rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            if _SKIPPED_FOLDERS.isdisjoint(parts[:-1]):
                found.append((".".join(filter(None, (package, *parts))).removesuffix(".__init__"), file))
    return sorted(found)


def read_embedded_documents() -> Iterator[str]:
    """One document a module that has enough documentation. Parsed in parallel; the order does not depend on it."""
    files = module_files()
    # Spawned, not forked: the parent may hold the threads of a numerical library.
    with (
        ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool,
        progress_bar(total=len(files), desc="reading documentation", unit=" modules") as bar,
    ):
        for document in pool.map(module_document, files, chunksize=64):
            bar.update()
            if len(document) >= MIN_DOCUMENT_CHARS:
                yield document


def module_document(module: tuple[str, Path]) -> str:
    """The module's name and its docstrings, separated by blank lines; empty where the file cannot be parsed."""
    name, file = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ""
    return "\n\n".join([name, *map(_short_doctests, _docstrings(tree))]).encode("utf-8", "replace").decode()


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings in the order of the file: a class's own, then its methods'."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)


def _short_doctests(text: str) -> str:
    """Keep the first lines of each run of doctest lines (prompts and their output, up to a blank line)."""
    kept: list[str] = []
    run = 0
    for line in text.splitlines():
        stripped = line.lstrip()
        in_run = stripped.startswith((">>>", "...")) or (run > 0 and stripped)
        run = run + 1 if in_run else 0
        if run <= MAX_DOCTEST_LINES:
            kept.append(line.rstrip())
    return "\n".join(kept)


def thin(documents: Iterator[str]) -> Iterator[str]:
    """Leave out paragraphs whose words, numbers and punctuation aside, stood before, in this document or an earlier one."""
    seen: set[bytes] = set()
    for document in documents:
        kept = []
        for paragraph in document.split("\n\n"):
            words = re.findall(r"[^\W\d_]+", paragraph.lower())
            key = hashlib.sha256(" ".join(words).encode()).digest()[:12]
            if len(paragraph) >= MIN_REPEATED_CHARS and key in seen:
                continue
            seen.add(key)
            if paragraph.strip():
                kept.append(paragraph)
        text = "\n\n".join(kept)
        if len(text) >= MIN_DOCUMENT_CHARS:
            yield text
