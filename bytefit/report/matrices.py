"""The matrices of a run as a table: a row a block, a column a matrix, columns of one role side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Matrix:
    """One matrix of ``details.json``.

    Attributes:
        name: the parameter's, without its block and without ``weight``.
        relative_error: ‖W − Ŵ‖ / ‖W‖.
        heat: the same, of the largest in the model: 0 to 1.
        bytes, bits_per_weight: of its codes; None where the codec compresses several matrices as one.
    """

    name: str
    role: str
    block: int | None
    shape: tuple[int, int]
    relative_error: float
    heat: float
    bytes: int | None

    @property
    def bits_per_weight(self) -> float | None:
        return None if self.bytes is None else 8 * self.bytes / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class MatrixTable:
    """
    Attributes:
        roles: of the blocks' matrices, in the model's order, with the number of columns of each.
        columns: their names, role by role.
        rows: blocks with a cell for each column, None where the block has no such matrix.
        outside: matrices that belong to no block.
        bits_by_role: bits a weight of a whole role's section.
    """

    roles: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[int, list[Matrix | None]]]
    outside: list[Matrix]
    bits_by_role: dict[str, float]

    @property
    def matrices(self) -> list[Matrix]:
        return self.outside + [cell for _, cells in self.rows for cell in cells if cell is not None]


def matrix_table(records: list[dict[str, Any]], bytes_by_part: dict[str, int]) -> MatrixTable | None:
    """The ``matrices`` of ``details.json``; None without any.

    Args:
        bytes_by_part: of the artifact, where the codes of a role are a part under the role's name.
    """
    largest = max((record["relative_error"] for record in records), default=0.0) or 1.0
    matrices = [_matrix(record, largest) for record in records]
    if not matrices:
        return None
    cells = {(m.block, m.role, m.name): m for m in matrices if m.block is not None}
    roles = list(dict.fromkeys(m.role for m in matrices if m.block is not None))
    keys = [(role, name) for role in roles for name in dict.fromkeys(m.name for m in cells.values() if m.role == role)]
    blocks = sorted({m.block for m in matrices if m.block is not None})
    weights: dict[str, int] = {}
    for m in matrices:
        weights[m.role] = weights.get(m.role, 0) + m.shape[0] * m.shape[1]
    return MatrixTable(
        roles=[(role, sum(key[0] == role for key in keys)) for role in roles],
        columns=[name for _, name in keys],
        rows=[(block, [cells.get((block, *key)) for key in keys]) for block in blocks],
        outside=[m for m in matrices if m.block is None],
        bits_by_role={role: 8 * bytes_by_part[role] / count for role, count in weights.items() if role in bytes_by_part},
    )


def _matrix(record: dict[str, Any], largest: float) -> Matrix:
    own = record["name"].removesuffix(".weight").split(".")
    name = own[-1] if record["block"] is not None else ".".join(own)
    shape = (record["rows"], record["columns"])
    error = record["relative_error"]
    return Matrix(name, record["role"], record["block"], shape, error, error / largest, record["bytes"])
