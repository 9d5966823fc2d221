"""Shared fixtures: a small English corpus made here, a dataset of it, and one finished tiny run."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from bytefit.data.build import build_dataset, split_documents
from bytefit.data.dataset import Dataset, open_dataset
from bytefit.data.tokenizer import TokenizerConfig
from bytefit.ranks import Ranks
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.pipeline import run

ONE_RANK = Ranks(0, 1, "cpu")
THREADS = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))  # two cores are shared by the test processes
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of programs that tests start
_WORDS = """
    the a of and to in is was it for with on that by as river stone bread window letter garden winter morning engine number small
    quiet bright heavy open early walked found carried wrote opened counted 17 1984 café naïve 🙂
""".split()


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Sentences of common words: learnable in seconds, different in every document."""
    generator = random.Random(seed)
    documents = []
    for i in range(count):
        sentences = [
            " ".join(generator.choices(_WORDS, k=generator.randint(4, 14))).capitalize() + "." for _ in range(generator.randint(8, 30))
        ]
        documents.append(f"Chapter {i}\n\n" + "\n".join(sentences) + "\n")
    return documents


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """The compiler limits how many graphs a function may have in a process, those of other tests among them."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(150)


@pytest.fixture(scope="session")
def dataset(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "small"
    split = split_documents(documents, 0.1, None)
    return open_dataset(build_dataset(split, folder, TokenizerConfig(vocab_size=320)))


@pytest.fixture(scope="session")
def tiny_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of the tiny pocket recipe; tests read it and must not change it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(find_recipe("pocket", "tiny"), data=dataset.folder, out=out, resume=False, ranks=ONE_RANK)
    return RunFolder(out)


@pytest.fixture
def write(tmp_path: Path):
    """Write a file below the test's folder and return its path."""

    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


@pytest.fixture
def no_compiler() -> Callable[[], AbstractContextManager[None]]:
    """A context in which ``torch.compile`` finds no C++ compiler, and nothing compiled earlier."""

    @contextmanager
    def without() -> Iterator[None]:
        import torch._functorch.config as functorch
        import torch._inductor.config as inductor
        import torch._inductor.cpp_builder as builder

        torch._dynamo.reset()
        builder.cpp_compiler_search.cache_clear()
        try:
            with inductor.patch({"cpp.cxx": ("/nowhere/c++",), "fx_graph_cache": False}), functorch.patch(enable_autograd_cache=False):
                yield
        finally:
            torch._dynamo.reset()
            builder.cpp_compiler_search.cache_clear()

    return without
