from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bytefit.data.build import Split, build_dataset
from bytefit.data.dataset import open_dataset
from bytefit.data.loaders import SequentialConfig, ShuffledConfig
from bytefit.data.shards import TokenStream, map_shard, write_shards
from bytefit.data.tokenizer import BOS_ID, TokenizerConfig
from bytefit.errors import UserError


def test_shard_is_the_contest_format_to_the_byte(tmp_path) -> None:
    (path,) = write_shards(tmp_path, "train", [np.array([1, 2, 65535], dtype=np.uint16)])
    data = path.read_bytes()
    assert path.name == "train_000000.bin"
    assert len(data) == 1024 + 6
    assert np.frombuffer(data[:12], "<i4").tolist() == [20240520, 1, 3]
    assert data[12:1024] == bytes(1012)
    assert np.frombuffer(data[1024:], "<u2").tolist() == [1, 2, 65535]


def test_shards_are_filled_and_the_stream_wraps(tmp_path) -> None:
    tokens = np.arange(2500, dtype=np.uint16)
    paths = write_shards(tmp_path, "t", [tokens[:700], tokens[700:]], shard_tokens=1000)
    assert [len(map_shard(path)) for path in paths] == [1000, 1000, 500]
    stream = TokenStream([map_shard(path) for path in paths])
    assert (stream.all() == tokens).all()
    assert stream.read(2495, 10).tolist() == [2495, 2496, 2497, 2498, 2499, 0, 1, 2, 3, 4]
    assert stream.read(995, 10).tolist() == list(range(995, 1005))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\1" + data[1:], "magic number"),
        (lambda data: data[:4] + b"\7" + data[5:], "version 7"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:100], "too short"),
    ],
)
def test_bad_shards(tmp_path, change, message) -> None:
    (path,) = write_shards(tmp_path, "train", [np.zeros(10, dtype=np.uint16)])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        map_shard(path)


def test_bytes_are_exact_and_documents_come_back(dataset, documents) -> None:
    val = dataset.record["splits"]["val"]
    assert val["counted_bytes"] == val["raw_bytes"]
    tokens = dataset.val.all()
    assert tokens[0] == BOS_ID
    assert (tokens == BOS_ID).sum() == val["documents"]
    restored = [document.decode() for document in dataset.val_documents()]
    assert set(restored) <= set(documents)
    assert sum(len(document.encode()) for document in restored) == val["raw_bytes"]


def test_literal_space_mark_is_still_exact(tmp_path, documents) -> None:
    split = Split(documents[:-1], [documents[-1] + "a \u2581 mark"], 0)
    built = open_dataset(build_dataset(split, tmp_path / "d", TokenizerConfig(vocab_size=320)))
    assert built.record["splits"]["val"]["documents_with_byte_pieces_by_hand"] == 1
    assert built.val_documents()[0].decode() == split.val[0]


def test_lossy_difference_is_reported(tmp_path, documents, capsys) -> None:
    split = Split(documents[5:], documents[:5], 0)
    config = TokenizerConfig(vocab_size=320, normalization="nmt_nfkc")
    built = open_dataset(build_dataset(split, tmp_path / "d", config))
    val = built.record["splits"]["val"]
    assert val["counted_bytes"] < val["raw_bytes"]
    assert "lossy" in capsys.readouterr().err


def test_contest_folder_is_used_as_it_is(dataset, tmp_path) -> None:
    shutil.copy(dataset.folder / "train_000000.bin", tmp_path / "fineweb_train_000000.bin")
    shutil.copy(dataset.folder / "val_000000.bin", tmp_path / "fineweb_val_000000.bin")
    with pytest.raises(UserError, match=r"0 tokenizer \.model files"):
        open_dataset(tmp_path)
    shutil.copy(dataset.folder / "tokenizer.model", tmp_path / "fineweb.model")
    assert (open_dataset(tmp_path).val.all() == dataset.val.all()).all()


