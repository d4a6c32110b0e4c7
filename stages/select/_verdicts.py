"""What `select.where` keeps with other numbers in its conditions and in `top`.

Each condition is evaluated once. Another number then costs one comparison a row, and with `top` one
pass over an order that is sorted once.
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
from sqlglot.dialects.postgres import Postgres

from clipmill.metadata.schema import IDENTITY, IMAGE_BYTES, KEEP
from clipmill.pipeline.stage import Parts, Threshold, Verdicts
from clipmill.stages.select import _cut as cut
from clipmill.stages.select import _lists as lists
from clipmill.stages.select import _sql as sql
from clipmill.stages.select._top import Ranking, Top, rankable, reaching, search

# Shapes: N rows of the pool.

Bools = NDArray[np.bool_]
Sign = Literal["<", "<=", ">", ">=", "=", "<>"]
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


@dataclass(frozen=True, kw_only=True)
class Comparison(Threshold):
    """A column against a number of the condition, and where the number stands in it."""

    conjunct: int
    node: int  # of the conjunct's tree, as walked


def comparisons(
    conjuncts: Sequence[sql.Conjunct], asked: tuple[str, ...], by_row: bool
) -> Iterator[Comparison]:
    """Every number that a column is compared with, the column on the left; bounds of BETWEEN and
    values of IN too."""
    for conjunct, rule in enumerate(conjuncts):
        nodes = list(rule.tree.walk())
        place = {id(node): number for number, node in enumerate(nodes)}
        for tree in nodes:
            for column, sign, number in _sides(tree):
                found = _column(column.unnest(), sign)
                if found and number.is_number:
                    name, item, side, words = found
                    said = number.sql(comments=False)
                    yield Comparison(
                        name=name,
                        column=name,
                        sign=sign,
                        value=float(said),
                        text=words.format(f"{side} {sign} {said}"),
                        reads=asked,
                        item=item,
                        by_row=by_row,
                        conjunct=conjunct,
                        node=place[id(number)],
                    )


def _sides(tree: Any) -> Iterator[tuple[Any, Sign, Any]]:
    """What is compared, how, and with what."""
    if sign := SIGNS.get(type(tree)):
        left, right = tree.this.unnest(), tree.expression.unnest()
        yield (right, MIRRORED[sign], left) if left.is_number else (left, sign, right)
    elif isinstance(tree, exp.Between):
        yield tree.this, ">=", tree.args["low"].unnest()
        yield tree.this, "<=", tree.args["high"].unnest()
    elif isinstance(tree, exp.In):
        for value in tree.expressions:
            yield tree.this, "=", value.unnest()


def _column(tree: Any, sign: Sign) -> tuple[str, Item, str, str] | None:
    """The column that a side of a comparison is, whatever stands in for its nulls; the item of its
    list that decides; the side in words, and the rule, a comparison to be put in."""
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
    is_low = (sign in (">", ">=")) == (which == "all")
    return name, "min" if is_low else "max", name, f"{which}({{}})"


def sizes(top: Top | None, asked: tuple[str, ...]) -> Iterator[Threshold]:
    """`fraction` or `rows` of a `top`."""
    if top is not None:
        name, value = (f"{TOP}rows", top.rows) if top.rows else (f"{TOP}fraction", top.fraction)
        yield Threshold(
            name=name,
            column=top.column,
            sign="=",
            value=float(value or 0),
            text=f"{name} = {value}",
            reads=asked,
            is_size=True,
        )


@dataclass(frozen=True)
class Rules:
    """A condition and a `top` over rows, of which one number varies."""

    conjuncts: Sequence[sql.Conjunct]
    top: Top | None
    rows: pa.Table
    frame: pl.DataFrame  # the columns that the conjuncts read

    def varying(self, at: Threshold) -> Callable[[Decimal], Verdicts]:
        """The verdicts with a value in the threshold's place; ValueError as `top` has it."""
        passing = self.passing(at)
        ranking = Ranking(self.top, self.rows) if self.top else None

        def verdicts(value: Decimal) -> Verdicts:
            top, found = resized(self.top, at, value), passing(value)
            if ranking is None or top is None:
                return found
            return dataclasses.replace(found, keep=found.keep & ranking.best(top, found.keep))

        return verdicts

    def passing(self, at: Threshold) -> Callable[[Decimal], Verdicts]:
        """What passes before `top` with a value in the threshold's place."""
        if isinstance(at, Comparison):
            others_N = self._passing(besides=at.conjunct)
            tree = self.conjuncts[at.conjunct].tree

            def with_number(value: Decimal) -> Verdicts:
                (rule,) = sql.conjuncts(_replaced(tree, at, value))
                keep_N = others_N & _is_true(sql.truth(rule, self.frame))
                return Verdicts(float(value), rule.text, keep_N)

            return with_number
        passing_N, key = self._passing(), at.name.removeprefix(TOP)

        def with_size(value: Decimal) -> Verdicts:
            size = getattr(resized(self.top, at, value), key)
            return Verdicts(float(value), f"{at.name} = {size}", passing_N)

        return with_size

    def _passing(self, besides: int | None = None) -> Bools:
        """(N,) whether each row meets every rule before `top`, besides one."""
        passing_N = np.ones(len(self.rows), bool)
        if KEEP.name in self.rows.column_names:
            passing_N &= _is_true(self.rows[KEEP.name])
        if IMAGE_BYTES.name in self.rows.column_names:
            passing_N &= self.rows[IMAGE_BYTES.name].is_valid().to_numpy()
        for index, conjunct in enumerate(self.conjuncts):
            if index != besides:
                passing_N &= _is_true(sql.truth(conjunct, self.frame))
        return passing_N


