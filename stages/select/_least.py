"""The N rows of least rank among rows that no machine holds whole; ties by uid, then by place."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY
from clipmill.pipeline.dataset import State
from clipmill.pipeline.stage import Parts
from clipmill.stages.ops.tables.rows import added, in_order
from clipmill.stages.select import _cut as cut

# Shapes: N rows, D digits of a rank.

Bools = NDArray[np.bool_]


def search(column: str, size: Callable[[int], int]) -> cut.Search:
    """The cut that so many of the rows with a rank reach, as `size` says of their number: all of
    them, where they are no more."""
    found = cut.EVERYTHING
    while True:
        seen = yield partial(survey, column=column, begin=found), added
        if not found:
            nth = wanted = size(int(seen["ranked"]))
            if not wanted:
                return cut.NOTHING
        if wanted >= int(seen["ranked"]):
            return cut.EVERYTHING
        found, nth = cut.extend(found, nth, seen["by_digit"])
        if nth == seen["by_digit"][found[-1]]:
            return found


def survey(rows: pa.Table, *, column: str, begin: cut.Cut) -> State:
    """Rows with a rank, and how the digits of those that begin so go on."""
    ranked = rows.filter(rows[column].is_valid())
    value_ND = least_first(ranked[column])
    if len(begin) < value_ND.shape[1]:
        by_digit = cut.next_digit(value_ND, begin)
    else:  # only those level with it by value are tied
        by_value, by_tie = begin[: value_ND.shape[1]], begin[value_ND.shape[1] :]
        tied = ranked.filter(pa.array(cut.level_with(value_ND, by_value)))
        by_digit = cut.next_digit(cut.tie_digits(tied), by_tie)
    return {"ranked": np.array(len(ranked)), "by_digit": by_digit}


def least_first(value: pa.ChunkedArray) -> NDArray[np.uint16]:
    """(N, D) digits of which the greatest are those of the least value."""
    return ~cut.value_digits(value)


def is_least(rows: pa.Table, column: str, lowest: cut.Cut) -> Bools:
    """(N,) whether each row has a rank that reaches the cut."""
    is_ranked_N = rows[column].is_valid().to_numpy()
    return is_ranked_N & cut.reaching(least_first(rows[column]), rows, lowest)


def least_of_parts(
    column: str, sizes: Sequence[Callable[[int], int]], parts: Parts
) -> Callable[[pa.Table, pa.Table], Iterator[Bools]]:
    """Of some rows (N,) those that are among the least of all parts, as many of these as each size
    says; `made` has the column of the rank."""

    def ranked(rows: pa.Table, made: pa.Table) -> pa.Table:
        return rows.select(IDENTITY).append_column(column, made[column])

    cuts = cut.found_together(
        [search(column, size) for size in sizes],
        lambda: ([ranked(*part)] * len(sizes) for part in parts()),
    )

    def kept(rows: pa.Table, made: pa.Table) -> Iterator[Bools]:
        table = ranked(rows, made)
        return (is_least(table, column, lowest) for lowest in cuts)

    return kept


def at_each(wanted: Sequence[int], rows: pa.Table, rank: pa.ChunkedArray) -> Iterator[Bools]:
    """(N,) the rows that each wanted number leaves; sorted once."""
    order = in_order(rows, rank.fill_null(0).to_numpy())
    order = order[rank.is_valid().to_numpy()[order]]
    for number in wanted:
        keep_N = np.zeros(len(rows), bool)
        keep_N[order[:number]] = True
        yield keep_N
