"""Datasets that others published on the hub: where each lies, and who says so.

All are exports of one frozen, shuffled list of FineWeb documents; the first 50,000 documents are the validation side. Shards are in the
format of ``data/shards.py``, 100,000,000 tokens each, ``fineweb_train_NNNNNN.bin`` and ``fineweb_val_NNNNNN.bin``.
"""

from __future__ import annotations

from dataclasses import dataclass

# Source: openai/parameter-golf, data/README.md and data/cached_challenge_fineweb.py (repository, the root "datasets/", 80 shards).
CONTEST_REPO = "willdepueoai/parameter-golf"
# Source: the README of the record of PR #1218 (4096), by the repository's owner; PR #1394 and later ones (8192). The tree is the contest's.
LARGER_VOCABULARIES_REPO = "kevclark/parameter-golf"

DEFAULT_SHARDS = 80  # 8 billion tokens: what the contest's own downloader takes
DOCUMENTS = "datasets/docs_selected.jsonl"
DOCUMENTS_RECORD = "datasets/docs_selected.source_manifest.json"  # states "num_docs"


@dataclass(frozen=True)
class Published:
    """One published dataset.

    Attributes:
        repo: dataset repository on the hub.
        shards: folder of the shards in it.
        tokenizer: the SentencePiece model that made them.
    """

    repo: str
    shards: str
    tokenizer: str


PUBLISHED = {
    f"fineweb-sp{size}": Published(
        repo=repo, shards=f"datasets/datasets/fineweb10B_sp{size}", tokenizer=f"datasets/tokenizers/fineweb_{size}_bpe.model"
    )
    for size, repo in ((1024, CONTEST_REPO), (4096, LARGER_VOCABULARIES_REPO), (8192, LARGER_VOCABULARIES_REPO))
}
