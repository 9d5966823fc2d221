"""Artifacts from the hub and to it, by the names that ``PyTorchModelHubMixin`` gave these calls.

Functions rather than that mixin: it would hang on the model's class, and what travels is the artifact (model, tokenizer, byte table).
A repository holds the artifact itself beside its unpacked form, and the artifact is what comes back: what was measured is what runs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bytefit.artifact.load import Artifact, load_artifact
from bytefit.artifact.unpack import CONFIG, UNPACKED, load_unpacked, unpack_artifact
from bytefit.errors import UserError
from bytefit.files import read_bytes, write_bytes
from bytefit.hub.client import hub, hub_errors

ARTIFACT = "model.bytefit"


def from_pretrained(name: str | Path, *, revision: str | None = None, endpoint: str | None = None) -> Artifact:
    """An artifact by its file, its folder or its repository on the hub.

    Args:
        name: an artifact file; a folder that holds ``model.bytefit`` (a run's too) or what ``bytefit unpack`` wrote; else ``owner/name``.
        revision: branch, tag or commit of the repository.
        endpoint: of a mirror of the hub (None: the hub itself).

    Raises:
        UserError: nothing of that name, no way to the hub, or damaged files.
    """
    path = Path(name)
    if path.is_file():
        return load_artifact(path)
    if path.is_dir():
        return _from_folder(path)
    with hub_errors(str(name)):
        library = hub()
        files = library.HfApi(endpoint=endpoint).list_repo_files(str(name), revision=revision)
        wanted = [ARTIFACT] if ARTIFACT in files else list(UNPACKED)
        folder = library.snapshot_download(str(name), revision=revision, endpoint=endpoint, allow_patterns=wanted)
    return _from_folder(Path(folder))


def _from_folder(folder: Path) -> Artifact:
    if (folder / ARTIFACT).exists():
        return load_artifact(folder / ARTIFACT)
    if (folder / CONFIG).exists():
        return load_unpacked(folder)
    raise UserError(f"{folder} holds neither {ARTIFACT} nor an unpacked artifact ({CONFIG})")


def push_to_hub(artifact: Path, repo_id: str, *, private: bool | None = None, endpoint: str | None = None) -> str:
    """Put an artifact and its unpacked form into a model repository, which is made where it is not there.

    Args:
        artifact: the file.
        repo_id: ``owner/name``.
        private: of a new repository (None: as its owner usually has them).
        endpoint: of a mirror of the hub (None: the hub itself).

    Returns:
        The address of the commit.

    Raises:
        UserError: a damaged artifact, no permission, or no way to the hub.
    """
    loaded = load_artifact(artifact)
    with tempfile.TemporaryDirectory() as place, hub_errors(repo_id):
        folder = Path(place)
        unpack_artifact(loaded, folder)
        write_bytes(folder / ARTIFACT, read_bytes(artifact))
        api = hub().HfApi(endpoint=endpoint)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"bytefit artifact of {loaded.size:,} bytes")
    return str(commit.commit_url)
