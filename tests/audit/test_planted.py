"""Faults in the files of a run. Each plant changes a copy of an honest run; the audit must name the class."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.audit.blocks import part_nats
from bytefit.audit.checklist import audit
from bytefit.audit.counting import check_counting
from bytefit.audit.evidence import Evidence
from bytefit.audit.limits import check_limits
from bytefit.audit.proof import EXCERPT_BYTES, check_proof
from bytefit.audit.provenance import activity, check_provenance, disagreements
from bytefit.errors import UserError
from bytefit.quant.calibrate import CalibrationConfig, OwnText, RandomIds, TrainingText
from bytefit.quant.crown import CrownQConfig
from bytefit.quant.prune import PruneConfig
from bytefit.recipes import find_recipe
from bytefit.run.folder import RunFolder
from bytefit.run.steps import trained_model
from bytefit.score import scorer
from bytefit.score.adapt import Adapt, DocumentLora, Sgd
from bytefit.score.compressed import compress
from bytefit.score.scorer import score, target_nats
from bytefit.score.windows import Full, Sliding
from tests.audit.planting import edit, stream, verdicts


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


def outside_the_timers(entry: str):
    return in_file("summary", lambda record: record["ledger"].pop(entry))


def a_percent_better(record) -> None:
    record["sliding"]["blocks"][0][1] *= 0.99


def one_target_more(record) -> None:
    record["full"]["blocks"][0][0] += 1


def made_up(record) -> None:
    record["sliding"]["blocks"][0][1] = 5.0


def states_more(evidence: Evidence) -> Evidence:
    return with_recipe(train=dataclasses.replace(evidence.recipe.train, crown_q=CrownQConfig()))(evidence)


PLANTS = [
    (check_counting, 2, "a block is scored twice", in_file("score", lambda s: s["full"]["blocks"].append(s["full"]["blocks"][0]))),
    (check_proof, 11, "calibrated on validation text", calibrated_on_validation),
    (check_proof, 11, "calibrated on an excerpt of it", excerpt_of_validation),
    (
        check_proof, 11, "what it was calibrated on is gone",
        with_recipe(calibrate=CalibrationConfig(source=OwnText(path="/nowhere.txt"), windows=4)),
    ),
    (check_proof, 12, "the proof did not come back", in_file("proof", lambda p: p.update(restored=False))),
    (check_proof, 12, "fewer bytes than there are", in_file("proof", lambda p: p.update(bytes_out=p["bytes_out"] - 200))),
    (check_proof, 12, "another text", proof_of_another_text),
    (check_proof, 13, "the coder disagrees", in_file("proof", lambda p: p.update(holds=False, agreement=0.2))),
    (check_proof, 12, "no compressed text", without("proof_text")),
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
    (check_limits, 27, "a byte over the contest's cap", lambda e: with_recipe(size="full")(budget(lambda size: 16_000_001)(e))),
    *((check_limits, 33, f"{entry} outside the timers", outside_the_timers(entry)) for entry in ("train", "fit", "score")),
    (check_limits, 30, "a score one percent better", in_file("score", a_percent_better)),
    (check_provenance, 39, "a target more in a block", in_file("score", one_target_more)),
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
    (check_proof, 12, "a proof of another artifact", in_file("proof", lambda p: p.update(artifact_sha256="0" * 64))),
    (check_limits, 30, "adaptation that was made up", in_file("score", lambda s: s["adapt"]["blocks"][0].__setitem__(1, 5.0))),
    (check_limits, 30, "float weights that were made up", in_file("score", lambda s: s["float_full"]["blocks"][0].__setitem__(1, 5.0))),
    (check_provenance, 39, "another stride", lambda e: with_recipe(score=dataclasses.replace(e.recipe.score, stride=64))(e)),
    (check_provenance, 39, "compressors that were made up", in_file("summary", lambda s: s["compressors_bpb"].update({"xz-9e": 9.9}))),
    (check_provenance, 39, "another arithmetic", in_file("summary", lambda s: s.update(dtype="float64"))),
    (check_provenance, 39, "fewer parameters", in_file("summary", lambda s: s.update(num_parameters=999))),
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
    (check_provenance, 40, "no compressors", without("compressors")),
]  # fmt: skip


@pytest.mark.parametrize(("check", "number", "title", "plant"), PLANTS, ids=[f"{number} {title}" for _, number, title, _ in PLANTS])
def test_planted_faults_are_named(finished, dataset, tmp_path, check, number, title, plant) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    folder = RunFolder(copy)
    honest = Evidence(folder, folder.read_recipe(), dataset)
    found = verdicts(check(plant(honest)))
    assert found[number] == "fail", title


@pytest.mark.parametrize("name", ["float_full", "full", "sliding", "adapt"])
def test_a_later_block_is_scored_again_too(finished, dataset, tmp_path, name, monkeypatch) -> None:
    """One is drawn; here all of them are a percent better. What learned from what came before is scored again at its beginning alone."""
    monkeypatch.setattr(scorer, "BLOCK_TARGETS", 500)
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    run = Evidence(folder, folder.read_recipe(), dataset)
    model = trained_model(folder, run.recipe) if name == "float_full" else run.artifact.model
    dtype = getattr(torch, run.scores[name]["dtype"])
    result = score(model, run.tokens, dataset.byte_table, run.recipe.score.protocols[name], dtype).to_json()
    assert len(result["blocks"]) > 3
    for factor, verdict in ((1.0, "pass"), (0.99, "fail" if name != "adapt" else "pass")):
        changed = [result["blocks"][0], *([targets, nats * factor, size] for targets, nats, size in result["blocks"][1:])]
        edit(folder.score, lambda record, changed=changed: record.update({name: result | {"blocks": changed}}))
        assert verdicts(check_limits(Evidence(folder, run.recipe, dataset)))[30] == verdict


@pytest.mark.parametrize("protocol", [
    Full(window=16), Sliding(window=16, stride=5), Sliding(window=16, stride=16), DocumentLora(window=16, chunk_tokens=6, lr=0.02),
    DocumentLora(window=16, chunk_tokens=6, lr=0.02, piece_tokens=20), Adapt(window=16, stride=8, chunk_tokens=64, optimizer=Sgd(lr=0.01)),
], ids=lambda protocol: type(protocol).__name__)  # fmt: skip
def test_a_part_costs_what_it_costs_in_the_whole(finished, dataset, protocol) -> None:
    run = Evidence(finished, finished.read_recipe(), dataset)
    tokens = run.tokens[:400]
    whole = target_nats(run.artifact.model, tokens, protocol, torch.float32)
    last = protocol.chunk_tokens if isinstance(protocol, Adapt) else 399
    for first, count in ((0, 5), (15, 20), (16, 3), (17, 40), (37, 1), (150, 100), (last - 9, 9)):
        if first + count > last:
            continue
        part = part_nats(run.artifact.model, tokens, protocol, torch.float32, first, count)
        assert part == pytest.approx(whole[first : first + count], rel=1e-4), first


def test_the_artifact_names_the_protocol_of_the_recipe(finished, dataset) -> None:
    """By it the proof is made; the scores' own protocols are the same here."""
    run = Evidence(finished, finished.read_recipe(), dataset)
    other = with_recipe(score=dataclasses.replace(run.recipe.score, headline="sliding"))(run)
    assert "the artifact names another protocol than the recipe" in disagreements(other)
    assert not disagreements(run)


