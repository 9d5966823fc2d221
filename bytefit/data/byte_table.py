"""How many bytes of text each scored token stands for: the denominator of bits per byte.

Two rules:

* *exact* (lossless tokenizers): a token counts the bytes it decodes to, so a split's count equals its documents' UTF-8
  length, which is asserted when the dataset is built;
* *contest* (Parameter Golf ``train_gpt.py``): control, unknown and unused ids count 0 and are boundaries; byte pieces
  count 1; other pieces count their UTF-8 length without a leading space mark, plus 1 for that mark unless the token
  before is a boundary (the detokeniser drops that space).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bytefit.data.tokenizer import SPACE_MARK, SentencePieceTokenizer, Tokenizer


@dataclass(frozen=True)
class ByteTable:
    """Per-id lookup tables, all of shape (V,).

    Attributes:
        base_bytes: int64, bytes that the id always counts.
        leading_space: bool, one byte more unless the previous id is a boundary.
        is_boundary: bool, ids after which a leading space does not count.
    """

    base_bytes: np.ndarray
    leading_space: np.ndarray
    is_boundary: np.ndarray

    def count(self, targets: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Bytes of each target (int64), given the id before it; both of one shape."""
        return self.base_bytes[targets] + (self.leading_space[targets] & ~self.is_boundary[previous])


def exact_table(tokenizer: Tokenizer) -> ByteTable:
    """The rule of a lossless tokenizer: every id counts the bytes it decodes to."""
    lengths = np.array([len(data) for data in tokenizer.token_bytes], dtype=np.int64)
    return ByteTable(lengths, np.zeros(len(lengths), dtype=bool), tokenizer.is_control)


def contest_table(tokenizer: SentencePieceTokenizer) -> ByteTable:
    """The contest's rule (Parameter Golf baseline)."""
    plain = ~tokenizer.is_control & ~tokenizer.is_byte
    leading_space = np.array([piece.startswith(SPACE_MARK) for piece in tokenizer.pieces]) & plain
    base_bytes = np.where(tokenizer.is_byte, 1, 0).astype(np.int64)
    for i in np.flatnonzero(plain):
        base_bytes[i] = len(tokenizer.pieces[i].removeprefix(SPACE_MARK).encode())
    return ByteTable(base_bytes, leading_space, tokenizer.is_control)


def byte_table(tokenizer: Tokenizer) -> ByteTable:
    """The exact rule where the tokenizer is lossless, the contest's rule where it is not."""
    if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.lossless:
        return contest_table(tokenizer)
    return exact_table(tokenizer)
