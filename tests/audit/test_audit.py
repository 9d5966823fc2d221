"""The audit of a finished run: an honest one passes, and every fault that a program can see is named by its number."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.audit import order
from bytefit.audit.checklist import as_text, audit
from bytefit.audit.counting import check_counting, table_answers
from bytefit.audit.evidence import Evidence
from bytefit.audit.findings import CLASSES
from bytefit.audit.limits import check_limits
from bytefit.audit.order import EXCERPT_BYTES, check_order
from bytefit.audit.provenance import check_provenance
from bytefit.cli import main
from bytefit.config import to_json
from bytefit.data.shards import TokenStream
from bytefit.data.tokenizer import BOS_ID
from bytefit.errors import UserError
from bytefit.quant.calibrate import CalibrationConfig, OwnText, RandomIds, TrainingText
from bytefit.quant.crown import CrownQConfig
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.pipeline import run
from bytefit.score.adapt import Adapt, DocumentLora
from bytefit.score.compressed import compress
from bytefit.score.learner import Learner
from bytefit.score.scorer import score
from bytefit.score.windows import Full, Sliding
from tests.conftest import ONE_RANK


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> RunFolder:
    """A run of a system that adapts; tests read it and must not change it."""
    out = tmp_path_factory.mktemp("runs") / "pr578"
    recipe = find_recipe("pr578", "tiny")
    recipe = dataclasses.replace(recipe, score=dataclasses.replace(recipe.score, max_bytes=6000, proof_bytes=2000))
    run(recipe, data=dataset.folder, out=out, resume=False, ranks=ONE_RANK)
    return RunFolder(out)


def verdicts(findings) -> dict[int, str]:
    return {finding.number: finding.verdict for finding in findings}


def test_an_honest_run_passes(finished, dataset, capsys) -> None:
    findings = audit(finished, dataset)
    assert [finding.number for finding in findings] == list(range(1, 41))
    assert not [finding for finding in findings if finding.verdict == "fail"]
    assert sum(finding.verdict == "pass" for finding in findings) >= 30
    assert all(finding.evidence for finding in findings)
    assert "0 fail" in as_text(findings)
    capsys.readouterr()
    assert main(["audit", str(finished.path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["title"] for row in record] == list(CLASSES.values())
    assert json.loads(finished.audit.read_text()) == record


def test_a_run_without_adaptation_passes_too(tiny_run, dataset) -> None:
    found = verdicts(audit(tiny_run, dataset))
    assert "fail" not in found.values()
    assert found[3] == found[10] == "not applicable"


# Faults in the files of a run. Each plant changes a copy of the run; the audit must name the class.


def edit(path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def scored_by(evidence: Evidence, protocol) -> None:
    """The run's sliding score under another protocol."""
    result = score(evidence.artifact.model, evidence.tokens, evidence.dataset.byte_table, protocol, evidence.artifact.model.cos.dtype)
    edit(evidence.folder.score, lambda record: record.update(sliding=result.to_json()))


def with_recipe(**changes):
    def plant(evidence: Evidence) -> Evidence:
        return dataclasses.replace(evidence, recipe=dataclasses.replace(evidence.recipe, **changes))

    return plant


def in_file(name: str, change):
    def plant(evidence: Evidence) -> Evidence:
        edit(getattr(evidence.folder, name), change)
        return Evidence(evidence.folder, evidence.recipe, evidence.dataset)

    return plant


def calibrated_on_validation(evidence: Evidence) -> Evidence:
    text = evidence.folder.path / "own.txt"
    text.write_bytes(b"something else\n" + b"\n".join(evidence.dataset.val_documents()[:2]))
    return with_recipe(calibrate=CalibrationConfig(source=OwnText(path=str(text)), windows=4))(evidence)


def another_dataset(changes):
    return lambda evidence: dataclasses.replace(evidence, dataset=dataclasses.replace(evidence.dataset, **changes(evidence.dataset)))


def stream(tokens) -> TokenStream:
    return TokenStream([np.asarray(tokens).astype(np.uint16)])


def budget(change):
    return lambda e: with_recipe(pack=dataclasses.replace(e.recipe.pack, budget_bytes=change(e.folder.artifact.stat().st_size)))(e)


def by_the_clock(evidence: Evidence) -> Evidence:
    train = dataclasses.replace(evidence.recipe.train, steps=None, seconds=600.0, reserve_seconds=0.0)
    edit(evidence.folder.summary, lambda s: s["ledger"].update(train=599.7, calibrate=6.9))
    return with_recipe(train=train, calibrate=CalibrationConfig(source=TrainingText(), windows=4))(evidence)


