"""Relates rules, numbers and groups over the rows under a select stage: overlaps, r, quantiles.

Rows are counted shard by shard. Quantiles use about `SAMPLED` rows, chosen by a hash of the uid,
so that memory does not grow with the pool.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.selection.rules import MOST_RULES, Rule
from clipmill.pipeline.ledger.selection.scores import SAMPLED, ScoreColumn, numbers

# Shapes: N rows of a shard, R rules, C columns of numbers, M sampled rows.

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_NUMBERS = 8  # the first columns; those with thresholds come first
MOST_VALUES = 8  # the most frequent values of a grouping
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Quantiles = tuple[float, ...]  # the values at QUANTILES


@dataclass(frozen=True, kw_only=True)
class RuleRows:
    """A rule, the number of rows that break it, and of rows that break it alone."""

    stage: str
    text: str
    rows: int
    alone: int


@dataclass(frozen=True)
class Broken:
    """The rows that break exactly these rules, given by index."""

    rules: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Pair:
    """Pearson's r of two numbers over the rows that have both; null if one does not vary."""

    a: str
    b: str
    r: float | None
    rows: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The quantiles of a number in the pool, and among the kept rows; null without values."""

    name: str
    stage: str
    pool: Quantiles | None
    kept: Quantiles | None


@dataclass(frozen=True)
class GroupSpread:
    """Sampled rows of one group, and the quantiles of each number among them; None: no group."""

    name: str | None
    rows: int
    numbers: tuple[Quantiles | None, ...]


@dataclass(frozen=True, kw_only=True)
class Relations:
    """Rules broken together, correlations, and quantiles.

    `broken` counts rows by the exact set of rules that they break, most frequent first; `free_kept`
    rows break none and are kept. `sampled` rows give the quantiles. `by` lists the numbers of each
    group in the order of `spreads`.
    """

    rows: int
    free_kept: int
    sampled: int
    rules: tuple[RuleRows, ...]
    broken: tuple[Broken, ...]
    pairs: tuple[Pair, ...]
    spreads: tuple[Spread, ...]
    by: dict[str, tuple[GroupSpread, ...]]


class RuleCounts:
    """Counts rows by the set of rules that they break, of 64 rules at most."""

    def __init__(self) -> None:
        self.rows: Counter[int] = Counter()  # by the bits of the rules

    def count(self, broken_RN: Sequence[Bools]) -> None:
        bits_N = np.zeros(len(broken_RN[0]) if broken_RN else 0, np.uint64)
        for place, broken_N in enumerate(broken_RN):
            bits_N |= broken_N.astype(np.uint64) << np.uint64(place)
        for bits, rows in zip(*np.unique(bits_N, return_counts=True), strict=True):
            self.rows[int(bits)] += int(rows)

    def both(self, a: int, b: int) -> int:
        """Returns the rows that break both rules; of equal rules, the rows that break it."""
        return sum(rows for bits, rows in self.rows.items() if bits >> a & 1 and bits >> b & 1)

    def sets(self) -> tuple[Broken, ...]:
        """Returns the rows of each set of rules, most frequent first."""
        ranked = sorted(self.rows.items(), key=lambda item: (-item[1], item[0]))
        places = range(MOST_RULES)
        return tuple(
            Broken(tuple(place for place in places if bits >> place & 1), rows)
            for bits, rows in ranked
        )


class Moments:
    """Pearson's r of every pair of numbers, shard by shard (Chan, Golub and LeVeque 1983)."""

    def __init__(self, count: int) -> None:
        self.rows_CC = np.zeros((count, count))
        # [a, b] is of rows that have both: mean and squared deviations of a; the co-moment.
        self.mean_CC, self.square_CC, self.product_CC = np.zeros((3, count, count))

    def count(self, number_CN: Floats) -> None:
        """Adds the numbers of some rows, NaN if missing."""
        is_given_CN = ~np.isnan(number_CN)
        given_CN = is_given_CN.astype(np.float64)
        filled_CN = np.where(is_given_CN, number_CN, 0.0)
        middle_C1 = filled_CN.sum(axis=1, keepdims=True) / np.maximum(given_CN.sum(1), 1)[:, None]
        apart_CN = np.where(is_given_CN, number_CN - middle_C1, 0.0)
        rows_CC = given_CN @ given_CN.T
        mean_CC = apart_CN @ given_CN.T / np.maximum(rows_CC, 1)
        moments = Moments(len(number_CN))
        moments.rows_CC, moments.mean_CC = rows_CC, middle_C1 + mean_CC
        moments.square_CC = apart_CN**2 @ given_CN.T - rows_CC * mean_CC**2
        moments.product_CC = apart_CN @ apart_CN.T - rows_CC * mean_CC * mean_CC.T
        self.add(moments)

    def add(self, other: "Moments") -> None:
        """Adds another's moments of other rows."""
        every_CC = np.maximum(self.rows_CC + other.rows_CC, 1)
        step_CC = other.mean_CC - self.mean_CC
        weight_CC = self.rows_CC * other.rows_CC / every_CC
        self.square_CC += other.square_CC + weight_CC * step_CC**2
        self.product_CC += other.product_CC + weight_CC * step_CC * step_CC.T
        self.mean_CC += step_CC * other.rows_CC / every_CC
        self.rows_CC += other.rows_CC

    def pair(self, a: int, b: int) -> tuple[float | None, int]:
        """Returns r and the rows that have both; null if one of them does not vary."""
        rows = int(self.rows_CC[a, b])
        if rows < 2 or not (self._varies(a, b) and self._varies(b, a)):
            return None, rows
        scale = np.sqrt(self.square_CC[a, b] * self.square_CC[b, a])
        return float(np.clip(self.product_CC[a, b] / scale, -1, 1)), rows

    def _varies(self, a: int, b: int) -> bool:
        """Returns whether a varies by more than rounding."""
        least = self.rows_CC[a, b] * (1e-9 * self.mean_CC[a, b]) ** 2
        return bool(self.square_CC[a, b] > least)


