"""Protocols that learn from what they have scored: formulas, order, selection, activity."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from bytefit.data.tokenizer import BOS_ID
from bytefit.model.head import HeadConfig
from bytefit.ranks import Ranks
from bytefit.recipes import find_recipe
from bytefit.score import learner as learner_file
from bytefit.score.adapt import AdamW, Adapt, DepthDecay, DocumentLora, Selection, Sgd, SignalToNoise
from bytefit.score.document_lora import document_bounds
from bytefit.score.learner import Learner
from bytefit.score.scorer import score_tapes, target_nats
from bytefit.score.tape import CodedTape, OrderError, Tape
from bytefit.score.temperature import tempered
from bytefit.score.windows import Sliding, Window
from tests.score import reference
from tests.score.conftest import CONFIG, make_model

BASE = Adapt(window=8, stride=3, chunk_tokens=20, optimizer=Sgd(lr=0.05), epochs=2, batch_sequences=2)
ONE_RANK = Ranks(0, 1, "cpu")
FORMS = {
    "sgd": {},
    "adamw": {"optimizer": AdamW(lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)},
    "average": {"ema_decay": 0.5},
    "first chunks only": {"train_chunks": 2},
    "first chunks, averaged": {"train_chunks": 2, "ema_decay": 0.7},
    "constant rate": {"schedule": "constant"},
    "cosine within": {"within_chunk": "cosine", "epochs": 3},
    "no clipping": {"clip_norm": None, "optimizer": Sgd(lr=0.01)},
    "sharpness": {"sam_radius": 0.05},
    "temperature": {"temperature": 0.9},
    "last block and gains": {"trains": Selection(last_blocks=1, roles=("attention", "attention_out", "mlp"), everywhere=("gain",))},
    "frozen blocks and tables": {"trains": Selection(first_blocks_frozen=2, roles=("attention", "attention_out", "mlp", "gain"))},
    "chunks shorter than the stride": {"chunk_tokens": 2, "stride": 5, "epochs": 1},
    "chunks no multiple of anything": {"chunk_tokens": 17},
    "a step of unequal sequences": {"chunk_tokens": 17, "batch_sequences": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_against_one_token_at_a_time(tiny_model, tokens, form, monkeypatch) -> None:
    """In float64, by hand, to 1e-6 for every target; and in fp32 as near as fp32 gets."""
    protocol = dataclasses.replace(BASE, **FORMS[form])
    names = [info.name for info in protocol.trains.of(tiny_model)]
    nats = target_nats(tiny_model, tokens, protocol, torch.float32)
    slow = reference.double(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(learner_file, "resolve_dtype", lambda name, device: torch.float64)
        exact = target_nats(slow, tokens, protocol, torch.float64)
    parameters = dict(slow.named_parameters())
    want = np.array(reference.adapt(slow, tokens.tolist(), protocol, [parameters[name] for name in names]))
    assert np.abs(exact - want).max() < 1e-6
    assert np.abs(nats - want).max() < 5e-4
    assert abs(nats.mean() - want.mean()) < 1e-5
    plain = target_nats(tiny_model, tokens, Sliding(window=8, stride=protocol.stride), torch.float32)
    assert np.abs(nats - plain).max() > 1e-3  # it is active
    if form != "temperature":
        assert np.array_equal(nats[:8], plain[:8])  # nothing is learned before the first score


def test_every_form_differs_from_the_plain_one(tiny_model, tokens) -> None:
    plain = target_nats(tiny_model, tokens, BASE, torch.float32)
    for form, changes in FORMS.items():
        if changes:
            assert np.abs(target_nats(tiny_model, tokens, dataclasses.replace(BASE, **changes), torch.float32) - plain).max() > 1e-4, form


@pytest.mark.parametrize("rates", [SignalToNoise(), DepthDecay(factor=0.5)])
def test_rates_differ_from_layer_to_layer(tiny_model, tokens, rates) -> None:
    """One step on one chunk: every matrix moves by its own factor of the plain step."""
    one = dataclasses.replace(BASE, optimizer=Sgd(lr=100.0), epochs=1, batch_sequences=99, clip_norm=None, train_chunks=1)

    def moves(protocol) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(tiny_model)
        for p, source in zip(model.parameters(), tiny_model.parameters(), strict=True):
            p.role = source.role
        tape = Tape(tokens[:21])
        tape.book(Window(0, 1, 20), np.zeros(20))
        learner = Learner(model, protocol, 5, ONE_RANK)
        with learner:
            before = {info.name: info.parameter.detach().clone() for info in learner.infos}
            learner.learn([tape.scored(1, 20)], 0)
            return {info.name: info.parameter.detach() - before[info.name] for info in learner.infos}

    plain, scaled = moves(one), moves(dataclasses.replace(one, layer_rates=rates))
    for info in tiny_model.parameter_infos():
        if info.name not in plain or not plain[info.name].abs().max() > 1e-9:
            continue
        gradient = plain[info.name]
        if isinstance(rates, DepthDecay):
            factor = 0.5 ** (2 - info.block) if info.block is not None else 1.0
        else:
            factor = float((gradient.abs().mean() / gradient.std()).clamp(0.3, 3.0)) if gradient.numel() > 1 else 1.0
        assert torch.allclose(scaled[info.name], factor * gradient, rtol=2e-3, atol=1e-5), info.name


def test_the_model_is_given_back_as_it_was(tiny_model, tokens) -> None:
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    flags = [p.requires_grad for p in tiny_model.parameters()]
    for protocol in (BASE, dataclasses.replace(BASE, ema_decay=0.9), DocumentLora(window=8, chunk_tokens=4, lr=0.01)):
        target_nats(tiny_model, tokens, protocol, torch.float32)
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in tiny_model.named_parameters())
        assert [p.requires_grad for p in tiny_model.parameters()] == flags
    assert all(module.adapter is None for module in tiny_model.modules() if hasattr(module, "adapter"))


def test_learning_pays_on_a_text_that_repeats_itself(tiny_model, tokens) -> None:
    text = np.tile(tokens[:30], 12)
    for protocol in (dataclasses.replace(BASE, optimizer=Sgd(lr=0.1)), dataclasses.replace(BASE, optimizer=AdamW(lr=0.01))):
        assert (
            target_nats(tiny_model, text, protocol, torch.float32).mean()
            < 0.9 * target_nats(tiny_model, text, Sliding(window=8, stride=3), torch.float32).mean()
        )


# Order


def test_a_tape_gives_nothing_to_learn_before_it_is_scored(tokens) -> None:
    tape = Tape(tokens)
    with pytest.raises(OrderError, match="not all scored"):
        tape.scored(1, 5)
    tape.book(Window(0, 1, 4), np.zeros(4))
    with pytest.raises(OrderError, match="not all scored"):
        tape.scored(1, 5)
    assert tape.scored(1, 4).tokens.tolist() == tokens[:5].tolist()
    with pytest.raises(OrderError, match="scored twice"):
        tape.book(Window(2, 4, 6), np.zeros(3))
    tape.book(Window(2, 6, 8), np.zeros(3))
    with pytest.raises(OrderError, match="not all scored"):
        tape.scored(5, 8)  # all but the first
    coded = CodedTape(1)
    coded.append(7)
    assert coded.scored(1, 1).tokens.tolist() == [1, 7]
    with pytest.raises(OrderError, match="not all coded"):
        coded.scored(1, 2)


def test_an_input_never_holds_the_last_target(tokens) -> None:
    tape = Tape(tokens)
    for protocol in (Sliding(window=8, stride=3), BASE):
        for window in protocol.windows(len(tokens)):
            assert len(tape.inputs(window)) == window.end - window.start
            assert tape.targets(window).tolist() == tokens[window.first : window.end + 1].tolist()


def test_what_is_learned_from_was_scored_with_the_weights_before(tiny_model, tokens, monkeypatch) -> None:
    """Each chunk of the learner is the chunk that was booked last, in order; the last one never comes."""
    seen = []
    real = Learner.learn

    def watched(self, pieces, chunk):
        seen.append((chunk, pieces[0].tokens.tolist()))
        real(self, pieces, chunk)
        assert self.steps <= 2 * 2 * (chunk + 1)

    monkeypatch.setattr(Learner, "learn", watched)
    tape = Tape(tokens)
    steps = score_tapes(tiny_model, [tape], BASE, torch.float32)
    chunks = math.ceil((len(tokens) - 1) / 20)
    assert [chunk for chunk, _ in seen] == list(range(chunks))
    for chunk, piece in seen:
        assert piece == tokens[20 * chunk : 20 * chunk + 21].tolist()
    assert steps == 2 * 2 * (chunks - 1)  # two epochs, two batches of two sequences; nothing after the last chunk
    assert (tape.times == 1).all()


def test_a_text_of_one_chunk_is_never_learned_from(tiny_model, tokens) -> None:
    whole = dataclasses.replace(BASE, chunk_tokens=10_000)
    tape = Tape(tokens)
    assert score_tapes(tiny_model, [tape], whole, torch.float32) == 0
    assert np.array_equal(tape.nats, target_nats(tiny_model, tokens, Sliding(window=8, stride=3), torch.float32))


# Selection


def test_selection_by_role_and_block() -> None:
    model = make_model(dataclasses.replace(CONFIG, head=HeadConfig(tied=True, softcap=8.0)))

    def chosen(**selection) -> set[str]:
        return {info.name for info in Selection(**selection).of(model)}

    everything = {info.name for info in model.parameter_infos() if info.parameter.numel()}
    assert chosen() == everything
    assert chosen(roles=()) == set()
    up_down = [[f"blocks.{block}.mlp.{side}.weight" for side in ("up", "down")] for block in range(3)]
    assert chosen(roles=("mlp",), last_blocks=1) == {*up_down[2]}
    assert chosen(roles=("mlp",), first_blocks_frozen=1) == {*up_down[1], *up_down[2]}
    gains = {info.name for info in model.parameter_infos() if info.role.value == "gain" and info.parameter.numel()}
    assert chosen(roles=("mlp",), last_blocks=0, everywhere=("gain",)) == gains
    assert chosen(roles=(), everywhere=("head",)) == {"embedding.weight"}  # a tied table is the head
    untied = make_model(dataclasses.replace(CONFIG, head=HeadConfig(tied=False, softcap=8.0)))
    assert {info.name for info in Selection(roles=(), everywhere=("head",)).of(untied)} == {"head.matrix.weight"}


def test_the_contest_systems_train_what_their_pages_say() -> None:
    """PR #1171 logged 5,780,500 parameters that adapt; ours adapt every gain besides, of which it left out some."""
    recipe = find_recipe("pr1171_as_submitted", "full")
    model = recipe.model.build(orthogonalise=False)
    infos = recipe.score.adapt.trains.of(model)
    matrices = sum(info.parameter.numel() for info in infos if info.role.value != "gain")
    assert matrices == 2 * (4 * 512 * 512 + 2 * 512 * 1792)
    assert {info.block for info in infos if info.role.value != "gain"} == {9, 10}
    assert 0 < 5_780_500 - matrices < sum(info.parameter.numel() for info in model.parameter_infos() if info.role.value == "gain")
    repaired = find_recipe("pr1171", "full").score.adapt.trains.of(model)
    assert {info.name for info in repaired} - {info.name for info in infos} == {"embedding.weight"}
    frozen = find_recipe("pr578", "full")
    model = frozen.model.build(orthogonalise=False)
    infos = frozen.score.adapt.trains.of(model)
    assert {info.block for info in infos if info.block is not None} == set(range(2, 11))
    assert not any(info.role.value in ("table", "projection") for info in infos)