def on_two_machines(evidence: Evidence) -> Evidence:
    state = evidence.folder.checkpoint / "state.json"
    edit(state, lambda s: s.update(earlier_machines=[s["machine"] | {"until_step": 9}]))
    return Evidence(evidence.folder, evidence.recipe, evidence.dataset)


def proof_of_another_text(evidence: Evidence) -> Evidence:
    data = compress(load_artifact(evidence.folder.artifact), [b"something that is easy " * 9])
    evidence.folder.proof_text.write_bytes(data)
    edit(evidence.folder.proof, lambda proof: proof.update(bytes_out=len(data)))
    return Evidence(evidence.folder, evidence.recipe, evidence.dataset)


def chosen_after_the_clock(evidence: Evidence) -> Evidence:
    average = dataclasses.replace(evidence.recipe.train.average, use="held_out")
    train = dataclasses.replace(evidence.recipe.train, steps=None, seconds=600.0, average=average)
    edit(evidence.folder.summary, lambda s: s["ledger"].update(train=599.7, average=2.0))
    return with_recipe(train=train, calibrate=CalibrationConfig(source=RandomIds()))(evidence)


def scored_in(seconds: float):
    """At full size: the headline in so long, and another score in more than is allowed, which is the run's own affair."""

    def plant(evidence: Evidence) -> Evidence:
        headline = evidence.recipe.score.headline
        edit(evidence.folder.score, lambda s: (s["full"].update(seconds=700.0), s[headline].update(seconds=seconds)))
        return with_recipe(size="full")(evidence)

    return plant


def excerpt_of_validation(evidence: Evidence) -> Evidence:
    text = evidence.folder.path / "own.txt"
    document = max(evidence.dataset.val_documents(), key=len)
    text.write_bytes(b"something else\n" + document[100 : 100 + 2 * EXCERPT_BYTES])
    return with_recipe(calibrate=CalibrationConfig(source=OwnText(path=str(text)), windows=4))(evidence)


def operators_in_the_vocabulary(evidence: Evidence) -> Evidence:
    """As it is with shards of the contest: nobody knows what was done to the text before."""
    tokenizer = copy.copy(evidence.dataset.tokenizer)
    tokenizer.pieces = [*tokenizer.pieces[:-1], "\ue001"]
    return another_dataset(lambda dataset: {"tokenizer": tokenizer, "record": {}})(evidence)


def trained_too_long(evidence: Evidence) -> Evidence:
    train = dataclasses.replace(evidence.recipe.train, steps=None, seconds=1200.0)
    return with_recipe(train=train, size="full", calibrate=CalibrationConfig(source=RandomIds()))(evidence)


def tail(protocol):
    def plant(evidence: Evidence) -> Evidence:
        scored_by(evidence, protocol)
        return Evidence(evidence.folder, evidence.recipe, evidence.dataset)

    return plant


def without(name: str):
    def plant(evidence: Evidence) -> Evidence:
        getattr(evidence.folder, name).unlink()
        return Evidence(evidence.folder, evidence.recipe, evidence.dataset)

    return plant


