"""The fake hub, with the contest's tree at a small scale."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bytefit.data.shards import write_shards
from bytefit.hub.published import DOCUMENTS, DOCUMENTS_RECORD, PUBLISHED
from tests.hub.fake_hub import FakeHub

NAME = "fineweb-sp1024"


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the server does not speak it
    hub = FakeHub()
    yield hub
    hub.stop()


@pytest.fixture
def contest_hub(fake_hub: FakeHub, dataset, documents, tmp_path) -> FakeHub:
    """Three training shards, one of validation, the tokenizer, other files beside them, and the documents."""
    published, made = PUBLISHED[NAME], tmp_path / "made"
    made.mkdir()
    train = dataset.train.all().astype(np.uint16)[:45_000]
    paths = write_shards(made, "fineweb_train", [train], shard_tokens=20_000)
    paths += write_shards(made, "fineweb_val", [dataset.val.all().astype(np.uint16)])
    tree = {f"{published.shards}/{path.name}": path.read_bytes() for path in paths}
    tree[published.tokenizer] = dataset.tokenizer.to_bytes()
    tree[published.tokenizer.replace(".model", ".vocab")] = b"not asked for"
    tree[DOCUMENTS] = "".join(json.dumps({"text": document}) + "\n" for document in documents).encode()
    tree[DOCUMENTS_RECORD] = json.dumps({"num_docs": len(documents)}).encode()
    fake_hub.files[published.repo] = tree
    return fake_hub
