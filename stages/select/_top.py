"""Finds the largest values of a column too large for one machine, by the rules of `top`."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY, KEEP, REASON
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, OneUp, Share
from clipmill.stages.select import _cut as cut
from clipmill.stages.select._judged import judged_rows

# Shapes: N rows of the pool, D digits of a rank.

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Top:
    """The largest values of one column: a share of the rows, rounded down, or a number of them.

    `passing` takes the share of the rows that `where` keeps; `pool` fixes the cut on all rows
    first, as DataComp does. Rows without a value count for the share and are never kept. Ties go
    to the smaller uid; with `datacomp_compat` the cut is the (n+1)-th largest value and all its
    ties stay, a cut that lands on rows without a value keeps nothing, and fraction 1 keeps all.
    """

    column: NonEmpty  # column to rank by: `name` or `stage.name`
    fraction: Share | None = None  # share of the rows, above 0 and up to 1
    rows: OneUp | None = None  # or: number of rows
    # what the share is taken of: the rows that pass `where`, or the whole pool
    over: Literal["passing", "pool"] = "passing"
    datacomp_compat: bool = False  # cut as DataComp's code does: one row more, and all ties

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.rows is None):
            both = "fraction and rows" if self.rows else "neither fraction nor rows"
            do = "write one of the two: fraction: 0.3, or rows: 1000"
            raise RecipeError(f"`top` has {both}", "key `top`", do)
        if self.datacomp_compat and self.fraction is None:
            do = "write fraction: …, or leave datacomp_compat out"
            raise RecipeError("datacomp_compat is a rule about `fraction`", "key `top`", do)

    @property
    def size(self) -> str:
        """Returns the size in words: "best 1,000", "best 30 %"."""
        return f"best {self.rows:,}" if self.rows else f"best {100 * (self.fraction or 0):.4g} %"

    def first_cut(self, pool: int, ranked: int) -> tuple[cut.Cut | None, int]:
        """Returns the cut if it is known without reading a value; else None and n of the n-th."""
        nth = self.rows or int(pool * (self.fraction or 0))
        if self.datacomp_compat and nth < pool:
            return (cut.NOTHING, 0) if nth >= ranked else (None, nth + 1)
        return cut.if_known(nth, ranked)


def search(top: Top) -> cut.Search:
    return cut.search(partial(in_pool, over=top.over), top.first_cut, top.datacomp_compat)


def rankable(value: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the numbers, with null for NaN."""
    if pa.types.is_float16(value.type):
        value = value.cast(pa.float32())
    if pa.types.is_floating(value.type):
        value = pc.if_else(pc.is_nan(value), None, value)
    return value


def in_pool(rows: pa.Table, over: str) -> tuple[int, Bools, NDArray[np.uint16]]:
    """Returns how many rows a share is taken of, (N,) those with a value, and their digits."""
    pool_N = rows[KEEP.name].to_numpy() if over == "passing" else np.ones(len(rows), bool)
    ranked_N = pool_N & rows["value"].is_valid().to_numpy()
    digits_ND = cut.value_digits(rows["value"].filter(pa.array(ranked_N)))
    return int(pool_N.sum()), ranked_N, digits_ND


def keep_best(rows: pa.Table, *, top: Top, lowest: cut.Cut) -> pa.Table:
    """Returns keep and reason of every row, now by its value too."""
    has_value = rows["value"].is_valid()
    out = pc.if_else(has_value, f"top:{top.column}", f"undefined:{top.column}")
    stays = pc.and_(has_value, pa.array(reaching(rows, lowest)))
    reason = pc.coalesce(rows[REASON.name].cast(pa.string()), pc.if_else(stays, None, out))
    return judged_rows(rows, reason, {})


def reaching(rows: pa.Table, lowest: cut.Cut) -> Bools:
    """Returns (N,) whether each row's rank reaches the cut; tie-breakers are read if needed."""
    return cut.reaching(cut.value_digits(rows["value"]), rows, lowest)


class Ranking:
    """Rows with a value in the order in which `top` keeps them, sorted once for many tops."""

    def __init__(self, top: Top, rows: pa.Table) -> None:
        value = rankable(rows[top.column])
        key_N = cut.value_key(value)
        self.order = falling(key_N, rows.select(IDENTITY))
        if value.null_count:
            self.order = self.order[value.is_valid().to_numpy()[self.order]]
        if top.datacomp_compat:
            key_N = key_N[self.order]
            self.ends_of_ties = np.flatnonzero(np.append(np.diff(key_N) != 0, True)[: len(key_N)])

    def best(self, top: Top, passing_N: Bools) -> Bools:
        """Returns (N,) whether each row has a value at or above the cut."""
        pool_N = passing_N if top.over == "passing" else np.ones_like(passing_N)
        reached = np.cumsum(pool_N[self.order])
        first, nth = top.first_cut(int(pool_N.sum()), int(reached[-1]) if len(reached) else 0)
        if first is None:
            last = int(np.searchsorted(reached, nth))
            if top.datacomp_compat:
                last = int(self.ends_of_ties[np.searchsorted(self.ends_of_ties, last)])
        else:
            last = -1 if first == cut.NOTHING else len(self.order) - 1
        best_N = np.zeros_like(passing_N)
        best_N[self.order[: last + 1]] = True
        return best_N


def falling(key_N: NDArray[np.unsignedinteger], rows: pa.Table) -> NDArray[np.int64]:
    """Returns (N,) row indices by falling rank; only tied values are compared by uid and place."""
    order = rising(key_N)[::-1]
    is_new = np.concatenate([[True], np.diff(key_N[order]) != 0, [True]])[: len(order) + 1]
    tied = np.flatnonzero(~(is_new[1:] & is_new[:-1]))
    among = order[tied]
    rank_MD = np.hstack([cut.as_digits(key_N[among][:, None]), cut.tie_digits(rows.take(among))])
    order[tied] = among[np.lexsort(rank_MD.T[::-1])[::-1]]
    return order


def rising(key_N: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Returns (N,) row indices by rising key. 32-bit keys are sorted with their row beside them."""
    if key_N.itemsize > 4:
        return np.argsort(key_N)
    key_and_row_N = np.left_shift(key_N, np.uint64(32), dtype=np.uint64)
    key_and_row_N |= np.arange(len(key_N), dtype=np.uint32)
    key_and_row_N.sort()  # a third of argsort's time
    key_and_row_N &= np.uint64(2**32 - 1)
    return key_and_row_N.view(np.int64)
