"""What the audit says of a proof that proves little, and of compressed text that is not what it was."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import fields

import pytest

from bytefit.audit import proof as audited
from bytefit.audit.evidence import Evidence
from bytefit.audit.proof import check_proof
from bytefit.run.folder import RunFolder
from bytefit.score import compressed
from bytefit.score.prove import Proof
from tests.audit.planting import edit, verdicts


def test_a_proof_of_a_few_bytes_says_nothing(finished, dataset, tmp_path) -> None:
    """Its slack of 64 bits would cover anything; nor does one in which nothing was learned say that both sides learn alike."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    proof = json.loads(folder.proof.read_text())
    assert proof["learned_steps"] > 0
    made, data = {field.name: proof[field.name] for field in fields(Proof)}, folder.proof_text.read_bytes()
    few = len(data) - 250  # bytes left out of the file, so that 250 beside its header and checksum are left
    few -= compressed.overhead_bytes(data)
    for changes, cut in (({"expected_bits": 2000.0, "coded_bits": 2000}, few), ({"learned_steps": 0}, 0)):
        folder.proof_text.write_bytes(data[: len(data) - cut])
        for expected, verdict in ((1.0, "not applicable"), (0.5, "fail")):
            stated = Proof(**made | {"bytes_out": len(data) - cut} | changes)
            stated = Proof(**made | {"bytes_out": len(data) - cut} | changes | {"expected_bits": stated.expected_bits * expected})
            assert stated.holds == (expected == 1.0)
            folder.proof.write_text(json.dumps(stated.to_json()))
            assert verdicts(check_proof(Evidence(folder, folder.read_recipe(), dataset)))[13] == verdict


def with_words(folder: RunFolder, change) -> None:
    """The coded words changed, and the file's checksum made to fit."""
    data = folder.proof_text.read_bytes()
    words = compressed.overhead_bytes(data) - 4
    body = data[:words] + change(data[words:-4])
    folder.proof_text.write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "change", [lambda words: words[::-1], lambda words: bytes(len(words)), lambda words: words[:40] + words[44:] + b"\0" * 4]
)
def test_words_that_do_not_decode_are_found(finished, dataset, tmp_path, change) -> None:
    """Every checksum and every figure is right; only the text does not come back."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    honest = Evidence(folder, folder.read_recipe(), dataset)
    assert verdicts(check_proof(honest))[12] == "pass"
    with_words(folder, change)
    assert verdicts(check_proof(honest))[12] == "fail"
    with pytest.raises(audited.UserError):
        compressed.decompress(honest.artifact, folder.proof_text.read_bytes())


def test_a_beginning_is_restored_once_more(finished, dataset, monkeypatch) -> None:
    """On another class of machine it cannot be, which is said."""
    run = Evidence(finished, finished.read_recipe(), dataset)
    monkeypatch.setattr(audited, "DECODED_TOKENS", 100)
    assert "the first 100 tokens just now once more" in check_proof(run)[1].evidence
    monkeypatch.setattr(compressed, "machine_class", lambda: "another")
    found = check_proof(run)[1]
    assert found.verdict == "not applicable"
    assert "cannot be restored again" in found.evidence


def test_another_processor_of_the_same_class_is_no_fault(finished, dataset, tmp_path) -> None:
    """What does not decode is a fault only where the run's own processor says so."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    with_words(folder, lambda words: words[::-1])
    edit(folder.env, lambda env: env.update(cpu="another"))
    found = check_proof(Evidence(folder, folder.read_recipe(), dataset))[1]
    assert (found.number, found.verdict) == (12, "not applicable")


def test_a_proof_of_an_earlier_version(finished, dataset, tmp_path) -> None:
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    data = folder.proof_text.read_bytes()
    body = data[:8] + b"\x02" + data[9:-4]
    folder.proof_text.write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))
    run = Evidence(folder, folder.read_recipe(), dataset)
    assert verdicts(check_proof(run))[12] == "not applicable"
    assert verdicts(check_proof(run))[13] == "pass"
    edit(folder.proof, lambda proof: proof.pop("expected_bits"))
    found = check_proof(Evidence(folder, folder.read_recipe(), dataset))[2]
    assert found.verdict == "not applicable"
    assert "without expected_bits; prove it again" in found.evidence


@pytest.mark.parametrize("size", [0, 5, 20, 60])
def test_a_proof_that_was_cut_short(finished, dataset, tmp_path, size) -> None:
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    folder.proof_text.write_bytes(folder.proof_text.read_bytes()[:size])
    assert verdicts(check_proof(Evidence(folder, folder.read_recipe(), dataset)))[12] == "fail"


@pytest.mark.parametrize("figure", ["coded_bits", "bytes_in", "expected_bits", "agreement", "bits_per_byte"])
def test_figures_of_a_proof_follow_from_one_another(finished, dataset, tmp_path, figure) -> None:
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    proof = json.loads(folder.proof.read_text())
    folder.proof.write_text(json.dumps(proof | {figure: proof[figure] * 1.01}))
    assert verdicts(check_proof(Evidence(folder, folder.read_recipe(), dataset)))[13] == "fail"
