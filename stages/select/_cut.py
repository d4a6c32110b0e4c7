"""Finds the n-th largest of a column too large for one machine: exact, by radix over histograms.

A rank is a number in 16-bit digits, most significant first: the row's value, then the tie-breakers
(the smaller uid ranks higher, then the earlier place in the pool). One pass over the rows gives one
digit of the n-th largest rank, from counts that add up in any order. Once few ranks begin with the
digits known so far, they are sorted.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.uid import halves
from clipmill.pipeline.dataset import Context, Shards, State

# Shapes: N rows, D digits of a rank.

BINS = 1 << 16
Cut = tuple[int, ...]  # the first digits of a rank; rows at or above it stay
EVERYTHING: Cut = ()
NOTHING: Cut = (BINS,)
FEW = 1 << 16  # ranks that the driver sorts, of 24 to 32 bytes
TOGETHER = 64  # searches at a time; each holds 2 MB of ranks at most
# A search yields two functions for a pass, one that counts rows of a table and one that adds two
# counts; it is sent the sum over all rows.
Pass = tuple[Callable[[pa.Table], State], Callable[[State, State], State]]
Search = Generator[Pass, State, Cut]
# Returns how many rows a share is of, (N,) whether each row has a rank, and their values' digits.
Ranked = Callable[[pa.Table], tuple[int, NDArray[np.bool_], NDArray[np.uint16]]]


def solve(search: Search, rows: Shards, ctx: Context) -> Cut:
    """Runs a search, each pass a reduce over the workers; returns its cut."""
    count, add = next(search)
    while True:
        try:
            count, add = search.send(ctx.reduce(count, rows, add))
        except StopIteration as end:
            return cast(Cut, end.value)


def solve_together(
    searches: Sequence[Search], parts: Callable[[], Iterator[Sequence[pa.Table]]]
) -> list[Cut]:
    """Runs several searches, each over its own table of every part; returns their cuts. A pass over
    the parts serves `TOGETHER` searches."""
    cuts = [EVERYTHING] * len(searches)
    for start in range(0, len(searches), TOGETHER):
        numbers = range(start, min(start + TOGETHER, len(searches)))
        passes = {number: next(searches[number]) for number in numbers}
        while passes:
            totals: dict[int, State] = {}
            for tables in parts():
                for number, (count, add) in passes.items():
                    counts = count(tables[number])
                    totals[number] = add(totals[number], counts) if number in totals else counts
            for number in [*passes]:
                try:
                    passes[number] = searches[number].send(totals[number])
                except StopIteration as end:
                    cuts[number] = end.value
                    del passes[number]
    return cuts


def search(
    ranked: Ranked, first: Callable[[int, int], tuple[Cut | None, int]], ties_stay: bool = False
) -> Search:
    """Searches for the cut: one digit per pass over all rows, until few ranks are left to sort.

    `first` gets the numbers of rows and of ranks, and answers as `if_known`. With `ties_stay` all
    rows of the last value stay.
    """
    prefix = EVERYTHING
    totals = yield partial(survey, ranked=ranked), merge
    known, nth = first(*totals["rows"].tolist())
    if known is not None:
        return known
    while "by_digit" in totals:
        prefix, nth = extend(prefix, nth, totals["by_digit"])
        level = int(totals["by_digit"][prefix[-1]])
        if nth == level or (ties_stay and len(prefix) == totals["value_digits"]):
            return prefix
        count, add = (survey, merge) if level > FEW else (ranks, joined)
        totals = yield partial(count, ranked=ranked, begin=prefix), add
    rank_ND = totals["ranks"]
    whole = tuple(rank_ND[np.lexsort(rank_ND.T[::-1])[-nth]].tolist())  # the n-th largest
    return whole[: int(totals["value_digits"])] if ties_stay else whole


def if_known(nth: int, ranks: int) -> tuple[Cut | None, int]:
    """Returns the cut of the n-th of all ranks if no value has to be read, else None; and n."""
    if nth == 0:
        return NOTHING, 0
    return (EVERYTHING, 0) if nth >= ranks else (None, nth)


def survey(rows: pa.Table, *, ranked: Ranked, begin: Cut = EVERYTHING) -> State:
    """Counts pool rows and those with a value, and the next digit of ranks after `begin`."""
    pool, ranked_N, value_ND = ranked(rows)
    digits = value_ND.shape[1]
    if len(begin) < digits:
        by_digit = next_digit(value_ND, begin)
    else:
        ranked_N[ranked_N] = level_with(value_ND, begin[:digits])
        by_digit = next_digit(tie_digits(rows.filter(pa.array(ranked_N))), begin[digits:])
    return {
        "rows": np.array([pool, len(value_ND)]),
        "by_digit": by_digit.astype(np.min_scalar_type(len(value_ND))),  # few bytes
        "value_digits": np.array(digits),
    }


def merge(left: State, right: State) -> State:
    rows = np.add(left["rows"], right["rows"])
    by_digit = np.add(left["by_digit"], right["by_digit"], dtype=np.int64)
    # `value_digits` is the same in both: a column has one type in the whole pool.
    return left | {"rows": rows, "by_digit": by_digit.astype(np.min_scalar_type(int(rows[1])))}


def ranks(rows: pa.Table, *, ranked: Ranked, begin: Cut) -> State:
    """Returns the whole ranks that begin with `begin`."""
    _, ranked_N, value_ND = ranked(rows)
    digits = value_ND.shape[1]
    level_N = level_with(value_ND, begin[:digits])
    ranked_N[ranked_N] = level_N
    rank_ND = np.hstack([value_ND[level_N], tie_digits(rows.filter(pa.array(ranked_N)))])
    return {"ranks": rank_ND[level_with(rank_ND, begin)], "value_digits": np.array(digits)}


def joined(left: State, right: State) -> State:
    return left | {"ranks": np.concatenate([left["ranks"], right["ranks"]])}


def value_digits(value: pa.ChunkedArray) -> NDArray[np.uint16]:
    """Returns (N, 1, 2 or 4) digits that order as the values do; 0 for nulls, to be left out."""
    return as_digits(value_key(value)[:, None])


def value_key(value: pa.ChunkedArray) -> NDArray[np.unsignedinteger]:
    """Returns (N,) whole numbers that order as the values do; a null counts as 0."""
    number_N = value.fill_null(0).to_numpy()
    if number_N.dtype.itemsize == 1:
        number_N = number_N.astype(np.int16)
    bits = np.dtype(f"u{number_N.dtype.itemsize}").type
    key_N = (number_N + number_N.dtype.type(0)).view(bits)  # -0.0 + 0.0 is 0.0: they are equal
    sign = bits(1) << bits(8 * key_N.itemsize - 1)
    if number_N.dtype.kind == "i":
        key_N ^= sign
    if number_N.dtype.kind == "f":  # negative floats grow downwards
        is_negative_N = key_N.view(f"i{key_N.itemsize}") >> (8 * key_N.itemsize - 1)  # all ones
        key_N ^= is_negative_N.view(bits) | sign
    return np.asarray(key_N)


def tie_digits(rows: pa.Table) -> NDArray[np.uint16]:
    """Returns (N, 12) digits of uid, shard and position; the least of them rank highest."""
    place_N2 = np.stack([rows["shard"].to_numpy(), rows["position"].to_numpy()], axis=1)
    return ~np.hstack([as_digits(halves(rows["uid"])), as_digits(place_N2.astype(np.uint32))])


def as_digits(number_ND: NDArray[np.unsignedinteger]) -> NDArray[np.uint16]:
    """Returns the numbers as 16-bit digits, most significant first."""
    big_endian = np.ascontiguousarray(number_ND, number_ND.dtype.newbyteorder(">"))
    return big_endian.view(">u2").astype(np.uint16)


def next_digit(rank_ND: NDArray[np.uint16], cut: Cut) -> NDArray[np.int64]:
    """Returns (BINS,) counts of the next digit among the ranks that begin with `cut`."""
    return np.bincount(rank_ND[level_with(rank_ND, cut), len(cut)], minlength=BINS)


def level_with(rank_ND: NDArray[np.uint16], cut: Cut) -> NDArray[np.bool_]:
    """Returns (N,) whether each rank begins with the cut's digits."""
    level_N = np.ones(len(rank_ND), bool)
    for place, digit in enumerate(cut):
        level_N &= rank_ND[:, place] == digit
    return level_N