def with_number(conjuncts: Sequence[sql.Conjunct], at: Comparison, value: Decimal) -> str:
    """The condition with a number in the place of a comparison's."""
    texts = [conjunct.text for conjunct in conjuncts]
    texts[at.conjunct] = _replaced(conjuncts[at.conjunct].tree, at, value)
    trees = [conjunct.tree for conjunct in conjuncts]
    return " AND ".join(
        f"({text})" if isinstance(tree, exp.Connector) else text
        for text, tree in zip(texts, trees, strict=True)
    )


def _replaced(tree: Any, at: Comparison, value: Decimal) -> str:
    tree = tree.copy()
    list(tree.walk())[at.node].replace(exp.Literal.number(f"{value:f}"))
    return str(tree.sql(dialect=Postgres, comments=False))


def surveyed(
    rules_of: Callable[[pa.Table], Rules],
    top: Top,
    at: Threshold,
    values: Sequence[Decimal],
    parts: Parts,
) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
    """The verdicts of `top` at each value, of rows that are not all at hand."""
    tops = [resized(top, at, value) or top for value in values]

    def passing(rows: pa.Table) -> list[tuple[Verdicts, pa.Table]]:
        """What passes before `top` at each value, and these rows as `top` ranks them."""
        ranked = rows.select(IDENTITY).append_column("value", rankable(rows[top.column]))
        passing_at = rules_of(rows).passing(at)
        found = [passing_at(value) for value in values]
        return [(it, ranked.append_column(KEEP.name, pa.array(it.keep))) for it in found]

    def tables() -> Iterator[list[pa.Table]]:
        return ([table for _, table in passing(rows)] for rows, _ in parts())

    cuts = cut.found_together([search(one) for one in tops], tables)

    def verdicts(rows: pa.Table, _: pa.Table) -> Iterator[Verdicts]:
        for (found, table), lowest in zip(passing(rows), cuts, strict=True):
            has_value_N = table["value"].is_valid().to_numpy()
            yield dataclasses.replace(
                found, keep=found.keep & has_value_N & reaching(table, lowest)
            )

    return verdicts


def resized(top: Top | None, at: Threshold, value: Decimal) -> Top | None:
    """`top` with a value as its size, where that is what varies; ValueError as `top` has it."""
    key = at.name.removeprefix(TOP)
    if top is None or isinstance(at, Comparison):
        return top
    if key == "fraction" and 0 < value <= 1:
        return dataclasses.replace(top, fraction=float(value))
    if key == "fraction":
        raise ValueError(f"top.fraction is {value}; it lies above 0, up to 1")
    if value < 1 or value != int(value):
        raise ValueError(f"top.rows is {value}; it is a whole number, 1 or more")
    return dataclasses.replace(top, rows=int(value))


def _is_true(verdict: Any) -> Bools:
    return np.asarray(verdict.fill_null(False).to_numpy())
