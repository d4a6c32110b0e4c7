"""How rules, scores and categories go together over the rows that meet all filters."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.explore import asked
from pipeline.explore.columns import Bools, Columns, Numbers
from pipeline.explore.counts import Apart
from pipeline.explore.masks import Masks
from pipeline.explore.moved import CutAt, cuts_of
from pipeline.ledger.scores import GOES

# Shapes: N rows of a root, M of them that meet the filters.

MOST_VALUES = 12  # of a category, the most frequent
QUARTILES = (0.25, 0.5, 0.75)


def relations(masks: Masks, question: asked.Relations) -> dict[str, Any]:
    """Rows beyond two thresholds at once; how numbers rise together; numbers by category."""
    columns = masks.columns
    rows_N = Apart(len(columns), [masks.of(filter) for filter in question.filters]).rows()
    numbers = {name: _finite(columns.numbers(name), rows_N) for name in question.columns}
    return {
        "rows": int(rows_N.sum()),
        "rules": _overlap(columns, rows_N),
        "correlations": [
            {"a": a, "b": b, **_pearson(numbers[a], numbers[b])}
            for a, b in combinations(question.columns, 2)
        ],
        "by": _by_value(columns, rows_N, numbers, question.category) if question.category else None,
    }


def beyond(numbers: Numbers, cut: CutAt) -> Bools:
    """(N,) whether each row is on the side that goes; without a value it is on none."""
    values = numbers.values
    own = values.dtype.type if values.dtype.kind == "f" else float
    return np.asarray(GOES[cut.sign](values, own(cut.value or 0)) & numbers.is_there)


def _overlap(columns: Columns, rows_N: Bools) -> list[dict[str, Any]]:
    """Each threshold with the rows beyond it, those beyond it alone, and those beyond each other
    as well. It is of rows, whatever dropped them: a row is lost for the first rule it breaks."""
    cuts = [
        cut
        for cut in cuts_of(columns)
        if cut.value is not None and not cut.is_size and columns.stored[cut.column].kind == "number"
    ]
    beyond_CM = [beyond(columns.numbers(cut.column), cut)[rows_N] for cut in cuts]
    by_M = np.sum(beyond_CM, axis=0) if cuts else np.zeros(0)
    return [
        {
            "stage": cut.stage,
            "text": cut.text,
            "rows": int(mine_M.sum()),
            "alone": int((mine_M & (by_M == 1)).sum()),
            "both": [int((mine_M & other_M).sum()) for other_M in beyond_CM],
        }
        for cut, mine_M in zip(cuts, beyond_CM, strict=True)
    ]


def _finite(numbers: Numbers, rows_N: Bools) -> NDArray[np.float64]:
    """(M,) NaN where there is no finite value."""
    value_M = numbers.values[rows_N].astype(np.float64)
    value_M[~numbers.is_there[rows_N] | ~np.isfinite(value_M)] = np.nan
    return value_M


def _pearson(a_M: NDArray[np.float64], b_M: NDArray[np.float64]) -> dict[str, Any]:
    """Pearson's r over rows that have both; null where one of them does not vary."""
    both_M = ~np.isnan(a_M) & ~np.isnan(b_M)
    a, b = a_M[both_M], b_M[both_M]
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return {"r": None, "rows": len(a)}
    return {"r": float(np.corrcoef(a, b)[0, 1]), "rows": len(a)}


def _by_value(
    columns: Columns, rows_N: Bools, numbers: dict[str, NDArray[np.float64]], name: str
) -> dict[str, Any]:
    """The quartiles of each number at the most frequent values of a category."""
    codes = columns.codes(name)
    code_M = codes.code[rows_N]
    rows = np.bincount(code_M + 1, minlength=len(codes.names) + 1)
    values = [i for i in np.argsort(-rows, kind="stable")[:MOST_VALUES].tolist() if rows[i]]
    lines = []
    for place in values:
        here_M = code_M == place - 1
        quartiles = {}
        for of, value_M in numbers.items():
            some = value_M[here_M]
            some = some[~np.isnan(some)]
            quartiles[of] = np.quantile(some, QUARTILES).tolist() if len(some) else None
        value = codes.names[place - 1] if place else None
        lines.append({"value": value, "rows": int(rows[place]), "quartiles": quartiles})
    return {"column": name, "values": lines}
