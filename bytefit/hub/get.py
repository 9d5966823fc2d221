"""``data get``: a published dataset into a folder that ``open_dataset`` opens as it is.

``download.json`` in the folder names every file with what the hub stated of it, and says whether all of them have arrived; until then
the folder does not open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bytefit.data.dataset import DOWNLOAD_RECORD, open_dataset
from bytefit.data.shards import map_shard
from bytefit.errors import UserError
from bytefit.files import read_json, write_json
from bytefit.hub.client import hub, hub_errors
from bytefit.hub.download import HubFile, check_space, fetch, hub_file
from bytefit.hub.published import CONTEST_REPO, DOCUMENTS, DOCUMENTS_RECORD, PUBLISHED, Published
from bytefit.progress import progress_bar, say


def get_dataset(name: str, out: Path, *, shards: int, documents: bool, endpoint: str | None = None) -> dict[str, Any]:
    """Fetch a published dataset, or what is missing of it, and check all of it.

    Args:
        name: a key of ``PUBLISHED``.
        shards: how many training shards, from the first on; the validation split always comes whole.
        documents: the documents too (48 GB), from which the shards were made.
        endpoint: of a mirror of the hub (None: the hub itself).

    Returns:
        What ``download.json`` holds, and the tokens of both sides.

    Raises:
        UserError: unknown name, no such shards, no space, no way to the hub, content that is not what the hub states, a folder that
            holds something else.
    """
    if name not in PUBLISHED:
        raise UserError(f"there is no published dataset {name!r}; there are {', '.join(PUBLISHED)}")
    if shards < 1:
        raise UserError(f"--shards {shards} must be at least 1")
    published = PUBLISHED[name]
    api = hub().HfApi(endpoint=endpoint)
    with hub_errors(published.repo):
        files = list_files(api, name, published, shards)
    if documents:
        with hub_errors(CONTEST_REPO):
            files += files_at(api, CONTEST_REPO, [DOCUMENTS, DOCUMENTS_RECORD])
    _claim(out, name, files)
    with progress_bar(total=sum(file.size for file in files), desc=f"getting {name}", unit="B", unit_scale=True) as bar:
        missing = []
        for file in files:
            if file.is_whole(out / file.name):
                bar.update(file.size)
            else:
                missing.append(file)
        check_space(missing, out)
        record = {"name": name, "complete": False, "files": [file.to_json() for file in files]}
        write_json(out / DOWNLOAD_RECORD, record)
        # A folder listing that another process of the library has cached could be of another commit.
        filesystem = hub().HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
        for file in missing:
            with hub_errors(file.repo):
                fetch(filesystem, file, out, bar)
    for file in files:
        if file.name.endswith(".bin"):
            map_shard(out / file.name)
    if documents:
        _check_documents(out)
    say("checking the tokens")
    record["complete"] = True
    write_json(out / DOWNLOAD_RECORD, record)
    dataset = open_dataset(out)
    return record | {"fetched": len(missing), "train_tokens": len(dataset.train), "val_tokens": len(dataset.val)}


def list_files(api: Any, name: str, published: Published, shards: int) -> list[HubFile]:
    """Validation shards, the first training shards and the tokenizer, as one commit of the repository has them."""
    commit = api.dataset_info(published.repo).sha
    tree = api.list_repo_tree(published.repo, published.shards, repo_type="dataset", revision=commit)
    found = sorted((hub_file(published.repo, commit, entry) for entry in tree if entry.path.endswith(".bin")), key=lambda file: file.name)
    train, val = ([file for file in found if f"_{side}_" in file.name] for side in ("train", "val"))
    if not train or not val:
        raise UserError(f"{published.repo} has no shards of {name} in {published.shards} now")
    if shards > len(train):
        raise UserError(f"{name} has {len(train)} training shards; --shards {shards} asks for more")
    return [*val, *train[:shards], *files_at(api, published.repo, [published.tokenizer], commit)]


def files_at(api: Any, repo: str, paths: list[str], commit: str | None = None) -> list[HubFile]:
    """The files at ``paths`` of one commit (None: the newest). Raises UserError where one is not there."""
    commit = commit or api.dataset_info(repo).sha
    found = {entry.path: hub_file(repo, commit, entry) for entry in api.get_paths_info(repo, paths, repo_type="dataset", revision=commit)}
    missing = [path for path in paths if path not in found]
    if missing:
        raise UserError(f"{repo} has no file {missing[0]}")
    return [found[path] for path in paths]


def _claim(out: Path, name: str, files: list[HubFile]) -> None:
    """Make the folder, or make sure that it holds (a part of) this dataset and nothing that would be taken for it."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / DOWNLOAD_RECORD).exists())):
        raise UserError(f"{out} exists and is not a download of bytefit data get; choose another --out")
    if out.exists() and any(out.iterdir()):
        held = read_json(out / DOWNLOAD_RECORD).get("name")
        if held != name:
            raise UserError(f"{out} holds {held}, not {name}; choose another --out")
        wanted = {file.name for file in files}
        stray = sorted(path.name for pattern in ("*.bin", "*.model") for path in out.glob(pattern) if path.name not in wanted)
        if stray:
            raise UserError(f"{out} holds {stray[0]} too, which was not asked for; ask for as many --shards, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}") from None


def _check_documents(out: Path) -> None:
    """The documents are as many as their record says."""
    path = out / DOCUMENTS.rpartition("/")[2]
    promised = read_json(out / DOCUMENTS_RECORD.rpartition("/")[2]).get("num_docs")
    say("counting the documents")
    with open(path, "rb") as file:
        found = sum(1 for _ in file)
    if found != promised:
        raise UserError(f"{path} holds {found} documents, its record says {promised}; delete it and run the same command again")
