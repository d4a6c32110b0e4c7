"""Which of several equal or similar rows stays: the order that all dedup stages share."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import POSITION, SHARD, UID, Column
from metadata.uid import halves
from pipeline.errors import StageError

# Shapes: N rows.

PREFERENCE = Column("preference", pa.uint64(), "0 up", "The lowest stays; the last has no value.")
WORST = np.uint64(2**64 - 1)
SIGN = np.uint64(2**63)


@dataclass(frozen=True, kw_only=True)
class Keep:
    """A column of numbers or truth values; `desc` keeps its greatest. Null comes last."""

    column: str  # `name` or `stage.name`
    order: Literal["asc", "desc"]


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
    elif pa.types.is_integer(value.type) or pa.types.is_boolean(value.type):
        signed_N = value.cast(pa.int64()).fill_null(0).to_numpy()
        rank_N, missing_N = signed_N.view(np.uint64) ^ SIGN, value.is_null().to_numpy(False)
    else:
        raise StageError(
            found=f"column '{keep.column}' is of type {value.type}",
            where="key `keep`",
            do="name a column of numbers or truth values",
        )
    if keep.order == "desc":
        rank_N = ~rank_N
    return pa.array(np.where(missing_N, WORST, rank_N))


def best_first(rows: pa.Table) -> NDArray[np.int64]:
    """(N,) the rows' numbers by preference, then uid, then place: which comes of a repeated uid."""
    uid_N2 = halves(rows[UID.name])
    place = rows[POSITION.name].to_numpy(), rows[SHARD.name].to_numpy()
    return np.lexsort((*place, uid_N2[:, 1], uid_N2[:, 0], rows[PREFERENCE.name].to_numpy()))
