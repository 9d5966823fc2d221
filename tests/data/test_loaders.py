"""The coprime loader. Tokens count up through each stream, so that a row tells where it was cut."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bytefit.config import from_json, to_json
from bytefit.data.coprime import CoprimeConfig, CoprimeLoader, Planner, cut_shards
from bytefit.data.loaders import LoaderConfig
from bytefit.data.shards import TokenStream, map_shard, write_shards
from bytefit.errors import UserError

SIZES = (700, 1900, 1100, 420, 2600)


def counting_stream(*sizes: int) -> TokenStream:
    tokens = np.arange(sum(sizes), dtype=np.uint16)
    return TokenStream(np.split(tokens, np.cumsum(sizes)[:-1]))


def batch(loader: CoprimeLoader, step: int) -> np.ndarray:
    return loader.rows(step, 0, loader.num_rows)


def shards_of(rows: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    return np.searchsorted(np.cumsum(sizes), rows[:, 0], side="right")


def test_batches_depend_on_the_step_alone() -> None:
    config = CoprimeConfig(anneal_steps=10, min_shards=2)

    def build() -> CoprimeLoader:
        return config.build(counting_stream(*SIZES), 16, 12, seed=3)

    in_order, jumping = build(), build()
    expected = [batch(in_order, step).tolist() for step in range(40)]
    assert len({str(rows) for rows in expected}) == 40
    for step in (39, 0, 17, 17, 18, 3, 39, 38):
        assert batch(jumping, step).tolist() == expected[step]
        assert batch(build(), step).tolist() == expected[step]
    assert in_order.rows(5, 0, 12).dtype == np.int64
    assert in_order.rows(5, 0, 12).shape == (12, 17)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_and_micro_batches_share_one_global_batch(world) -> None:
    config = CoprimeConfig(anneal_steps=10, min_shards=2)
    whole = config.build(counting_stream(*SIZES), 16, 16, seed=3)
    ranks = [config.build(counting_stream(*SIZES), 16, 16, seed=3) for _ in range(world)]
    for step in (0, 1, 9, 30):
        shares = [
            rank.rows(step, start, start + 2) for i, rank in enumerate(ranks) for start in range(i * 16 // world, (i + 1) * 16 // world, 2)
        ]
        assert np.concatenate(shares).tolist() == batch(whole, step).tolist()


def test_windows_are_pieces_of_one_shard_on_its_grid() -> None:
    loader = CoprimeConfig().build(counting_stream(*SIZES), 16, 8, seed=5)
    rows = np.concatenate([batch(loader, step) for step in range(12)])
    assert (rows == rows[:, :1] + np.arange(17)).all()
    shards, ends = shards_of(rows, SIZES), np.cumsum(SIZES)
    assert (rows[:, -1] < ends[shards]).all()
    phases = set()
    for shard in range(len(SIZES)):
        offsets = rows[shards == shard, 0] - (ends[shard] - SIZES[shard])
        phases.add(offsets[0] % 16)
        assert len(offsets) < (SIZES[shard] - 16) // 16  # none is exhausted yet, so there is one phase
        assert len(set(offsets % 16)) == 1
        assert len(set(offsets)) == len(offsets)
    assert len(phases) > 1


def test_a_walk_visits_every_block_once_with_a_coprime_stride_and_is_then_drawn_anew() -> None:
    """123 tokens hold 30 blocks of 4 (plus one token) from phases 0 to 2, and 29 from phase 3."""
    walks = set()
    for seed in range(12):
        loader = CoprimeConfig().build(counting_stream(123), 4, 1, seed=seed)
        step = 0
        for _ in range(3):
            phase = int(batch(loader, step)[0, 0]) % 4
            num_blocks = 29 if phase == 3 else 30
            positions = np.array([batch(loader, step + k)[0, 0] for k in range(num_blocks)])
            blocks = (positions - phase) // 4
            assert sorted(positions.tolist()) == [phase + 4 * block for block in range(num_blocks)]
            (stride,) = set((np.diff(blocks) % num_blocks).tolist())
            assert math.gcd(stride, num_blocks) == 1
            walks.add((phase, stride, int(blocks[0])))
            step += num_blocks
    assert len(walks) > 30
    assert {phase for phase, _, _ in walks} == {0, 1, 2, 3}
    assert len({stride for _, stride, _ in walks}) > 6


def test_phase_leaves_room_for_one_block() -> None:
    starts = {int(batch(CoprimeConfig().build(counting_stream(20), 16, 1, seed=seed), 0)[0, 0]) for seed in range(40)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(("num_rows", "steps"), [(8, 3), (30, 2), (24, 5)])
def test_a_batch_goes_on_past_the_end_of_an_epoch(num_rows, steps) -> None:
    """Windows of one token and its target: 12 blocks, and phase 0 every time."""
    loader = CoprimeConfig().build(counting_stream(13), 1, num_rows, seed=1)
    starts = np.concatenate([batch(loader, step)[:, 0] for step in range(steps)])
    assert np.bincount(starts).tolist() == [num_rows * steps // 12] * 12


def test_number_of_shards_grows() -> None:
    sizes = (400,) * 12
    loader = CoprimeConfig(anneal_steps=6, min_shards=2, max_shards=10).build(counting_stream(*sizes), 8, 16, seed=2)
    # 2 + 8 step / 6, rounded
    assert [len(set(shards_of(batch(loader, step), sizes))) for step in range(10)] == [2, 3, 5, 6, 7, 9, 10, 10, 10, 10]


@pytest.mark.parametrize(("num_shards", "num_rows", "expected"), [(12, 5, [5, 5]), (4, 16, [4, 4]), (12, 9, [8, 9]), (1, 6, [1, 1])])
def test_number_of_shards_is_bounded_by_stream_and_batch(num_shards, num_rows, expected) -> None:
    sizes = (400,) * num_shards
    loader = CoprimeConfig(anneal_steps=1).build(counting_stream(*sizes), 8, num_rows, seed=2)
    assert [len(set(shards_of(batch(loader, step), sizes))) for step in (0, 1)] == expected


@pytest.mark.parametrize(("step", "exponent"), [(0, 0.9), (1, 0.7), (2, 0.5), (3, 0.5)])
def test_shards_are_chosen_by_annealed_weight(step, exponent) -> None:
    """Two shards of about 10,000 and 1,000 blocks, one window a step: the share of the small one over many seeds."""
    stream = counting_stream(20_000, 2_000)
    config = CoprimeConfig(anneal_steps=2, min_shards=1, max_shards=1)
    hits = sum(int(config.build(stream, 2, 1, seed=seed).rows(step, 0, 1)[0, 0] >= 20_000) for seed in range(1200))
    share = 1 / (1 + 10**exponent)
    assert abs(hits / 1200 - share) < 3.5 * math.sqrt(share * (1 - share) / 1200)


@pytest.mark.parametrize("exponent", [0.9, 0.5])
def test_windows_beyond_one_a_shard_follow_the_weights(exponent) -> None:
    stream = counting_stream(20_000, 2_000)
    config = CoprimeConfig(exponent_start=exponent, exponent_end=exponent)
    small = np.mean([(batch(config.build(stream, 2, 102, seed=seed), 0)[:, 0] >= 20_000).sum() for seed in range(60)])
    share = 1 / (1 + 10**exponent)
    assert abs(small - (1 + 100 * share)) < 3.5 * math.sqrt(100 * share * (1 - share) / 60)


def test_weights_follow_what_is_left_and_exhausted_shards_count_one() -> None:
    """Two shards of two blocks, exponent 1: after AB it is 1 : 1, after A it is 1 : 2, after AA (exhausted) it is 1 : 2 again."""
    stream = counting_stream(3, 3)
    config = CoprimeConfig(exponent_start=1.0, exponent_end=1.0, min_shards=1, max_shards=1)
    loaders = [config.build(stream, 1, 1, seed=seed) for seed in range(2500)]
    first, second, third = (np.array([loader.rows(step, 0, 1)[0, 0] >= 3 for loader in loaders]) for step in range(3))
    same = first == second
    for again, share in ((same, 1 / 3), ((first == third)[same], 1 / 3), ((first == third)[~same], 1 / 2)):
        assert abs(again.mean() - share) < 3.5 * math.sqrt(share * (1 - share) / len(again))


def test_batches_interleave_shards_in_passes_of_random_order() -> None:
    sizes = (6000, 3000, 1000, 500)
    loader = CoprimeConfig().build(counting_stream(*sizes), 4, 64, seed=4)
    shards = shards_of(batch(loader, 0), sizes)
    turns = [int((shards[:row] == shards[row]).sum()) for row in range(64)]
    assert turns == sorted(turns)
    passes = [tuple(shards[np.array(turns) == turn]) for turn in range(max(turns) + 1)]
    assert len(passes[0]) == 4
    assert len({order for order in passes if len(order) == len(passes[1])}) > 1


def test_windows_of_one_shard_are_shuffled_in_a_batch() -> None:
    """In the order of the walk neighbours would always be one stride apart (mod 1000 blocks, from phase 0)."""
    loader = CoprimeConfig().build(counting_stream(1001), 1, 16, seed=0)
    assert len(set((np.diff(batch(loader, 0)[:, 0]) % 1000).tolist())) > 5


def test_the_seed_is_what_the_shards_hold_not_their_names(tmp_path) -> None:
    tokens = np.random.default_rng(0).integers(0, 500, 6000).astype(np.uint16)
    config = CoprimeConfig()

    def batches(chunk: np.ndarray, place: str, seed: int = 7, shard_tokens: int = 2000) -> list[list[list[int]]]:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        paths = write_shards(folder, place[0], [chunk], shard_tokens)
        loader = config.build(TokenStream([map_shard(path) for path in paths]), 16, 8, seed)
        return [batch(loader, step).tolist() for step in range(3)]

    expected = batches(tokens, "one")
    assert batches(tokens, "two/three") == expected
    assert batches(tokens, "seed", seed=8) != expected
    assert batches(tokens, "cut", shard_tokens=3000) != expected

    # Positions, not tokens: what changes is the draw and not only the text at the same places.
    def positions(shards: list[np.ndarray]) -> list[int]:
        stream = TokenStream(shards)
        loader = config.build(stream, 16, 8, seed=7)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream, "read", lambda start, count: np.full(count, start))
            return batch(loader, 0)[:, 0].tolist()

    shards = np.split(tokens, 3)
    for changed in (0, 1023, 1999):
        other = [shard.copy() for shard in shards]
        other[1][changed] += 1
        assert positions(other) != positions(shards), changed
    assert positions([shards[1], shards[0], shards[2]]) != positions(shards)
    assert TokenStream([np.zeros(2000, np.uint16)]).fingerprint() != TokenStream([np.zeros(2001, np.uint16)]).fingerprint()


def test_passing_over_steps_reads_no_tokens(monkeypatch) -> None:
    stream = counting_stream(*SIZES)
    loader = CoprimeConfig().build(stream, 16, 8, seed=0)
    read, reads = stream.read, []
    monkeypatch.setattr(stream, "read", lambda start, count: reads.append(start) or read(start, count))
    loader.rows(200, 2, 4)
    assert len(reads) == 2


def test_steps_are_planned_once_for_all_micro_batches(monkeypatch) -> None:
    plan, planned = Planner.plan, []
    monkeypatch.setattr(Planner, "plan", lambda self: planned.append(self.step) or plan(self))
    loader = CoprimeConfig().build(counting_stream(*SIZES), 16, 8, seed=0)
    for step in (2, 3, 3, 2, 4, 2):
        for first in range(8):
            loader.rows(step, first, first + 1)
    assert planned == [0, 1, 2, 3, 4]
    loader.rows(1, 0, 8)
    assert planned == [0, 1, 2, 3, 4, 0, 1]


def test_shards_are_cut_into_pieces_that_hold_a_window() -> None:
    """Windows of 5 tokens. 24 leaves 4 over, which stay with the piece before; 3 are too short; 10 and 25 divide well."""
    starts, tokens = cut_shards(np.array([25, 24, 3, 10, 4]), 4, 10)
    assert starts.tolist() == [0, 10, 20, 25, 35, 52]
    assert tokens.tolist() == [10, 10, 5, 10, 14, 10]
    starts, tokens = cut_shards(np.array([25, 4, 5]), 4, None)
    assert (starts.tolist(), tokens.tolist()) == ([0, 29], [25, 5])


def test_one_file_cut_into_pieces_is_mixed() -> None:
    loader = CoprimeConfig(shard_tokens=100).build(counting_stream(1000), 16, 10, seed=0)
    for step in range(30):
        rows = batch(loader, step)
        assert (rows[:, 0] // 100 == rows[:, -1] // 100).all()
        assert len(set(rows[:, 0] // 100)) >= 8


def test_short_shards_are_passed_over() -> None:
    sizes = (16, 300, 10, 17)
    loader = CoprimeConfig().build(counting_stream(*sizes), 16, 6, seed=0)
    assert set(np.concatenate([shards_of(batch(loader, step), sizes) for step in range(10)])) == {1, 3}


def test_streams_and_cuts_too_short_for_a_window() -> None:
    for sizes in ((10,), (16, 16, 3)):
        with pytest.raises(UserError, match=r"longest shard holds 1[06] tokens, but one window needs 17"):
            CoprimeConfig().build(counting_stream(*sizes), 16, 8, seed=0)
    with pytest.raises(UserError, match=r"loader\.shard_tokens 16 .* at least 17"):
        CoprimeConfig(shard_tokens=16).build(counting_stream(500), 16, 8, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"anneal_steps": 0}, "anneal_steps 0 must be at least 1"),
        ({"exponent_start": 1.5}, r"exponent_start 1\.5 must lie in \[0, 1\]"),
        ({"exponent_end": -0.1}, r"exponent_end -0\.1 must lie in \[0, 1\]"),
        ({"exponent_end": math.nan}, "exponent_end nan must lie"),
        ({"min_shards": 0}, "min_shards 0 must be at least 1"),
        ({"max_shards": 7}, "max_shards 7 must be at least min_shards 8"),
        ({"shard_tokens": 1}, "shard_tokens 1 must be at least 2"),
    ],
)
def test_bad_settings(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        CoprimeConfig(**fields)


def test_config_is_one_of_the_loaders_of_a_recipe() -> None:
    config = CoprimeConfig(anneal_steps=100, shard_tokens=5000)
    assert from_json(LoaderConfig, json.loads(json.dumps(to_json(config)))) == config
