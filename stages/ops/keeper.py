"""Which of several equal or similar rows stays: the order that all dedup stages share."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import KEEP, POSITION, SHARD, UID, Column
from metadata.uid import halves

# Shapes: N rows.

PREFERENCE = Column("preference", pa.uint64(), "0 up", "The lowest stays; the last has no value.")
WORST = np.uint64(2**64 - 1)
SIGN = np.uint64(2**63)
DROPPED = (
    "dropped_before"  # the reason of a row that an earlier select dropped: it keeps nobody out
)


@dataclass(frozen=True, kw_only=True)
class Keep:
    """A column of numbers or truth values; `desc` keeps its greatest. Null comes last."""

    column: str  # `name` or `stage.name`
    order: Literal["asc", "desc"]

    @property
    def reads(self) -> Column:
        return Rankable(self.column, pa.float64(), "any", "`keep` ranks by numbers, or by truth.")


class Rankable(Column):
    """A column of numbers or truth values, of any width."""

    def accepts(self, dtype: pa.DataType) -> bool:
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
        return any(is_kind(dtype) for is_kind in kinds)


def dropped_before(rows: pa.Table) -> pa.Array:
    """Whether an earlier select dropped each row; of none where there is no select."""
    if KEEP.name not in rows.column_names:
        return pa.array(np.zeros(len(rows), bool))
    return pc.invert(rows[KEEP.name].combine_chunks().fill_null(False))


def preference(keep: Keep | None, rows: pa.Table) -> pa.Array:
    """The preference of each row, in the order of its column's values and as exact as they are."""
    if keep is None:
        return pa.array(np.zeros(len(rows), np.uint64))
    value = rows[keep.column].combine_chunks()
    if pa.types.is_floating(value.type):
        value_N = value.cast(pa.float64()).fill_null(np.nan).to_numpy() + 0.0  # no -0.0
        bits_N = value_N.view(np.uint64)
        # Bits of IEEE numbers sort as integers, once those of negative ones are turned round.
        rank_N = np.where(value_N < 0, ~bits_N, bits_N | SIGN)
        missing_N = np.isnan(value_N)
    elif value.type == pa.uint64():
        rank_N, missing_N = value.fill_null(0).to_numpy(), value.is_null().to_numpy(False)
    else:
        signed_N = value.cast(pa.int64()).fill_null(0).to_numpy()
        rank_N, missing_N = signed_N.view(np.uint64) ^ SIGN, value.is_null().to_numpy(False)
    if keep.order == "desc":
        rank_N = ~rank_N
    return pa.array(np.where(missing_N, WORST, rank_N))


def best_first(rows: pa.Table) -> NDArray[np.int64]:
    """(N,) the rows' numbers by preference, then uid, then place: which comes of a repeated uid."""
    uid_N2 = halves(rows[UID.name])
    place = rows[POSITION.name].to_numpy(), rows[SHARD.name].to_numpy()
    return np.lexsort((*place, uid_N2[:, 1], uid_N2[:, 0], rows[PREFERENCE.name].to_numpy()))
