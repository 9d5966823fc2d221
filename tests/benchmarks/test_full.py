"""The benchmarks of contest sizes on a CPU: their settings fit every recipe, their steps are real, and they stay on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import sys

import pytest

from bytefit.config import apply_settings
from bytefit.optim.schedule import Moment, lr_scale
from bytefit.recipes import SYSTEMS, find_recipe
from tests.benchmarks.conftest import BENCHMARKS


def with_settings(name: str, settings: list[str]):
    return apply_settings(find_recipe(name, "full"), [tuple(setting.split("=", 1)) for setting in settings])


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_artifact_s_settings_fit_the_recipe(name) -> None:
    from full_artifact import settings_of

    recipe = with_settings(name, settings_of(name, 30))
    assert recipe.score.proof_bytes == 12_000
    assert recipe.calibrate is None or (recipe.calibrate.windows, recipe.calibrate.batch_windows) == (8, 4)
    assert recipe.score.adapt is None or recipe.score.adapt.chunk_tokens == recipe.train.seq_len


def test_an_artifact_is_scored_on_all_of_a_short_text(dataset, monkeypatch) -> None:
    """The audit fails a contest-size run that scores a part of the split; all of a long one would take days."""
    import full_artifact

    assert not any("max_bytes" in setting for setting in full_artifact.settings_of("baseline", 30))
    full_artifact.check(dataset.folder)
    monkeypatch.setattr(full_artifact, "MOST_BYTES", 100)
    with pytest.raises(SystemExit, match="at most 100"):
        full_artifact.check(dataset.folder)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_few_steps_have_a_learning_rate(name) -> None:
    from full_size import STEPS, settings_of

    train = with_settings(name, settings_of(name)).train
    assert all(lr_scale(train.schedule, Moment(step=step, total_steps=STEPS)) >= 0.5 for step in range(STEPS))


def test_the_page_says_at_which_rate_the_steps_were_taken() -> None:
    from render import full_size_section

    record = json.loads((BENCHMARKS / "results" / "full_size.json").read_text())
    for row in record["rows"]:
        row.pop("lr_scales", None)  # as results were before
    assert any("at almost no learning rate" in line for line in full_size_section(record))
    for row in record["rows"]:
        row["lr_scales"] = [1.0, 0.5]
    page = full_size_section(record)
    assert any("factors of 0.5 to 1 on the learning rates" in line for line in page)
    assert not any("almost no learning rate" in line for line in page)


@pytest.mark.parametrize(("name", "work"), [("full_size", "three_steps"), ("full_artifact", "measure")])
def test_gpus_are_not_seen(name, work, tmp_path, monkeypatch) -> None:
    module, seen = importlib.import_module(name), []

    def worked(*_):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return {"summary": {"artifact_bytes": 7, "val_bpb": 2.0, "proof_restored": True}}

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(module, work, worked)
    monkeypatch.setattr(module, "embedded_dataset", lambda tokenizer: None, raising=False)
    words = ["--recipes", "baseline", "--out", str(tmp_path / "out.json"), *(["--data", "web"] if name == "full_artifact" else [])]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    module.main()
    assert seen == [""]
