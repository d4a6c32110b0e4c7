"""Ranks equal or similar rows by which one stays: the order that all dedup stages share."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import KEEP, Column
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.tables.rows import in_order

# Shapes: N rows, K columns that decide.

PREFERENCE = Column(
    "preference",
    pa.list_(pa.uint64()),
    "0 up",
    "A number for each column of `keep`: the lowest stay, then null (of a value whose number is the"
    " greatest), then the greatest, of rows without a value.",
)
WORST = np.uint64(2**64 - 1)
SIGN = np.uint64(2**63)


@dataclass(frozen=True, kw_only=True)
class Keep:
    """A column of numbers or truth values; `desc` keeps its greatest. Null comes last."""

    column: NonEmpty  # `name` or `stage.name`
    order: Literal["asc", "desc"]  # desc keeps the greatest value, asc the least

    @property
    def reads(self) -> Column:
        return Rankable(self.column, pa.float64(), "any", "`keep` ranks by numbers, or by truth.")


class Rankable(Column):
    """A column of numbers or truth values, of any width."""

    def accepts(self, dtype: pa.DataType) -> bool:
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
        return any(is_kind(dtype) for is_kind in kinds)


# Several in turn: if one leaves rows equal, the next decides; in the end the least uid.
Order = Keep | tuple[Keep, ...] | None


def in_turn(order: Order) -> tuple[Keep, ...]:
    """Returns the columns that decide, in turn; none if only the uid decides."""
    if order is None:
        return ()
    return order if isinstance(order, tuple) else (order,)


@dataclass(frozen=True, kw_only=True)
class KeepsBest(DatasetStage):
    """A stage that keeps one of several alike rows."""

    # which of two alike rows stays: the best by these columns in turn, then the least uid
    keep: Order = None

    determinism = "exact"
    optional_reads = (KEEP,)

    @property
    def prefers(self) -> tuple[tuple[str, str], ...]:
        return tuple((keep.column, keep.order) for keep in in_turn(self.keep))

    @property
    def deciding(self) -> tuple[Column, ...]:
        """Returns the columns that decide."""
        return tuple(keep.reads for keep in in_turn(self.keep))


def preference(order: Order, rows: pa.Table) -> pa.ListArray:
    """Returns a list of integers for each row; the lowest stays. Exact: no value is rounded."""
    ranks = [_ranks(keep, rows[keep.column].combine_chunks()) for keep in in_turn(order)]
    rank_K2N = np.array(ranks, np.uint64).reshape(len(ranks), 2, len(rows))
    rank_NK, is_worst_NK = rank_K2N[:, 0].T, rank_K2N[:, 1].T.astype(bool)
    end_N = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * np.int32(len(ranks)))
    rank = pa.array(rank_NK.reshape(-1), mask=is_worst_NK.reshape(-1))
    return pa.ListArray.from_arrays(end_N, rank)


def _ranks(keep: Keep, value: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Returns (N,) ranks, WORST without a value, and (N,) which values have WORST nevertheless."""
    if pa.types.is_floating(value.type):
        value_N = value.cast(pa.float64()).fill_null(np.nan).to_numpy() + 0.0  # no -0.0
        bits_N = value_N.view(np.uint64)
        # Bits of IEEE numbers sort as integers, once those of negative ones are inverted.
        rank_N = np.where(value_N < 0, ~bits_N, bits_N | SIGN)
        missing_N = np.isnan(value_N)
    elif value.type == pa.uint64():
        rank_N, missing_N = value.fill_null(0).to_numpy(), value.is_null().to_numpy(False)
    else:
        signed_N = value.cast(pa.int64()).fill_null(0).to_numpy()
        rank_N, missing_N = signed_N.view(np.uint64) ^ SIGN, value.is_null().to_numpy(False)
    rank_N = WORST - rank_N if keep.order == "desc" else rank_N
    return np.where(missing_N, WORST, rank_N), (rank_N == WORST) & ~missing_N


def best_first(rows: pa.Table) -> NDArray[np.int64]:
    """Returns (N,) row indices, the row that stays first: by preference, uid, place in the pool."""
    rank = rows[PREFERENCE.name].combine_chunks().flatten()
    shape = len(rows), len(rank) // max(1, len(rows))
    rank_NK = rank.fill_null(WORST).to_numpy().reshape(shape)
    if not rank.null_count:
        return in_order(rows, *rank_NK.T)
    is_valid_NK = rank.is_valid().to_numpy(False).reshape(shape)
    return in_order(rows, *np.stack([rank_NK, is_valid_NK], axis=2).reshape(len(rows), -1).T)
