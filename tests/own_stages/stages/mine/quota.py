"""A select stage in a user's own folder, which answers for its threshold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import KEEP, POSITION, REASON, REASON_TYPE, SHARD, TEXT, UID, Column
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage, Threshold, Verdicts

RANK = Column("quota_rank", pa.int64(), "rows, 0 up", "Place in its group by hash.", better="low")


@dataclass(frozen=True, kw_only=True)
class Quota(DatasetStage):
    """The first `rows` of the captions of each length, by hash; the rank of every row.

    Error: none.
    """

    rows: int

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    optional_reads = (KEEP,)
    writes = (KEEP, RANK)
    reasons = ("dropped_before", "no_text", "over_quota")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sized = ctx.map_shards(with_length, inputs.rows)
        ctx.restore(ctx.map_shards(self.ranked, ctx.shuffle(sized, key="length")))

    def ranked(self, rows: pa.Table) -> pa.Table:
        length_N = rows["length"].fill_null(-1).to_numpy()
        hash_N = coin_hash(rows[UID.name], seed=0, stage="quota", purpose="rank")
        order_N = np.lexsort((hash_N, length_N))
        _, start_N = np.unique(length_N[order_N], return_inverse=True)
        first_N = np.searchsorted(start_N, start_N)
        rank_N = np.empty(len(rows), np.int64)
        rank_N[order_N] = np.arange(len(rows)) - first_N
        dropped = pa.array(np.zeros(len(rows), bool))
        if KEEP.name in rows.column_names:
            dropped = pc.invert(rows[KEEP.name]).combine_chunks()
        broken = (dropped, rows["length"].is_null(), pa.array(rank_N >= self.rows))
        reason = pc.case_when(pc.make_struct(*broken), *self.reasons)
        return pa.table(
            {
                **{column.name: rows[column.name] for column in (UID, SHARD, POSITION)},
                KEEP.name: reason.is_null(),
                RANK.name: pa.array(rank_N, mask=length_N < 0),
                REASON.name: reason.cast(REASON_TYPE),
            }
        )

    def thresholds(self) -> tuple[Threshold, ...]:
        return (
            Threshold(
                name="rows",
                column=RANK.name,
                sign="<",
                value=self.rows,
                text=f"rows = {self.rows}",
                reads=(KEEP.name,),
                made=(RANK.name,),
            ),
        )

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        may_N = np.ones(len(made), bool)
        if KEEP.name in rows.column_names:
            may_N = rows[KEEP.name].to_numpy()
        for value in values:
            fits = pc.less(made[RANK.name], int(value)).fill_null(False)
            yield Verdicts(float(value), f"rows = {value}", may_N & fits.to_numpy())

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        if reason != "over_quota":
            return ""
        return f"it is number {made[RANK.name] + 1} of its length, and {self.rows} stay"


def with_length(rows: pa.Table) -> pa.Table:
    return rows.append_column("length", pc.utf8_length(rows[TEXT.name]))
