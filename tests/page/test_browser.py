"""The page in a real browser, opened as a file: it decodes, agrees with PyTorch, writes fast enough, and shows what surprises it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sentencepiece import sentencepiece_model_pb2

from bytefit.artifact.load import load_artifact
from bytefit.config import to_json
from bytefit.data.tokenizer import BOS_ID, SentencePieceTokenizer
from bytefit.page.write import write_page
from bytefit.recipes import find_recipe
from bytefit.score.scorer import score
from bytefit.score.windows import Sliding
from tests.browser import CHROMIUM, Browser, open_browser
from tests.page.artifacts import write_artifact

TEXT = "The quiet river, 1984.\n\n" * 3 + "Naïve 🙂 bread!"
SLIDING = Sliding(window=32, stride=16)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; the page's own test needs a browser")


def padded(tokenizer: SentencePieceTokenizer, size: int) -> SentencePieceTokenizer:
    """The same tokenizer with pieces that no text here needs, for a vocabulary of this size."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.to_bytes())
    for i in range(len(model.pieces), size):
        model.pieces.add(piece=f"filler{i}", score=-float(i), type=1)
    return SentencePieceTokenizer(model.SerializeToString())


@pytest.fixture(scope="module")
def path(dataset, tmp_path_factory):
    """The pocket recipe's model, untrained but with weights that have opinions."""
    torch.manual_seed(0)
    model = find_recipe("pocket", "lab").model.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tokenizer = padded(dataset.tokenizer, model.config.vocab_size)
    folder = tmp_path_factory.mktemp("page")
    return write_artifact(folder / "model.bytefit", model, tokenizer=tokenizer, notes={"recipe": "pocket", "protocol": to_json(SLIDING)})


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def page(browser, path) -> Browser:
    out = path.with_suffix(".html")
    write_page(path, out)
    browser.open(out)
    return browser


def type_into(page: Browser, name: str, text: str) -> None:
    """As a keyboard would."""
    page.evaluate(f"document.getElementById({name!r}).focus(); document.getElementById({name!r}).select()")
    page.call("Input.insertText", text=text)


def text_of(page: Browser, name: str) -> str:
    return page.evaluate(f"document.getElementById({name!r}).textContent")


def test_it_opens_alone_and_asks_for_nothing(page, path) -> None:
    artifact = load_artifact(path)
    num_parameters = sum(parameter.numel() for parameter in artifact.model.parameters())
    assert num_parameters > 1_400_000
    assert f"{num_parameters:,} weights decoded in" in text_of(page, "status")
    assert page.complaints == []
    assert page.requests == []
    with pytest.raises(RuntimeError, match="TypeError"):  # nor could it: the page's own policy forbids every connection
        page.evaluate("fetch('data:text/plain,x')")
    page.complaints.clear()


def test_logits_equal_pytorchs(page, path) -> None:
    artifact = load_artifact(path)
    ids = [BOS_ID, *artifact.tokenizer.encode_exact(TEXT.encode())]
    read = f"(() => {{ const cache = bytefit.model.newCache(); return {ids}.map((id) => Array.from(bytefit.model.logits(cache, id))); }})()"
    with torch.no_grad():
        want = artifact.model.logits(torch.tensor([ids]))[0]
    assert want.std() > 0.1
    torch.testing.assert_close(torch.tensor(page.evaluate(read)), want, rtol=0, atol=1e-3)


def test_it_continues_what_is_typed_at_30_tokens_a_second(page) -> None:
    type_into(page, "prompt", "The window")
    page.wait_for("!document.body.dataset.continuing && document.getElementById('said').textContent !== ''")
    assert text_of(page, "asked") == "The window"
    said = text_of(page, "said")
    tokens, speed = re.fullmatch(r"(\d+) tokens, (\d+) tokens/s", text_of(page, "speed")).groups()
    assert int(tokens) >= 50
    assert len(said.encode()) >= int(tokens) / 2
    assert float(page.evaluate("document.getElementById('speed').dataset.tokensPerSecond")) == pytest.approx(int(speed), abs=0.51)
    assert int(speed) >= 30
    page.evaluate("document.getElementById('go').click()")  # the same seed says the same again
    page.wait_for("!document.body.dataset.continuing")
    assert text_of(page, "said") == said
    page.evaluate("document.getElementById('again').click()")
    page.wait_for("!document.body.dataset.continuing")
    assert text_of(page, "said") != said


def test_the_heat_map_shows_what_python_counts(page, path) -> None:
    type_into(page, "own", TEXT)
    page.wait_for("!document.body.dataset.reading")
    artifact = load_artifact(path)
    ids = np.array([BOS_ID, *artifact.tokenizer.encode_exact(TEXT.encode())])
    want = score(artifact.model, ids, artifact.byte_table, SLIDING, torch.float32)
    assert text_of(page, "num_bytes") == str(len(TEXT.encode())) == str(want.bytes)
    assert page.evaluate("Number(document.getElementById('bits_per_byte').dataset.value)") == pytest.approx(want.bits_per_byte, abs=1e-4)
    spans = page.evaluate("[...document.querySelectorAll('#map .token')].map((s) => [s.textContent, s.style.getPropertyValue('--heat')])")
    assert "".join(text for text, _ in spans).replace("↵", "") == TEXT
    assert any(text.strip() == "🙂" for text, _ in spans)  # four byte tokens, one character
    heats = {heat for _, heat in spans}
    assert len(heats) > 5
    assert all(0 < float(heat) <= 1 for heat in heats)
    colours = page.evaluate("[...document.querySelectorAll('#map .token')].map((s) => getComputedStyle(s).backgroundColor)")
    assert len(set(colours)) > 5

    page.evaluate("document.querySelectorAll('#map .token')[5].click()")
    with torch.no_grad():
        logits_V = artifact.model.logits(torch.from_numpy(ids[:6])[None])[0, -1].double()
    bits_V = torch.log_softmax(logits_V, -1) / -np.log(2)
    assert f"{float(bits_V[ids[6]]):.2f} bits" in text_of(page, "detail")
    top = int(logits_V.argmax())
    label = "end of text" if top == BOS_ID else artifact.tokenizer.token_bytes[top].decode().replace(" ", "␣")
    assert page.evaluate("document.querySelector('#detail .bars code').textContent") == label


def test_a_damaged_page_says_so(browser, path, tmp_path) -> None:
    page = tmp_path / "damaged.html"
    write_page(path, page)
    text = page.read_text()
    middle = text.index('id="artifact">') + 500_000
    page.write_text(text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :])
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait_for("document.getElementById('status')?.textContent.includes('section is damaged')")
    assert any("section is damaged" in complaint for complaint in browser.complaints)
    browser.complaints.clear()
