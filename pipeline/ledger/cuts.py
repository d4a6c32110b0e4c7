"""The rows at each threshold of a select: how many are beyond it, and those that stand nearest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.ledger.causes import Cause, named_in
from clipmill.pipeline.ledger.scores import ScoreColumn, ScoreCut, numbers
from clipmill.pipeline.ledger.stored import Place
from clipmill.pipeline.planning.plan import Plan

# Shapes: N rows of a shard, C cuts.

NEAREST = 6  # rows that are shown on either side
Near = tuple[float, int, Place, float]  # distance, hash, place, value


@dataclass(frozen=True, kw_only=True)
class CutRows:
    """A threshold on one column: the rows beyond it, whatever dropped them, and those of them that
    are beyond no other threshold. `kept` and `dropped` are the kept rows nearest to it and the
    nearest of those that went for it, each with its value, by value."""

    column: str
    cut: ScoreCut
    beyond: int
    alone: int
    kept: tuple[tuple[Place, float], ...]
    dropped: tuple[tuple[Place, float], ...]


class AtCuts:
    """Counts the rows at every cut, shard by shard."""

    def __init__(self, columns: Sequence[ScoreColumn]) -> None:
        self.cuts = [(i, column, cut) for i, column in enumerate(columns) for cut in column.cuts]
        self.beyond_C = np.zeros(len(self.cuts), np.int64)
        self.alone_C = np.zeros(len(self.cuts), np.int64)
        self.near: list[dict[bool, list[Near]]] = [{True: [], False: []} for _ in self.cuts]

    def count(
        self,
        plan: Plan,
        shard: int,
        values: Sequence[pa.ChunkedArray],
        bits_N: NDArray[np.uint64],
        keep_N: NDArray[np.bool_],
        causes: Sequence[tuple[str, str, pa.Array]],
    ) -> None:
        """The values of one shard, a column each; `causes` are of the rows that went."""
        beyond_CN = [cut.beyond(values[i]) for i, _, cut in self.cuts]
        beyond_by_N = np.sum(beyond_CN, axis=0) if beyond_CN else 0
        for at, (i, column, cut) in enumerate(self.cuts):
            self.beyond_C[at] += beyond_CN[at].sum()
            self.alone_C[at] += (beyond_CN[at] & (beyond_by_N == 1)).sum()
            went_N = np.zeros(len(keep_N), bool)
            for stage, code, rows in causes:
                if stage == cut.stage and _names(plan, (stage, code), column):
                    went_N |= rows.to_numpy(zero_copy_only=False)
            number_N = numbers(values[i])
            for side, side_N in ((True, keep_N), (False, went_N & beyond_CN[at])):
                rows_K = np.flatnonzero(side_N & ~np.isnan(number_N))
                apart_K = np.abs(number_N[rows_K] - cut.limit)
                few = np.lexsort((bits_N[rows_K], apart_K))[:NEAREST]
                here = [
                    (float(apart_K[k]), int(bits_N[row]), (shard, int(row)), float(number_N[row]))
                    for k, row in zip(few, rows_K[few], strict=True)
                ]
                self._add_near(at, side, here)

    def add(self, other: "AtCuts") -> None:
        """What another has counted of the same cuts, of later shards."""
        self.beyond_C += other.beyond_C
        self.alone_C += other.alone_C
        for at, sides in enumerate(other.near):
            for side, near in sides.items():
                self._add_near(at, side, near)

    def _add_near(self, at: int, side: bool, near: list[Near]) -> None:
        self.near[at][side] = sorted(self.near[at][side] + near)[:NEAREST]

    def rows(self) -> tuple[CutRows, ...]:
        """All that was counted, in the order of the columns."""

        def by_value(near: list[Near]) -> tuple[tuple[Place, float], ...]:
            ranked = sorted(near, key=lambda row: (row[3], row[1]))
            return tuple((place, value) for _, _, place, value in ranked)

        return tuple(
            CutRows(
                column=column.name,
                cut=cut,
                beyond=int(self.beyond_C[at]),
                alone=int(self.alone_C[at]),
                kept=by_value(self.near[at][True]),
                dropped=by_value(self.near[at][False]),
            )
            for at, (_, column, cut) in enumerate(self.cuts)
        )


def _names(plan: Plan, cause: Cause, column: ScoreColumn) -> bool:
    """Whether the reason names the column; the stage's own one it names as it writes it."""
    named = named_in(plan, *cause).values()
    return column.where in named or (column.where[0] == cause[0] and column.name in cause[1])
