"""Where a run draws the line between near and far, and the rows of a stage on its near side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import UID
from pipeline.ledger.selection import comparisons
from pipeline.ledger.stored import Place, stored
from pipeline.planned import Binding
from pipeline.state import RunState

# Shapes: N rows of a pool.

Bools = NDArray[np.bool_]
# A select that tells rows apart by the sign, however it is put: near are those on this side.
OF_DISTANCE = {">": "<=", "<=": "<=", ">=": "<", "<": "<"}
OF_SIMILARITY = {"<": ">=", ">=": ">=", "<=": ">", ">": ">"}
REACHES = {"<=": pc.less_equal, "<": pc.less, ">=": pc.greater_equal, ">": pc.greater}


@dataclass(frozen=True)
class Cut:
    """How near is near: a column against a number, and the select that has it so."""

    column: str
    sign: str
    number: str
    stage: str | None = None  # None: no select has one, and the page takes its own

    @property
    def text(self) -> str:
        return f"{self.column} {self.sign} {self.number}"

    def reached(self, value: pa.ChunkedArray) -> Bools:
        """Whether each row is as near; a row without a value is not."""
        number = pa.scalar(float(self.number)).cast(value.type, safe=False)  # as `where` compares
        near = REACHES[self.sign](value, number)
        return np.asarray(near.fill_null(False).to_numpy())


def is_distance(dtype: pa.DataType) -> bool:
    """Whether less is nearer: bits are counted, likeness is measured."""
    return bool(pa.types.is_integer(dtype))


def cut_of(state: RunState, stage: str, column: str) -> Cut | None:
    """The first threshold on a stage's column in a select of the run."""
    near = OF_DISTANCE if is_distance(state.plan.schema(stage, column)) else OF_SIMILARITY
    for name, planned in state.plan.stages.items():
        if planned.uses == "select.where":
            for at in comparisons(planned.stage):
                if planned.bindings[0].get(at.column) == (stage, column) and at.sign in near:
                    return Cut(column, near[at.sign], at.number, name)
    return None


def nearness(value: pa.ChunkedArray) -> NDArray[np.float64]:
    """(N,) less is nearer."""
    value_N: NDArray[np.float64] = value.cast(pa.float64()).to_numpy()
    return value_N if is_distance(value.type) else -value_N


def spread(rows: NDArray[np.int64], value: pa.ChunkedArray | None, few: int) -> NDArray[np.int64]:
    """Some of the rows, nearest first: evenly spaced from the nearest to the farthest."""
    if value is not None:
        rows = rows[np.argsort(nearness(value.take(pa.array(rows))), kind="stable")]
    return rows[np.linspace(0, len(rows) - 1, min(few, len(rows))).round().astype(np.int64)]


@dataclass(frozen=True)
class Pool:
    """Columns of every row of a root, in the order of shard and position."""

    table: pa.Table
    shards: tuple[int, ...]
    starts: NDArray[np.int64]  # row that each shard begins with

    def places(self, rows: Sequence[int]) -> list[Place]:
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        position = np.asarray(rows, np.int64) - self.starts[shard]
        return [
            (self.shards[index], at)
            for index, at in zip(shard.tolist(), position.tolist(), strict=True)
        ]


def whole(state: RunState, root: str, bound: Mapping[str, Binding]) -> Pool:
    """uid and the bound columns of every row: all that is held of a pool at once."""
    shards = stored(state, root, bound)
    tables = [shards.table(i).select([UID.name, *bound]) for i in range(len(shards))]
    starts = np.cumsum([0, *map(len, tables[:-1])])
    return Pool(pa.concat_tables(tables), tuple(sorted(state.stages[root].shards)), starts)
