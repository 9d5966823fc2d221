"""A dataset folder opened for training and scoring.

Either made by ``bytefit data build`` (it holds ``dataset.json``), or the contest's own: shards named ``*train*.bin`` and
``*val*.bin`` with one tokenizer ``.model`` file beside them, used as they are. In the contest's own tree (``data/datasets/NAME``) the
tokenizer lies in ``data/tokenizers``. A folder that ``bytefit data get`` has not filled yet is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bytefit.data.byte_table import ByteTable, byte_table
from bytefit.data.shards import TokenStream, map_shard, sha256_of
from bytefit.data.tokenizer import BOS_ID, Tokenizer, read_tokenizer
from bytefit.errors import UserError
from bytefit.files import read_json

FORMAT = 1  # of dataset.json
DOWNLOAD_RECORD = "download.json"  # in a folder that ``bytefit data get`` fills
MAX_HASHED_BYTES = 1 << 30


@dataclass(frozen=True)
class Dataset:
    """Token streams of both sides, the tokenizer and its byte table.

    Attributes:
        sha256: one hash for the tokenizer and every shard.
        record: ``dataset.json`` (empty for a folder of contest shards).
    """

    folder: Path
    tokenizer: Tokenizer
    byte_table: ByteTable
    train: TokenStream
    val: TokenStream
    sha256: str
    record: dict[str, Any]

    def val_documents(self, max_bytes: int | None = None) -> list[bytes]:
        """Validation documents as bytes, decoded from the tokens; whole documents until ``max_bytes`` is reached."""
        tokens = self.val.all()
        starts = np.flatnonzero(tokens == BOS_ID).tolist()
        documents: list[bytes] = []
        size = 0
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            documents.append(self.tokenizer.decode(tokens[start + 1 : end].tolist()))
            size += len(documents[-1])
            if max_bytes is not None and size >= max_bytes:
                break
        return documents


def dataset_hash(tokenizer_sha256: str, splits: dict[str, Any]) -> str:
    """One hash for everything that training and scoring read: tokenizer and shards."""
    parts = [tokenizer_sha256] + [shard["sha256"] for name in sorted(splits) for shard in splits[name]["shards"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_dataset(folder: Path) -> Dataset:
    """Open and check a dataset folder.

    Raises:
        UserError: missing or damaged files, a tokenizer that does not match, token ids beyond the vocabulary.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; make a dataset with: bytefit data build SOURCE... --out {folder}")
    download = folder / DOWNLOAD_RECORD
    if download.exists() and not read_json(download).get("complete"):
        raise UserError(f"{folder} is a download that was not finished; run the same bytefit data get again")
    return _open_built(folder) if (folder / "dataset.json").exists() else _open_contest(folder)


def _open_built(folder: Path) -> Dataset:
    record = read_json(folder / "dataset.json")
    try:
        if record["format"] != FORMAT:
            raise UserError(f"{folder}/dataset.json has format {record['format']}; this program reads {FORMAT}; build it again")
        names = {side: [shard["name"] for shard in record["splits"][side]["shards"]] for side in ("train", "val")}
        expected, sha256 = record["tokenizer"]["sha256"], record["sha256"]
        if sha256 != dataset_hash(expected, record["splits"]):
            raise UserError(f"{folder}/dataset.json was changed by hand (its hash does not fit); build the dataset again")
    except TypeError as error:
        raise UserError(f"{folder}/dataset.json lacks {error}; build the dataset again") from None
    tokenizer = read_tokenizer(folder / "tokenizer.model")
    if tokenizer.sha256 != expected:
        raise UserError(f"{folder}/tokenizer.model is not the tokenizer that made these shards; build the dataset again")
    streams = {side: TokenStream([map_shard(folder / name) for name in names[side]]) for side in names}
    _check_hashes(folder, record)
    for side, stream in streams.items():
        promised = record["splits"][side]["tokens"]
        if len(stream) != promised:
            raise UserError(f"{folder}: the {side} shards hold {len(stream)} tokens, dataset.json says {promised}; build it again")
    return _checked(folder, tokenizer, streams["train"], streams["val"], sha256, record)


def _check_hashes(folder: Path, record: dict[str, Any]) -> None:
    """Compare the shards with the hashes in ``dataset.json``; training shards only while that takes a second or two."""
    shards = record["splits"]["val"]["shards"]
    train = record["splits"]["train"]["shards"]
    if sum((folder / shard["name"]).stat().st_size for shard in train) < MAX_HASHED_BYTES:
        shards = shards + train
    for shard in shards:
        if sha256_of(folder / shard["name"]) != shard["sha256"]:
            raise UserError(f"{folder / shard['name']} was changed after the dataset was built (its hash differs); build it again")


def _open_contest(folder: Path) -> Dataset:
    train, val = sorted(folder.glob("*train*.bin")), sorted(folder.glob("*val*.bin"))
    models = sorted(folder.glob("*.model")) or sorted((folder.absolute().parent.parent / "tokenizers").glob("*.model"))
    if not train or not val:
        raise UserError(f"{folder} holds neither dataset.json nor *train*.bin and *val*.bin shards")
    sidecars = [path.name for path in val if "_bytes_" in path.name]
    if sidecars:
        raise UserError(f"{folder} holds {sidecars[0]}: tables of bytes beside the text (CaseOps) are not read; use shards without them")
    if len(models) != 1:
        raise UserError(f"{folder} has {len(models)} tokenizer .model files; put the one that made the shards there")
    tokenizer = read_tokenizer(models[0])
    # Hashing 16 GB of training shards at every start would take minutes: names and sizes stand for them here.
    parts = [tokenizer.sha256] + [f"{path.name} {path.stat().st_size}" for path in train] + [sha256_of(path) for path in val]
    sha256 = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    streams = [TokenStream([map_shard(path) for path in paths]) for paths in (train, val)]
    return _checked(folder, tokenizer, streams[0], streams[1], sha256, {})


def _checked(folder: Path, tokenizer: Tokenizer, train: TokenStream, val: TokenStream, sha256: str, record: dict[str, Any]) -> Dataset:
    for side, stream in (("training", train), ("validation", val)):
        if len(stream) < 2:
            raise UserError(f"{folder}: the {side} split holds {len(stream)} tokens; at least 2 are needed")
        if side == "validation" and int(stream.read(0, 1)[0]) != BOS_ID:
            raise UserError(
                f"{folder}: the validation split does not begin with BOS (id {BOS_ID}), which stands before every document; "
                "without it nobody knows where one ends"
            )
        highest = stream.highest_id(sampled=2 * len(stream) > MAX_HASHED_BYTES)
        if highest >= tokenizer.vocab_size:
            raise UserError(
                f"{folder}: the {side} split holds token id {highest}, but the tokenizer has {tokenizer.vocab_size} ids; "
                "the tokenizer does not belong to these shards"
            )
    return Dataset(folder, tokenizer, byte_table(tokenizer), train, val, sha256, record)
