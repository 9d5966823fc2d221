from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bytefit.errors import UserError
from bytefit.model.language_model import LanguageModel
from bytefit.quant.calibrate import (
    collect,
    load_statistics,
    nothing_known,
    recollect,
    save_statistics,
)
from bytefit.recipes import find_recipe
from tests.quant.tools import VOCAB, tiny_model


def batches(*, count: int = 2, rows: int = 3, length: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, VOCAB, (rows, length), generator=generator) for _ in range(count)]


class Recorder:
    """Everything that ``F.linear`` and ``F.embedding`` are given, by the weight's memory, with what they return."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.linears: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.lookups: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        linear, embedding = F.linear, F.embedding

        def watched_linear(x, weight, bias=None):
            y = linear(x, weight, bias)
            if y.requires_grad:
                y.retain_grad()
            self.linears.append((x.detach().clone(), weight.detach().clone(), y))
            return y

        def watched_embedding(ids, weight, *arguments, **options):
            y = embedding(ids, weight, *arguments, **options)
            if y.requires_grad:
                y.retain_grad()
            self.lookups.append((ids.clone(), weight.detach().clone(), y))
            return y

        monkeypatch.setattr(F, "linear", watched_linear)
        monkeypatch.setattr(F, "embedding", watched_embedding)

    def through(self, weight: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(inputs (tokens, cols), gradients of the outputs (tokens, rows)) of every use of a matrix, alone or among others."""
        found = []
        for x, used, y in self.linears:
            if used.shape[1] != weight.shape[1]:
                continue
            for start in range(used.shape[0] - weight.shape[0] + 1):
                if torch.equal(used[start : start + len(weight)], weight):
                    gradient = None if y.grad is None else y.grad[..., start : start + len(weight)].flatten(0, -2).double().numpy()
                    found.append((x.flatten(0, -2).double().numpy(), gradient))
                    break
        return found


def slow_second_moment(vectors: np.ndarray) -> np.ndarray:
    """E[v vᵀ], a token at a time."""
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    for v in vectors:
        total += np.outer(v, v)
    return total / len(vectors)


@pytest.mark.parametrize("recipe", ["pocket", "pr1171"])
def test_inputs_of_every_map_against_a_loop_over_tokens(recipe, monkeypatch) -> None:
    model = tiny_model(recipe)
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        statistics = collect(model, batches(), gradients=False)
    checked = 0
    for info in model.parameter_infos():
        if info.parameter.ndim == 2 and not info.name.startswith("embedding") and info.name in statistics:
            uses = recorder.through(info.parameter.detach())
            if not uses:  # a table that is only looked up
                continue
            want = slow_second_moment(np.concatenate([inputs for inputs, _ in uses]))
            got = statistics[info.name]
            assert got.columns.numpy() == pytest.approx(want, rel=1e-4, abs=1e-5 * want.max()), info.name
            assert (got.rows == 1).all()
            checked += 1
    assert checked >= 12
    assert not model.embedding.observer
    assert all(getattr(module, "observer", None) is None for module in model.modules())


def test_every_matrix_is_measured() -> None:
    for recipe in ("pocket", "pr693"):
        model = tiny_model(recipe)
        statistics = collect(model, batches(count=1, rows=1), gradients=False)
        matrices = {info.name: info.parameter.shape for info in model.parameter_infos() if info.role.value != "gain"}
        assert set(statistics) == set(matrices)
        for name, (rows, columns) in matrices.items():
            assert statistics[name].columns.shape == (columns, columns)
            assert statistics[name].rows.shape == (rows,)


def test_only_some() -> None:
    model = tiny_model()
    only = {"blocks.1.mlp.up.weight", "blocks.0.attention.key.weight"}
    some, everything = collect(model, batches(), gradients=False, only=only), collect(model, batches(), gradients=False)
    assert set(some) == only
    assert all(torch.equal(some[name].columns, everything[name].columns) for name in only)


