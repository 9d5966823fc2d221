"""Files of the hub on the disk: what the hub states of each, fetched so that a break costs little, and checked before it counts.

``hf_hub_download`` begins a file again after a break (versions 1.33 and 2.0 keep no part of it), and the documents alone are
48 GB in one file. So a file is read through ``HfFileSystem``, block by block with range requests, which the library repeats where a
connection breaks. The blocks are appended to a file beside the final one; a later call goes on at its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytefit.data.shards import sha256_of
from bytefit.errors import UserError
from bytefit.files import cannot_write
from bytefit.hub.client import AGAIN

BLOCK_BYTES = 1 << 24  # of one range request


@dataclass(frozen=True)
class HubFile:
    """A file as the hub states it.

    Attributes:
        commit: of the repository, so that all files belong together.
        path: in the repository.
        size: in bytes.
        digest: hex; ``"sha256"`` of the content for large files, else git's hash of it.
    """

    repo: str
    commit: str
    path: str
    size: int
    kind: str
    digest: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def partial(self, folder: Path) -> Path:
        """Where its beginning is kept; the digest in its name keeps versions apart."""
        return folder / f".{self.name}.{self.digest[:16]}.partial"

    def digest_of(self, path: Path) -> str:
        """The digest of a local file, of the kind that the hub states."""
        if self.kind == "sha256":
            return sha256_of(path)
        content = path.read_bytes()  # small, or the hub would keep it apart and state a SHA-256
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def is_whole(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.size and self.digest_of(path) == self.digest

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "repo": self.repo, "commit": self.commit, "path": self.path, "bytes": self.size, self.kind: self.digest}


def hub_file(repo: str, commit: str, entry: Any) -> HubFile:
    """From a ``RepoFile`` of the library."""
    kind, digest = ("sha256", entry.lfs.sha256) if entry.lfs else ("git_blob", entry.blob_id)
    return HubFile(repo, commit, entry.path, entry.size, kind, digest)


def check_space(files: list[HubFile], folder: Path) -> None:
    """Raises UserError where what is still to come does not fit on the disk; names both numbers of bytes."""
    needed = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            needed -= file.partial(folder).stat().st_size
        needed += file.size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder} needs {needed:,} bytes more, its disk has {free:,} free; ask for fewer --shards or another --out")


def fetch(filesystem: Any, file: HubFile, folder: Path, bar: Any) -> None:
    """Fetch one file into ``folder``, going on where an earlier call stopped.

    Args:
        filesystem: an ``HfFileSystem``.
        bar: a progress bar that counts bytes.

    Raises:
        UserError: the content is not what the hub states (then it is deleted), or the disk is full.
    """
    partial = file.partial(folder)
    try:
        with open(partial, "ab") as sink, filesystem.open(_address(file), "rb", cache_type="none") as source:
            sink.truncate(min(sink.tell(), file.size))
            done = sink.seek(0, 2)
            bar.update(done)
            source.seek(done)
            while done < file.size:
                asked = min(BLOCK_BYTES, file.size - done)
                block = source.read(asked)
                if len(block) != asked:
                    raise UserError(f"{file.path}: asked for {asked:,} bytes, got {len(block):,}; {AGAIN}")
                sink.write(block)
                done += asked
                bar.update(asked)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # the library's, not the disk's
        raise cannot_write(partial, error) from error
    found = file.digest_of(partial)
    if found != file.digest:
        partial.unlink()
        raise UserError(
            f"{file.path} of {file.repo} did not arrive whole: the hub states {file.kind} {file.digest}, "
            f"what came has {found}; it is deleted: run the same command again"
        )
    partial.replace(folder / file.name)


def _address(file: HubFile) -> str:
    return f"datasets/{file.repo}@{file.commit}/{file.path}"
