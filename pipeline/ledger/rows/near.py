"""Finds the threshold of nearness that a run uses, and reads the rows on its near side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import UID, Column, Named
from clipmill.pipeline.ledger.rows.stored import Place, tables
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Stage

# Shapes: N rows of a pool.

NUMBER = "number"  # column of row numbers: see Numbers
Bools = NDArray[np.bool_]
Sign = Literal["<", "<=", ">", ">="]
REACHES = {"<=": pc.less_equal, "<": pc.less, ">=": pc.greater_equal, ">": pc.greater}
# The near side of a threshold is its worse side, whichever side the select keeps.
LOW_IS_NEAR: dict[str, Sign] = {">": "<=", "<=": "<=", ">=": "<", "<": "<"}
HIGH_IS_NEAR: dict[str, Sign] = {"<": ">=", ">=": ">=", "<=": ">", ">": ">"}


@dataclass(frozen=True)
class Cut:
    """A threshold from which rows count as near, and the select stage that sets it."""

    column: str
    sign: Sign
    value: float
    stage: str | None = None  # None: no select has one; it is the column's `alike`

    @property
    def text(self) -> str:
        return f"{self.column} {self.sign} {self.value:g}"

    def reached(self, value: pa.ChunkedArray) -> Bools:
        """Returns (N,) whether each row is near; false without a value."""
        number = pa.scalar(self.value)
        if pa.types.is_floating(value.type):  # as `where` compares
            number = number.cast(value.type)
        near = REACHES[self.sign](value, number)
        return np.asarray(near.fill_null(False).to_numpy())


def naming(stage: Stage, *kinds: Named) -> Column | None:
    """Returns the first column of a stage whose values name one of `kinds`."""
    return next((column for column in stage.writes if column.names in kinds), None)


def nearness_of(stage: Stage) -> Column | None:
    """Returns the column that says how near a named row is; None for equal rows."""
    return next((column for column in stage.writes if column.better), None)


def cut_of(state: RunState, stage: str, near: Column) -> Cut | None:
    """Returns the first select's threshold on the nearness; else its `alike`; else None."""
    signs = LOW_IS_NEAR if near.better == "high" else HIGH_IS_NEAR
    for name, planned in state.plan.stages.items():
        for threshold in thresholds_of(planned):
            is_on_it = planned.bindings[0].get(threshold.column) == (stage, near.name)
            if is_on_it and not threshold.is_size and threshold.sign in signs:
                return Cut(near.name, signs[threshold.sign], threshold.value, name)
    if near.alike is None:
        return None
    return Cut(near.name, "<=" if near.better == "high" else ">=", near.alike)


def spread(
    rows: NDArray[np.int64], value: pa.ChunkedArray, near: Column, most: int
) -> NDArray[np.int64]:
    """Returns some of the rows, evenly spaced from the nearest to the farthest."""
    value_N = value.cast(pa.float64()).to_numpy()[rows]
    nearest_first = value_N if near.better == "high" else -value_N
    return evenly(rows[np.argsort(nearest_first, kind="stable")], most)


def evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns some of the rows in their order, evenly spaced, including the first and the last."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]


@dataclass(frozen=True)
class Numbers:
    """Row numbers of a root: from 0, in the order of shard and position."""

    shards: tuple[int, ...]
    starts: NDArray[np.int64]  # first row number of each shard

    def places(self, rows: Sequence[int]) -> list[Place]:
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        position = np.asarray(rows, np.int64) - self.starts[shard]
        return [
            (self.shards[index], offset)
            for index, offset in zip(shard.tolist(), position.tolist(), strict=True)
        ]


def numbers_of(state: RunState, root: str) -> Numbers:
    shards = state.stages[root].shards
    return Numbers(tuple(shards), np.cumsum([0, *shards.sizes[:-1]]))


def by_shard(state: RunState, root: str, bound: Mapping[str, Binding]) -> Iterator[pa.Table]:
    """Yields one table per shard: uid, the bound columns, and each row's number."""
    start = 0
    for table in tables(state, root, bound):
        number_N = np.arange(start, start + len(table))
        start += len(table)
        yield table.select([UID.name, *bound]).append_column(NUMBER, pa.array(number_N))
