from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytefit.data.byte_table import byte_table, contest_table, exact_table
from bytefit.data.tokenizer import (
    BOS_ID,
    SPACE_MARK,
    ByteTokenizer,
    SentencePieceTokenizer,
    TokenizerConfig,
    load_tokenizer,
    train_tokenizer,
)
from bytefit.errors import UserError


@pytest.fixture(scope="module")
def lossless(documents) -> SentencePieceTokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=400), lambda: documents)


@pytest.fixture(scope="module")
def contest(documents) -> SentencePieceTokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=400, normalization="nmt_nfkc"), lambda: documents)


def test_same_text_gives_the_same_tokenizer(documents, lossless) -> None:
    assert train_tokenizer(TokenizerConfig(vocab_size=400), lambda: documents).to_bytes() == lossless.to_bytes()


def test_losslessness_is_known(lossless, contest) -> None:
    assert lossless.lossless
    assert ByteTokenizer().lossless
    assert not contest.lossless


def test_text_with_hardly_a_space_is_restored_too() -> None:
    """The mark of a space is then rarer than what the vocabulary must hold, and would be written as three bytes of its own."""
    generator = random.Random(0)
    texts = ["".join(chr(0x4E00 + generator.randrange(200)) for _ in range(2000)) for _ in range(12)]
    texts[3] = texts[3][:100] + " " + texts[3][101:]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=600), lambda: texts)
    assert tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode([texts[3]])[0]) == texts[3].encode()


def test_too_many_characters_for_a_vocabulary_are_counted(documents) -> None:
    many = ["".join(chr(0x4E00 + i) for i in range(1500))] * 3
    with pytest.raises(UserError, match=r"give --vocab 17\d\d or more, or --tokenizer bytes"):
        train_tokenizer(TokenizerConfig(vocab_size=600), lambda: many)


def test_digits_are_split_and_no_space_is_invented(lossless) -> None:
    pieces = [lossless.pieces[i] for i in lossless.encode(["1984 bread"])[0]]
    assert pieces[:4] == ["1", "9", "8", "4"]
    assert not pieces[0].startswith(SPACE_MARK)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200))
def test_lossless_tokenizer_restores_any_text(lossless, text) -> None:
    ids = lossless.encode_exact(text.encode())
    assert lossless.decode(ids) == text.encode()
    assert BOS_ID not in ids
    if SPACE_MARK not in text:
        table, row = exact_table(lossless), np.array([BOS_ID, *lossless.encode([text])[0]])
        assert table.count(row[1:], row[:-1]).sum() == len(text.encode())


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), which=st.sampled_from(["lossless", "contest", "bytes"]))
def test_any_bytes_can_be_written_exactly(lossless, contest, data, which) -> None:
    tokenizer = {"lossless": lossless, "contest": contest, "bytes": ByteTokenizer()}[which]
    assert tokenizer.decode(tokenizer.encode_exact(data)) == data


@pytest.mark.parametrize(
    "data", [b"\x80" * 5000, b"RIFF....WAVE" + b"\x80" * 4001 + b"\x7f", "é\u2581".encode() * 900], ids=["grey", "silence", "text"]
)
@pytest.mark.parametrize("which", ["lossless", "contest", "bytes"])
def test_long_runs_of_what_no_piece_can_say(lossless, contest, which, data) -> None:
    """Silence in an 8-bit recording, grey in a picture: no text, and no character to keep in one half."""
    tokenizer = {"lossless": lossless, "contest": contest, "bytes": ByteTokenizer()}[which]
    assert tokenizer.decode(tokenizer.encode_exact(data)) == data


def test_texts_alone_and_together_have_the_same_ids(lossless) -> None:
    texts = ["The quiet river", "", "runs by\n the mill", "é▁"]
    assert lossless.encode(texts) == [lossless.encode([text])[0] for text in texts]


def test_contest_table_covers_every_kind_of_piece(contest) -> None:
    """Each kind against the rule written out by hand (Parameter Golf baseline)."""
    table = contest_table(contest)

    def piece(text: str) -> int:
        return contest.pieces.index(text)

    def count(target: int, previous: int) -> int:
        return int(table.count(np.array([target]), np.array([previous]))[0])

    lone, byte, plain = piece(SPACE_MARK), piece("<0x41>"), piece("e")
    word = next(i for i, p in enumerate(contest.pieces) if p.startswith(SPACE_MARK) and p[1:].isascii() and len(p) > 2)
    letters = len(contest.pieces[word]) - 1
    assert count(plain, plain) == 1
    assert count(word, plain) == 1 + letters
    assert count(word, BOS_ID) == letters  # no space is written after a document's start
    assert count(word, byte) == 1 + letters
    assert count(lone, plain) == 1
    assert count(lone, BOS_ID) == 0
    assert count(byte, plain) == 1
    assert count(byte, BOS_ID) == 1
    for control in (0, BOS_ID, 2, 3):
        assert count(control, plain) == 0
        assert count(word, control) == letters
    accented = piece("é")
    assert count(accented, plain) == 2


def test_contest_table_equals_what_the_detokeniser_writes(contest, documents) -> None:
    """On real text the contest's count is the length of the text that SentencePiece decodes."""
    table = byte_table(contest)
    for document in documents[:20]:
        row = np.array([BOS_ID, *contest.encode([document])[0]])
        decoded = contest._processor.decode(row[1:].tolist())
        assert table.count(row[1:], row[:-1]).sum() == len(decoded.encode())


def test_byte_tokenizer_counts_bytes() -> None:
    tokenizer = ByteTokenizer()
    table, ids = byte_table(tokenizer), np.array([BOS_ID, *tokenizer.encode(["naïve 🙂"])[0]])
    assert table.count(ids[1:], ids[:-1]).sum() == len("naïve 🙂".encode())
    assert load_tokenizer(tokenizer.to_bytes()).vocab_size == 260


def test_bad_models_and_vocabularies(documents) -> None:
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(b"nonsense")
    with pytest.raises(ValueError, match="vocab_size 100"):
        TokenizerConfig(vocab_size=100)
    with pytest.raises(UserError, match="vocabulary of 400"):
        train_tokenizer(TokenizerConfig(vocab_size=400), lambda: [])
