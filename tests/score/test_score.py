from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bytefit.score.coder as coder
from bytefit.artifact.load import load_artifact
from bytefit.audit.evidence import Evidence
from bytefit.data.byte_table import contest_table
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.model.attention import AttentionConfig
from bytefit.model.head import HeadConfig
from bytefit.model.language_model import ModelConfig
from bytefit.model.mlp import ReluSquaredConfig
from bytefit.model.plan import unet_plan
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import val_tokens
from bytefit.score.coder import cut_into_streams, decode_streams, encode_streams
from bytefit.score.compressed import compress, decompress
from bytefit.score.generate import generate
from bytefit.score.prove import cut_documents, prove
from bytefit.score.scorer import score, target_nats
from bytefit.score.windows import Full, Sliding
from tests.score import reference

CONFIG = ModelConfig(
    vocab_size=61,
    dim=16,
    context=16,
    plan=unet_plan(2),
    attention=AttentionConfig(num_heads=2, num_kv_heads=1),
    mlp=ReluSquaredConfig(width=2),
    head=HeadConfig(softcap=8.0),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = CONFIG.build()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.4)
    return model.eval()


PROTOCOLS = st.one_of(
    st.integers(1, 16).map(lambda w: Full(window=w)),
    st.integers(1, 16).flatmap(lambda w: st.integers(1, w).map(lambda s: Sliding(window=w, stride=s))),
)


@settings(max_examples=200, deadline=None)
@given(protocol=PROTOCOLS, num_tokens=st.integers(0, 100))
def test_every_target_is_scored_exactly_once(protocol, num_tokens) -> None:
    scored = [t for w in protocol.windows(num_tokens) for t in range(w.first, w.end + 1)]
    assert scored == list(range(1, num_tokens))
    for i, w in enumerate(protocol.windows(num_tokens)):
        assert w.start < w.first
        assert w.end - w.start <= protocol.window
        if i and isinstance(protocol, Sliding):
            assert w.first - 1 - w.start >= protocol.window - protocol.stride


@pytest.mark.parametrize("protocol", [Full(window=16), Full(window=7), Sliding(window=16, stride=4), Sliding(window=9, stride=9)])
def test_score_equals_one_token_at_a_time(model, protocol) -> None:
    """Each target alone, from exactly the context that the protocol allows."""
    tokens = np.random.default_rng(0).integers(0, 61, 75)
    nats = target_nats(model, tokens, protocol, torch.float32)
    assert nats.shape == (74,)
    for w in protocol.windows(len(tokens)):
        for t in range(w.first, w.end + 1):
            with torch.no_grad():
                logits = model.logits(torch.from_numpy(tokens[None, w.start : t]))[0, -1].double()
            assert nats[t - 1] == pytest.approx(-float(torch.log_softmax(logits, -1)[tokens[t]]), abs=1e-5)


@pytest.mark.parametrize("protocol", [Full(window=16), Full(window=7), Sliding(window=16, stride=4), Sliding(window=9, stride=9)])
def test_score_equals_one_token_at_a_time_in_float64(model, protocol) -> None:
    """The same with a head written out by hand, to 1e-6 for every target."""
    tokens = np.random.default_rng(0).integers(0, 61, 75)
    slow = reference.double(model)
    nats = target_nats(slow, tokens, protocol, torch.float64)
    for w in protocol.windows(len(tokens)):
        for t in range(w.first, w.end + 1):
            with torch.no_grad():
                log_p = reference.log_probabilities(slow, tokens[w.start : t].tolist())
            assert nats[t - 1] == pytest.approx(-float(log_p[tokens[t]]), abs=1e-6)


def test_score_counts_the_splits_own_bytes(tiny_run, dataset) -> None:
    artifact = load_artifact(tiny_run.artifact)
    tokens = dataset.val.all()
    result = score(artifact.model, tokens, dataset.byte_table, Full(window=64), torch.float32)
    assert result.bytes == dataset.record["splits"]["val"]["raw_bytes"]
    assert result.targets == len(tokens) - 1
    assert result.bits_per_byte == pytest.approx(result.nats / math.log(2) / result.bytes)


