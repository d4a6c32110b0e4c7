"""A select stage's verdicts at other settings, from its stored columns.

Each condition is evaluated once. A threshold then costs one comparison a row, and with `top` one
pass over an order that is sorted once. Truth and rank are select.where's own functions.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import BALANCE_RANK, IMAGE_BYTES, KEEP, POSITION, SHARD, UID

# Shapes: N rows of the pool, D digits of a rank.

Bools = NDArray[np.bool_]
MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}


@dataclass(frozen=True)
class Comparison:
    """A column against a number in a stage's `where`, and where the number stands in it."""

    column: str
    sign: str
    number: str
    conjunct: int
    node: int  # of the conjunct's tree, as walked

    @property
    def text(self) -> str:
        return f"{self.column} {self.sign} {self.number}"


@dataclass(frozen=True)
class Verdicts:
    """The selection under one rule: whether each row stays."""

    value: float
    rule: str
    keep: Bools  # (N,)


def comparisons(stage: Any) -> list[Comparison]:
    """Every comparison of a column with a number in the stage's `where`, the column on the left."""
    exp = _sql().exp
    signs = {exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<=", exp.EQ: "=", exp.NEQ: "<>"}
    found = []
    for index, conjunct in enumerate(stage.conjuncts):
        nodes = list(conjunct.tree.walk())
        for node in nodes:
            if type(node) not in signs:
                continue
            sign, left, right = signs[type(node)], node.this.unnest(), node.expression.unnest()
            if left.is_number:
                sign, left, right = MIRRORED.get(sign, sign), right, left
            name = _column(left)
            if name and right.is_number:
                place = next(i for i, other in enumerate(nodes) if other is right)
                found.append(Comparison(name, sign, right.sql(), index, place))
    return found


def thresholds(stage: Any) -> list[tuple[str, float]]:
    """Every number that a column is held against in the stage's `where`, in whichever form."""
    exp = _sql().exp
    found = [(at.column, float(at.number)) for at in comparisons(stage)]
    for conjunct in stage.conjuncts:
        for node in conjunct.tree.find_all(exp.Between, exp.In):
            sides = (node.args.get("low"), node.args.get("high"), *node.expressions)
            name = _column(node.this.unnest())
            numbers = [float(side.sql()) for side in sides if side is not None and side.is_number]
            found += [(name, number) for number in numbers if name]
    return found


def _column(tree: Any) -> str | None:
    """The column that a side of a comparison is, whatever stands in for its nulls."""
    exp = _sql().exp
    if isinstance(tree, exp.Coalesce):
        tree = tree.this.unnest()
    return ".".join(part.name for part in tree.parts) if isinstance(tree, exp.Column) else None


def by_number(
    stage: Any, at: Comparison, values: Iterable[Decimal], table: pa.Table
) -> Iterator[Verdicts]:
    """The verdicts with each value in the place of a comparison's number."""
    sql = _sql()
    frame = stage.frame(table)
    others_N = _passing(stage, table, frame, besides=at.conjunct)
    ranking = Ranking(stage.top, table) if stage.top else None
    for value in values:
        tree = stage.conjuncts[at.conjunct].tree.copy()
        list(tree.walk())[at.node].replace(sql.exp.Literal.number(f"{value:f}"))
        (rule,) = sql.conjuncts(tree.sql(dialect=sql.Postgres, comments=False))
        keep_N = others_N & _is_true(sql.truth(rule, frame))
        if ranking:
            keep_N &= ranking.best(stage.top, keep_N)
        yield Verdicts(float(value), rule.text, keep_N)


def tops(stage: Any, key: str, values: Iterable[Decimal]) -> dict[float, Any]:
    """The stage's `top` with each value as its `fraction` or `rows`; ValueError as it has it."""
    found = {}
    for value in values:
        number = int(value) if key == "rows" else float(value)
        if number != float(value):
            raise ValueError(f"top: rows is {value}, no whole number")
        found[float(value)] = dataclasses.replace(stage.top, **{key: number})
    return found


def by_top(stage: Any, key: str, varied: dict[float, Any], table: pa.Table) -> Iterator[Verdicts]:
    """The verdicts with each of the tops."""
    passing_N = _passing(stage, table, stage.frame(table))
    ranking = Ranking(stage.top, table)
    for value, top in varied.items():
        keep_N = passing_N & ranking.best(top, passing_N)
        yield Verdicts(value, f"top.{key} = {getattr(top, key)}", keep_N)


def by_t(values: Iterable[Decimal], table: pa.Table) -> Iterator[Verdicts]:
    """The verdicts of a balance at each t; rows that drew nothing stay or go as they do today."""
    drew_N = table[BALANCE_RANK.name].is_valid().to_numpy()
    rank_N = table[BALANCE_RANK.name].fill_null(0).to_numpy()
    undrawn_N = table["kept today"].to_numpy() & ~drew_N
    for t in map(float, values):
        yield Verdicts(t, f"t = {t:g}", undrawn_N | drew_N & (rank_N < t))


class Ranking:
    """The rows with a value in the order in which `top` keeps them, sorted once."""

    def __init__(self, top: Any, table: pa.Table) -> None:
        where = importlib.import_module("stages.select.where")
        self._cut = importlib.import_module("stages.select._cut")
        value = where.rankable(table[top.column])
        value_ND = self._cut.value_digits(value)
        place = table.select([UID.name, SHARD.name, POSITION.name])
        rank_ND = np.hstack([value_ND, self._cut.tie_digits(place)])
        order = np.lexsort(rank_ND.T[::-1])[::-1]
        self.order = order[value.is_valid().to_numpy()[order]]
        value_ND = value_ND[self.order]
        is_last = np.append((value_ND[1:] != value_ND[:-1]).any(axis=1), True)[: len(value_ND)]
        self.ends_of_ties = np.flatnonzero(is_last)

    def best(self, top: Any, passing_N: Bools) -> Bools:
        """Whether each row has a value at or above the cut."""
        pool_N = passing_N if top.over == "passing" else np.ones_like(passing_N)
        reached = np.cumsum(pool_N[self.order])
        cut, nth = top.first_cut(int(pool_N.sum()), int(reached[-1]) if len(reached) else 0)
        if cut is None:
            last = int(np.searchsorted(reached, nth))
            if top.datacomp_compat:
                last = int(self.ends_of_ties[np.searchsorted(self.ends_of_ties, last)])
        else:
            last = -1 if cut == self._cut.NOTHING else len(self.order) - 1
        best_N = np.zeros_like(passing_N)
        best_N[self.order[: last + 1]] = True
        return best_N


def _passing(stage: Any, table: pa.Table, frame: Any, besides: int | None = None) -> Bools:
    """Whether each row meets every rule before `top`, besides one."""
    passing_N = np.ones(len(table), bool)
    if KEEP.name in table.column_names:
        passing_N &= _is_true(table[KEEP.name])
    if IMAGE_BYTES.name in table.column_names:
        passing_N &= table[IMAGE_BYTES.name].is_valid().to_numpy()
    for index, conjunct in enumerate(stage.conjuncts):
        if index != besides:
            passing_N &= _is_true(_sql().truth(conjunct, frame))
    return passing_N


def _is_true(verdict: Any) -> Bools:
    return np.asarray(verdict.fill_null(False).to_numpy())


def _sql() -> Any:
    return importlib.import_module("stages.select._sql")  # by name, as the plan finds stages