# Temperature


def test_temperature_is_a_distribution_and_cools_what_is_certain() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    assert torch.equal(tempered(logits, 1.0), logits)
    cooled = tempered(logits, 0.95)
    assert torch.softmax(cooled, -1).sum(-1).numpy() == pytest.approx([1, 1])
    assert torch.allclose(cooled[0], logits[0])  # nothing is known: T = 1
    assert 9.0 / 0.95 - 0.1 < float(cooled[1, 0]) < 9.0 / 0.95
    assert float(tempered(logits, 0.5)[1, 0]) == pytest.approx(9.0 / 0.9)  # clamped
    assert float(tempered(logits, 1.5)[1, 0]) == pytest.approx(9.0 / 1.05)


def test_a_chunk_ends_with_its_last_target() -> None:
    """Target t is the token at t: the first chunk of 20 has the targets 1 to 20."""
    assert [BASE.chunk_of(target) for target in (1, 20, 21, 40, 41)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("protocol", [BASE, DocumentLora(window=8, chunk_tokens=4, lr=0.02)], ids=["adapt", "documents"])
def test_weight_decay_reaches_what_learns(tiny_model, tokens, protocol) -> None:
    decayed = {
        "adapt": lambda: dataclasses.replace(protocol, optimizer=Sgd(lr=0.05, weight_decay=1.0)),
        "documents": lambda: dataclasses.replace(protocol, weight_decay=20.0),
    }["documents" if isinstance(protocol, DocumentLora) else "adapt"]()
    plain, other = (target_nats(tiny_model, tokens, p, torch.float32) for p in (protocol, decayed))
    assert np.abs(plain - other).max() > 1e-3


def test_documents_are_scored_at_their_temperature(tiny_model, tokens) -> None:
    """Before anything is learned a target costs what it costs without learning, at the same temperature."""
    config = DocumentLora(window=8, chunk_tokens=4, lr=0.02, temperature=0.9)
    warm = target_nats(tiny_model, tokens, dataclasses.replace(config, temperature=1.0), torch.float32)
    nats = target_nats(tiny_model, tokens, config, torch.float32)
    still = target_nats(tiny_model, tokens, dataclasses.replace(BASE, temperature=0.9, optimizer=Sgd(lr=0.0)), torch.float32)
    assert np.abs(nats[:4] - still[:4]).max() < 1e-5
    assert np.abs(nats[:4] - warm[:4]).max() > 1e-3


# Documents


def lora_reference(model, documents: list[list[int]], config: DocumentLora) -> list[float]:
    """Each document alone, one target at a time, its adapters merged into copies of the matrices (float64)."""
    maps = {name: p for name, p in model.named_parameters() if p.role.value in config.roles}
    if "head" in config.roles:
        maps["embedding.weight"] = model.embedding.weight
    nats: list[float] = []
    for document in documents:
        generator = torch.Generator().manual_seed(config.seed)
        down, up = {}, {}
        # The package draws in the order of modules, the tied head last.
        for name in [name for name in maps if name != "embedding.weight"] + [name for name in maps if name == "embedding.weight"]:
            outputs, inputs = maps[name].shape
            down[name] = (torch.randn(config.rank, inputs, generator=generator) * inputs**-0.5).double().requires_grad_()
            up[name] = torch.zeros(outputs, config.rank, dtype=torch.float64, requires_grad=True)
        leaves = [*down.values(), *up.values()]
        first_moments, second_moments = ([torch.zeros_like(p) for p in leaves] for _ in range(2))

        def cost(target, document=document, down=down, up=up):
            nominal = ((target - 1) // config.chunk_tokens + 1) * config.chunk_tokens
            ids = torch.tensor([document[max(0, nominal - config.window) : target]])
            merged = {name: maps[name] + config.alpha / config.rank * up[name] @ down[name] for name in maps if name != "embedding.weight"}
            x = torch.func.functional_call(model, merged, (ids,), {}, tie_weights=False)
            table = maps["embedding.weight"] if "head" in config.roles else model.embedding.weight
            head = (
                table + config.alpha / config.rank * up["embedding.weight"] @ down["embedding.weight"] if "head" in config.roles else table
            )
            cap = model.config.head.softcap
            return -torch.log_softmax(cap * torch.tanh(x[0, -1] @ head.T / cap), -1)[document[target]]

        for steps, first in enumerate(range(1, len(document), config.chunk_tokens), start=1):
            costs = [cost(target) for target in range(first, min(first + config.chunk_tokens, len(document)))]
            nats += [float(c.detach()) for c in costs]
            if first + config.chunk_tokens >= len(document):
                break
            grads = torch.autograd.grad(sum(costs) / len(costs), leaves, allow_unused=True)
            with torch.no_grad():
                for p, g, m, v in zip(leaves, grads, first_moments, second_moments, strict=True):
                    g = torch.zeros_like(p) if g is None else g
                    m.mul_(config.betas[0]).add_(g, alpha=1 - config.betas[0])
                    v.mul_(config.betas[1]).add_(g * g, alpha=1 - config.betas[1])
                    p -= config.lr * (m / (1 - config.betas[0] ** steps)) / ((v / (1 - config.betas[1] ** steps)).sqrt() + 1e-8)
    return nats


class HiddenOnly(torch.nn.Module):
    """``functional_call`` calls ``forward``; this one stops before the head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model.hidden(ids, torch.float64)


@pytest.mark.parametrize("roles", [("attention", "mlp", "head"), ("attention_out",)])
@pytest.mark.parametrize("batch_documents", [1, 3])
def test_documents_against_one_at_a_time(tiny_model, tokens, roles, batch_documents, monkeypatch) -> None:
    config = DocumentLora(window=8, chunk_tokens=4, rank=2, alpha=4.0, lr=0.02, roles=roles, batch_documents=batch_documents)
    nats = target_nats(tiny_model, tokens, config, torch.float32)
    slow = reference.double(tiny_model)
    monkeypatch.setattr(type(slow), "forward", lambda self, ids: self.hidden(ids, torch.float64))
    documents = [tokens[start:end].tolist() for start, end in document_bounds(tokens)]
    want = np.array(lora_reference(slow, documents, config))
    assert len(want) == len(nats) == len(tokens) - 1
    assert np.abs(nats - want).max() < 2e-4
    assert abs(nats.mean() - want.mean()) < 2e-6
    still = target_nats(tiny_model, tokens, dataclasses.replace(config, lr=0.0), torch.float32)
    assert np.abs(nats - still).max() > 1e-2


def test_documents_do_not_see_each_other(tiny_model, tokens) -> None:
    """Each document scored alone costs what it costs among the others, whatever they are and however they are batched."""
    config = DocumentLora(window=8, chunk_tokens=4, lr=0.02)
    whole = target_nats(tiny_model, tokens, config, torch.float32)
    for start, end in document_bounds(tokens):
        alone = target_nats(tiny_model, tokens[start:end], config, torch.float32)
        assert np.abs(alone - whole[start : end - 1]).max() < 1e-5
    for size in (1, 2, 64):
        again = target_nats(tiny_model, tokens, dataclasses.replace(config, batch_documents=size), torch.float32)
        assert np.abs(again - whole).max() < 1e-5


@pytest.mark.parametrize("piece_tokens", [None, 1, 2, 3])
def test_document_bounds_hold_every_target_once(piece_tokens) -> None:
    for text in ([1, 5, 6, 1, 1, 7], [5, 6, 7], [5, 1, 6], [1, 1], [1], [1, 5, 6, 7, 8, 9, 1, 5]):
        bounds = document_bounds(np.array(text), piece_tokens)
        assert [t for start, end in bounds for t in range(start + 1, end)] == list(range(1, len(text)))
        assert all(end - start - 1 <= (piece_tokens or len(text)) for start, end in bounds)


def test_pieces_of_a_document_are_documents(tiny_model, tokens) -> None:
    """A piece costs what a document of the same tokens costs: it starts from BOS, and learns from itself alone."""
    config = DocumentLora(window=8, chunk_tokens=4, lr=0.02, piece_tokens=10)
    nats = target_nats(tiny_model, tokens, config, torch.float32)
    bounds = document_bounds(tokens, 10)
    assert len(bounds) > len(document_bounds(tokens))
    for start, end in bounds:
        piece = np.concatenate([[BOS_ID], tokens[start + 1 : end]])
        alone = target_nats(tiny_model, piece, dataclasses.replace(config, piece_tokens=None), torch.float32)
        assert np.abs(alone[: end - start - 1] - nats[start : end - 1]).max() < 1e-5
    whole = target_nats(tiny_model, tokens, dataclasses.replace(config, piece_tokens=None), torch.float32)
    assert np.abs(whole - nats).max() > 1e-2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Adapt(window=8, stride=9, chunk_tokens=4),
        lambda: Adapt(window=8, stride=2, chunk_tokens=0),
        lambda: Adapt(window=8, stride=2, chunk_tokens=4, ema_decay=1.0),
        lambda: Adapt(window=8, stride=2, chunk_tokens=4, sam_radius=0.0),
        lambda: Adapt(window=8, stride=2, chunk_tokens=4, temperature=3.0),
        lambda: Selection(last_blocks=-1),
        lambda: Sgd(momentum=1.0),
        lambda: AdamW(lr=-1.0),
        lambda: DepthDecay(factor=0.0),
        lambda: DocumentLora(window=8, chunk_tokens=9),
        lambda: DocumentLora(window=8, rank=0, chunk_tokens=4),
        lambda: DocumentLora(window=8, chunk_tokens=4, roles=("table",)),
    ],
)
def test_bad_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="must"):
        wrong()
