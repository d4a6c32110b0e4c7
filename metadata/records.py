"""Records of a stage's shards as columns: of a hundred thousand few are objects at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.record import Record, ShardState, state_of, state_with

# Shapes: R records, N shards that are asked for.

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
BLOCK = 64  # records that are made objects at a time
BLOCKS = 16  # that are held, of each stage
NEWER = 4096  # records that are held as objects until they are made columns


def table_of(records: Iterable[Record]) -> pa.Table:
    """A column for each field."""
    columns: dict[str, list[Any]] = {name: [] for name in RECORD.names}
    for record in records:
        for name, values in columns.items():
            values.append(getattr(record, name))
    for name in ("parents", "counts"):
        columns[name] = [sorted(held.items()) for held in columns[name]]
    sources = columns["source"]
    columns["source"] = [None if it is None else json.dumps(it, sort_keys=True) for it in sources]
    return pa.table(columns, schema=RECORD)


def records_of(table: pa.Table) -> list[Record]:
    """The records of such columns, in their order."""
    columns = {name: table[name].to_pylist() for name in RECORD.names}
    for name in ("parents", "counts"):
        columns[name] = [dict(held) for held in columns[name]]
    columns["source"] = [None if it is None else json.loads(it) for it in columns["source"]]
    rows = zip(*columns.values(), strict=True)
    return [Record(**dict(zip(RECORD.names, row, strict=True))) for row in rows]


class Records(Mapping[int, list[Record]]):
    """By shard, in their order, its passes 0, 1, 2 … up to the first that is missing."""

    def __init__(self, table: pa.Table) -> None:
        self._newer: dict[int, list[Record]] = {}
        self._hold(table)

    def _hold(self, table: pa.Table) -> None:
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
        at = place_in(self._shard_N, shard)
        if at is None:
            raise KeyError(shard)
        rows = range(*self._start_N[at : at + 2].tolist())
        return [self._block(row // BLOCK)[row % BLOCK] for row in rows]

    def state(self, shard: int, mask: ShardState | None) -> ShardState:
        """How readers see it under a mask: of all its passes, without making them objects."""
        if shard in self._newer:
            return state_of(self._newer[shard], mask)
        at = place_in(self._shard_N, shard)
        if at is None:
            raise KeyError(shard)
        first, end = int(self._start_N[at]), int(self._start_N[at + 1])
        data, sha256, rows, source = self._seen
        files = [(data[row].as_py(), sha256[row].as_py()) for row in range(first, end)]
        told = source[first].as_py()
        return state_with(files, rows[first].as_py(), told and json.loads(told), mask)

    def __contains__(self, shard: object) -> bool:
        return shard in self._newer or place_in(self._shard_N, shard) is not None

    def put(self, shard: int, records: list[Record]) -> None:
        """Its passes from now on. They are objects, and made columns where a quarter of all are."""
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
        """Makes columns of what was put since."""
        if self._newer:
            made = table_of(it for records in self._newer.values() for it in records)
            self._hold(pa.concat_tables([self._without(self._newer), made]))
            self._newer = {}

    def _without(self, shards: Iterable[int]) -> pa.Table:
        gone = pa.array(shards, pa.int64())
        return self._table.filter(pc.invert(pc.is_in(self._table["shard"], value_set=gone)))

    def without(self, shards: Iterable[int]) -> "Records":
        """The records of all shards but these."""
        self._settle()
        return Records(self._without(shards))

    @property
    def shards(self) -> NDArray[np.int64]:
        """All of them, in order."""
        self._settle()
        return self._shard_N

    def table(self, shard_N: NDArray[np.int64]) -> pa.Table:
        """All passes of these shards, which are in order, as columns."""
        at_N = self._places(shard_N)
        if len(at_N) == len(self._shard_N):
            return self._table
        is_asked_N = np.zeros(len(self._shard_N), bool)
        is_asked_N[at_N] = True
        return self._table.filter(pa.array(np.repeat(is_asked_N, np.diff(self._start_N))))

    def first(self, shard_N: NDArray[np.int64]) -> pa.Table:
        """Pass 0 of each of these shards, as columns."""
        at_N = self._places(shard_N)
        if len(at_N) == len(self._table):
            return self._table  # all are asked for, and none has two
        return self._table.take(self._start_N[at_N])

    def passes(self, shard_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) how many passes each of these shards has, 0 where it has no record."""
        self._settle()
        at_N = np.searchsorted(self._shard_N, shard_N)
        is_there_N = np.append(self._shard_N, -1)[at_N] == shard_N
        passes_N: NDArray[np.int64] = np.append(np.diff(self._start_N), 0)[at_N] * is_there_N
        return passes_N

    def _places(self, shard_N: NDArray[np.int64]) -> NDArray[np.int64]:
        self._settle()
        return np.searchsorted(self._shard_N, shard_N)


def _block(table: pa.Table, number: int) -> list[Record]:
    return records_of(table.slice(number * BLOCK, BLOCK))


def place_in(shard_N: NDArray[np.int64], shard: Any) -> int | None:
    """Where a shard stands among these, which are in order; None where it does not."""
    if 0 <= shard < len(shard_N) and shard_N[shard] == shard:  # where none before it is missing
        return int(shard)
    at = int(np.searchsorted(shard_N, shard))
    return at if at < len(shard_N) and shard_N[at] == shard else None


def are_made_of(table: pa.Table, parents: Mapping[str, str | pa.Array]) -> NDArray[np.bool_]:
    """(R,) whether each record has these parents alone: a digest of all, or one of each record."""
    held = table["parents"].combine_chunks()
    is_so_R: NDArray[np.bool_] = np.diff(held.offsets) == len(parents)
    for name, digest in parents.items():
        found = pc.map_lookup(held, query_key=name, occurrence="first")
        is_so_R &= np.asarray(pc.fill_null(pc.equal(found, digest), False), bool)
    return is_so_R


def counted(table: pa.Table) -> NDArray[np.int64]:
    """(R,) rows that each record counts, of whatever reason."""
    held = table["counts"].combine_chunks()
    total_C = np.append(0, np.cumsum(held.items))
    rows_R: NDArray[np.int64] = np.diff(total_C[np.asarray(held.offsets)])
    return rows_R


def rows_by_reason(table: pa.Table) -> dict[str, int]:
    """Rows that all records count, in the order in which a reason first occurs."""
    held = table["counts"].combine_chunks()
    reasons = held.keys.dictionary_encode()
    rows = np.zeros(len(reasons.dictionary), np.int64)
    np.add.at(rows, reasons.indices.to_numpy(), held.items.to_numpy())
    return dict(zip(reasons.dictionary.to_pylist(), rows.tolist(), strict=True))
