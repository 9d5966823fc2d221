"""report.html as a file: its numbers are those of the run's files, nothing is missing, and what stands in the data stays text."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from bytefit.artifact.container import read_sections
from bytefit.artifact.load import load_artifact
from bytefit.audit.findings import CLASSES, failed, passed, skipped
from bytefit.cli import main
from bytefit.data.tokenizer import BOS_ID, ByteTokenizer
from bytefit.errors import UserError
from bytefit.report.page import write_report
from bytefit.run import details
from bytefit.run.details import first_passage, token_label
from bytefit.run.folder import trained_weights
from bytefit.score.generate import generate
from bytefit.score.scorer import target_nats
from bytefit.score.windows import Sliding
from tests.report.conftest import change, read
from tests.report.html import Page

PASSAGE_BYTES = 600  # the tiny text's documents are short
SECTIONS = "headline scores budget curves matrices surprise samples proof audit details".split()
EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""


def report(run, *others) -> Page:
    out = run / "report.html"
    write_report(run, out, others)
    return Page(out.read_text())


@pytest.fixture(scope="module")
def run(copied):
    """A finished run that was audited; its details are made here, with as many threads as the tests have."""
    folder = copied("first")
    (folder / "details.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(details, "PASSAGE_BYTES", PASSAGE_BYTES)
        assert main(["report", str(folder)]) == 0
    findings = [passed(number, f"evidence {number}") for number in CLASSES if number not in (3, 36)]
    findings += [failed(3, "a planted fault"), skipped(36, "one run")]
    (folder / "audit.json").write_text(json.dumps([finding.to_json() for finding in findings]))
    return folder


@pytest.fixture(scope="module")
def page(run) -> Page:
    return report(run)


def test_a_finished_run_shows_everything(page) -> None:
    assert set(SECTIONS) <= set(page.sections)
    assert "Left out" not in " ".join(page.sections.values())
    assert len(page.all("svg", "chart")) == 6  # loss, rate, speed, and three protocols


def test_it_is_one_file(page, run) -> None:
    assert not [found for _, found in page.tags if {"src", "srcset"} & set(found)]
    assert not page.all("link")
    assert all(found["href"].startswith("#") for found in page.all("a"))
    assert {found["href"][1:] for found in page.all("a")} <= set(page.sections)
    assert not re.search(r"https?://|url\(|@import", (run / "report.html").read_text())


def test_headline_numbers_are_those_of_the_files(page, run) -> None:
    summary, proof = read(run / "summary.json"), read(run / "proof.json")
    said = page.sections
    assert f"{summary['val_bpb']:.4f}" in said["headline"]
    assert f"{summary['artifact_bytes']:,} bytes, of {summary['budget_bytes']:,}" in said["headline"]
    assert f"{summary['steps']:,} steps" in said["headline"]
    assert f"{summary['num_parameters']:,}" in said["headline"]
    for key in ("val_bpb_float", "val_bpb_full", "val_bpb_sliding"):
        assert f"{summary[key]:.4f}" in said["scores"]
    for name, value in summary["compressors_bpb"].items():
        assert f"{name} {value:.4f}" in said["scores"]
    for name, size in summary["bytes_by_part"].items():
        assert f"{name} {size:,}" in said["budget"]
    assert f"left of the budget {summary['budget_bytes'] - summary['artifact_bytes']:,}" in said["budget"]
    for name, seconds in summary["ledger"].items():
        assert (f"{name} {seconds:,.1f}" in said["budget"]) == (name not in ("strict", "customary"))
    assert f"{summary['ledger']['strict']:.1f} s" in said["budget"]
    assert f"{proof['bytes_in']:,} bytes" in said["proof"]
    assert f"to {proof['bytes_out']:,} bytes" in said["proof"]
    assert f"{100 * proof['agreement']:+.4f} %" in said["proof"]
    assert "Restored byte for byte." in said["proof"]
    assert '"num_heads"' in said["details"]
    assert read(run / "env.json")["torch"] in said["details"]
    assert summary["dataset_sha256"] in said["details"]


def test_audit_counts_and_evidence(page) -> None:
    said = page.sections["audit"]
    assert "38 pass, 1 fail, 1 are not applicable" in said
    assert f"3 fail {CLASSES[3]} a planted fault" in said
    assert [found for found in page.all("details") if "open" in found]


def test_matrices_are_measured_against_the_checkpoint(page, run, tiny_run) -> None:
    artifact, weights = load_artifact(tiny_run.artifact), trained_weights(tiny_run)
    packed = dict(artifact.model.named_parameters())
    records = read(run / "details.json")["matrices"]
    assert {record["name"] for record in records} == {name for name, parameter in packed.items() if name in artifact.matrix_bytes}
    for record in records:
        w, w_hat = weights[record["name"]].numpy().astype(float), packed[record["name"]].detach().numpy().astype(float)
        error = np.sqrt(((w - w_hat) ** 2).sum() / (w**2).sum())
        assert 0 < record["relative_error"] < 1
        assert record["relative_error"] == pytest.approx(error, rel=1e-9)
        assert (record["rows"], record["columns"]) == w.shape
        assert f"{100 * error:.1f} %" in page.sections["matrices"]
        assert f"{8 * record['bytes'] / w.size:.2f} bits" in page.sections["matrices"]
    for section in read_sections(tiny_run.artifact.read_bytes()):
        own = [record["bytes"] for record in records if record["role"] == section.kind]
        if own:
            assert sum(own) + 1 == len(section.payload)


def test_the_passage_costs_what_the_scorer_says(page, run, tiny_run, dataset) -> None:
    held = read(run / "details.json")["passage"]
    artifact = load_artifact(tiny_run.artifact)
    document = next(text for text in dataset.val_documents() if len(text) >= PASSAGE_BYTES)
    text = "".join(token["text"] for token in held["tokens"])
    assert PASSAGE_BYTES <= held["bytes"] == len(text.encode()) < PASSAGE_BYTES + 20
    assert document.decode().startswith(text)

    recipe = read(run / "recipe.json")
    protocol = Sliding(window=recipe["score"]["window"], stride=recipe["score"]["stride"])
    assert held["protocol"]["window"] == protocol.window
    ids = [BOS_ID, *artifact.tokenizer.encode_exact(document)]
    bits = target_nats(artifact.model, np.array(ids), protocol, torch.float32)[: len(held["tokens"])] / math.log(2)
    assert [token["bits"] for token in held["tokens"]] == pytest.approx(bits.tolist(), abs=1e-4)
    assert held["bits"] == pytest.approx(bits.sum())
    for token in held["tokens"]:
        chances = [chance for _, chance in token["likeliest"]]
        assert len(chances) == 5
        assert chances == sorted(chances, reverse=True)
        assert 0 < token["probability"] <= chances[0]
        assert token["bits"] == pytest.approx(-math.log2(token["probability"]))
    assert any(token["label"] == token["likeliest"][0][0] for token in held["tokens"])

    spans = page.all("span", "token")
    heats = [float(span["style"].removeprefix("--heat:")) for span in spans]
    assert heats == pytest.approx([min(1, token["bits"] / 14) for token in held["tokens"]], abs=0.0005)
    assert page.sections["passage"] == re.sub(r"\s+", " ", text.replace("\n", "↵\n")).strip()
    assert json.loads(page.data["application/json"]) == held["tokens"]
    assert f"{held['bytes']:,} bytes" in page.sections["surprise"]


def test_without_a_long_document_the_longest_is_the_passage(dataset) -> None:
    longest = max(dataset.val_documents(), key=len)
    assert len(longest) < details.PASSAGE_BYTES
    assert dataset.tokenizer.decode(first_passage(dataset, None).tolist()) == longest


def test_samples_are_what_the_artifact_says(page, run, tiny_run) -> None:
    held = read(run / "details.json")["samples"]
    assert len({sample["temperature"] for sample in held}) == 2
    assert read(tiny_run.details)["samples"][0]["text"] == read(tiny_run.summary)["sample"]
    artifact = load_artifact(tiny_run.artifact)
    for sample in held:
        options = {"temperature": sample["temperature"], "seed": sample["seed"], "num_tokens": details.SAMPLE_TOKENS}
        assert sample["text"] == b"".join(generate(artifact, b"", **options)).decode("utf-8", "replace")
        assert " ".join(sample["text"].split()) in page.sections["samples"]


def test_token_labels() -> None:
    tokenizer = ByteTokenizer()
    labels = [token_label(tokenizer, tokenizer.byte_ids[value]) for value in b"a \n\t\xc3"]
    assert labels == ["a", "␣", "↵", "⇥", "0xc3"]
    assert [token_label(tokenizer, token) for token in (BOS_ID, 0)] == ["end of text", "(nothing)"]


def test_runs_side_by_side(run, copied) -> None:
    other = copied("second", seed=4242, val_bpb=1.23456, val_bpb_adapted=1.2)
    page = report(run, other)
    rows = re.findall(r"<tr.*?</tr>", (run / "report.html").read_text())
    cells = {row[0]: row[1:] for row in (re.findall(r">([^<>]+)</t[hd]>", row) for row in rows) if row}
    summary = read(run / "summary.json")
    assert cells["bits per byte"] == [f"{summary['val_bpb']:.5f}", "1.23456"]
    assert cells["seed"] == [str(summary["seed"]), "4242"]
    assert cells["… packed, learning"] == ["–", "1.20000"]
    assert cells["bytes"] == [f"{summary['artifact_bytes']:,}"] * 2
    curves = page.all("polyline")
    assert {(curve["data-label"], curve["class"].split()[1]) for curve in curves} == {("first", "c0"), ("second", "c1")}
    assert len(curves) == 2 * (3 + 2 * 3)
    assert len(page.all("div", "legend")) == 2
    assert "cannot be compared" not in page.sections["headline"]
    assert "the rest of the page is about first" in (run / "report.html").read_text()
    change(other / "summary.json", val_bytes=17)
    assert "cannot be compared" in report(run, other).sections["headline"]


def test_folders_of_one_name_are_told_apart(run, copied) -> None:
    page = report(run, copied("first"))
    labels = {curve["data-label"] for curve in page.all("polyline")}
    assert len(labels) == 2
    assert all(label.endswith("/first") for label in labels)


def test_what_stands_in_the_data_stays_text(copied) -> None:
    run = copied("<b>evil", recipe=EVIL, sample=EVIL)
    held = read(run / "details.json")
    held["passage"]["tokens"][3] |= {"text": EVIL, "label": EVIL, "likeliest": [[EVIL, 0.5]]}
    held["samples"][0]["text"] = EVIL
    held["matrices"][0]["name"] = EVIL
    (run / "details.json").write_text(json.dumps(held))
    (run / "audit.json").write_text(json.dumps([passed(1, EVIL).to_json()]))
    change(run / "recipe.json", name=EVIL)
    change(run / "env.json", cpu=EVIL)
    page = report(run, copied("<i>other", recipe=EVIL))
    assert len(page.all("script")) == 2  # the page's own, and the tokens as data
    assert not page.all("img")
    assert json.loads(page.data["application/json"])[3]["text"] == EVIL
    assert page.data["script"].lstrip().startswith("//")
    for name in ("headline", "matrices", "passage", "samples", "audit"):
        assert "<script>alert('x')</script>" in page.sections[name], name
    assert "<b>evil" in page.sections["headline"]
    assert "alert" in page.sections["details"]


MISSING = {
    "metrics.jsonl": "curves",
    "score.json": "curves",
    "details.json": "matrices surprise",
    "proof.json": "proof",
    "audit.json": "audit",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_folder_that_lacks_a_file_says_so(copied, name) -> None:
    run = copied("old")
    (run / "audit.json").write_text(json.dumps([passed(1, "").to_json()]))
    (run / name).unlink()
    said = report(run).sections
    without = {section for section, text in said.items() if "Left out" in text}
    assert without >= set(MISSING[name].split())
    if name != "score.json":  # without it nobody knows whose the details are
        assert without == set(MISSING[name].split())
        assert name in said[MISSING[name].split()[0]]


def test_recipe_and_summary_are_enough(copied) -> None:
    run = copied("bare")
    for path in run.iterdir():
        if path.is_file() and path.name not in ("recipe.json", "summary.json"):
            path.unlink()
    page = report(run)
    assert f"{read(run / 'summary.json')['val_bpb']:.4f}" in page.sections["headline"]
    assert not page.all("svg")
    assert " ".join(read(run / "summary.json")["sample"].split()) in page.sections["samples"]


def test_details_of_another_artifact_are_not_shown(copied) -> None:
    run = copied("stale")
    change(run / "details.json", artifact_sha256="0" * 64)
    assert "Left out" in report(run).sections["matrices"]


def test_a_failed_proof_is_said(copied) -> None:
    run = copied("broken")
    change(run / "proof.json", restored=False, holds=False)
    said = report(run).sections["proof"]
    assert "NOT restored" in said
    assert "does not hold" in said


def test_a_folder_that_is_no_run_is_said(run, tmp_path, capsys) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path, tmp_path / "report.html")
    assert main(["report", str(run), str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} is not a run folder" in line
    assert not (tmp_path / "report.html").exists()


def test_the_verb_makes_what_is_missing(run, copied, tmp_path, capsys) -> None:
    lacking, other, out = copied("lacking"), copied("other"), tmp_path / "two.html"
    for folder in (lacking, other):
        (folder / "details.json").unlink()
    assert main(["report", str(lacking), str(other), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out)}
    assert "Left out" not in Page(out.read_text()).sections["matrices"]
    assert read(lacking / "details.json")["matrices"] == read(run / "details.json")["matrices"]
    assert not (other / "details.json").exists()  # of further runs only headlines and curves are shown


def test_the_verb_goes_on_without_a_dataset(copied, tmp_path, capsys) -> None:
    run = copied("orphan")
    (run / "details.json").unlink()
    change(run / "env.json", data=str(tmp_path / "gone"))
    assert main(["report", str(run)]) == 0
    assert "the report goes without matrices, passage and samples" in capsys.readouterr().err
    assert "Left out" in Page((run / "report.html").read_text()).sections["surprise"]
