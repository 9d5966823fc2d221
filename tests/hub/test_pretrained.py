"""Artifacts from folders and from the hub, and to it."""

from __future__ import annotations

import pytest
import torch

from bytefit.artifact.load import Artifact, load_artifact
from bytefit.artifact.unpack import UNPACKED, unpack_artifact
from bytefit.errors import UserError
from bytefit.hub import from_pretrained, push_to_hub

REPO = "somebody/small"


def same(a: Artifact, b: Artifact) -> bool:
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        return a.sha256 == b.sha256 and torch.equal(a.model.logits(ids), b.model.logits(ids))


def test_files_and_folders(tiny_run, tmp_path) -> None:
    artifact = load_artifact(tiny_run.artifact)
    unpack_artifact(artifact, tmp_path / "unpacked")
    for name in (tiny_run.artifact, tiny_run.path, str(tiny_run.path), tmp_path / "unpacked"):
        assert same(from_pretrained(name), artifact)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither"):
        from_pretrained(tmp_path / "empty")


def test_pushed_and_read_back(tiny_run, fake_hub, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: "hf_of_the_test", raising=False)
    address = push_to_hub(tiny_run.artifact, REPO, endpoint=fake_hub.url)
    assert address.startswith(f"{fake_hub.url}/{REPO}/commit/")
    assert set(fake_hub.files[REPO]) >= {"model.bytefit", *UNPACKED}
    assert fake_hub.files[REPO]["model.bytefit"] == tiny_run.artifact.read_bytes()
    fake_hub.sent.clear()
    assert same(from_pretrained(REPO, endpoint=fake_hub.url), load_artifact(tiny_run.artifact))
    assert [path for path, _ in fake_hub.sent] == ["model.bytefit"]


def test_a_repository_of_the_unpacked_form_alone(tiny_run, fake_hub, tmp_path) -> None:
    artifact = load_artifact(tiny_run.artifact)
    unpack_artifact(artifact, tmp_path / "unpacked")
    fake_hub.files[REPO] = {name: (tmp_path / "unpacked" / name).read_bytes() for name in UNPACKED}
    assert same(from_pretrained(REPO, endpoint=fake_hub.url), artifact)


def test_no_such_repository(fake_hub) -> None:
    with pytest.raises(UserError, match="the hub has no repository nobody/nothing"):
        from_pretrained("nobody/nothing", endpoint=fake_hub.url)
    with pytest.raises(UserError, match="is not the name of a repository"):
        from_pretrained("no/such/folder", endpoint=fake_hub.url)
