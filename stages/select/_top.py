"""Finds the largest values of a column too large for one machine, by the rules of `top`."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY, KEEP, REASON
from clipmill.pipeline.dataset import State
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, OneUp, Share
from clipmill.stages.select import _cut as cut

# Shapes: N rows of the pool, D digits of a rank.

Bools = NDArray[np.bool_]
FEW = 1 << 16  # ranks that the driver sorts, of 24 to 32 bytes


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
        if nth == 0:
            return cut.NOTHING, 0
        return (cut.EVERYTHING, 0) if nth >= ranked else (None, nth)


def search(top: Top) -> cut.Search:
    """Searches for the cut: one digit per pass over all rows, until few ranks are left to sort."""
    prefix = cut.EVERYTHING
    totals = yield partial(survey, over=top.over), merge
    known, nth = top.first_cut(*totals["rows"].tolist())
    if known is not None:
        return known
    while "by_digit" in totals:
        prefix, nth = cut.extend(prefix, nth, totals["by_digit"])
        level = int(totals["by_digit"][prefix[-1]])
        ties_stay = top.datacomp_compat and len(prefix) == totals["value_digits"]
        if ties_stay or nth == level:
            return prefix
        count, add = (survey, merge) if level > FEW else (ranks, joined)
        totals = yield partial(count, over=top.over, begin=prefix), add
    whole = cut.nth_largest(totals["ranks"], nth)
    return whole[: int(totals["value_digits"])] if top.datacomp_compat else whole


def rankable(value: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the numbers, with null for NaN."""
    if pa.types.is_float16(value.type):
        value = value.cast(pa.float32())
    if pa.types.is_floating(value.type):
        value = pc.if_else(pc.is_nan(value), None, value)
    return value


def survey(rows: pa.Table, *, over: str, begin: cut.Cut = cut.EVERYTHING) -> State:
    """Counts pool rows and those with a value, and the next digit of ranks after `begin`."""
    pool_N, ranked_N, value_ND = in_pool(rows, over)
    digits = value_ND.shape[1]
    if len(begin) < digits:
        by_digit = cut.next_digit(value_ND, begin)
    else:
        ranked_N[ranked_N] = cut.level_with(value_ND, begin[:digits])
        tied_ND = cut.tie_digits(rows.filter(pa.array(ranked_N)))
        by_digit = cut.next_digit(tied_ND, begin[digits:])
    return {
        "rows": np.array([np.count_nonzero(pool_N), len(value_ND)]),
        "by_digit": as_small(by_digit, len(value_ND)),
        "value_digits": np.array(digits),
    }


def merge(left: State, right: State) -> State:
    rows = np.add(left["rows"], right["rows"])
    by_digit = np.add(left["by_digit"], right["by_digit"], dtype=np.int64)
    # `value_digits` is the same in both: a column has one type in the whole pool.
    return left | {"rows": rows, "by_digit": as_small(by_digit, int(rows[1]))}


def as_small(by_digit: NDArray[np.int64], most: int) -> NDArray[np.unsignedinteger]:
    """Returns the counts in the fewest bytes that hold them: they are most of the journal."""
    return by_digit.astype(np.min_scalar_type(most))


def ranks(rows: pa.Table, *, over: str, begin: cut.Cut) -> State:
    """Returns the whole ranks that begin with `begin`."""
    _, ranked_N, value_ND = in_pool(rows, over)
    digits = value_ND.shape[1]
    level_N = cut.level_with(value_ND, begin[:digits])
    ranked_N[ranked_N] = level_N
    tied_ND = cut.tie_digits(rows.filter(pa.array(ranked_N)))
    rank_ND = np.hstack([value_ND[level_N], tied_ND])
    return {
        "ranks": rank_ND[cut.level_with(rank_ND, begin)],
        "value_digits": np.array(digits),
    }


def joined(left: State, right: State) -> State:
    return left | {"ranks": np.concatenate([left["ranks"], right["ranks"]])}


def in_pool(rows: pa.Table, over: str) -> tuple[Bools, Bools, NDArray[np.uint16]]:
    """Returns (N,) the rows a share is taken of, (N,) those with a value, their values' digits."""
    pool_N = rows[KEEP.name].to_numpy() if over == "passing" else np.ones(len(rows), bool)
    ranked_N = pool_N & rows["value"].is_valid().to_numpy()
    return pool_N, ranked_N, cut.value_digits(rows["value"].filter(pa.array(ranked_N)))


def keep_best(rows: pa.Table, *, top: Top, lowest: cut.Cut) -> pa.Table:
    """Returns keep and reason of every row, now by its value too."""
    before = rows.unify_dictionaries()[REASON.name].combine_chunks()
    of_top = [f"undefined:{top.column}", f"top:{top.column}"]
    reasons = list(dict.fromkeys([*before.dictionary.to_pylist(), *of_top]))
    undefined, too_low = map(reasons.index, of_top)
    code_N = before.indices.fill_null(-1).to_numpy()
    passing_N = code_N < 0
    by_value_N = np.where(rows["value"].is_null().to_numpy(), undefined, too_low)
    code_N = np.where(passing_N, by_value_N, code_N).astype(np.int32)
    keep_N = passing_N & rows["value"].is_valid().to_numpy() & reaching(rows, lowest)
    code = pa.array(code_N, mask=keep_N).dictionary_encode()  # as they first appear in the shard
    reason = pa.DictionaryArray.from_arrays(code.indices, pa.array(reasons).take(code.dictionary))
    judged = rows.select(IDENTITY).append_column(KEEP.name, pa.array(keep_N))
    return judged.append_column(REASON.name, reason)


def reaching(rows: pa.Table, lowest: cut.Cut) -> Bools:
    """Returns (N,) whether each row's rank reaches the cut; tie-breakers are read if needed."""
    return cut.reaching(cut.value_digits(rows["value"]), rows, lowest)


class Ranking:
    """Rows with a value in the order in which `top` keeps them, sorted once for many tops."""

    def __init__(self, top: Top, rows: pa.Table) -> None:
        value = rankable(rows[top.column])
        key_N = cut.value_key(value)
        self.order = cut.falling(key_N, rows.select(IDENTITY))
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