def gradients_by_hand(model: LanguageModel, seed: int, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Backward passes of the summed loss of drawn labels, with autograd's own gradients of every output."""
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        generator = torch.Generator().manual_seed(seed)
        for ids in batches():
            logits = model.logits(ids).flatten(0, 1)
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(-1)
            sum(-logits[t].log_softmax(-1)[labels[t]] for t in range(len(labels))).backward()
        model.zero_grad()
    return recorder


def test_gradients_are_the_mean_squares_of_every_token(monkeypatch) -> None:
    model = tiny_model(spread=0.1)
    statistics = collect(model, batches(), gradients=True, seed=7)
    recorder = gradients_by_hand(model, 7, monkeypatch)
    for info in model.parameter_infos():
        if info.parameter.ndim == 2 and info.name.startswith("blocks"):
            inputs, gradients = (np.concatenate(parts) for parts in zip(*recorder.through(info.parameter.detach()), strict=True))
            assert statistics[info.name].columns.numpy() == pytest.approx(slow_second_moment(inputs), rel=1e-3, abs=1e-5), info.name
            want = np.zeros(len(info.parameter))
            for g in gradients:
                want += g**2 / len(gradients)
            assert statistics[info.name].rows.numpy() == pytest.approx(want, rel=1e-3, abs=1e-6 * want.max()), info.name
            assert want.max() > 1.5 * want.min()
    assert all(p.grad is None for p in model.parameters())


def test_other_labels_are_drawn_with_another_seed() -> None:
    model = tiny_model()
    name = "blocks.0.mlp.up.weight"
    first, again, other = (collect(model, batches(), gradients=True, seed=seed)[name] for seed in (1, 1, 2))
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    assert torch.equal(first.columns, other.columns)


def test_a_sure_model_has_no_gradients() -> None:
    """Labels come from the model's own predictions: where it is certain, nothing is left to learn from them (true Fisher information)."""
    model = tiny_model(head=dataclasses.replace(find_recipe("pocket", "tiny").model.head, softcap=None))
    unsure = collect(model, batches(), gradients=True)["blocks.0.mlp.up.weight"].rows
    with torch.no_grad():
        model.embedding.weight.mul_(1000)  # the logits' scale; the embedding itself is normed
    sure = collect(model, batches(), gradients=True)["blocks.0.mlp.up.weight"].rows
    assert float(sure.max()) < 1e-3 * float(unsure.max())


def table_by_hand(recorder: Recorder, rows: int, weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How often each row was looked up, a token, and E[g gᵀ] over lookups."""
    counts, gradients, tokens = np.zeros(rows), [], 0
    for ids, used, y in recorder.lookups:
        if used.shape == weight.shape and torch.equal(used, weight):
            for row in ids.flatten().tolist():
                counts[row] += 1
                tokens += 1
            gradients.append(y.grad.flatten(0, -2).double().numpy())
    return counts / tokens, slow_second_moment(np.concatenate(gradients))


@pytest.mark.parametrize("table", ["bigram.table.weight", "value_embedding.table.weight"])
def test_a_table_counts_its_rows(table, monkeypatch) -> None:
    model = tiny_model("pr1171")
    weight = dict(model.named_parameters())[table].detach()
    statistics = collect(model, batches(), gradients=True, seed=3)
    counts, channels = table_by_hand(gradients_by_hand(model, 3, monkeypatch), len(weight), weight)
    # What a change of one row costs: how often it is met, times what the gradients say about its direction.
    got = statistics[table]
    for row in (0, int(counts.argmax()), len(weight) - 1):
        assert (got.rows[row] * got.columns).numpy() == pytest.approx(counts[row] * channels, rel=1e-3, abs=1e-5 * np.abs(channels).max())
    without = collect(model, batches(), gradients=False)[table]
    assert (without.rows[:, None, None] * without.columns).numpy() == pytest.approx(
        counts[:, None, None] * np.eye(weight.shape[1]), abs=1e-6
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_table_is_a_table_and_a_head(tied, monkeypatch) -> None:
    """Its cost is a sum of two products; it is replaced by the product with that sum's traces and its mean over the rows."""
    model = tiny_model(head=dataclasses.replace(find_recipe("pocket", "tiny").model.head, tied=tied))
    weight = model.embedding.weight.detach()
    got = collect(model, batches(), gradients=True, seed=5)
    recorder = gradients_by_hand(model, 5, monkeypatch)
    counts, channels = table_by_hand(recorder, VOCAB, weight)
    costs = counts[:, None, None] * channels  # (rows, cols, cols): what an error in each row costs
    matrix = weight if tied else model.head.matrix.weight.detach()
    inputs, gradients = (np.concatenate(parts) for parts in zip(*recorder.through(matrix), strict=True))
    as_head = np.mean(gradients**2, axis=0)[:, None, None] * slow_second_moment(inputs)
    if tied:
        costs = costs + as_head
    else:
        head = got["head.matrix.weight"]
        assert (head.rows[:, None, None] * head.columns).numpy() == pytest.approx(as_head, rel=1e-3, abs=1e-5 * as_head.max())
    table = got["embedding.weight"]
    product = (table.rows[:, None, None] * table.columns).double().numpy()
    assert np.trace(product, axis1=1, axis2=2) == pytest.approx(np.trace(costs, axis1=1, axis2=2), rel=1e-3)
    assert product.sum(0) == pytest.approx(costs.sum(0), rel=1e-3, abs=1e-4 * np.abs(costs.sum(0)).max())


def test_query_key_and_value_share_what_they_see() -> None:
    model = tiny_model()
    statistics = collect(model, batches(), gradients=True)
    for block in (0, 1):
        shared = [statistics[f"blocks.{block}.attention.{part}.weight"].columns for part in ("query", "key", "value")]
        assert shared[0] is shared[1]
        assert shared[0] is shared[2]
    assert statistics["blocks.0.attention.query.weight"].columns is not statistics["blocks.1.attention.query.weight"].columns
    assert statistics["blocks.0.attention.query.weight"].columns is not statistics["blocks.0.mlp.up.weight"].columns


def test_batches_may_be_cut_in_any_way() -> None:
    model = tiny_model()
    together = torch.cat(batches())
    one, many = collect(model, [together], gradients=False), collect(model, together.split(1), gradients=False)
    for name in one:
        assert torch.allclose(one[name].columns, many[name].columns, rtol=1e-4, atol=1e-5)
        assert torch.allclose(one[name].rows, many[name].rows)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("recipe", ["pocket", "pr1171"])
def test_inputs_are_taken_again_behind_what_is_rounded_before_them(recipe, tied) -> None:
    head = dataclasses.replace(find_recipe(recipe, "tiny").model.head, tied=tied)
    model, other = (tiny_model(recipe, head=head) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    rounded = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    known = collect(model, batches(), gradients=True)
    found = recollect(model, rounded, batches(), known)
    assert found.keys() == known.keys()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    places = {info.name: info.block for info in model.parameter_infos()}
    changed = 0
    for name, metric in found.items():
        before = {other for other, block in places.items() if block is None or (places[name] is not None and block < places[name])}
        if name == "head.matrix.weight":
            before = set(places)  # it comes last
        elif places[name] is None:
            before = set()  # what stands before the blocks, or beside them, comes first
        other.load_state_dict({key: rounded[key] if key in before else w for key, w in weights.items()}, strict=False)
        want = known[name].columns if name == "embedding.weight" else collect(other, batches(), gradients=False, only={name})[name].columns
        assert torch.equal(metric.columns, want), name
        assert torch.equal(metric.rows, known[name].rows), name
        changed += not torch.equal(metric.columns, known[name].columns)
    assert changed >= 12


def test_no_text_at_all() -> None:
    with pytest.raises(UserError, match="calibration got no text at all") as caught:
        collect(tiny_model(), [], gradients=False)
    assert "\n" not in str(caught.value)


# Kept in a file


def test_statistics_come_back_from_their_file(tmp_path) -> None:
    statistics = collect(tiny_model(), batches(), gradients=True)
    how = {"windows": 3, "source": {"type": "RandomIds"}}
    save_statistics(tmp_path / "s.safetensors", statistics, how)
    again, noted = load_statistics(tmp_path / "s.safetensors")
    assert noted == how
    assert set(again) == set(statistics)
    for name, metric in statistics.items():
        assert torch.equal(again[name].columns, metric.columns)
        assert torch.equal(again[name].rows, metric.rows)
    q, k = (again[f"blocks.0.attention.{part}.weight"].columns for part in ("query", "key"))
    assert q is k
    size = (tmp_path / "s.safetensors").stat().st_size
    distinct = {id(metric.columns): metric.columns.numel() for metric in statistics.values()}
    assert size < 4 * (sum(distinct.values()) + sum(len(metric.rows) for metric in statistics.values())) + 8000


def test_a_damaged_file_is_as_good_as_none(tmp_path) -> None:
    path = tmp_path / "s.safetensors"
    save_statistics(path, collect(tiny_model(), batches(), gradients=False), {})
    data = path.read_bytes()
    for cut in (0, 4, 8, 100, 2000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert load_statistics(path) is None
    path.write_bytes(b"\xff" * 5000)
    assert load_statistics(path) is None
    start = data.index(b"shares")
    for at in (9, start, start + 11, start + 14, start + 40):
        path.write_bytes(data[:at] + b"[" + data[at + 1 :])
        assert load_statistics(path) is None
    path.write_bytes(data)
    assert load_statistics(path) is not None


def test_a_file_with_other_notes_is_as_good_as_none(tmp_path) -> None:
    from safetensors.torch import save_file

    for notes in (
        None,
        {"shares": "[]", "how": "{}"},
        {"shares": "{}"},
        {"shares": '{"a": "b"}', "how": "{}"},
        {"shares": '{"a": 3}', "how": "{}"},
    ):
        save_file({"rows/a": torch.ones(2)}, tmp_path / "s.safetensors", notes)
        assert load_statistics(tmp_path / "s.safetensors") is None


def test_nothing_known_knows_every_matrix() -> None:
    model = tiny_model("pr1171")
    infos = list(model.parameter_infos())
    known = nothing_known(infos)
    for info in infos:
        if info.role.value != "gain":
            assert torch.equal(known[info.name].columns, torch.eye(info.parameter.shape[1]))
            assert torch.equal(known[info.name].rows, torch.ones(info.parameter.shape[0]))
