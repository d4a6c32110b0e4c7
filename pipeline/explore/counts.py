"""Counts the rows that meet all filters by bin, value and cause, and pages through them.

Relates rules, numbers and categories over these rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore import questions
from clipmill.pipeline.explore.against import Variants
from clipmill.pipeline.explore.cache import Cache
from clipmill.pipeline.explore.columns import Bools, Columns, Numbers
from clipmill.pipeline.explore.masks import Masks
from clipmill.pipeline.explore.moved import CutAt, cuts_of, sides
from clipmill.pipeline.ledger.selection.relations import Moments, RuleCounts, quantiles
from clipmill.pipeline.ledger.selection.rules import MOST_RULES
from clipmill.pipeline.ledger.selection.scores import GOES, SAMPLED, ScoreColumn, ScoreCut, edges_of

# Shapes: N rows of a root, M of them that meet the filters, B bins.

NAMED = 200  # most frequent values of a category that are counted by name
CACHE_BYTES = 200 << 20
MOST_VALUES = 12  # the most frequent values of a category
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Bins:
    """(N,) the bin of each row's value, the last if missing; E = B + 1 edges.

    `span` is from the least value to the greatest; the outer bins include the tails.
    """

    bin: NDArray[np.uint8]
    edges: list[float]
    span: tuple[float, float]

    def counts(self, rows: Bools | None = None) -> list[int]:
        """Returns the rows in each bin; the last counts rows without a value."""
        chosen = self.bin if rows is None else self.bin[rows]
        return [int(n) for n in np.bincount(chosen, minlength=len(self.edges))]


class Counts:
    """Answers queries over the rows of one root."""

    def __init__(self, columns: Columns, variants: Variants) -> None:
        self.columns, self.variants = columns, variants
        self.masks = Masks(columns)
        self._bins = Cache[str, Bins](CACHE_BYTES)
        self._order = Cache[str, NDArray[np.int32]](CACHE_BYTES)

    def answer(self, query: questions.Query) -> dict[str, Any]:
        """Returns the answer to a `Query`."""
        masks = [self.masks.of(filter) for filter in query.filters]
        by_column = MaskSet(len(self.columns), masks)
        filters_on: dict[str, list[int]] = {}
        for index, filter in enumerate(query.filters):
            filters_on.setdefault(_about(filter), []).append(index)
        rows_N = by_column.rows()
        answer: dict[str, Any] = {"rows": len(self.columns), "count": int(rows_N.sum())}
        answer["histograms"] = {
            name: self._histogram(name, by_column.rows(*filters_on.get(name, ())))
            for name in query.histograms
        }
        answer["categories"] = {
            name: self._category(name, by_column.rows(*filters_on.get(name, ())))
            for name in query.categories
        }
        if query.end:
            lost = self.masks.lost(query.end)
            besides = by_column.rows(*filters_on.get(f"lost for {query.end}", ()))
            every, left = (
                np.bincount(code_N, minlength=len(lost.causes)).tolist()
                for code_N in (lost.code, lost.code[besides])
            )
            answer["causes"] = [
                {"stage": stage, "reason": reason, "rows": rows, "left": left_rows}
                for (stage, reason), rows, left_rows in zip(lost.causes, every, left, strict=True)
            ]
        parts: dict[str, Bools] = {"rows": rows_N}
        if query.threshold:
            moved = self.masks.counterfactuals.keep(query.threshold)
            outcomes = sides(moved.keep, moved.today)
            answer["moved"] = {
                "rule": moved.rule,
                "today": int(moved.today.sum()),
                **{outcome: int(mask.sum()) for outcome, mask in outcomes.items()},
            }
            if query.beside:
                parts = {outcome: rows_N & mask for outcome, mask in outcomes.items()}
        elif query.variant is not None and query.end:
            now_N = self.masks.lost(query.end).code == 0
            end, then_N = self.variants.kept(query.variant, self.columns, query.end)
            outcomes = {"gained": now_N & ~then_N, "lost": then_N & ~now_N, "both": now_N & then_N}
            answer["against"] = {
                "end": end,
                "now": int(now_N.sum()),
                "then": int(then_N.sum()),
                **{outcome: int(mask.sum()) for outcome, mask in outcomes.items()},
            }
            parts = {outcome: rows_N & mask for outcome, mask in outcomes.items()}
        elif query.beside and query.end:
            kept_N = self.masks.lost(query.end).code == 0
            parts = {"kept": rows_N & kept_N, "dropped": rows_N & ~kept_N}
        answer["parts"] = {
            name: {"count": int(mask.sum()), "page": self._page(mask, query)}
            for name, mask in parts.items()
        }
        return answer

    def _histogram(self, name: str, rows: Bools) -> dict[str, Any]:
        bins = self.bins(name)
        return {
            "edges": bins.edges,
            "span": bins.span,
            "all": bins.counts(),
            "left": bins.counts(rows),
        }

    def bins(self, name: str) -> Bins:
        """Returns a column's bins: even, without the tails; few whole numbers get one each."""
        bins = self._bins.get(name)
        if bins is None:
            cuts = [cut for cut in cuts_of(self.columns) if cut.column == name]
            bins = binned(self.columns.numbers(name), name, cuts)
            self._bins.put(name, bins, bins.bin.nbytes)
        return bins

    def _category(self, name: str, rows: Bools) -> dict[str, Any]:
        """Returns values with their rows, most frequent first, null for missing; and all others
        together; `refused` tells why there are none."""
        try:
            codes = self.columns.codes(name)
        except RecipeError as error:
            problem, _, do = error.args
            return {"values": [], "others": {"values": 0, "rows": 0}, "refused": f"{problem}: {do}"}
        every, left = (
            np.bincount(code_N + 1, minlength=len(codes.names) + 1)
            for code_N in (codes.code, codes.code[rows])
        )
        ranked = [i for i in np.argsort(-every, kind="stable").tolist() if every[i]]
        values = [
            {
                "value": codes.names[i - 1] if i else None,
                "rows": int(every[i]),
                "left": int(left[i]),
            }
            for i in ranked[:NAMED]
        ]
        others = {"values": len(ranked) - len(values), "rows": int(every[ranked[NAMED:]].sum())}
        return {"values": values, "others": others}

    def _page(self, mask: Bools, query: questions.Query) -> list[int]:
        if query.sort is None:
            rows = np.flatnonzero(mask)
        else:
            order = self.order(query.sort)
            rows = order[mask[order]].astype(np.int64)
        return [int(row) for row in rows[query.offset : query.offset + query.limit]]

    def order(self, sort: questions.Sort) -> NDArray[np.int32]:
        """Returns (N,) all rows by a column's value, missing ones last, ties in pool order."""
        key = f"{sort.descending} {sort.column}"
        order_N = self._order.get(key)
        if order_N is None:
            if self.columns.column(sort.column).kind == "number":
                numbers = self.columns.numbers(sort.column)
                value_N, is_there_N = numbers.values, numbers.is_there
            else:
                code_N = self.columns.codes(sort.column).code
                value_N, is_there_N = code_N, code_N >= 0
            present = np.flatnonzero(is_there_N)
            value_N = value_N[present]
            if sort.descending:  # reversed twice, so that ties keep their order
                ranked = len(present) - 1 - np.argsort(value_N[::-1], kind="stable")[::-1]
            else:
                ranked = np.argsort(value_N, kind="stable")
            missing = np.flatnonzero(~is_there_N)
            order_N = np.concatenate([present[ranked], missing]).astype(np.int32)
            self._order.put(key, order_N, order_N.nbytes)
        return order_N


