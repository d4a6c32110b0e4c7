"""The N rows of least rank among rows that no machine holds whole; ties by uid, then by place."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset import Context, Shards, State
from stages.ops.keeper import in_order
from stages.ops.states import added
from stages.select import _cut as cut

# Shapes: N rows, D digits of a rank.


def least_cut(column: str, wanted: int, rows: Shards, ctx: Context) -> cut.Cut:
    """The cut that the wanted number of rows reach: all with a rank, where they are no more."""
    found, nth = cut.EVERYTHING, wanted
    while True:
        seen = ctx.reduce(partial(survey, column=column, begin=found), rows, added)
        if wanted >= int(seen["ranked"]):
            return cut.EVERYTHING
        found, nth = cut.extend(found, nth, seen["by_digit"])
        if nth == seen["by_digit"][found[-1]]:
            return found


def survey(rows: pa.Table, *, column: str, begin: cut.Cut) -> State:
    """Rows with a rank, and how the digits of those that begin so go on."""
    ranked = rows.filter(rows[column].is_valid())
    return {
        "ranked": np.array(len(ranked)),
        "by_digit": cut.next_digit(digits(ranked, column), begin),
    }


def digits(rows: pa.Table, column: str) -> NDArray[np.uint16]:
    """(N, D) digits of which the greatest are those of the least rank."""
    return np.hstack([~cut.value_digits(rows[column]), cut.tie_digits(rows)])


def is_least(rows: pa.Table, column: str, lowest: cut.Cut) -> NDArray[np.bool_]:
    """(N,) whether each row has a rank that reaches the cut."""
    is_ranked_N = rows[column].is_valid().to_numpy()
    return is_ranked_N & cut.at_or_above(digits(rows, column), lowest)


def at_each(
    wanted: Sequence[int], rows: pa.Table, rank: pa.ChunkedArray
) -> Iterator[NDArray[np.bool_]]:
    """(N,) the rows that each wanted number leaves; sorted once."""
    order = in_order(rows, rank.fill_null(0).to_numpy())
    order = order[rank.is_valid().to_numpy()[order]]
    for number in wanted:
        keep_N = np.zeros(len(rows), bool)
        keep_N[order[:number]] = True
        yield keep_N
