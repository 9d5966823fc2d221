"""Around the protocols: ranks, progress files, the contest's tail, reports, streams, proofs with adaptation."""

from __future__ import annotations

import dataclasses
import json
import math

import constriction
import numpy as np
import pytest
import safetensors.torch
import torch

from bytefit.artifact.load import load_artifact
from bytefit.cli import main
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.score import harness
from bytefit.score.adapt import AdamW, Adapt, DocumentLora, Sgd
from bytefit.score.coder import _symbol_model, coder_bits
from bytefit.score.compressed import compress, decompress, default_protocol, document_ids, token_streams
from bytefit.score.harness import Watch
from bytefit.score.prove import cut_documents, prove
from bytefit.score.scorer import score, target_nats
from bytefit.score.tape import Tape
from bytefit.score.windows import Full, Sliding
from tests.conftest import make_documents
from tests.processes import run_ranks
from tests.score import rank_worker
from tests.score.rank_worker import PROTOCOLS

ADAPT = Adapt(window=64, stride=16, chunk_tokens=1024, optimizer=AdamW(lr=0.002), epochs=1)
LORA = DocumentLora(window=64, chunk_tokens=32, lr=0.002, batch_documents=8)
PIECES = dataclasses.replace(LORA, piece_tokens=40)


# Ranks


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    for world in (1, 2, 4):
        run_ranks(world, rank_worker.score_all, out / f"{world}.safetensors")
    return {world: safetensors.torch.load_file(out / f"{world}.safetensors") for world in (1, 2, 4)}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_any_number_of_ranks_gives_the_same_scores(on_ranks, world, name) -> None:
    one, many = on_ranks[1], on_ranks[world]
    assert float((one[f"{name}.nats"] - many[f"{name}.nats"]).abs().max()) < 2e-4
    assert float(one[f"{name}.nats"].mean() - many[f"{name}.nats"].mean()) == pytest.approx(0, abs=1e-5)  # Adam magnifies the last bits
    assert torch.equal(one[f"{name}.times"], many[f"{name}.times"])
    if isinstance(PROTOCOLS[name], Adapt):
        assert int(one[f"{name}.steps"]) == int(many[f"{name}.steps"]) > 0


# The contest's tail


@pytest.mark.parametrize("num_tokens", [9, 16, 17, 18, 30, 41])
@pytest.mark.parametrize("stride", [2, 3, 8])
def test_the_contests_sliding_rule(num_tokens, stride) -> None:
    """Its script in words: starts at every stride below the number of targets, cut at the end; the first scores all, others the last S."""
    window, n = 8, num_tokens - 1
    want = []
    for start in range(0, n, stride):
        end = min(start + window, n)
        scored_from = 0 if start == 0 else max(end - start - stride, 0)
        want.append((start, [start + i + 1 for i in range(scored_from, end - start)]))
    got = Sliding(window=window, stride=stride, contest=True).windows(num_tokens)
    assert [(w.start, list(range(w.first, w.end + 1))) for w in got] == want
    if n > window and stride < window:
        times = np.bincount([t for _, targets in want for t in targets], minlength=num_tokens)
        assert times[-1] > 1
        assert (times[1:] >= 1).all()


def test_the_contests_tail_counts_what_it_counts(tiny_model, tokens, dataset) -> None:
    exact, contest = Sliding(window=8, stride=2), Sliding(window=8, stride=2, contest=True)
    tape = Tape(tokens, again=True)
    harness.walk(predictor := _predictor(tiny_model), None, [tape], contest, Watch())
    plain = target_nats(tiny_model, tokens, exact, torch.float32)
    assert tape.times[-1] == 4  # window / stride
    head = tape.times == 1
    assert np.allclose(tape.nats[head], plain[head], atol=1e-5)
    full = Full(window=8, contest=True)
    dropped = Tape(tokens, again=True)
    harness.walk(predictor, None, [dropped], full, Watch())
    assert int(dropped.times.sum()) == (len(tokens) - 1) // 8 * 8


