"""The page as a file: what goes into it, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from bytefit.artifact.container import read_sections
from bytefit.artifact.load import load_artifact, parse_artifact
from bytefit.artifact.pack import PackConfig
from bytefit.cli import main
from bytefit.config import to_json
from bytefit.data.tokenizer import SentencePieceTokenizer
from bytefit.page import lacks
from bytefit.page.write import MODULES, browser_artifact, page_script, write_page
from bytefit.recipes import AS_SUBMITTED, SYSTEMS, find_recipe
from bytefit.score.adapt import DocumentLora
from bytefit.score.windows import Sliding
from tests.model.parts import BASE, CONFIGS, random_model
from tests.page.artifacts import QUANT, for_bytes, write_artifact
from tests.page.conftest import MODULES as FOLDER


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("write")
    notes = {"recipe": "<small>", "size": "lab"}
    return write_artifact(folder / "model.bytefit", random_model(for_bytes(CONFIGS["swiglu"])), notes=notes)


def test_modules_import_from_earlier_ones_alone() -> None:
    assert sorted(MODULES) == sorted(file.stem for file in FOLDER.iterdir())
    for i, name in enumerate(MODULES):
        source = (FOLDER / f"{name}.mjs").read_text()
        imports = re.findall(r"^import \{ [\w, ]+ \} from \"\./(\w+)\.mjs\";$", source, flags=re.MULTILINE)
        assert len(imports) == source.count("import "), name
        assert set(imports) <= set(MODULES[:i]), name
        assert len(source.splitlines()) <= 400


def test_the_script_is_one_module() -> None:
    script = page_script()
    assert not re.search(r"^(import|export) ", script, flags=re.MULTILINE)
    assert "</script" not in script
    names = re.findall(r"^(?:const|let|class|function\*?|async function) (\w+)", script, flags=re.MULTILINE)
    assert len(names) > 50
    assert len(names) == len(set(names))


def test_the_page_needs_nothing_else(path, tmp_path) -> None:
    page = write_page(path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert page.size == (tmp_path / "page.html").stat().st_size
    assert not any(mark in text for mark in ("http://", "https://", "<link", "url(", "src=", "@import"))
    assert "default-src 'none'" in text
    assert "<small>" not in text.split("<h1>")[0]
    assert "&lt;small&gt; lab" in text
    assert load_artifact(path).sha256 in text
    held = base64.b64decode(re.search(r'id="artifact">([^<]+)<', text)[1])
    assert held == browser_artifact(path.read_bytes())[0]


def test_the_page_says_what_a_token_sees(tmp_path) -> None:
    """The windows of the model's own protocol, and that the page does not learn where the protocol does."""
    learning = dataclasses.replace(find_recipe("pr1171", "tiny").score.adapt, window=32, stride=11)
    documents = DocumentLora(window=40, chunk_tokens=8)
    for protocol, window, learns in (
        (Sliding(window=30, stride=11), "20 to 30", False),
        (learning, "22 to 32", True),
        (documents, "33 to 40", True),
    ):
        path = write_artifact(tmp_path / "model.bytefit", random_model(for_bytes(BASE)), notes={"protocol": to_json(protocol)})
        write_page(path, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        assert f"the {window} tokens before it" in text
        assert ("to learn from the text while it reads" in text) == learns


@pytest.mark.parametrize("codec", ["context", "brotli", "lzma"])
def test_only_what_browsers_cannot_expand_is_recompressed(tmp_path, codec) -> None:
    config = PackConfig(budget_bytes=1 << 24, quant=QUANT, fit=False, codec=codec)
    path = write_artifact(tmp_path / "model.bytefit", random_model(for_bytes(CONFIGS["untied head"])), config=config)
    data = path.read_bytes()
    held, changed = browser_artifact(data)
    assert {"table", "attention", "mlp", "head"} <= set(changed) if codec != "context" else not {"table", "attention", "mlp"} & set(changed)
    for before, after in zip(read_sections(data), read_sections(held), strict=True):
        assert after.kind == before.kind
        assert after.codec.name in ("stored", "zlib")
        assert (after.payload == before.payload) == (after.kind not in changed)
        assert after.expand(1 << 24) == before.expand(1 << 24)
    weights = dict(parse_artifact(data).model.named_parameters())
    assert all(weights[name].equal(parameter) for name, parameter in parse_artifact(held).model.named_parameters())


def settings_of(value) -> dict[str, set[str]]:
    """By type of config what fields it has, anywhere in ``value``."""
    found: dict[str, set[str]] = {}
    parts = value if isinstance(value, list) else [value, *value.values()] if isinstance(value, dict) else []
    if isinstance(value, dict):
        found[value["type"]] = set(value) - {"type"}
    for part in parts:
        if part is not value:
            found |= settings_of(part)
    return found


def test_every_recipe_can_become_a_page() -> None:
    for name in ["pocket", *SYSTEMS, *(name + AS_SUBMITTED for name in SYSTEMS)]:
        assert lacks.lacking_parts(find_recipe(name, "lab").model) == []
    assert all(lacks.lacking_parts(config) == [] for config in CONFIGS.values())


def test_known_settings_are_those_that_exist() -> None:
    found: dict[str, set[str]] = {}
    for config in [*CONFIGS.values(), find_recipe("pr693", "lab").model]:
        found |= settings_of(to_json(config))
    assert found == {name: set(settings.split()) for name, settings in lacks.KNOWN_SETTINGS.items()}


@pytest.mark.parametrize(
    ("forgotten", "name", "message"),
    [
        (("ModelConfig", "smear"), "smear", "model.smear"),
        (("AttentionConfig", "exclusive"), "exclusive, all blocks", "model.attention.exclusive"),
        (("ModelConfig", "depth_scaled_norm"), "depth-scaled norm", "model.depth_scaled_norm"),
        (("SwigluConfig",), "swiglu", "model.mlp (SwigluConfig)"),
    ],
)
def test_a_part_that_the_page_lacks_is_named(monkeypatch, tmp_path, capsys, forgotten, name, message) -> None:
    """Forget that the page knows a part: models with it are refused, models without it are not."""
    kept = dict(lacks.KNOWN_SETTINGS)
    if len(forgotten) == 1:
        del kept[forgotten[0]]
    else:
        kept[forgotten[0]] = " ".join(word for word in kept[forgotten[0]].split() if word != forgotten[1])
    monkeypatch.setattr(lacks, "KNOWN_SETTINGS", kept)
    assert lacks.lacking_parts(BASE) == []
    path = write_artifact(tmp_path / "model.bytefit", random_model(for_bytes(CONFIGS[name])))
    assert main(["page", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bytefit: the page lacks a part of")
    assert error.count("\n") == 1
    assert f": {message};" in error
    assert not path.with_suffix(".html").exists()


def changed_tokenizer(tokenizer, change) -> SentencePieceTokenizer:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.to_bytes())
    change(model)
    return SentencePieceTokenizer(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.trainer_spec, "model_type", 1), "not BPE"),
        (lambda model: setattr(model.trainer_spec, "treat_whitespace_as_suffix", True), "space marks at the end"),
        (lambda model: setattr(model.pieces[300], "type", 4), "user-defined"),
        (lambda model: setattr(model.pieces[300], "type", 5), "unused"),
    ],
)
def test_a_tokenizer_that_the_page_lacks_is_named(dataset, change, message) -> None:
    assert lacks.lacking_tokenizer(dataset.tokenizer) == []
    (found,) = lacks.lacking_tokenizer(changed_tokenizer(dataset.tokenizer, change))
    assert message in found


def test_a_vocabulary_without_bytes_is_named(documents) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_writer=model, model_type="bpe", vocab_size=100, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        minloglevel=2,
    )  # fmt: skip
    assert lacks.lacking_tokenizer(SentencePieceTokenizer(model.getvalue())) == ["a vocabulary without byte pieces"]


def test_the_verb(path, tmp_path, capsys) -> None:
    assert main(["page", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["out"] == str(path.with_suffix(".html"))
    assert record["bytes"] == path.with_suffix(".html").stat().st_size
    assert record["artifact_bytes"] == path.stat().st_size
    assert record["recompressed"] == browser_artifact(path.read_bytes())[1]
    assert main(["page", str(path), "--out", str(tmp_path / "other.html")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'other.html'}: ")
    assert main(["page", str(tmp_path / "missing")]) == 2
    assert "cannot read" in capsys.readouterr().err