def test_the_contests_own_tree_keeps_its_tokenizer_apart(dataset, tmp_path, monkeypatch) -> None:
    folder, tokenizers = tmp_path / "data" / "datasets" / "fineweb10B_sp1024", tmp_path / "data" / "tokenizers"
    folder.mkdir(parents=True)
    tokenizers.mkdir()
    for side in ("train", "val"):
        shutil.copy(dataset.folder / f"{side}_000000.bin", folder / f"fineweb_{side}_000000.bin")
    shutil.copy(dataset.folder / "tokenizer.model", tokenizers / "fineweb_1024_bpe.model")
    monkeypatch.chdir(tmp_path)
    assert open_dataset(Path("data/datasets/fineweb10B_sp1024")).tokenizer.sha256 == dataset.tokenizer.sha256
    shutil.copy(dataset.folder / "tokenizer.model", tokenizers / "fineweb_2048_bpe.model")
    with pytest.raises(UserError, match=r"has 2 tokenizer \.model files; put the one that made the shards there"):
        open_dataset(folder)
    shutil.copy(dataset.folder / "tokenizer.model", folder)
    assert open_dataset(folder).tokenizer.sha256 == dataset.tokenizer.sha256


def test_damaged_datasets(dataset, tmp_path) -> None:
    def copy(name: str):
        return shutil.copytree(dataset.folder, tmp_path / name)

    with pytest.raises(UserError, match="is not a folder"):
        open_dataset(tmp_path / "nowhere")
    (folder := copy("json")).joinpath("dataset.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_dataset(folder)
    folder = copy("hash")
    record = json.loads((folder / "dataset.json").read_text())
    record["splits"]["val"]["shards"][0]["sha256"] = "0" * 64
    (folder / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="changed by hand"):
        open_dataset(folder)
    (folder := copy("tokenizer")).joinpath("tokenizer.model").write_bytes(b"bytefit bytes tokenizer\n")
    with pytest.raises(UserError, match="not the tokenizer that made"):
        open_dataset(folder)
    (folder := copy("gone")).joinpath("train_000000.bin").unlink()
    with pytest.raises(UserError, match="cannot read the shard"):
        open_dataset(folder)


def test_token_ids_beyond_the_vocabulary(dataset, tmp_path) -> None:
    for side in ("train", "val"):
        write_shards(tmp_path, side, [np.array([1, 5, 60000], dtype=np.uint16)])
    shutil.copy(dataset.folder / "tokenizer.model", tmp_path)
    with pytest.raises(UserError, match="token id 60000"):
        open_dataset(tmp_path)


def test_tables_of_bytes_beside_the_text_are_refused(dataset, tmp_path) -> None:
    """They have the names and the format of shards."""
    shutil.copy(dataset.folder / "tokenizer.model", tmp_path)
    for name, tokens in (("fineweb_train", dataset.train), ("fineweb_val", dataset.val), ("fineweb_val_bytes", dataset.val)):
        write_shards(tmp_path, name, [tokens.all().astype(np.uint16)])
    with pytest.raises(UserError, match=r"fineweb_val_bytes_000000\.bin: tables of bytes"):
        open_dataset(tmp_path)


def test_what_lies_beside_a_dataset_is_not_lost_with_it(dataset, tmp_path) -> None:
    folder = shutil.copytree(dataset.folder, tmp_path / "d")
    split = Split(["one document " * 40], ["another one " * 40], 0)
    build_dataset(split, folder, TokenizerConfig(kind="bytes", vocab_size=260))  # a dataset of ours is replaced
    (folder / "run1").mkdir()
    with pytest.raises(UserError, match="holds run1 beside the dataset"):
        build_dataset(split, folder, TokenizerConfig(kind="bytes", vocab_size=260))
    assert (folder / "run1").exists()


def test_validation_text_without_document_marks_is_refused(dataset, tmp_path) -> None:
    shutil.copy(dataset.folder / "tokenizer.model", tmp_path)
    write_shards(tmp_path, "train", [dataset.train.all().astype(np.uint16)])
    write_shards(tmp_path, "val", [dataset.val.all()[1:].astype(np.uint16)])
    with pytest.raises(UserError, match="validation split does not begin with BOS"):
        open_dataset(tmp_path)


def test_ids_of_a_split_too_large_to_read_are_sampled() -> None:
    """Its beginnings, and places spread over the whole of it."""
    shards = [np.full(5000, 7), np.full(5000, 9)]
    shards[0][1500], shards[1][500] = 500, 300
    assert TokenStream(shards).highest_id() == 500
    assert TokenStream(shards).highest_id(sampled=True) == 300


def test_a_large_split_is_not_read_at_every_start(tmp_path, dataset, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(TokenStream, "highest_id", lambda self, *, sampled=False: seen.append(sampled) or 5)
    open_dataset(dataset.folder)
    monkeypatch.setattr("bytefit.data.dataset.MAX_HASHED_BYTES", 2 * len(dataset.val))
    open_dataset(dataset.folder)
    assert seen == [False, False, True, False]


def test_sequential_loader_follows_the_contest(tmp_path) -> None:
    """Eight spans a step, each rows * T + 1 tokens, read one after another (Parameter Golf baseline)."""
    stream = TokenStream([np.arange(1000, dtype=np.uint16)])
    loader = SequentialConfig(num_spans=4).build(stream, 5, 8, seed=0)
    rows = loader.rows(0, 0, 8)
    assert rows[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows[1].tolist() == [5, 6, 7, 8, 9, 10]
    assert rows[2].tolist() == [11, 12, 13, 14, 15, 16]  # the next span starts after 2 * 5 + 1 tokens
    assert loader.rows(1, 0, 1)[0, 0] == 44


@pytest.mark.parametrize("config", [SequentialConfig(num_spans=4), ShuffledConfig()])
def test_ranks_share_one_global_batch(config) -> None:
    stream = TokenStream([np.arange(5000, dtype=np.uint16)])
    loader = config.build(stream, 16, 8, seed=3)
    for step in (0, 7):
        whole = loader.rows(step, 0, 8)
        assert (np.concatenate([loader.rows(step, r * 2, r * 2 + 2) for r in range(4)]) == whole).all()


def test_shuffled_loader_visits_each_window_once_an_epoch() -> None:
    stream = TokenStream([np.arange(16 * 41, dtype=np.uint16)])
    loader = ShuffledConfig().build(stream, 16, 8, seed=3)
    for epoch in range(3):
        starts = np.concatenate([loader.rows(epoch * 5 + step, 0, 8)[:, 0] for step in range(5)])
        assert len(set(starts.tolist())) == 40
        assert set(np.diff(sorted(starts.tolist()))) == {16}
    assert (loader.rows(0, 0, 8) != loader.rows(5, 0, 8)).any()
    other = ShuffledConfig().build(stream, 16, 8, seed=4)
    assert (loader.rows(0, 0, 8) != other.rows(0, 0, 8)).any()


def test_split_too_short_for_a_window() -> None:
    stream = TokenStream([np.arange(10, dtype=np.uint16)])
    with pytest.raises(UserError, match="one window needs 17"):
        ShuffledConfig().build(stream, 16, 8, seed=0)


def test_each_epoch_of_the_shuffled_loader_has_a_phase_of_its_own() -> None:
    """Windows of one epoch do not overlap; those of another are cut elsewhere, so that a target is not always the first of its window."""
    loader = ShuffledConfig().build(TokenStream([np.arange(16 * 9, dtype=np.uint16)]), 16, 8, seed=3)  # 8 windows: a step is an epoch
    phases = []
    for epoch in range(12):
        starts = loader.rows(epoch, 0, 8)[:, 0] % 16
        assert len(set(starts.tolist())) == 1
        phases.append(int(starts[0]))
    assert len(set(phases)) > 4