def test_blocks_of_a_score_that_learns_are_its_chunks(tiny_model, tokens, dataset) -> None:
    """An audit scores the first block again: it must end where learning begins."""
    told, protocol = [], dataclasses.replace(ADAPT, window=8, stride=8, chunk_tokens=16)
    found = score(tiny_model, tokens, dataset.byte_table, protocol, torch.float32, Watch(on_chunk=told.append))
    assert len(told) == -(-(len(tokens) - 1) // 16) > 1
    assert [(targets, size) for targets, _, size in found.blocks] == [(chunk.targets, chunk.bytes) for chunk in told]
    assert [nats for _, nats, _ in found.blocks] == pytest.approx([chunk.nats for chunk in told])


def _predictor(model):
    from bytefit.score.predictor import ModelPredictor

    return ModelPredictor(model, torch.float32)


# Proofs with adaptation


@pytest.mark.parametrize(
    "protocol", [ADAPT, dataclasses.replace(ADAPT, optimizer=Sgd(lr=0.01), ema_decay=0.9, temperature=0.97), LORA, PIECES]
)
def test_any_bytes_survive_compression_while_learning(tiny_run, protocol) -> None:
    artifact = load_artifact(tiny_run.artifact)
    for contents in ([], [b""], [b"x"], [b"", b"two", b""], [bytes(range(256)) * 4, b"and words. " * 90]):
        data = compress(artifact, contents, protocol)
        assert decompress(load_artifact(tiny_run.artifact), data) == contents


@pytest.mark.parametrize("protocol", [ADAPT, dataclasses.replace(LORA, batch_documents=64)])
def test_proof_while_learning(tiny_run, tmp_path, protocol) -> None:
    """64 kB of text, restored from the artifact alone by a decoder that learns as the encoder did; the bits agree with the score."""
    documents = cut_documents([text.encode() for text in make_documents(150, seed=9)], 65_536)
    proof = prove(tiny_run.artifact, documents, tmp_path / "proof", torch.float32, protocol)
    assert proof.bytes_in == 65_536
    assert proof.restored
    assert abs(proof.agreement) < 0.001
    artifact = load_artifact(tiny_run.artifact)
    streams = token_streams(document_ids(artifact.tokenizer, documents), plain := default_protocol(artifact))
    nats = [target_nats(artifact.model, np.concatenate([[BOS_ID], stream]), plain, torch.float32) for stream in streams]
    plain_bits = sum(part.sum() for part in nats) / math.log(2)
    assert abs(proof.coded_bits - plain_bits) > 0.005 * plain_bits  # learning changes the file


def test_a_proof_holds_some_learning_however_long_chunks_are(tiny_run, tmp_path) -> None:
    documents = cut_documents([text.encode() for text in make_documents(20, seed=9)], 8_000)
    proof = prove(tiny_run.artifact, documents, tmp_path / "proof", torch.float32, dataclasses.replace(ADAPT, chunk_tokens=1 << 18))
    assert proof.holds
    assert proof.learned_steps > 0
    assert proof.protocol["chunk_tokens"] < 4000  # what was proven stands in it


def test_what_the_coder_takes_is_known_to_the_bit() -> None:
    """Of likely targets and of those that its 24 bits cannot tell from impossible ones."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(scale=6.0, size=(400, 300)))
    targets = rng.integers(0, 300, size=400)
    encoder = constriction.stream.queue.RangeEncoder()
    for row, target in zip(torch.softmax(logits, -1).numpy(), targets, strict=True):
        encoder.encode(int(target), _symbol_model(row))
    nats = -torch.log_softmax(logits, -1).numpy()[np.arange(400), targets]
    expected = coder_bits(nats, 300)
    assert abs(32 * len(encoder.get_compressed()) - expected) <= 64
    assert nats.sum() / np.log(2) > expected + 200  # a score knows no such limit


@pytest.mark.parametrize(
    ("protocol", "size"),
    [(dataclasses.replace(ADAPT, chunk_tokens=512), 8_000), (DocumentLora(window=64, chunk_tokens=64, lr=0.0, batch_documents=64), 6_000)],
    ids=["adapt", "documents"],
)
def test_the_coder_has_the_scorers_temperature(tiny_run, tmp_path, protocol, size) -> None:
    """Their bits agree under it, and would not if one of the two left it out."""
    documents = cut_documents([text.encode() for text in make_documents(20, seed=9)], size)
    plain, proof = (
        prove(tiny_run.artifact, documents, tmp_path / "proof", torch.float32, dataclasses.replace(protocol, temperature=t))
        for t in (1.0, 0.9)
    )
    assert proof.restored
    assert abs(proof.coded_bits - proof.scored_bits) < 0.001 * proof.scored_bits + 64
    assert abs(proof.scored_bits - plain.scored_bits) > 0.003 * plain.scored_bits + 64


def test_a_decoder_that_does_not_learn_restores_nothing(tiny_run, monkeypatch) -> None:
    from bytefit.score.learner import Learner

    artifact = load_artifact(tiny_run.artifact)
    text = [make_documents(8, seed=3)[0].encode() * 3]
    data = compress(artifact, text, dataclasses.replace(ADAPT, chunk_tokens=256))
    assert decompress(load_artifact(tiny_run.artifact), data) == text
    monkeypatch.setattr(Learner, "learn", lambda self, pieces, chunk: None)
    with pytest.raises(UserError, match=r"does not decode|does not match"):
        decompress(load_artifact(tiny_run.artifact), data)


# The command


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_score_streams_its_chunks(tiny_run, dataset, capsys) -> None:
    common = ("score", tiny_run.artifact, "--data", dataset.folder, "--json")
    code, out, _ = run(capsys, *common, "--protocol", "adapt", "--set", "chunk_tokens=2000", "--set", "epochs=1", "--stride", "32")
    assert code == 0
    *chunks, result = map(json.loads, out.splitlines())
    assert [chunk["chunk"] for chunk in chunks] == list(range(len(chunks)))
    assert len(chunks) == chunks[0]["num_chunks"] > 3
    assert sum(chunk["nats"] for chunk in chunks) == pytest.approx(result["nats"])
    assert sum(chunk["bytes"] for chunk in chunks) == result["bytes"]
    assert chunks[-1]["bits_per_byte"] == pytest.approx(result["bits_per_byte"])
    assert result["learned_steps"] > 0
    assert result["protocol"]["epochs"] == 1
    code, out, _ = run(capsys, *common, "--protocol", "documents", "--set", "rank=2", "--bytes", "4000")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["protocol"]["rank"] == 2
    code, out, _ = run(capsys, "prove", tiny_run.artifact, "--data", dataset.folder, "--bytes", "3000", "--protocol", "documents", "--json")
    assert code == 0
    assert json.loads(out)["restored"] is True


def test_ctrl_c_while_scoring(tiny_run, dataset, capsys, monkeypatch) -> None:
    def progress():
        return list(tiny_run.path.glob(".model.bytefit.score.*.progress"))

    real, calls = harness._costs, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(harness, "_costs", interrupted)
    monkeypatch.setattr(harness, "CHUNK_TARGETS", 2000)
    common = ("score", tiny_run.artifact, "--data", dataset.folder, "--protocol", "full", "--json")
    assert run(capsys, *common)[0] == 130
    assert len(progress()) == 1
    code, out, err = run(capsys, *common)
    assert code == 0
    assert "2 chunks are done" in err
    assert not progress()
    assert json.loads(out.splitlines()[0])["chunk"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "full", "--stride", "4"], "--stride 4 belongs to --protocol sliding or adapt"),
        (["--protocol", "adapt", "--contest"], "--contest belongs to --protocol full or sliding"),
        (["--protocol", "sliding", "--set", "epochs=2"], "--set epochs=2: the protocol sliding has no further fields"),
        (["--protocol", "adapt", "--set", "epoch=2"], "epoch"),
        (["--protocol", "adapt", "--set", "epochs=0"], "epochs 0 must be at least 1"),
        (["--protocol", "adapt", "--stride", "900"], "stride 900 must lie in 1..64"),
        (["--protocol", "documents", "--window", "5000"], "window 5000 is longer than the model's context"),
    ],
)
def test_mistakes_are_one_line(tiny_run, dataset, capsys, arguments, message) -> None:
    code, _, err = run(capsys, "score", tiny_run.artifact, "--data", dataset.folder, *arguments)
    assert code == 2
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_the_artifacts_own_protocol(tiny_run) -> None:
    artifact = load_artifact(tiny_run.artifact)
    assert default_protocol(artifact) == Sliding(window=64, stride=32)
    strange = dataclasses.replace(artifact, notes={"protocol": {"type": "Sliding", "window": 9000, "stride": 1, "contest": False}})
    assert default_protocol(strange) == Sliding(window=64, stride=32)
    adapting = dataclasses.replace(artifact, notes={"protocol": {"type": "Nonsense"}})
    assert default_protocol(adapting) == Sliding(window=64, stride=32)