def test_the_protocol_decides_the_context(tiny_run, dataset) -> None:
    """A window of one token knows only bigrams; stride = window is the full protocol; smaller strides change the score."""
    artifact, tokens = load_artifact(tiny_run.artifact), dataset.val.all()

    def nats(protocol) -> float:
        return score(artifact.model, tokens, dataset.byte_table, protocol, torch.float32).nats

    full = nats(Full(window=64))
    assert nats(Full(window=1)) > 1.1 * full
    assert nats(Sliding(window=64, stride=64)) == pytest.approx(full, rel=1e-6)
    assert abs(nats(Sliding(window=64, stride=16)) - full) > 1e-3 * full


def test_impossible_scores(model) -> None:
    with pytest.raises(UserError, match="longer than the model's context"):
        target_nats(model, np.zeros(50, dtype=np.int64), Full(window=17), torch.float32)
    with pytest.raises(ValueError, match="stride 9"):
        Sliding(window=8, stride=9)


@pytest.mark.parametrize("num_streams", [1, 3, 7])
@pytest.mark.parametrize("protocol", [Sliding(window=16, stride=8), Sliding(window=16, stride=16), Sliding(window=5, stride=1)])
def test_streams_come_back_and_cost_what_the_score_says(model, num_streams, protocol) -> None:
    tokens = np.random.default_rng(2).integers(2, 61, 200)
    streams = cut_into_streams(tokens, num_streams)
    words, _ = encode_streams(model, streams, protocol)
    decoded = decode_streams(model, words, [len(s) for s in streams], protocol)
    assert (np.concatenate(decoded) == tokens).all()
    nats = sum(target_nats(model, np.concatenate([[1], s]), protocol, torch.float32).sum() for s in streams)
    assert 32 * len(words) == pytest.approx(nats / math.log(2), abs=64)


@pytest.mark.parametrize(
    "contents",
    [
        [],
        [b""],
        [b"plain text\n"],
        [b"", b"two", b""],
        [bytes(range(256)) * 2],
        ["naïve \u2581 mark 🙂 \r\n\t".encode(), b"\xff\xfe broken utf-8 \xc3"],
    ],
)
def test_any_bytes_survive_compression(tiny_run, contents) -> None:
    artifact = load_artifact(tiny_run.artifact)
    assert decompress(artifact, compress(artifact, contents)) == contents


def test_learnt_text_is_compressed_well(tiny_run, dataset) -> None:
    artifact = load_artifact(tiny_run.artifact)
    documents = dataset.val_documents(4000)
    assert len(compress(artifact, documents)) < 0.45 * sum(map(len, documents))


def test_thread_count_travels_in_the_file(tiny_run, monkeypatch) -> None:
    artifact, before = load_artifact(tiny_run.artifact), torch.get_num_threads()
    torch.set_num_threads(2)
    data = compress(artifact, [b"some text " * 30])
    real, used = coder._Predictor.next, []

    def watched(self, *arguments):
        used.append(torch.get_num_threads())
        return real(self, *arguments)

    monkeypatch.setattr(coder._Predictor, "next", watched)
    torch.set_num_threads(1)
    try:
        assert decompress(artifact, data) == [b"some text " * 30]
        assert set(used) == {2}
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def resealed(data: bytes) -> bytes:
    """A changed file with a checksum that fits again."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"x" + d[1:], "magic"),
        (lambda d: d[:20], "cut short"),
        (lambda d: d[:8] + b"\x09" + d[9:], "format 9"),
        (lambda d: d[:9] + bytes(8) + d[17:], "another artifact"),
        (lambda d: resealed(d.replace(b"torch ", b"forch ")), "another class of machine"),
        (lambda d: d[:-1], "checksum"),
        (lambda d: d[:60] + bytes([d[60] ^ 4]) + d[61:], "checksum"),
        (lambda d: resealed(d[:-12] + bytes(12)), "damaged|does not decode"),
        (lambda d: resealed(d[:33] + b"\xff" * 6 + d[39:]), "its bytes cannot hold"),
        (lambda d: resealed(d[:21] + struct.pack("<H", 60_000) + d[23:]), "header is damaged"),  # threads
        (lambda d: resealed(d[:23] + struct.pack("<IQ", 33, 33) + d[35:]), "header is damaged"),  # streams of a token each
    ],
)
def test_bad_compressed_files(tiny_run, change, message) -> None:
    artifact = load_artifact(tiny_run.artifact)
    data = compress(artifact, [b"The quiet river was open. " * 8])
    with pytest.raises(UserError, match=message):
        decompress(artifact, change(data))


def test_proof_holds_and_notices_a_wrong_model(tiny_run, dataset, tmp_path) -> None:
    documents = cut_documents(dataset.val_documents(5000), 5000)
    assert sum(map(len, documents)) == 5000
    proof = prove(tiny_run.artifact, documents, tmp_path / "proof", torch.bfloat16)
    assert proof.holds
    assert proof.restored
    assert abs(proof.agreement) < 0.01
    assert not dataclasses.replace(proof, coded_bits=proof.coded_bits * 2).holds
    assert not dataclasses.replace(proof, restored=False).holds
    far = dataclasses.replace(proof, expected_bits=1e6, coded_bits=1e6 * (1 + 2e-3))  # a thousandth and 64 bits are allowed
    assert not far.holds
    assert dataclasses.replace(far, coded_bits=1e6 * (1 + 1e-3)).holds


def test_bytes_are_counted_by_the_token_before(tiny_run, dataset) -> None:
    """The contest's rule: a leading space is a byte, but not where a document begins."""
    model, table = load_artifact(tiny_run.artifact).model, contest_table(dataset.tokenizer)
    spaced = next(i for i, data in enumerate(dataset.tokenizer.token_bytes) if data.startswith(b" ") and len(data) > 1)
    tokens = np.array([BOS_ID, spaced, spaced, spaced, BOS_ID, spaced, spaced])
    wanted = int(table.count(tokens[1:], tokens[:-1]).sum())
    assert wanted != int(table.count(tokens[1:], tokens[1:]).sum())
    assert score(model, tokens, table, Full(window=4), torch.float32).bytes == wanted


