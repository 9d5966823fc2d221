"""Documents to a dataset folder: split, tokenizer, shards, ``dataset.json``.

The folder is built beside its final place and renamed at the end, so an interrupted build leaves nothing behind that looks
complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bytefit.config import to_json
from bytefit.data.byte_table import byte_table
from bytefit.data.dataset import FORMAT, dataset_hash
from bytefit.data.shards import sha256_of, write_shards
from bytefit.data.tokenizer import BOS_ID, Tokenizer, TokenizerConfig, read_tokenizer, train_tokenizer
from bytefit.errors import UserError
from bytefit.files import write_bytes, write_json
from bytefit.progress import progress_bar, say

ENCODE_BATCH = 256
OF_A_DATASET = re.compile(r"dataset\.json|tokenizer\.model|(train|val)_\d{6}\.bin|\..*\.partial")  # the files of its folder


@dataclass(frozen=True)
class Split:
    """Documents of one side, and how many were dropped from it because the other side holds the same text."""

    train: list[str]
    val: list[str]
    dropped_from_train: int


def document_hash(document: str) -> bytes:
    return hashlib.sha256(document.encode()).digest()


def split_documents(documents: Iterable[str], val_fraction: float, val_documents: Iterable[str] | None) -> Split:
    """Split by document hash, so that equal documents always fall on one side.

    With ``val_documents`` these are the validation side, and every training document equal to one of them is dropped.
    Otherwise the documents with the smallest hashes form the validation side, until it holds ``val_fraction`` of the bytes.

    Raises:
        UserError: fewer than two different documents, or a side that would be empty.
    """
    pool = [document for document in documents if document]
    if not pool:
        raise UserError("no documents: every source is empty")
    if val_documents is not None:
        val = [document for document in val_documents if document]
        seen = {document_hash(document) for document in val}
        train = [document for document in pool if document_hash(document) not in seen]
        if not val or not train:
            raise UserError(f"the {'validation' if not val else 'training'} side is empty (after dropping documents that are on both)")
        return Split(train, val, len(pool) - len(train))
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction} must lie between 0 and 1")
    hashes = [document_hash(document) for document in pool]
    different = sorted(set(hashes))
    if len(different) < 2:
        raise UserError(
            "all sources together are one document, which cannot be split into training and validation; "
            "give more text, a long text file (cut into documents at line ends), or --val FILE"
        )
    size_of: dict[bytes, int] = {}
    for document, key in zip(pool, hashes, strict=True):
        size_of[key] = size_of.get(key, 0) + len(document.encode())
    wanted = val_fraction * sum(size_of.values())
    chosen: set[bytes] = set()
    taken = 0
    for key in different[:-1]:
        if chosen and taken >= wanted:
            break
        chosen.add(key)
        taken += size_of[key]
    sides: tuple[list[str], list[str]] = ([], [])
    for document, key in zip(pool, hashes, strict=True):
        sides[key in chosen].append(document)
    return Split(*sides, 0)


def build_dataset(
    split: Split,
    out: Path,
    tokenizer_config: TokenizerConfig,
    *,
    tokenizer_file: Path | None = None,
    how: dict[str, Any] | None = None,
) -> Path:
    """Write a dataset folder and return it.

    Args:
        split: the documents of both sides.
        out: the folder to make; an existing dataset there is replaced when the new one is complete.
        tokenizer_config: what to train on the training side.
        tokenizer_file: use this ``.model`` instead.
        how: recorded in ``dataset.json`` (sources, command).

    Raises:
        UserError: ``out`` is a folder that holds something else, or the text does not suit the tokenizer.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "dataset.json").exists())):
        raise UserError(f"{out} exists and is not a dataset; choose another --out")
    others = sorted(path.name for path in out.iterdir() if not OF_A_DATASET.fullmatch(path.name)) if out.exists() else []
    if others:
        raise UserError(f"{out} holds {others[0]} beside the dataset, which would be lost with it; move that, or choose another --out")
    if tokenizer_file is not None:
        tokenizer = read_tokenizer(tokenizer_file)
        made: Any = {"file": tokenizer_file.name}
    else:
        say(f"training the tokenizer ({tokenizer_config.kind}, vocabulary {tokenizer_config.vocab_size})")
        tokenizer = train_tokenizer(tokenizer_config, lambda: split.train)
        made = to_json(tokenizer_config)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make {partial}: {error.strerror}") from None
    try:
        write_bytes(partial / "tokenizer.model", tokenizer.to_bytes())
        splits = {
            name: _write_split(partial, name, documents, tokenizer) for name, documents in (("train", split.train), ("val", split.val))
        }
        record = {
            "format": FORMAT,
            "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, "lossless": tokenizer.lossless, "made": made},
            "splits": splits,
            "dropped_from_train": split.dropped_from_train,
            "how": how or {},
        }
        record["sha256"] = dataset_hash(tokenizer.sha256, splits)
        write_json(partial / "dataset.json", record)
        _replace_folder(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _replace_folder(new: Path, old: Path) -> None:
    """Put ``new`` in the place of ``old``; a kill in between leaves one of them whole."""
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def _write_split(folder: Path, name: str, documents: list[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Encode and write one side; asserts the byte count where the tokenizer is lossless."""
    table = byte_table(tokenizer)
    raw_bytes = tokens = counted = by_hand = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal raw_bytes, tokens, counted, by_hand
        with progress_bar(total=len(documents), desc=f"encoding {name}", unit=" documents", unit_scale=True) as bar:
            for first in range(0, len(documents), ENCODE_BATCH):
                batch = documents[first : first + ENCODE_BATCH]
                for document, found in zip(batch, tokenizer.encode(batch), strict=True):
                    ids, data = found, document.encode()
                    if tokenizer.lossless and tokenizer.decode(ids) != data:
                        ids = tokenizer.encode_exact(data)  # a literal U+2581, which a piece cannot tell from a space
                        by_hand += 1
                    row = np.array([BOS_ID, *ids], dtype=np.uint16)
                    raw_bytes += len(data)
                    tokens += len(row)
                    counted += int(table.count(row[1:], row[:-1]).sum())
                    yield row
                bar.update(len(batch))

    paths = write_shards(folder, name, chunks())
    if tokenizer.lossless and counted != raw_bytes:
        raise AssertionError(f"{name}: the byte table counts {counted} bytes, the documents hold {raw_bytes}")
    if not tokenizer.lossless:
        say(f"{name}: the tokenizer is lossy; its byte table counts {counted:,} of {raw_bytes:,} bytes ({counted / raw_bytes - 1:+.4%})")
    return {
        "documents": len(documents),
        "raw_bytes": raw_bytes,
        "counted_bytes": counted,
        "tokens": tokens,
        "documents_with_byte_pieces_by_hand": by_hand,
        "documents_sha256": hashlib.sha256(b"".join(map(document_hash, documents))).hexdigest(),
        "shards": [{"name": path.name, "sha256": sha256_of(path)} for path in paths],
    }
