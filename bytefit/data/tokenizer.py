"""Tokenizers: SentencePiece BPE (trained here, or a given ``.model`` file) and raw bytes.

Both answer the same questions: ids for a text, the exact bytes of every id, and which ids are control ids. The contest's
conventions hold for both: pad 0, bos 1, eos 2, unk 3, and one BOS before each document.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece

from bytefit.errors import UserError

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space inside a piece
BOS_ID = 1
MAX_VOCAB = 65_536  # shards hold uint16


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What to train when a dataset is built (a given ``.model`` file is used as it is).

    Attributes:
        kind: ``bpe`` (SentencePiece) or ``bytes`` (256 byte ids after the four control ids).
        vocab_size: ids of the BPE vocabulary, control and byte ids included; ignored for ``bytes``.
        normalization: ``identity`` is lossless; ``nmt_nfkc`` is what the contest used (lossy).
        sample_bytes: BPE is trained on about this much of the training text.
    """

    kind: Literal["bpe", "bytes"] = "bpe"
    vocab_size: int = 1024
    normalization: Literal["identity", "nmt_nfkc"] = "identity"
    sample_bytes: int = 16_000_000

    def __post_init__(self) -> None:
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes {self.sample_bytes} must be at least 1")
        if self.kind == "bpe" and not 300 <= self.vocab_size <= MAX_VOCAB:
            raise ValueError(f"vocab_size {self.vocab_size} is outside 300..{MAX_VOCAB} (256 byte pieces, 4 control pieces, uint16)")


