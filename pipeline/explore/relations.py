"""Relates rules, scores and categories over the rows that meet all filters."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.explore import questions
from clipmill.pipeline.explore.columns import Bools, Columns, Numbers
from clipmill.pipeline.explore.counts import MaskSet
from clipmill.pipeline.explore.masks import Masks
from clipmill.pipeline.explore.moved import CutAt, cuts_of
from clipmill.pipeline.ledger.selection.relations import Moments, RuleCounts, quantiles
from clipmill.pipeline.ledger.selection.rules import MOST_RULES
from clipmill.pipeline.ledger.selection.scores import GOES

# Shapes: N rows of a root, M of them that meet the filters.

MOST_VALUES = 12  # the most frequent values of a category
QUARTILES = (0.25, 0.5, 0.75)


def relations(masks: Masks, question: questions.Relations) -> dict[str, Any]:
    """Returns overlaps of thresholds, correlations of numbers, and numbers by category."""
    columns = masks.columns
    rows_N = MaskSet(len(columns), [masks.of(filter) for filter in question.filters]).rows()
    numbers = {name: _finite(columns.numbers(name), rows_N) for name in question.columns}
    return {
        "rows": int(rows_N.sum()),
        "rules": _overlap(columns, rows_N),
        "correlations": _correlations(numbers),
        "by": _by_value(columns, rows_N, numbers, question.category) if question.category else None,
    }


def beyond(numbers: Numbers, cut: CutAt) -> Bools:
    """Returns (N,) whether each row is on the dropped side; false without a value."""
    values = numbers.values
    own = values.dtype.type if values.dtype.kind == "f" else float
    return np.asarray(GOES[cut.sign](values, own(cut.value or 0)) & numbers.is_there)


def _overlap(columns: Columns, rows_N: Bools) -> list[dict[str, Any]]:
    """Returns each threshold with the rows beyond it, beyond it alone, and beyond others too.

    It counts rows whatever dropped them: a lost row is counted at the first rule it breaks.
    """
    cuts = [
        cut
        for cut in cuts_of(columns)
        if cut.value is not None and not cut.is_size and columns.stored[cut.column].kind == "number"
    ][:MOST_RULES]
    rule_counts = RuleCounts()
    rule_counts.count([beyond(columns.numbers(cut.column), cut)[rows_N] for cut in cuts])
    return [
        {
            "stage": cut.stage,
            "text": cut.text,
            "rows": rule_counts.both(place, place),
            "alone": rule_counts.alone(place),
            "both": [rule_counts.both(place, other) for other in range(len(cuts))],
        }
        for place, cut in enumerate(cuts)
    ]


def _finite(numbers: Numbers, rows_N: Bools) -> NDArray[np.float64]:
    """Returns (M,) NaN for values that are missing or not finite."""
    value_M = numbers.values[rows_N].astype(np.float64)
    value_M[~numbers.is_there[rows_N] | ~np.isfinite(value_M)] = np.nan
    return value_M


def _correlations(numbers: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Returns Pearson's r of every pair over rows with both; null if one does not vary."""
    if not numbers:
        return []
    moments = Moments(len(numbers))
    moments.count(np.stack(list(numbers.values())))
    pairs = []
    for (a, name), (b, other) in combinations(enumerate(numbers), 2):
        r, rows = moments.pair(a, b)
        pairs.append({"a": name, "b": other, "r": r, "rows": rows})
    return pairs


def _by_value(
    columns: Columns, rows_N: Bools, numbers: dict[str, NDArray[np.float64]], name: str
) -> dict[str, Any]:
    """Returns the quartiles of each number at the most frequent values of a category."""
    codes = columns.codes(name)
    code_M = codes.code[rows_N]
    rows = np.bincount(code_M + 1, minlength=len(codes.names) + 1)
    values = [i for i in np.argsort(-rows, kind="stable")[:MOST_VALUES].tolist() if rows[i]]
    lines = []
    for place in values:
        here_M = code_M == place - 1
        quartiles = {n: quantiles(value_M[here_M], QUARTILES) for n, value_M in numbers.items()}
        value = codes.names[place - 1] if place else None
        lines.append({"value": value, "rows": int(rows[place]), "quartiles": quartiles})
    return {"column": name, "values": lines}
