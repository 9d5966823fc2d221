"""What a text costs on the page is what Python's scorer says, and what follows a prompt is what Python generates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bytefit.artifact.load import load_artifact
from bytefit.config import to_json
from bytefit.data.tokenizer import BOS_ID
from bytefit.score.adapt import DocumentLora
from bytefit.score.compressed import default_protocol
from bytefit.score.generate import generate
from bytefit.score.scorer import score
from bytefit.score.windows import Sliding
from tests.model.parts import CONFIGS, CONTEXT, random_model
from tests.page.artifacts import for_bytes, in_browser_codecs, write_artifact

LONG = "Far longer than a window of this model: café, 1984 and 🙂.\n" * 3


PROTOCOLS = {
    "sliding": Sliding(window=30, stride=11),
    "documents, nothing learned": DocumentLora(window=30, chunk_tokens=11, lr=0.0),
    "none": None,
}


@pytest.fixture(scope="module", params=PROTOCOLS)
def path(request, tmp_path_factory):
    """Models with a protocol whose windows are shorter than their context, and one without a protocol."""
    protocol = PROTOCOLS[request.param]
    model = random_model(for_bytes(CONFIGS["all together" if protocol else "all together, other forms"]))
    notes = {"protocol": to_json(protocol)} if protocol else {}
    return write_artifact(tmp_path_factory.mktemp("reader") / "model.bytefit", model, notes=notes)


def python_bits_per_byte(path, text: str) -> float:
    artifact = load_artifact(path)
    ids = np.array([BOS_ID, *artifact.tokenizer.encode_exact(text.encode())])
    found = score(artifact.model, ids, artifact.byte_table, default_protocol(artifact), torch.float32)
    assert found.bytes == len(text.encode())
    return found.bits_per_byte


def test_bits_per_byte_equal_pythons_while_a_text_is_edited(node, path) -> None:
    """The same box reads all of them in turn, and reads again only what has changed."""
    texts = [LONG, LONG + "cat", LONG + "cow", LONG[:100], LONG[:100] + " and on" * 20, "Now " + LONG, "N", LONG[:40] + "?" + LONG[41:]]
    texts += ["The end.", "The ant."]
    answers = node("read", {"path": in_browser_codecs(path), "texts": texts})
    for text, costs in zip(texts, answers, strict=True):
        bits_per_byte = sum(cost["bits"] for cost in costs) / len(text.encode())
        assert bits_per_byte == pytest.approx(python_bits_per_byte(path, text), abs=1e-4)
        assert bits_per_byte > 1


def test_the_likeliest_are_pytorchs(node, path) -> None:
    text = LONG[:20]  # within the first window of every protocol
    artifact = load_artifact(path)
    ids = [BOS_ID, *artifact.tokenizer.encode_exact(text.encode())]
    with torch.no_grad():
        bits_TV = torch.log_softmax(artifact.model.logits(torch.tensor([ids]))[0].double(), -1) / -math.log(2)
    (costs,) = node("read", {"path": in_browser_codecs(path), "texts": [text]})
    for t, cost in enumerate(costs):
        assert cost["id"] == ids[t + 1]
        assert cost["bits"] == pytest.approx(float(bits_TV[t, cost["id"]]), abs=1e-3)
        want, order = bits_TV[t].sort()
        assert [other["id"] for other in cost["likeliest"]] == order[:5].tolist()
        assert [other["bits"] for other in cost["likeliest"]] == pytest.approx(want[:5].tolist(), abs=1e-3)


def test_the_likeliest_continuation_is_pythons(node, path) -> None:
    """Beyond the context too, where both forget the older half; and where the model ends the text."""
    count = 2 * CONTEXT
    artifact = load_artifact(path)
    prompts = ["It was", "", "9", LONG, "Hello"]  # the other forms end all but the last early
    wants = [b"".join(generate(artifact, prompt.encode(), num_tokens=count, temperature=0)) for prompt in prompts]
    assert max(map(len, wants)) == count
    options = {"numTokens": count, "temperature": 0, "topP": 1, "seed": 0}
    got = node("generate", {"path": in_browser_codecs(path), "prompts": prompts, "options": options})
    assert [artifact.tokenizer.decode(ids) for ids in got] == wants


def test_sampling_follows_the_probabilities(node, path) -> None:
    """Of the first token, over seeds: temperature 1 gives the model's distribution; top-p leaves the likeliest that hold p together."""
    artifact = load_artifact(path)
    with torch.no_grad():
        logits_V = artifact.model.logits(torch.tensor([[BOS_ID]]))[0, 0]
    logits_V[[0, 2, 3]] = -torch.inf
    probabilities = torch.softmax(logits_V.double(), -1)
    token = int(probabilities.argmax())
    task = {"path": in_browser_codecs(path), "prompt": "", "options": {"numTokens": 1, "temperature": 1, "topP": 1, "seeds": 600}}
    drawn = node("first_tokens", task)
    share, expected = drawn.count(token) / 600, float(probabilities[token])
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 600)
    assert len(set(drawn)) > 5
    assert set(node("first_tokens", task | {"options": task["options"] | {"topP": 0.01}})) == {token}
    mass, order = probabilities.sort(descending=True)
    half = order[mass.cumsum(0) - mass < 0.5].tolist()
    assert 1 < len(half) < len(set(drawn))
    assert set(node("first_tokens", task | {"options": task["options"] | {"topP": 0.5}})) == set(half)