def test_the_text_that_is_scored_is_cut_by_the_same_count(dataset) -> None:
    """The space at the front of the first document does not count: its bytes alone are one too few."""
    table = contest_table(dataset.tokenizer)
    spaced = next(i for i, data in enumerate(dataset.tokenizer.token_bytes) if data.startswith(b" ") and len(data) > 1)
    size = len(dataset.tokenizer.token_bytes[spaced])
    tokens = np.array([BOS_ID, spaced, BOS_ID, spaced, spaced, BOS_ID, spaced])
    lossy = dataclasses.replace(dataset, byte_table=table, val=SimpleNamespace(all=lambda: tokens))
    assert [len(val_tokens(lossy, size + more)) for more in (-1, 0, 2 * size - 2, 2 * size - 1)] == [2, 5, 5, 7]
    recipe = find_recipe("pocket", "tiny")
    run = Evidence(RunFolder(Path()), dataclasses.replace(recipe, score=dataclasses.replace(recipe.score, max_bytes=None)), lossy)
    assert run.counts.tolist() == [size - 1, 0, size - 1, size, 0, size - 1]


def test_the_contests_tail_rule_is_no_way_to_compress(tiny_run) -> None:
    """It drops targets or scores them twice; a decoder needs each of them once."""
    with pytest.raises(UserError, match="nothing can be coded by Sliding with window 64"):
        compress(load_artifact(tiny_run.artifact), [b"The quiet river."], Sliding(window=64, stride=8, contest=True))


def test_proof_fails_where_decoding_differs(tiny_run, dataset, tmp_path, monkeypatch) -> None:
    """A decoder that computes other probabilities must not restore the text."""
    documents = cut_documents(dataset.val_documents(3000), 3000)
    real, predictors = coder._Predictor.next, []

    def shifted(self, *arguments):
        if self not in predictors:
            predictors.append(self)
        probabilities = real(self, *arguments)
        return np.roll(probabilities, 1, axis=1) if self is not predictors[0] else probabilities

    monkeypatch.setattr(coder._Predictor, "next", shifted)
    assert not prove(tiny_run.artifact, documents, tmp_path / "proof", torch.bfloat16).restored


def test_generation_is_seeded_and_survives_long_texts(tiny_run) -> None:
    artifact = load_artifact(tiny_run.artifact)
    one, two, other = (b"".join(generate(artifact, b"The", num_tokens=150, seed=s, temperature=1.2)) for s in (1, 1, 2))
    assert one == two != other
    greedy = [b"".join(generate(artifact, b"The river", num_tokens=20, temperature=0, seed=s)) for s in (1, 2)]
    assert greedy[0] == greedy[1]
    assert 0 < len(list(generate(artifact, b"word " * 300, num_tokens=5))) <= 5
    with pytest.raises(UserError, match="top_p"):
        next(generate(artifact, b"", num_tokens=1, top_p=0.0))
