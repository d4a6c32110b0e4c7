"""Reads the rows that a query of a table asks for, shard by shard.

First what tells which rows stay, then the other columns that are used. A shard that holds no such
row, as its record says or those columns do, is passed over; of the others only row groups with
such rows are read. One shard is held, and two that are read ahead; of small shards, as many as are
one of ordinary size; of pictures and lists, a few rows.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import POSITION, REASON, SHARD, UID
from clipmill.pipeline.ledger.rows import small_files
from clipmill.pipeline.ledger.rows.columns import PLACE
from clipmill.pipeline.ledger.rows.query import Query, plain
from clipmill.pipeline.ledger.rows.stored import columns_at
from clipmill.pipeline.run_folder.rows import WHOLE, read_rows, with_place

# Shapes: N rows of a shard, or of a batch of it.

AHEAD = 2  # shards
FEW = 1024  # rows of large values


class ShardRows:
    """The rows of one shard that stay, and those columns of them that are read."""

    def __init__(self, query: Query, shard: int) -> None:
        self.query = query
        self.shard = shard
        self.rows = query.state.stages[query.used[0]].shards[shard].rows
        self.position_N: NDArray[np.int64] | None = None  # None: all of them
        self.columns: dict[str, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return self.rows if self.position_N is None else len(self.position_N)

    def keep(self, index_N: NDArray[np.int64]) -> None:
        """Those of the rows, by their rising number, that stay."""
        if len(index_N) == len(self):
            return
        self.position_N = index_N if self.position_N is None else self.position_N[index_N]
        taken = pa.array(index_N)
        self.columns = {name: column.take(taken) for name, column in self.columns.items()}

    def table(self, names: Sequence[str]) -> pa.Table:
        """These columns of the rows that stay; each is read once."""
        left = [name for name in dict.fromkeys(names) if name not in self.columns]
        if self.position_N is None:
            (batch,) = self.batches(left, WHOLE)
            self.columns |= {name: batch[name] for name in left}
        else:
            self.columns |= self._at(left, self.position_N)
        return pa.table({name: self.columns[name] for name in names})

    def batches(self, names: Sequence[str], at_once: int) -> Iterator[pa.Table]:
        """Columns of all rows of the shard, so many rows at a time."""
        query = self.query
        sources = {name: query.source(name) for name in names}
        bound = {name: source for name, source in sources.items() if source[1] not in PLACE}
        states = {name: query.state.stages[name].shards[self.shard] for name in query.used}
        start = 0
        for batch in read_rows(query.state.stored, states, bound, query.used[0], at_once):
            yield with_place(batch, self.shard, start)
            start += len(batch)

    def _at(
        self, names: Sequence[str], position_N: NDArray[np.int64]
    ) -> dict[str, pa.ChunkedArray]:
        """Columns of the rows at rising positions."""
        place = {SHARD.name: np.full(len(position_N), self.shard), POSITION.name: position_N}
        found: dict[str, pa.ChunkedArray] = {}
        by_stage: dict[str, dict[str, str]] = {}
        for name in names:
            stage, column = self.query.source(name)
            if column in PLACE:
                found[name] = pa.chunked_array([pa.array(place[column].astype(np.int32))])
            elif self.query.is_loaded(name):
                (batch,) = self.batches([name], WHOLE)
                found[name] = batch[name].take(pa.array(position_N))
            else:
                by_stage.setdefault(stage, {})[name] = column
        for stage, wanted in by_stage.items():
            table = columns_at(
                self.query.state.stored[stage],
                self.query.state.stages[stage].shards[self.shard],
                list(dict.fromkeys(wanted.values())),
                position_N,
            )
            found |= {name: table[column] for name, column in wanted.items()}
        return found


def frames(
    query: Query,
    names: list[str] | None,
    predicate: pl.Expr | None,
    n_rows: int | None,
    batch_size: int | None,
) -> Iterator[pl.DataFrame]:
    """What Polars asks of a source: of the first `n_rows` rows those that meet the predicate."""
    wanted = list(query.names) if names is None else names
    if query.is_large or n_rows is not None:
        for shard in query.shards:
            rows = ShardRows(query, shard)
            judge(rows)
            if n_rows is not None:
                rows.keep(np.arange(min(n_rows, len(rows))))
                n_rows -= len(rows)
            sift(rows, predicate)
            yield from pieces(rows, wanted)
            if n_rows == 0:
                return
        return
    for is_small, shards in groupby(query.shards, partial(small_files.is_small, query)):
        frames_of = small_files.frames if is_small else whole_shards
        yield from frames_of(query, list(shards), wanted, predicate)


def whole_shards(
    query: Query, shards: Sequence[int], wanted: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """The rows of each shard that stay; the next ones are read while one is used."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[Future[pl.DataFrame]] = deque()
        for shard in shards:
            ahead.append(pool.submit(whole, query, shard, wanted, predicate))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def whole(
    query: Query, shard: int, wanted: Sequence[str], predicate: pl.Expr | None
) -> pl.DataFrame:
    """The rows of one shard that stay."""
    rows = ShardRows(query, shard)
    judge(rows)
    sift(rows, predicate)
    return plain(rows.table(wanted))


def judge(rows: ShardRows) -> None:
    """Keeps the rows that are asked for, by their reason and the condition."""
    query = rows.query
    if query.by_record(rows.shard) != rows.rows:
        reasons = rows.table([REASON.name])[REASON.name].combine_chunks()
        codes = reasons.dictionary.to_pylist()
        wanted = np.array([*map(query.wants, codes), query.wants("")])
        rows.keep(np.flatnonzero(wanted[reasons.indices.fill_null(len(codes)).to_numpy()]))
    if query.condition and len(rows):
        columns = list(query.condition.reads) or [UID.name]
        rows.keep(np.flatnonzero(query.condition.meeting(rows.table(columns))))


def sift(rows: ShardRows, predicate: pl.Expr | None) -> None:
    """Keeps the rows that meet what Polars pushes down."""
    if predicate is not None and len(rows):
        frame = plain(rows.table(predicate.meta.root_names() or [UID.name]))
        rows.keep(frame.with_row_index("#row").filter(predicate)["#row"].to_numpy().astype(int))


def pieces(rows: ShardRows, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Columns of the rows that stay, a few rows at a time."""
    if len(rows) <= FEW:
        if len(rows):
            yield plain(rows.table(wanted))
        return
    start, position_N = 0, rows.position_N
    for batch in rows.batches(wanted, FEW):
        stop = start + len(batch)
        if position_N is not None:
            low, high = np.searchsorted(position_N, [start, stop])
            batch = batch.take(pa.array(position_N[low:high] - start))
        yield plain(batch.select(wanted))
        start = stop
