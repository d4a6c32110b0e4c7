"""Counterfactual verdicts of `select.where`: other numbers in its conditions and in `top`.

Each condition is evaluated once. Another number then costs one comparison per row, and with `top`
one pass over an order that is sorted once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from sqlglot import exp

from clipmill.metadata.schema import IDENTITY, KEEP
from clipmill.pipeline.stage import Parts, Sign, Threshold, Verdicts
from clipmill.stages.select import _cut as cut
from clipmill.stages.select import _lists as lists
from clipmill.stages.select import _sql as sql
from clipmill.stages.select._judged import left_out
from clipmill.stages.select._top import Ranking, Top, rankable, reaching, search

# Shapes: N rows of the pool.

Bools = NDArray[np.bool_]
SIGNS: dict[type, Sign] = {
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.EQ: "=",
    exp.NEQ: "<>",
}
Item = Literal["max", "min"] | None
TOP = "top."
MIRRORED: dict[Sign, Sign] = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "=": "=", "<>": "<>"}
DENIED: dict[Sign, Sign] = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "=": "<>", "<>": "="}


@dataclass(frozen=True, kw_only=True)
class Comparison(Threshold):
    """A comparison of a column with a number, and the number's position in the condition."""

    conjunct: int
    node: int  # of the conjunct's tree, as walked


def comparisons(
    conjuncts: Sequence[sql.Conjunct], reads: tuple[str, ...], by_row: bool
) -> Iterator[Comparison]:
    """Yields every comparison of a column with a number, the column on the left; also the bounds of
    BETWEEN and the values of IN. Inside NOT it is the opposite comparison, which a kept row meets.
    """
    for conjunct, rule in enumerate(conjuncts):
        nodes = list(rule.tree.walk())
        place = {id(node): number for number, node in enumerate(nodes)}
        for tree in nodes:
            for column, written, number in _sides(tree):
                sign = DENIED[written] if _is_denied(tree) else written
                parts = _column(column.unnest(), sign)
                if parts and number.is_number:
                    name, item, operand, template = parts
                    literal = number.sql(comments=False)
                    yield Comparison(
                        name=name,
                        column=name,
                        sign=sign,
                        value=float(literal),
                        text=template.format(f"{operand} {sign} {literal}"),
                        reads=reads,
                        item=item,
                        by_row=by_row,
                        conjunct=conjunct,
                        node=place[id(number)],
                    )


def _sides(tree: Any) -> Iterator[tuple[Any, Sign, Any]]:
    """Yields the left operand, sign and right operand of each comparison; a number stands right."""
    if sign := SIGNS.get(type(tree)):
        left, right = tree.this.unnest(), tree.expression.unnest()
        yield (right, MIRRORED[sign], left) if left.is_number else (left, sign, right)
    elif isinstance(tree, exp.Between):
        yield tree.this, ">=", tree.args["low"].unnest()
        yield tree.this, "<=", tree.args["high"].unnest()
    elif isinstance(tree, exp.In):
        for value in tree.expressions:
            yield tree.this, "=", value.unnest()


def _is_denied(node: Any) -> bool:
    """Returns whether an odd number of NOTs stands around a node."""
    is_denied = False
    while (node := node.parent) is not None:
        is_denied ^= isinstance(node, exp.Not)
    return is_denied


def _column(tree: Any, sign: Sign) -> tuple[str, Item, str, str] | None:
    """Returns the column of an operand (inside a COALESCE too), the list item that decides, the
    operand in words, and a template for the rule. None if no column, or no single item, decides."""
    if isinstance(tree, exp.Coalesce):
        tree = tree.this.unnest()
    if lists.is_extreme(tree):
        name, which = lists.full_name(tree.this), type(tree).__name__.lower()
        return name, "max" if which == "max" else "min", f"{which}({name})", "{}"
    if not isinstance(tree, exp.Column):
        return None
    name, field = lists.named(tree)
    call = lists.around(tree)
    if call is None:
        return name, None, name, "{}"
    if field or sign in ("=", "<>"):  # no single item decides
        return None
    which, _ = lists.quantified(call) or ("", None)
    if _is_denied(call):  # NOT any(x > 3) is all(x <= 3)
        which = {"any": "all", "all": "any"}[which]
    is_low = (sign in (">", ">=")) == (which == "all")
    return name, "min" if is_low else "max", name, f"{which}({{}})"


def sizes(top: Top | None, reads: tuple[str, ...]) -> Iterator[Threshold]:
    """Yields the `fraction` or `rows` of a `top`."""
    if top is not None:
        name, value = (f"{TOP}rows", top.rows) if top.rows else (f"{TOP}fraction", top.fraction)
        yield Threshold(
            name=name,
            column=top.column,
            sign="=",
            value=float(value or 0),
            text=f"{name} = {value}",
            reads=reads,
            is_size=True,
        )


