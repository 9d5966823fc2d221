"""Tables of bytes that count wrongly."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import numpy as np
import pytest

from bytefit.audit import counting
from bytefit.audit.counting import check_counting, table_answers
from bytefit.audit.evidence import Evidence
from bytefit.data.tokenizer import BOS_ID
from bytefit.run.folder import RunFolder
from tests.audit.planting import edit, verdicts


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


def test_a_tokenizer_without_byte_pieces_is_audited(finished, dataset) -> None:
    """It writes nothing but its pieces, so that no proof is made with it; the other classes are judged."""
    tokenizer = copy.copy(dataset.tokenizer)
    tokenizer.is_byte = np.zeros_like(tokenizer.is_byte)
    tokenizer.__dict__.pop("byte_ids", None)
    evidence = Evidence(finished, finished.read_recipe(), dataclasses.replace(dataset, tokenizer=tokenizer))
    assert verdicts(check_counting(evidence))[16] == "pass"


def test_of_a_lossy_tokenizer_the_tables_own_sum_counts(finished, dataset, tmp_path) -> None:
    tokenizer = copy.copy(dataset.tokenizer)
    tokenizer.lossless = False
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    run = Evidence(folder, folder.read_recipe(), dataclasses.replace(dataset, tokenizer=tokenizer))
    real = int(run.counts.sum())
    for count, verdict in ((real, "pass"), (real + 1, "fail")):
        edit(folder.score, lambda s, count=count: [s[name].update(bytes=count) for name in run.scored])
        assert verdicts(check_counting(Evidence(folder, run.recipe, run.dataset)))[18] == verdict


@pytest.mark.parametrize(("missing", "size", "verdict"), [(0, "full", "pass"), (1, "full", "fail"), (1, "lab", "not applicable")])
def test_shards_without_hashes_must_hold_the_contests_documents(finished, dataset, monkeypatch, missing, size, verdict) -> None:
    """All of them at full size, where there is no record of what they were built from; ``missing`` of them are not there."""
    shards = dataclasses.replace(dataset, record={})
    held = int((dataset.val.all() == BOS_ID).sum())
    monkeypatch.setattr(counting, "CONTEST_DOCUMENTS", held + missing)
    recipe = finished.read_recipe()
    recipe = dataclasses.replace(recipe, size=size, score=dataclasses.replace(recipe.score, max_bytes=None))
    (found,) = (finding for finding in check_counting(Evidence(finished, recipe, shards)) if finding.number == 20)
    assert found.verdict == verdict
    assert f"{held:,} documents, of {held + missing:,}" in found.evidence
