from __future__ import annotations

import pytest

from bytefit.artifact.load import load_artifact
from bytefit.artifact.pack import PackConfig
from bytefit.report.matrices import matrix_table
from bytefit.run.details import matrices_of
from tests.model.parts import CONFIGS, random_model
from tests.page.artifacts import QUANT, for_bytes, write_artifact


def record(name: str, role: str, block: int | None, error: float = 0.1, size: int | None = 100) -> dict[str, object]:
    return {"name": name, "role": role, "block": block, "rows": 20, "columns": 10, "relative_error": error, "bytes": size}


def test_rows_are_blocks_and_columns_are_matrices_by_role() -> None:
    records = [
        record("embedding.weight", "table", None, size=500),
        record("blocks.0.attention.query.weight", "attention", 0, error=0.2),
        record("blocks.0.mlp.up.weight", "mlp", 0, error=0.4, size=25),
        record("blocks.1.mlp.up.weight", "mlp", 1),
        record("blocks.1.mlp.gate.weight", "mlp", 1),
        record("value_embedding.table.weight", "table", None),
    ]
    table = matrix_table(records, {"table": 650, "attention": 100, "mlp": 225, "header": 9})
    assert table.roles == [("attention", 1), ("mlp", 2)]
    assert table.columns == ["query", "up", "gate"]
    assert [(block, [cell and cell.name for cell in cells]) for block, cells in table.rows] == [
        (0, ["query", "up", None]),
        (1, [None, "up", "gate"]),
    ]
    assert [m.name for m in table.outside] == ["embedding", "value_embedding.table"]
    assert len(table.matrices) == len(records)
    up = table.rows[0][1][1]
    assert (up.heat, up.bits_per_weight) == (1.0, 1.0)
    assert table.rows[0][1][0].heat == pytest.approx(0.5)
    assert table.bits_by_role == {"table": 13.0, "attention": 4.0, "mlp": 3.0}


def test_without_matrices_there_is_no_table() -> None:
    assert matrix_table([], {"header": 9}) is None


@pytest.mark.parametrize("codec", ["context", "zlib"])
def test_bytes_are_given_where_the_codec_gives_them(codec, tmp_path) -> None:
    model = random_model(for_bytes(CONFIGS["swiglu"]))
    config = PackConfig(budget_bytes=1 << 24, quant=QUANT, fit=False, codec=codec)
    artifact = load_artifact(write_artifact(tmp_path / "model.bytefit", model, config=config))
    found = matrices_of(artifact, model.state_dict())
    assert len(found) > 6
    assert all((held["bytes"] is None) == (codec == "zlib") for held in found)
    assert all(0 < held["relative_error"] < 0.1 for held in found)
    table = matrix_table(found, artifact.parts)
    weights, bits = sum(held["rows"] * held["columns"] for held in found if held["role"] == "mlp"), table.bits_by_role["mlp"]
    assert bits == 8 * artifact.parts["mlp"] / weights
    if codec == "context":
        own = [m.bits_per_weight for m in table.matrices if m.role == "mlp"]
        assert min(own) < bits < max(own) + 8 / weights