def at_or_above(rank_ND: NDArray[np.uint16], cut: Cut) -> NDArray[np.bool_]:
    """Returns (N,) whether each rank reaches the cut."""
    above_N, level_N = np.zeros(len(rank_ND), bool), np.ones(len(rank_ND), bool)
    for place, digit in enumerate(cut):
        above_N |= level_N & (rank_ND[:, place] > digit)
        level_N &= rank_ND[:, place] == digit
    return above_N | level_N


def reaching(value_ND: NDArray[np.uint16], rows: pa.Table, cut: Cut) -> NDArray[np.bool_]:
    """Returns (N,) whether each row's rank reaches the cut; tie-breakers are read if needed."""
    by_value, by_tie = cut[: value_ND.shape[1]], cut[value_ND.shape[1] :]
    reaching_N = at_or_above(value_ND, by_value)
    if by_tie:
        level_N = level_with(value_ND, by_value)
        tied_ND = tie_digits(rows.filter(pa.array(level_N)))
        reaching_N[level_N] = at_or_above(tied_ND, by_tie)
    return reaching_N


def extend(cut: Cut, nth: int, rows_by_digit: NDArray) -> tuple[Cut, int]:
    """Returns the cut one digit longer, and n counted among the rows that begin with it, from 1."""
    down_to = np.cumsum(rows_by_digit[::-1], dtype=np.int64)
    step = int(np.searchsorted(down_to, nth))
    digit = BINS - 1 - step
    return (*cut, digit), int(nth - (down_to[step] - rows_by_digit[digit]))