@dataclass(frozen=True)
class Rules:
    """A condition and a `top` over rows; one number of them varies."""

    conjuncts: Sequence[sql.Conjunct]
    top: Top | None
    rows: pa.Table
    frame: pl.DataFrame  # the columns that the conjuncts read

    def varying(self, threshold: Threshold) -> Callable[[Decimal], Verdicts]:
        """Returns a function from a value to its verdicts; ValueError for an invalid `top`."""
        passing = self.passing(threshold)
        ranking = Ranking(self.top, self.rows) if self.top else None

        def verdicts(value: Decimal) -> Verdicts:
            top, outcome = resized(self.top, threshold, value), passing(value)
            if ranking is None or top is None:
                return outcome
            return dataclasses.replace(outcome, keep=outcome.keep & ranking.best(top, outcome.keep))

        return verdicts

    def passing(self, threshold: Threshold) -> Callable[[Decimal], Verdicts]:
        """Returns a function from a value of the threshold to the rows that pass before `top`."""
        if isinstance(threshold, Comparison):
            others_N = self._passing(besides=threshold.conjunct)
            tree = self.conjuncts[threshold.conjunct].tree

            def with_number(value: Decimal) -> Verdicts:
                (rule,) = sql.conjuncts(_replaced(tree, threshold, value))
                keep_N = others_N & _is_true(sql.truth(rule, self.frame))
                return Verdicts(float(value), rule.text, keep_N)

            return with_number
        passing_N, key = self._passing(), threshold.name.removeprefix(TOP)

        def with_size(value: Decimal) -> Verdicts:
            size = getattr(resized(self.top, threshold, value), key)
            return Verdicts(float(value), f"{threshold.name} = {size}", passing_N)

        return with_size

    def _passing(self, besides: int | None = None) -> Bools:
        """Returns (N,) whether each row meets every rule before `top`, but for one conjunct."""
        passing_N = np.ones(len(self.rows), bool)
        for mask in left_out(self.rows).values():
            passing_N &= ~np.asarray(mask)
        for index, conjunct in enumerate(self.conjuncts):
            if index != besides:
                passing_N &= _is_true(sql.truth(conjunct, self.frame))
        return passing_N


def with_number(conjuncts: Sequence[sql.Conjunct], comparison: Comparison, value: Decimal) -> str:
    """Returns the condition's text with `value` in place of the comparison's number."""
    texts = [conjunct.text for conjunct in conjuncts]
    texts[comparison.conjunct] = _replaced(conjuncts[comparison.conjunct].tree, comparison, value)
    trees = [conjunct.tree for conjunct in conjuncts]
    return " AND ".join(
        f"({text})" if isinstance(tree, exp.Connector) else text
        for text, tree in zip(texts, trees, strict=True)
    )


def _replaced(tree: Any, comparison: Comparison, value: Decimal) -> str:
    tree = tree.copy()
    list(tree.walk())[comparison.node].replace(exp.Literal.number(f"{value:f}"))
    return lists.text_of(tree)


def surveyed(
    rules_of: Callable[[pa.Table], Rules],
    top: Top,
    threshold: Threshold,
    values: Sequence[Decimal],
    parts: Parts,
) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
    """Returns a function that yields a part's verdicts at each value; `top` ranks all parts."""
    tops = [resized(top, threshold, value) or top for value in values]

    def passing(rows: pa.Table) -> list[tuple[Verdicts, pa.Table]]:
        """Returns what passes before `top` at each value, and these rows as `top` ranks them."""
        ranked = rows.select(IDENTITY).append_column("value", rankable(rows[top.column]))
        passing_at = rules_of(rows).passing(threshold)
        outcomes = [passing_at(value) for value in values]
        return [(v, ranked.append_column(KEEP.name, pa.array(v.keep))) for v in outcomes]

    def tables() -> Iterator[list[pa.Table]]:
        return ([table for _, table in passing(rows)] for rows, _ in parts())

    cuts = cut.solve_together([search(sized) for sized in tops], tables)

    def verdicts(rows: pa.Table, _: pa.Table) -> Iterator[Verdicts]:
        for (outcome, table), lowest in zip(passing(rows), cuts, strict=True):
            has_value_N = table["value"].is_valid().to_numpy()
            yield dataclasses.replace(
                outcome, keep=outcome.keep & has_value_N & reaching(table, lowest)
            )

    return verdicts


def resized(top: Top | None, threshold: Threshold, value: Decimal) -> Top | None:
    """Returns `top` with `value` as its size, if that is the threshold; ValueError if invalid."""
    key = threshold.name.removeprefix(TOP)
    if top is None or isinstance(threshold, Comparison):
        return top
    if key == "fraction" and 0 < value <= 1:
        return dataclasses.replace(top, fraction=float(value))
    if key == "fraction":
        raise ValueError(f"top.fraction is {value}; it lies above 0, up to 1")
    if value < 1 or value != int(value):
        raise ValueError(f"top.rows is {value}; it is a whole number, 1 or more")
    return dataclasses.replace(top, rows=int(value))


def _is_true(verdict: pl.Series) -> Bools:
    return np.asarray(verdict.fill_null(False).to_numpy())
