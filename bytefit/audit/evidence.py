"""Everything that an audit reads of a run, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from bytefit.artifact.container import Section, read_sections
from bytefit.artifact.load import Artifact, load_artifact
from bytefit.config import from_json
from bytefit.data.dataset import Dataset
from bytefit.data.shards import TokenStream
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.files import read_bytes, read_json
from bytefit.recipes.recipe import Recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import val_tokens
from bytefit.score.scorer import ScoreProtocol
from bytefit.train.metrics import read_metrics

PIECE_TOKENS = 20_000_000
PROTOCOLS = ("full", "sliding", "adapt")  # of the artifact, in score.json


@dataclass(frozen=True)
class Evidence:
    """A finished run, its files, and the dataset that it was trained on."""

    folder: RunFolder
    recipe: Recipe
    dataset: Dataset

    @cached_property
    def artifact(self) -> Artifact:
        return load_artifact(self.folder.artifact)

    @cached_property
    def state(self) -> dict[str, Any]:
        return self._read(self.folder.checkpoint / "state.json")

    @cached_property
    def scores(self) -> dict[str, Any]:
        found = self._read(self.folder.score)
        if not all(score["blocks"] for score in found.values() if isinstance(score, dict)):
            raise UserError(f"{self.folder.score} holds a score without blocks; make it again with: bytefit score {self.folder.path}")
        return found

    @cached_property
    def pack(self) -> dict[str, Any]:
        return self._read(self.folder.pack)

    @cached_property
    def proof(self) -> dict[str, Any]:
        return self._read(self.folder.proof)

    @cached_property
    def summary(self) -> dict[str, Any]:
        return self._read(self.folder.summary)

    @cached_property
    def env(self) -> dict[str, Any]:
        return self._read(self.folder.env)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """By ledger entry, of training and of every later step."""
        return dict(self.summary.get("ledger", {}))

    def _read(self, path: Any) -> dict[str, Any]:
        found = read_json(path) if path.exists() else {}
        if not isinstance(found, dict):
            raise UserError(f"{path} does not hold what a run writes; make it again with: bytefit run … --resume")
        return found

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder.metrics)

    @cached_property
    def sections(self) -> list[Section]:
        return read_sections(read_bytes(self.folder.artifact))

    @cached_property
    def tokens(self) -> np.ndarray:
        """The validation tokens that the recipe scores."""
        return val_tokens(self.dataset, self.recipe.score.max_bytes)

    @cached_property
    def counts(self) -> np.ndarray:
        """Bytes of every target of ``tokens``, as scored."""
        return self.dataset.byte_table.count(self.tokens[1:], self.tokens[:-1])

    def protocol(self, name: str) -> ScoreProtocol:
        protocol: ScoreProtocol = from_json(ScoreProtocol, self.scores[name]["protocol"])
        return protocol

    @property
    def scored(self) -> list[str]:
        """The artifact's scores in score.json."""
        return [name for name in PROTOCOLS if name in self.scores]

    @cached_property
    def shared_documents(self) -> tuple[int, int]:
        """How many validation documents stand among the training documents, and how many there are (by hash of their tokens)."""
        val = set(_document_hashes(self.dataset.val))
        return len(val.intersection(_document_hashes(self.dataset.train))), len(val)


def document_hash(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.astype("<u2").tobytes(), digest_size=16).digest()


def _document_hashes(stream: TokenStream) -> Iterator[bytes]:
    """Of every document that is not empty; the stream is read in pieces, because it may be larger than memory."""
    rest = np.zeros(0, dtype=np.int64)
    for position in range(0, len(stream), PIECE_TOKENS):
        rest = np.concatenate([rest, stream.read(position, min(PIECE_TOKENS, len(stream) - position))])
        starts = np.flatnonzero(rest == BOS_ID)
        for start, end in pairwise(starts.tolist()):
            if end - start > 1:
                yield document_hash(rest[start + 1 : end])
        rest = rest[starts[-1] :] if len(starts) else rest[:0]
    if len(rest) > 1:
        yield document_hash(rest[1:])