def overlapping(dataset):
    return {"train": stream(np.concatenate([dataset.train.all(), dataset.val.all()[: len(dataset.val) // 2]]))}


def drop_bos(dataset):
    tokens = dataset.val.all()
    return {"val": stream(tokens[tokens != 1])}


def normalised(dataset):
    splits = dataset.record["splits"]
    return {"record": dataset.record | {"splits": splits | {"val": splits["val"] | {"raw_bytes": 9}}}}


def made_up(record) -> None:
    record["sliding"]["blocks"][0][1] = 5.0


def states_more(evidence: Evidence) -> Evidence:
    return with_recipe(train=dataclasses.replace(evidence.recipe.train, crown_q=CrownQConfig()))(evidence)


PLANTS = [
    (check_order, 2, "a block is scored twice", in_file("score", lambda s: s["full"]["blocks"].append(s["full"]["blocks"][0]))),
    (check_order, 11, "calibrated on validation text", calibrated_on_validation),
    (check_order, 11, "calibrated on an excerpt of it", excerpt_of_validation),
    (
        check_order, 11, "what it was calibrated on is gone",
        with_recipe(calibrate=CalibrationConfig(source=OwnText(path="/nowhere.txt"), windows=4)),
    ),
    (check_order, 12, "the proof did not come back", in_file("proof", lambda p: p.update(restored=False))),
    (check_order, 12, "fewer bytes than there are", in_file("proof", lambda p: p.update(bytes_out=p["bytes_out"] - 200))),
    (check_order, 12, "another text", proof_of_another_text),
    (check_order, 13, "the coder disagrees", in_file("proof", lambda p: p.update(holds=False, agreement=0.2))),
    (check_order, 12, "no compressed text", without("proof_text")),
    (check_counting, 15, "17 % more bytes", in_file("score", lambda s: s["sliding"].update(bytes=int(1.17 * s["sliding"]["bytes"])))),
    (check_counting, 18, "9 % more bytes", in_file("score", lambda s: s["adapt"].update(bytes=int(1.0895 * s["adapt"]["bytes"])))),
    (check_counting, 18, "operators", operators_in_the_vocabulary),
    (
        check_counting, 19, "normalised text",
        another_dataset(normalised),
    ),
    (check_counting, 20, "another dataset", in_file("score", lambda s: s.update(dataset_sha256="0" * 64))),
    (check_counting, 21, "the tail left out", tail(Full(window=64, contest=True))),
    (check_counting, 22, "the tail again and again", tail(Sliding(window=64, stride=8, contest=True))),
    (check_counting, 23, "no BOS", another_dataset(drop_bos)),
    (check_counting, 24, "overlap", another_dataset(overlapping)),
    (check_counting, 25, "training on validation", another_dataset(lambda d: {"train": d.val})),
    (check_limits, 26, "over the cap by one byte", budget(lambda size: size - 1)),
    (check_limits, 27, "16 MiB at full size", lambda e: with_recipe(size="full")(budget(lambda size: 16 << 20)(e))),
    (check_limits, 28, "another codec", lambda e: with_recipe(pack=dataclasses.replace(e.recipe.pack, codec="zlib"))(e)),
    (check_limits, 30, "another artifact", in_file("score", lambda s: s.update(artifact_sha256="0" * 64))),
    (check_limits, 30, "a score that was made up", in_file("score", made_up)),
    (check_limits, 30, "another size", in_file("pack", lambda p: p.update(bytes=p["bytes"] - 100))),
    (check_limits, 31, "calibration after the clock", by_the_clock),
    (check_limits, 31, "choosing after the clock", chosen_after_the_clock),
    (check_limits, 31, "more than the contest's clock", trained_too_long),
    (check_limits, 32, "slow scoring", scored_in(620.0)),
    (check_limits, 32, "no seconds of scoring", scored_in(0.0)),
    (check_limits, 33, "adapting outside the timers", in_file("summary", lambda s: s["ledger"].pop("adapt"))),
    (check_limits, 34, "another processor", in_file("summary", lambda s: s["hardware"].update(cpu="Fast 9000"))),
    (check_limits, 34, "matrix units", in_file("summary", lambda s: s["hardware"].update(cpu_bf16="other"))),
    (check_limits, 34, "another number of ranks", in_file("summary", lambda s: s["hardware"].update(ranks=8))),
    (check_limits, 34, "a machine left out", on_two_machines),
    (
        check_limits, 35, "packing outside the timers",
        in_file("summary", lambda s: s["ledger"].update(fit=0.0, calibrate=0.0, encode=0.0, quantise=0.0)),
    ),
    (check_provenance, 39, "a technique that never ran", states_more),
    (check_provenance, 39, "no learning", in_file("score", lambda s: s["adapt"].update(learned_steps=0))),
    (check_order, 12, "a proof of another artifact", in_file("proof", lambda p: p.update(artifact_sha256="0" * 64))),
    (check_limits, 30, "adaptation that was made up", in_file("score", lambda s: s["adapt"]["blocks"][0].__setitem__(1, 5.0))),
    (check_provenance, 39, "half the nats", in_file("score", lambda s: s["adapt"].update(nats=s["adapt"]["nats"] / 2))),
    (check_provenance, 39, "a better figure", in_file("score", lambda s: s["sliding"].update(bits_per_byte=0.9))),
    (check_provenance, 39, "a better headline", in_file("summary", lambda s: s.update(val_bpb=0.5))),
    (check_provenance, 39, "less training", in_file("summary", lambda s: s["ledger"].update(train=s["ledger"]["train"] - 1.0))),
    (check_provenance, 39, "fewer seconds", in_file("summary", lambda s: s.update(train_seconds=s["train_seconds"] - 1.0))),
    (check_provenance, 39, "a smaller artifact", in_file("summary", lambda s: s.update(artifact_bytes=1))),
    (check_counting, 20, "a part of the split at full size", with_recipe(size="full")),
    (check_provenance, 39, "another seed", in_file("summary", lambda s: s.update(seed=7))),
    (check_provenance, 40, "no proof", without("proof")),
    (check_provenance, 40, "no metrics", without("metrics")),
]  # fmt: skip


@pytest.mark.parametrize(("check", "number", "title", "plant"), PLANTS, ids=[f"{number} {title}" for _, number, title, _ in PLANTS])
def test_planted_faults_are_named(finished, dataset, tmp_path, check, number, title, plant) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    folder = RunFolder(copy)
    honest = Evidence(folder, folder.read_recipe(), dataset)
    found = verdicts(check(plant(honest)))
    assert found[number] == "fail", title


def test_other_scores_may_take_their_time(finished, dataset, tmp_path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    honest = Evidence(folder, folder.read_recipe(), dataset)
    assert verdicts(check_limits(scored_in(590.0)(honest)))[32] == "pass"


def test_a_tokenizer_without_byte_pieces_is_audited(finished, dataset) -> None:
    """It writes nothing but its pieces, so that no proof is made with it; the other classes are judged."""
    tokenizer = copy.copy(dataset.tokenizer)
    tokenizer.is_byte = np.zeros_like(tokenizer.is_byte)
    tokenizer.__dict__.pop("byte_ids", None)
    evidence = Evidence(finished, finished.read_recipe(), dataclasses.replace(dataset, tokenizer=tokenizer))
    assert verdicts(check_counting(evidence))[16] == "pass"


@pytest.mark.parametrize(
    ("numbers", "cheat"),
    [
        ((1, 3, 4), lambda real, tokens: real(tokens) - 0.01 * np.arange(len(tokens) - 1)[::-1] * (tokens[-1] % 2)),  # looks ahead
        ((4,), lambda real, tokens: real(tokens) * (1 - 0.001 * len(tokens))),  # depends on how long the text is
        ((5, 6, 7, 8, 9), lambda real, tokens: real(tokens) - np.log(2)),  # twice the probability
        ((5, 6, 7, 8, 9), lambda real, tokens: np.where(tokens[1:] % 3 == 0, 0.5, 1.0) * real(tokens)),  # a gate on the target
    ],
)
def test_a_dishonest_scorer_is_named(finished, dataset, monkeypatch, numbers, cheat) -> None:
    """Classes 1 to 9 with the run's own scorer replaced."""
    real = order.target_nats
    monkeypatch.setattr(order, "target_nats", lambda model, tokens, *rest: cheat(lambda t: real(model, t, *rest), tokens))
    found = verdicts(check_order(Evidence(finished, finished.read_recipe(), dataset)))
    assert all(found[number] == "fail" for number in numbers), found


def test_long_windows_are_probed_with_fewer_of_them(finished, dataset) -> None:
    """Strides and chunks are such that two windows hold several; a changed last target of a window is still seen."""
    sliding, adapt = (
        order.short(protocol) for protocol in (Sliding(window=2048, stride=64), Adapt(window=2048, stride=64, chunk_tokens=9999))
    )
    assert (sliding.stride, adapt.stride, adapt.chunk_tokens, adapt.epochs) == (128, 128, 1024, 1)
    assert order.short(Sliding(window=512, stride=64)) == Sliding(window=512, stride=64)
    run = Evidence(finished, finished.read_recipe(), dataset)
    window = run.artifact.model.config.context
    tokens = run.tokens[: window + 1]
    row, protocol = order.row_maker(run.artifact.model, tokens), Full(window=window)
    real = order.target_nats(run.artifact.model, tokens, protocol, torch.float32)
    few = 0
    for wrong in (None, 0, window - 1):
        costs = real.copy()
        if wrong is not None:
            costs[wrong] -= 0.1
        for rows in (order.PROBE_ROWS, 7):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(order, "PROBE_ROWS", rows)
                answer = order.read_from_rows(row, lambda _, costs=costs: costs, protocol, tokens)
            assert answer.holds == (wrong is None)
            few += answer.evidence.startswith("8 costs")
    assert few == 3


def test_weights_that_scoring_leaves_changed_are_named(finished, dataset, monkeypatch) -> None:
    """Class 10: as a warm-up on validation tokens would leave them."""
    assert verdicts(check_order(Evidence(finished, finished.read_recipe(), dataset)))[10] == "pass"
    monkeypatch.setattr(Learner, "__exit__", lambda self, *error: None)
    assert verdicts(check_order(Evidence(finished, finished.read_recipe(), dataset)))[10] == "fail"


def test_documents_that_are_not_apart_are_named(finished, dataset, tmp_path, monkeypatch) -> None:
    """Class 14, where a protocol says that they are."""
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    folder = RunFolder(copy)
    protocol = DocumentLora(window=64, chunk_tokens=32, lr=0.002)
    edit(folder.score, lambda record: record["adapt"].update(protocol=to_json(protocol)))
    assert verdicts(check_order(Evidence(folder, folder.read_recipe(), dataset)))[14] == "pass"
    real = order.target_nats
    monkeypatch.setattr(order, "target_nats", lambda model, tokens, _, dtype: real(model, tokens, Sliding(window=64, stride=8), dtype))
    assert verdicts(check_order(Evidence(folder, folder.read_recipe(), dataset)))[14] == "fail"


def test_a_proof_of_a_few_bytes_says_nothing(finished, dataset, tmp_path) -> None:
    """Its slack of 64 bits would cover anything; nor does one in which nothing was learned say that both sides learn alike."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    proof = json.loads(folder.proof.read_text())
    assert proof["learned_steps"] > 0
    for changes in ({"expected_bits": 2000.0}, {"learned_steps": 0}):
        for holds, verdict in ((True, "not applicable"), (False, "fail")):
            folder.proof.write_text(json.dumps(proof | changes | {"holds": holds}))
            assert verdicts(check_order(Evidence(folder, folder.read_recipe(), dataset)))[13] == verdict


@pytest.mark.parametrize("length", [20, 4000])
def test_short_documents_are_no_fault(finished, dataset, tmp_path, length) -> None:
    """The first document may end before a window, or be all there is; what the next one costs comes from a fresh start, and says so."""
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    folder = RunFolder(copy)
    edit(folder.score, lambda record: record["adapt"].update(protocol=to_json(DocumentLora(window=64, chunk_tokens=32, lr=0.002))))
    tokens = dataset.val.all()
    inside = tokens[tokens != BOS_ID]
    cut = np.insert(inside[:4000], np.arange(0, 4000, length), BOS_ID)
    data = dataclasses.replace(dataset, val=stream(cut))
    booked = {"targets": len(cut) - 1, "blocks": [[len(cut) - 1, 1.0, 1]]}
    edit(folder.score, lambda record: [record[name].update(booked) for name in ("full", "sliding", "adapt")])
    recipe = folder.read_recipe()
    recipe = dataclasses.replace(recipe, score=dataclasses.replace(recipe.score, max_bytes=None))
    found = verdicts(check_order(Evidence(folder, recipe, data)))
    assert [number for number, verdict in found.items() if verdict == "fail"] == [12]  # the proof is still of the text before
    assert found[14] == ("pass" if length == 20 else "not applicable")


@pytest.mark.parametrize("fault", ["spaces twice", "byte pieces", "boundary"])
def test_faults_in_a_table_of_bytes(dataset, fault) -> None:
    """Classes 15 to 17, each named by its own answer and by no other."""
    table, tokenizer = dataset.byte_table, dataset.tokenizer
    assert all(answer.holds for answer in table_answers(table, tokenizer))
    counted = table.base_bytes.copy()
    spaced = [i for i, data in enumerate(tokenizer.token_bytes) if data.startswith(b" ") and i not in tokenizer.byte_ids]
    if fault == "spaces twice":
        counted[spaced] += 1
    elif fault == "byte pieces":
        counted[list(tokenizer.byte_ids)] = 3
    else:
        counted[spaced] -= 1
    answers = table_answers(dataclasses.replace(table, base_bytes=counted), tokenizer)
    assert [answer.holds for answer in answers] == [fault != name for name in ("spaces twice", "byte pieces", "boundary")]


def test_the_command_says_which_classes_fail(finished, dataset, tmp_path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    edit(RunFolder(copy).score, lambda s: s.update(artifact_sha256="0" * 64))
    assert main(["audit", str(copy)]) == 1
    out, err = capsys.readouterr()
    assert "FAIL  other bytes counted" in out
    assert ">1 fail</b>" in RunFolder(copy).report.read_text()  # the report shows the audit that was just made
    assert err.strip().splitlines()[-1] == "bytefit: the audit fails in 1 of 40 classes (30)"


def test_a_run_that_is_not_finished(finished, dataset, tmp_path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    RunFolder(copy).score.unlink()
    with pytest.raises(UserError, match=r"has no score.json yet; make it with: bytefit score"):
        audit(RunFolder(copy), dataset)
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