class Tokenizer(abc.ABC):
    """Text to ids, ids to bytes.

    Attributes:
        token_bytes: the exact bytes each id stands for (``b""`` for control ids).
        is_control: bool array (V,), ids that stand for no text: control, unknown, unused.
        lossless: whether ``decode(encode(text)) == text`` for every text without a literal U+2581.
    """

    token_bytes: list[bytes]
    is_control: np.ndarray
    lossless: bool

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without BOS."""

    @abc.abstractmethod
    def to_bytes(self) -> bytes:
        """The tokenizer as one file; ``load_tokenizer`` reads it back."""

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @functools.cached_property
    def byte_ids(self) -> list[int]:
        """The id that stands for each single byte value."""
        found = {data[0]: i for i, data in reversed(list(enumerate(self.token_bytes))) if len(data) == 1}
        if len(found) < 256:
            raise UserError("this tokenizer has no byte fallback, so it cannot write arbitrary text; train one with bytefit data build")
        return [found[value] for value in range(256)]

    def decode(self, ids: Iterable[int]) -> bytes:
        table = self.token_bytes
        return b"".join(table[i] for i in ids)

    def encode_exact(self, data: bytes) -> list[int]:
        """Ids whose bytes are exactly ``data``, for any bytes at all.

        What the vocabulary cannot say (invalid UTF-8, a literal U+2581, text that a lossy normaliser would change) is
        found by bisection and written with byte pieces.
        """
        try:
            ids = self.encode([data.decode("utf-8")])[0]
            if self.decode(ids) == data:
                return ids
        except UnicodeDecodeError:
            pass
        if len(data) <= 4:
            return [self.byte_ids[value] for value in data]
        middle = len(data) // 2
        for _ in range(3):  # keep a UTF-8 character in one half; more such bytes in a row are not text
            if middle < len(data) - 1 and data[middle] & 0xC0 == 0x80:
                middle += 1
        return self.encode_exact(data[:middle]) + self.encode_exact(data[middle:])


class ByteTokenizer(Tokenizer):
    """256 byte ids after pad, bos, eos, unk."""

    MARK = b"bytefit bytes tokenizer\n"

    def __init__(self) -> None:
        self.token_bytes = [b""] * 4 + [bytes([value]) for value in range(256)]
        self.is_control = np.arange(260) < 4
        self.lossless = True

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[value + 4 for value in text.encode()] for text in texts]

    def to_bytes(self) -> bytes:
        return self.MARK


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; ``model`` is the content of its ``.model`` file."""

    def __init__(self, model: bytes):
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"not a SentencePiece model ({str(error).strip() or 'unreadable'})") from None
        processor = self._processor
        size = processor.get_piece_size()
        if size > MAX_VOCAB:
            raise UserError(f"the tokenizer has {size} pieces; shards hold at most {MAX_VOCAB}")
        if processor.bos_id() != BOS_ID:
            raise UserError(f"the tokenizer's BOS id is {processor.bos_id()}; shards need BOS = {BOS_ID}")
        self.pieces = [processor.id_to_piece(i) for i in range(size)]
        self.is_byte = np.array([processor.is_byte(i) for i in range(size)])
        self.is_control = np.array([processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i) for i in range(size)])
        self.token_bytes = [self._bytes_of(i) for i in range(size)]
        self.lossless = self._is_lossless()

    def _bytes_of(self, i: int) -> bytes:
        if self.is_control[i]:
            return b""
        if self.is_byte[i]:
            return bytes([int(self.pieces[i][3:5], 16)])  # "<0x41>"
        return self.pieces[i].replace(SPACE_MARK, " ").encode()

    def _is_lossless(self) -> bool:
        """Spaces, line ends, ligatures and odd widths must all survive, and every byte must have a piece."""
        probe = "  two  spaces \n\ttab\u00a0nbsp \ufb01ligature \uff21wide e\u0301 \u200bzero \U0001f600 "
        return int(self.is_byte.sum()) == 256 and self.decode(self.encode([probe])[0]) == probe.encode()

    def encode(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1:  # threads take longer to start than a short text to encode
            return [self._processor.encode(texts[0])]
        return self._processor.encode(texts, num_threads=os.cpu_count() or 1)

    def to_bytes(self) -> bytes:
        return self._model


def load_tokenizer(data: bytes) -> Tokenizer:
    """A tokenizer from the content of its file.

    Raises:
        UserError: neither a SentencePiece model nor the byte tokenizer's mark.
    """
    return ByteTokenizer() if data == ByteTokenizer.MARK else SentencePieceTokenizer(data)


def read_tokenizer(path: Path) -> Tokenizer:
    try:
        return load_tokenizer(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def train_tokenizer(config: TokenizerConfig, documents: Callable[[], Iterable[str]]) -> Tokenizer:
    """Train on (a sample of) the training documents; the same text gives the same tokenizer.

    Raises:
        UserError: too little text for the vocabulary that was asked for.
    """
    if config.kind == "bytes":
        return ByteTokenizer()
    sizes = [len(document.encode()) for document in documents()]
    stride = max(1, round(sum(sizes) / config.sample_bytes))

    def sample() -> Iterator[str]:
        return (document for i, document in enumerate(documents()) if i % stride == 0)

    try:
        tokenizer = _train(config, sample(), required="")
        if config.normalization == "identity" and not tokenizer.lossless:  # text with hardly a space, whose mark got no piece
            tokenizer = _train(config, sample(), required=SPACE_MARK)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        characters = re.search(r"required_chars. (\d+) vs (\d+)", reason)
        if characters:
            raise UserError(
                f"this text has so many different characters that a vocabulary of {config.vocab_size} does not hold them; "
                f"give --vocab {characters[2]} or more, or --tokenizer bytes"
            ) from None
        raise UserError(
            f"could not train a vocabulary of {config.vocab_size} pieces on {sum(sizes):,} bytes of text ({reason}); "
            "give more text or a smaller --vocab"
        ) from None
    return tokenizer


def _train(config: TokenizerConfig, sample: Iterator[str], required: str) -> SentencePieceTokenizer:
    """
    Args:
        required: characters that get a piece, however rare they are.
    """
    model = io.BytesIO()
    lossless = config.normalization == "identity"
    also: dict[str, Any] = {"required_chars": required} if required else {}  # an empty one would change the file
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sample,
        model_writer=model,
        model_type="bpe",
        vocab_size=config.vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=not lossless,
        allow_whitespace_only_pieces=lossless,
        normalization_rule_name=config.normalization,
        character_coverage=0.999,
        **also,
        max_sentence_length=1 << 24,
        pad_id=0,
        bos_id=BOS_ID,
        eos_id=2,
        unk_id=3,
        num_threads=os.cpu_count() or 1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())
