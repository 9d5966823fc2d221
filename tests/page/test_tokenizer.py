"""The page cuts texts into the ids that SentencePiece cuts them into, and writes the same bytes."""

from __future__ import annotations

import io
import random

import pytest
import sentencepiece

from bytefit.artifact.tokenizer_part import pack_tokenizer
from bytefit.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, TokenizerConfig, train_tokenizer

TEXTS = [
    *(
        "",
        " ",
        "   ",
        "\n",
        "a",
        "The quiet river.",
        "  two  spaces \n\n\ttab  ",
        "trailing ",
        "\r\nwindows\r\n",
        "a" * 27,
        "haaa  aaaaa   mmm mmmmmmm",
    ),
    *("12345 1984 3.14 0x1F", "the the the ththth heheh", "café naïve cafe\u0301", "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈", "日本語のテキスト、中文"),
    *(
        "Ελληνικά и русский",
        "\ufb01ligature \uff21\uff22 ½ ² ㍿",
        "ＨＡＬＦ ﾊﾝｶｸ ｶﾞ",
        "\u2581literal mark\u2581",
        "<s> </s> <unk> <0x41> <pad>",
    ),
    *("\u00a0nbsp\u3000wide\u200bzero\ufeffmark", "\0null\x01\x7f", "\ufeffmark first", "\U0010ffff\U00010000 \ud7ff\ue000"),
]


def random_texts(count: int, alphabet: str) -> list[str]:
    generator = random.Random(3)
    return ["".join(generator.choices(alphabet, k=generator.randint(1, 60))) for _ in range(count)]


def with_dummy_prefix(documents: list[str]) -> SentencePieceTokenizer:
    """As SentencePiece trains where nothing is said: a space before the text, extra spaces removed, NFKC."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_writer=model, model_type="bpe", vocab_size=320, byte_fallback=True, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


@pytest.fixture(scope="module")
def tokenizers(dataset, documents):
    return {
        "identity": dataset.tokenizer,
        "repeats": train_tokenizer(TokenizerConfig(vocab_size=400), lambda: [*documents, "haaaa  aaa   hmmmmm " * 200]),
        "nmt_nfkc": train_tokenizer(TokenizerConfig(vocab_size=320, normalization="nmt_nfkc"), lambda: documents),
        "dummy prefix": with_dummy_prefix(documents),
        "bytes": ByteTokenizer(),
    }


def test_ids_equal_sentencepieces(node, tokenizers, documents, tmp_path) -> None:
    texts = TEXTS + documents[:5] + random_texts(150, "  \n\tthe quiet river.,19é🙂\u2581ＡВ") + random_texts(50, "".join(documents[0]))
    data = [text.encode() for text in texts] + [b"\xff\xfe", bytes(range(256)), "é".encode()[:1] + b"abc", b"ok \x80\x80 ok"]
    paths = []
    for i, tokenizer in enumerate(tokenizers.values()):
        paths.append(tmp_path / f"{i}.tokenizer")
        paths[-1].write_bytes(pack_tokenizer(tokenizer))
    answers = node("tokenize", {"paths": [str(path) for path in paths], "texts": [item.hex() for item in data]})
    for (name, tokenizer), answer in zip(tokenizers.items(), answers, strict=True):
        plain = tokenizer.encode(texts)
        for i, (item, got) in enumerate(zip(data, answer, strict=True)):
            if i < len(texts):
                assert got["plain"] == plain[i], (name, texts[i])
            assert got["exact"] == tokenizer.encode_exact(item), (name, item)
            assert bytes.fromhex(got["decoded"]) == item == tokenizer.decode(got["exact"]), (name, item)


def test_the_texts_tell_the_tokenizers_apart(tokenizers) -> None:
    """What makes the test above able to fail: normalisation and byte pieces matter in these texts."""
    found = [tokenizer.encode(TEXTS) for tokenizer in tokenizers.values()]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert {"aa", "mm"} & set(tokenizers["repeats"].pieces)  # of "aaa" the first two are merged, not the last
    identity = tokenizers["identity"]
    assert any(identity.decode(ids) != text.encode() for ids, text in zip(identity.encode(TEXTS), TEXTS, strict=True))
    assert any(identity.is_byte[ids].any() for ids in identity.encode(TEXTS))