class MaskSet:
    """Rows that meet all masks, or all but some: a column's histogram ignores its own filter."""

    def __init__(self, rows: int, masks: list[Bools]) -> None:
        self.masks = masks
        self.failed_N = np.zeros(rows, np.uint8)  # filters that each row fails
        for mask in masks:
            self.failed_N += ~mask
        self._all: Bools = self.failed_N == 0

    def rows(self, *besides: int) -> Bools:
        if not besides:
            return self._all
        failed_N = self.failed_N.copy()
        for index in besides:
            failed_N -= ~self.masks[index]
        return np.asarray(failed_N == 0)


def _about(filter: questions.Filter) -> str:
    """Returns what a filter narrows: a column, or the causes under an end."""
    match filter:
        case questions.Range() | questions.OneOf():
            return filter.column
        case questions.LostFor():
            return f"lost for {filter.end}"
        case _:
            return ""


def binned(numbers: Numbers, name: str, cuts: Sequence[CutAt] = ()) -> Bins:
    """Returns the bins of a column's values, with its thresholds on the scale."""
    present = np.flatnonzero(numbers.is_there & np.isfinite(numbers.values))
    sampled = present[:: max(1, len(present) // SAMPLED)]
    is_whole = numbers.values.dtype.kind in "iu"
    thresholds = [
        ScoreCut(text=c.text, value=c.value, stage=c.stage, sign=c.sign, limit=c.value)
        for c in cuts
        if c.value is not None and not c.is_size
    ]
    column = ScoreColumn(name, ("", name), is_whole, thresholds)
    edge_E = edges_of(column, [numbers.values[sampled].astype(np.float64)])
    bins = len(edge_E) - 1
    value_M = numbers.values[present].astype(np.float64)
    place_M = np.zeros(len(present), np.uint8)  # the outer bins include the tails
    for edge in edge_E[1:-1]:  # for few edges, half the time of a binary search
        place_M += value_M >= edge
    bin_N = np.full(len(numbers.values), bins, np.uint8)
    bin_N[present] = place_M
    span = (float(value_M.min()), float(value_M.max())) if len(present) else (0.0, 0.0)
    return Bins(bin_N, edge_E.tolist(), span)


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
    with np.errstate(over="ignore"):  # 1e39 is infinity in float32
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
            "alone": rule_counts.rows[1 << place],
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
