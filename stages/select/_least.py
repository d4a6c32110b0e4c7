"""Finds the N rows of least rank in a table too large for one machine; ties by uid, then place."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY
from clipmill.pipeline.stage import Parts, Threshold, Verdicts
from clipmill.stages.ops.tables.rows import in_order
from clipmill.stages.select import _cut as cut

# Shapes: N rows, D digits of a rank.

Bools = NDArray[np.bool_]


def search(column: str, size: Callable[[int], int]) -> cut.Search:
    """Searches for the cut that exactly `size(n)` of the n ranked rows reach, or all if fewer."""
    return cut.search(partial(with_rank, column=column), lambda _, n: cut.if_known(size(n), n))


def with_rank(rows: pa.Table, column: str) -> tuple[int, Bools, NDArray[np.uint16]]:
    """Returns how many rows there are, (N,) those with a rank, and their digits, least first."""
    ranked_N = rows[column].is_valid().to_numpy()
    return len(rows), ranked_N, least_first(rows[column].filter(pa.array(ranked_N)))


def least_first(value: pa.ChunkedArray) -> NDArray[np.uint16]:
    """Returns (N, D) digits that are greatest for the least value."""
    return ~cut.value_digits(value)


def is_least(rows: pa.Table, column: str, lowest: cut.Cut) -> Bools:
    """Returns (N,) whether each row has a rank that reaches the cut."""
    is_ranked_N = rows[column].is_valid().to_numpy()
    return is_ranked_N & cut.reaching(least_first(rows[column]), rows, lowest)


def verdict(threshold: Threshold, value: Decimal, keep_N: Bools) -> Verdicts:
    return Verdicts(float(value), f"{threshold.name} = {value:f}", keep_N)


def least_of_parts(
    threshold: Threshold,
    values: Sequence[Decimal],
    sizes: Sequence[Callable[[int], int]],
    parts: Parts,
) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
    """Returns a function that yields the verdicts on a part's rows at each value: whether they are
    among that many least of all parts; the part's `made` has the threshold's column."""
    column = threshold.column

    def ranked(rows: pa.Table, made: pa.Table) -> pa.Table:
        return rows.select(IDENTITY).append_column(column, made[column])

    cuts = cut.solve_together(
        [search(column, size) for size in sizes],
        lambda: ([ranked(*part)] * len(sizes) for part in parts()),
    )

    def verdicts(rows: pa.Table, made: pa.Table) -> Iterator[Verdicts]:
        kept = partial(is_least, ranked(rows, made), column)
        return map(partial(verdict, threshold), values, map(kept, cuts))

    return verdicts


def at_each(sizes: Iterable[int], rows: pa.Table, rank: pa.ChunkedArray) -> Iterator[Bools]:
    """Yields (N,) the rows of least rank at each size; sorted once."""
    order = in_order(rows, rank.fill_null(0).to_numpy())
    order = order[rank.is_valid().to_numpy()[order]]
    for size in sizes:
        keep_N = np.zeros(len(rows), bool)
        keep_N[order[:size]] = True
        yield keep_N