def test_without_its_weights_a_run_is_judged_by_the_rest(finished, dataset, tmp_path) -> None:
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    for weights in folder.checkpoint.glob("*.safetensors"):
        weights.unlink()
    findings = {finding.number: finding for finding in audit(folder, dataset)}
    assert not [number for number, finding in findings.items() if finding.verdict == "fail"]
    assert "float_full" not in findings[30].evidence
    assert "float_full" in check_limits(Evidence(finished, folder.read_recipe(), dataset))[4].evidence
    shutil.rmtree(folder.checkpoint)
    gone = {finding.number: finding for finding in audit(folder, dataset)}
    assert gone[40].evidence == "missing: checkpoint/state.json"


def test_a_score_without_blocks_is_one_line(finished, dataset, tmp_path) -> None:
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    edit(folder.score, lambda s: s["full"].update(blocks=[]))
    with pytest.raises(UserError, match=r"score\.json holds a score without blocks; make it again with: bytefit score"):
        check_limits(Evidence(folder, folder.read_recipe(), dataset))
    edit(folder.score, lambda s: s["full"].pop("blocks"))
    with pytest.raises(UserError, match=r"score\.json lacks blocks"):
        check_counting(Evidence(folder, folder.read_recipe(), dataset))


def test_other_scores_may_take_their_time(finished, dataset, tmp_path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    honest = Evidence(folder, folder.read_recipe(), dataset)
    assert verdicts(check_limits(scored_in(590.0)(honest)))[32] == "pass"


def test_what_never_ran_is_not_taken_for_active(finished, dataset, tmp_path) -> None:
    """Every technique that a recipe can state and leave out of the weights, by the records that it would have left."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    system, recipe = find_recipe("pr693", "tiny"), folder.read_recipe()
    quant = dataclasses.replace(system.pack.quant, prune=PruneConfig(share=0.1))
    recipe = dataclasses.replace(recipe, train=system.train, pack=dataclasses.replace(system.pack, quant=quant), calibrate=system.calibrate)

    def found(position: dict, snapshots: int, used: str, pruned: int, penalty: float, learned: int) -> dict[str, bool]:
        edit(folder.checkpoint / "state.json", lambda s: s.update(position=position, snapshots=snapshots, average={"used": used}))
        edit(folder.pack, lambda s: s.update(pruned=pruned))
        edit(folder.score, lambda s: s["adapt"].update(learned_steps=learned))
        folder.metrics.write_text(json.dumps({"step": 1, "crown_q": penalty}) + "\n")
        return activity(Evidence(folder, recipe, dataset))

    ran = found({"replayed": 3, "rounded_from": 5}, 2, "ema", 10, 0.1, 4)
    assert set(ran.values()) == {True}
    assert len(ran) == 8
    folder.calibration.unlink(missing_ok=True)
    never = found({"replayed": 0, "rounded_from": None}, 0, "last", 0, 0.0, 0)
    assert never.keys() == ran.keys()
    assert set(never.values()) == {False}
