"""An artifact unpacked and loaded again."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch

from bytefit.artifact.load import load_artifact
from bytefit.artifact.unpack import CARD, CONFIG, UNPACKED, WEIGHTS, load_unpacked
from bytefit.cli import main
from bytefit.errors import UserError
from bytefit.score.compressed import compress, decompress


@pytest.fixture(scope="module")
def unpacked(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("unpacked") / "model"
    assert main(["unpack", str(tiny_run.artifact), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(unpacked, tmp_path):
    return shutil.copytree(unpacked, tmp_path / "copied")


def test_the_folder_gives_the_same_logits_and_tokens(tiny_run, unpacked) -> None:
    artifact, again = load_artifact(tiny_run.artifact), load_unpacked(unpacked)
    assert sorted(path.name for path in unpacked.iterdir()) == sorted(UNPACKED)
    ids = torch.randint(0, artifact.model.config.vocab_size, (2, artifact.model.config.context))
    with torch.inference_mode():
        assert torch.equal(artifact.model.logits(ids), again.model.logits(ids))
    assert (again.size, again.sha256, again.parts, again.notes, again.codec) == (
        artifact.size, artifact.sha256, artifact.parts, artifact.notes, artifact.codec,
    )  # fmt: skip
    text = "The quiet river.\nNaïve 🙂".encode()
    assert again.tokenizer.encode_exact(text) == artifact.tokenizer.encode_exact(text)
    assert decompress(again, compress(artifact, [text])) == [text]


def test_the_card_says_what_the_file_says(tiny_run, unpacked) -> None:
    artifact, card = load_artifact(tiny_run.artifact), (unpacked / CARD).read_text()
    assert f"**{artifact.size:,} bytes**" in card
    assert artifact.sha256 in card
    assert all(f"| {part} | {size:,} |" in card for part, size in artifact.parts.items())
    assert all(f"| {key} | `{json.dumps(value)}` |" in card for key, value in artifact.notes.items())


def test_weights_of_another_model_are_refused(copied) -> None:
    weights = safetensors.torch.load_file(copied / WEIGHTS)
    weights.popitem()
    safetensors.torch.save_file(weights, copied / WEIGHTS)
    with pytest.raises(UserError, match="holds other weights"):
        load_unpacked(copied)
    (copied / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        load_unpacked(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config | {"model_type": "gpt2"}, "unpack it again"),
        (lambda config: {key: value for key, value in config.items() if key != "artifact"}, "lacks artifact"),
        (lambda config: config | {"model": config["model"] | {"dim": "wide"}}, "model.dim"),
        (lambda config: config | {"model": config["model"] | {"vocab_size": 77}}, "its tokenizer has"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copied, change, message) -> None:
    (copied / CONFIG).write_text(json.dumps(change(json.loads((copied / CONFIG).read_text()))))
    with pytest.raises(UserError, match=message):
        load_unpacked(copied)


def test_a_folder_of_something_else_is_left_alone(tiny_run, tmp_path, capsys) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert main(["unpack", str(tiny_run.artifact), "--out", str(tmp_path)]) == 2
    assert "is not an unpacked artifact" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("config", ['{"model_type": "gpt2"}', "[]", "{"])
def test_a_folder_of_another_model_is_left_alone(tiny_run, tmp_path, config) -> None:
    """Models of other programs lie in files of the same names."""
    for name in UNPACKED:
        (tmp_path / name).write_text(config)
    assert main(["unpack", str(tiny_run.artifact), "--out", str(tmp_path)]) == 2
    assert all((tmp_path / name).read_text() == config for name in UNPACKED)