class RelationCounts:
    """Counts overlaps of rules, correlations and samples for quantiles, over `rows` rows."""

    def __init__(
        self, columns: Sequence[ScoreColumn], rules: Sequence[Rule], rows: int, seed: int, end: str
    ) -> None:
        self.columns, self.rules = columns[:MOST_NUMBERS], rules
        self.rows, self.seed, self.end, self.free_kept = rows, seed, end, 0
        self.rule_counts, self.moments = RuleCounts(), Moments(len(self.columns))
        self.number_CM: list[Floats] = []
        self.keep_M: list[Bools] = []
        self.group_M: dict[str, list[pa.Array]] = {}

    def count(
        self,
        table: pa.Table,
        values: Sequence[pa.ChunkedArray],
        groups: Mapping[str, pa.ChunkedArray],
        keep_N: Bools,
    ) -> None:
        """Adds one shard; the first of `values` are those of `columns`, in their order."""
        broken_RN = [rule.broken(table, values) for rule in self.rules]
        self.rule_counts.count(broken_RN)
        self.free_kept += int((keep_N & ~np.any(broken_RN, axis=0)).sum())
        if not self.columns:
            return
        number_CN = np.stack([numbers(value) for value in values[: len(self.columns)]])
        self.moments.count(number_CN)
        sampled_M = np.arange(len(keep_N))
        if self.rows > SAMPLED:
            hash_N = coin_hash(table["uid"], seed=self.seed, stage=self.end, purpose="relations")
            sampled_M = np.flatnonzero(hash_N < np.uint64(2**64 * (SAMPLED / self.rows)))
        self.number_CM.append(number_CN[:, sampled_M])
        self.keep_M.append(keep_N[sampled_M])
        for name, group in groups.items():
            names = group.take(pa.array(sampled_M)).cast(pa.string())  # a dictionary is a shard's
            self.group_M.setdefault(name, []).extend(names.chunks)

    def add(self, other: "RelationCounts") -> None:
        """Adds another's counts of later shards."""
        self.free_kept += other.free_kept
        self.rule_counts.rows.update(other.rule_counts.rows)
        self.moments.add(other.moments)
        self.number_CM += other.number_CM
        self.keep_M += other.keep_M
        for name, groups in other.group_M.items():
            self.group_M.setdefault(name, []).extend(groups)

    def relations(self) -> Relations:
        """Returns the result over all that was counted."""
        empty = np.zeros((len(self.columns), 0))
        number_CM = np.concatenate([empty, *self.number_CM], axis=1)
        keep_M = np.concatenate([np.zeros(0, bool), *self.keep_M])
        names = [column.name for column in self.columns]
        pairs = [
            Pair(names[a], names[b], *self.moments.pair(a, b))
            for a, b in combinations(range(len(names)), 2)
        ]
        return Relations(
            rows=self.rows,
            free_kept=self.free_kept,
            sampled=number_CM.shape[1],
            rules=tuple(
                RuleRows(
                    stage=rule.stage,
                    text=rule.text,
                    rows=self.rule_counts.both(place, place),
                    alone=self.rule_counts.rows[1 << place],
                )
                for place, rule in enumerate(self.rules)
            ),
            broken=self.rule_counts.sets(),
            pairs=tuple(sorted(pairs, key=lambda pair: -abs(pair.r or 0.0))),
            spreads=tuple(
                Spread(
                    name=column.name,
                    stage=column.where[0],
                    pool=quantiles(number_M),
                    kept=quantiles(number_M[keep_M]),
                )
                for column, number_M in zip(self.columns, number_CM, strict=True)
            ),
            by={
                name: spreads
                for name, groups in self.group_M.items()
                if len(spreads := _by_group(groups, number_CM)) > 1  # one group tells nothing
            },
        )


def quantiles(number_M: Floats, at: Sequence[float] = QUANTILES) -> Quantiles | None:
    """Returns the quantiles of the numbers present; None without any."""
    present = number_M[~np.isnan(number_M)]
    return tuple(np.quantile(present, at).tolist()) if len(present) else None


def _by_group(groups: Sequence[pa.Array], number_CM: Floats) -> tuple[GroupSpread, ...]:
    """Returns the quantiles of the most frequent groups, the largest first."""
    codes = pa.chunked_array(groups, pa.string()).combine_chunks().dictionary_encode()
    code_M = codes.indices.fill_null(len(codes.dictionary)).to_numpy()
    names = [*codes.dictionary.to_pylist(), None]
    rows = np.bincount(code_M, minlength=len(names))
    ranked = sorted(range(len(names)), key=lambda code: (-rows[code], names[code] or ""))
    return tuple(
        GroupSpread(
            names[code],
            int(rows[code]),
            tuple(quantiles(number_M[code_M == code]) for number_M in number_CM),
        )
        for code in ranked[:MOST_VALUES]
        if rows[code]
    )
