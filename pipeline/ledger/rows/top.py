"""Selects the top-k rows of a query by some key, shard by shard."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from clipmill.metadata.schema import UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.query import Query, plain
from clipmill.pipeline.ledger.rows.scan import ShardRows, judge
from clipmill.pipeline.ledger.rows.stored import Place

Row = Mapping[str, Any]
Item = Literal["max", "min"] | None


class Key(NamedTuple):
    """A ranking key: a column, or its distance to `near`; None: the row's hash alone.

    Of a column of lists, `item` counts.
    """

    column: str | None = None
    is_descending: bool = False
    near: float | None = None
    item: Item = None


class TopRows:
    """The top `most` rows by a key, least or greatest first; holds no others.

    Missing values come last; ties are broken by hash.
    """

    def __init__(self, key: Key, most: int, seed: int) -> None:
        self.key, self.most, self.seed = key, most, seed
        self.rows = 0  # added so far
        self._held: pl.DataFrame | None = None

    def add_all(self, query: Query, is_wanted: pl.Expr | None = None) -> "TopRows":
        """Adds the rows of a query for whose `value` the expression is true; returns itself."""
        for shard in query.shards:
            rows = ShardRows(query, shard)
            judge(rows)
            self.add(rows, is_wanted)
        return self

    def add(self, rows: ShardRows, is_wanted: pl.Expr | None = None) -> None:
        """Adds the rows of a shard for whose `value` the expression is true."""
        if not len(rows):
            return
        column = self.key.column
        table = rows.table([UID.name, *([column] if column and column != UID.name else [])])
        hash_N = coin_hash(table[UID.name], seed=self.seed, stage="", purpose="show")
        position_N = np.arange(len(rows)) if rows.position_N is None else rows.position_N
        values = plain(table.select([column]))[column] if column else pl.Series(hash_N)
        values = decided(values, self.key.item)
        frame = pl.DataFrame(
            {"value": values, "hash": hash_N, "position": position_N.astype(np.int64)}
        ).with_columns(shard=pl.lit(rows.shard, pl.Int64))
        if values.dtype.is_float():
            frame = frame.with_columns(pl.col("value").fill_nan(None))
        if is_wanted is not None:
            frame = frame.filter(is_wanted)
        self.rows += len(frame)
        if self.key.near is not None:
            distance = (pl.col("value").cast(pl.Float64) - self.key.near).abs()
            frame = frame.with_columns(value=distance)
        self._held = self._first(frame)

    def _first(self, frame: pl.DataFrame) -> pl.DataFrame:
        is_descending = self.key.is_descending
        if self._held is not None:
            last = self._held["value"][-1] if len(self._held) == self.most else None
            if last is not None:
                value = pl.col("value")
                frame = frame.filter(value >= last if is_descending else value <= last)
            frame = pl.concat([self._held, frame])
        return frame.sort(
            ["value", "hash", "shard", "position"],
            descending=[is_descending, False, False, False],
            nulls_last=True,
        ).head(self.most)

    @property
    def places(self) -> list[Place]:
        """Returns the places of these rows, in rank order."""
        rows = self._held
        return [] if rows is None else list(rows.select("shard", "position").iter_rows())

    @property
    def value(self) -> Any:
        """Returns the key value of the first row; None without rows."""
        return None if self._held is None or not len(self._held) else self._held["value"][0]


def decided(values: pl.Series, item: Item) -> pl.Series:
    """Returns the values; of lists, the item of each that decides."""
    if item is None or not isinstance(values.dtype, pl.List):
        return values
    return values.list.max() if item == "max" else values.list.min()


def values_at(query: Query, places: Iterable[Place], names: Sequence[str]) -> dict[Place, Row]:
    """Returns the columns at each place, as stored; reads only row groups with these rows."""
    by_shard: dict[int, set[int]] = {}
    for shard, position in places:
        by_shard.setdefault(shard, set()).add(position)
    values: dict[Place, Row] = {}
    for shard, positions in by_shard.items():
        rows = ShardRows(query, shard)
        rows.position_N = np.array(sorted(positions))
        table = rows.table(list(dict.fromkeys(names)))
        for position, row in zip(sorted(positions), table.to_pylist(), strict=True):
            values[shard, position] = row
    return values


def is_orderable(dtype: pa.DataType) -> bool:
    """Returns whether values of this type have an order: numbers, text, verdicts, ids, times."""
    is_bytes = pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype)
    return not (pa.types.is_nested(dtype) or is_bytes)
