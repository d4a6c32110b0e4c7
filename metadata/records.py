"""Records of a stage's shards as columns, so that few of them are Python objects at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.record import Record, ShardState, state_of, state_with

# Shapes: R records, N shards of a query, C counts of all records.

RECORD = pa.schema(
    [
        ("shard", pa.int64()),
        ("number", pa.int64()),
        ("data", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("computed", pa.int64()),
        ("uid_sha256", pa.string()),
        ("parents", pa.map_(pa.string(), pa.string())),
        ("mask", pa.string()),
        ("counts", pa.map_(pa.string(), pa.int64())),
        ("source", pa.string()),  # JSON
        ("seconds", pa.float64()),
        ("attempts", pa.int64()),
        ("page_checksums", pa.bool_()),
    ]
)
BLOCK = 64  # records that become objects at a time
BLOCKS = 16  # blocks of objects in memory, for each stage
NEWER = 4096  # shards held as objects until they become columns


def table_of(records: Iterable[Record]) -> pa.Table:
    """Returns records as a table, a column for each field."""
    columns: dict[str, list[Any]] = {name: [] for name in RECORD.names}
    for record in records:
        for name, values in columns.items():
            values.append(getattr(record, name))
    for name in ("parents", "counts"):
        columns[name] = [sorted(value.items()) for value in columns[name]]
    sources = columns["source"]
    columns["source"] = [
        None if source is None else json.dumps(source, sort_keys=True) for source in sources
    ]
    return pa.table(columns, schema=RECORD)


def records_of(table: pa.Table) -> list[Record]:
    """Returns the records of a table, in its order."""
    columns = {name: table[name].to_pylist() for name in RECORD.names}
    for name in ("parents", "counts"):
        columns[name] = [dict(value) for value in columns[name]]
    columns["source"] = [None if text is None else json.loads(text) for text in columns["source"]]
    rows = zip(*columns.values(), strict=True)
    return [Record(**dict(zip(RECORD.names, row, strict=True))) for row in rows]


class Records(Mapping[int, list[Record]]):
    """Records by shard, in order: its passes 0, 1, 2 … up to the first missing one."""

    def __init__(self, table: pa.Table) -> None:
        self._newer: dict[int, list[Record]] = {}
        self._index(table)

    def _index(self, table: pa.Table) -> None:
        shard_R, number_R = (table[name].to_numpy() for name in ("shard", "number"))
        order_R = np.lexsort((number_R, shard_R))
        shard_R, number_R = shard_R[order_R], number_R[order_R]
        first_R = np.searchsorted(shard_R, shard_R)
        is_unbroken_R = number_R == np.arange(len(shard_R)) - first_R
        if not is_unbroken_R.all() or (order_R[1:] < order_R[:-1]).any():
            table = table.take(order_R[is_unbroken_R])
        self._table = table.combine_chunks()
        seen = ("data", "sha256", "rows", "source")
        self._seen = [self._table[column].combine_chunks() for column in seen]
        is_first_R = is_unbroken_R & (number_R == 0)
        self._shard_N: NDArray[np.int64] = shard_R[is_first_R]
        self._start_N = np.append(np.flatnonzero(is_first_R[is_unbroken_R]), len(table))
        self._block = lru_cache(BLOCKS)(partial(_block, self._table))

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.table(self.shards),)

    def __getitem__(self, shard: int) -> list[Record]:
        if shard in self._newer:
            return self._newer[shard]
        index = place_in(self._shard_N, shard)
        if index is None:
            raise KeyError(shard)
        rows = range(*self._start_N[index : index + 2].tolist())
        return [self._block(row // BLOCK)[row % BLOCK] for row in rows]

    def state(self, shard: int, mask: ShardState | None) -> ShardState:
        """Returns a shard's state for readers under a mask, without making records objects."""
        if shard in self._newer:
            return state_of(self._newer[shard], mask)
        index = place_in(self._shard_N, shard)
        if index is None:
            raise KeyError(shard)
        first, end = int(self._start_N[index]), int(self._start_N[index + 1])
        data, sha256, rows, source = self._seen
        files = [(data[row].as_py(), sha256[row].as_py()) for row in range(first, end)]
        source_json = source[first].as_py()
        return state_with(files, rows[first].as_py(), source_json and json.loads(source_json), mask)

    def __contains__(self, shard: object) -> bool:
        return shard in self._newer or place_in(self._shard_N, shard) is not None

    def put(self, shard: int, records: list[Record]) -> None:
        """Sets a shard's passes; they stay objects until a quarter of all shards do."""
        self._newer[shard] = records
        if len(self._newer) > max(NEWER, len(self._table) // 4):
            self._settle()

    def __iter__(self) -> Iterator[int]:
        self._settle()
        return iter(self._shard_N.tolist())

    def __len__(self) -> int:
        self._settle()
        return len(self._shard_N)

    def _settle(self) -> None:
        """Moves records that were put to the columns."""
        if self._newer:
            newer = table_of(record for records in self._newer.values() for record in records)
            self._index(pa.concat_tables([self._without(self._newer), newer]))
            self._newer = {}

    def _without(self, shards: Iterable[int]) -> pa.Table:
        gone = pa.array(shards, pa.int64())
        return self._table.filter(pc.invert(pc.is_in(self._table["shard"], value_set=gone)))

    def without(self, shards: Iterable[int]) -> "Records":
        """Returns the records of all other shards."""
        self._settle()
        return Records(self._without(shards))

    @property
    def shards(self) -> NDArray[np.int64]:
        """Returns all shards, in order."""
        self._settle()
        return self._shard_N

    def table(self, shard_N: NDArray[np.int64]) -> pa.Table:
        """Returns all passes of shards, given in order, as columns."""
        index_N = self._indexes(shard_N)
        if len(index_N) == len(self._shard_N):
            return self._table
        is_wanted_N = np.zeros(len(self._shard_N), bool)
        is_wanted_N[index_N] = True
        return self._table.filter(pa.array(np.repeat(is_wanted_N, np.diff(self._start_N))))

    def first(self, shard_N: NDArray[np.int64]) -> pa.Table:
        """Returns pass 0 of each shard, as columns."""
        index_N = self._indexes(shard_N)
        if len(index_N) == len(self._table):
            return self._table  # all shards, none with two passes
        return self._table.take(self._start_N[index_N])

    def passes(self, shard_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns (N,) the number of passes of each shard, 0 if it has no record."""
        self._settle()
        index_N = np.searchsorted(self._shard_N, shard_N)
        is_there_N = np.append(self._shard_N, -1)[index_N] == shard_N
        passes_N: NDArray[np.int64] = np.append(np.diff(self._start_N), 0)[index_N] * is_there_N
        return passes_N

    def _indexes(self, shard_N: NDArray[np.int64]) -> NDArray[np.int64]:
        self._settle()
        return np.searchsorted(self._shard_N, shard_N)


def _block(table: pa.Table, number: int) -> list[Record]:
    return records_of(table.slice(number * BLOCK, BLOCK))


def place_in(shard_N: NDArray[np.int64], shard: Any) -> int | None:
    """Returns the index of a shard in sorted numbers, or None."""
    if 0 <= shard < len(shard_N) and shard_N[shard] == shard:  # no earlier shard is missing
        return int(shard)
    index = int(np.searchsorted(shard_N, shard))
    return index if index < len(shard_N) and shard_N[index] == shard else None


def are_made_of(table: pa.Table, parents: Mapping[str, str | pa.Array]) -> NDArray[np.bool_]:
    """Returns (R,) whether a record has exactly these parents: a digest for all, or (R,)."""
    map_R = table["parents"].combine_chunks()
    are_equal_R: NDArray[np.bool_] = np.diff(map_R.offsets) == len(parents)
    for name, digest in parents.items():
        digest_R = pc.map_lookup(map_R, query_key=name, occurrence="first")
        are_equal_R &= np.asarray(pc.fill_null(pc.equal(digest_R, digest), False), bool)
    return are_equal_R


def counted(table: pa.Table) -> NDArray[np.int64]:
    """Returns (R,) the rows that each record counts, over all reasons."""
    counts = table["counts"].combine_chunks()
    total_C = np.append(0, np.cumsum(counts.items))
    rows_R: NDArray[np.int64] = np.diff(total_C[np.asarray(counts.offsets)])
    return rows_R


def rows_by_reason(table: pa.Table) -> dict[str, int]:
    """Returns reason to rows over all records, by a reason's first occurrence."""
    counts = table["counts"].combine_chunks()
    reasons = counts.keys.dictionary_encode()
    rows = np.zeros(len(reasons.dictionary), np.int64)
    np.add.at(rows, reasons.indices.to_numpy(), counts.items.to_numpy())
    return dict(zip(reasons.dictionary.to_pylist(), rows.tolist(), strict=True))
