"""Reads the rows of a table's query, shard by shard.

The columns that decide which rows stay are read first, then the others. A shard without wanted
rows, by its record or by those columns, is skipped; of the others only row groups with wanted rows
are read. Memory holds one shard and two that are read ahead; small shards in groups of about one
ordinary shard's size; pictures and lists a few rows at a time.
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

AHEAD = 2  # shards read ahead
FEW = 1024  # rows of large values at a time


class ShardRows:
    """The rows of one shard that stay, and their columns read so far."""

    def __init__(self, query: Query, shard: int) -> None:
        self.query = query
        self.shard = shard
        self.rows = query.state.stages[query.used[0]].shards[shard].rows
        self.position_N: NDArray[np.int64] | None = None  # None: all rows
        self.columns: dict[str, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return self.rows if self.position_N is None else len(self.position_N)

    def keep(self, index_N: NDArray[np.int64]) -> None:
        """Keeps only the rows with these ascending numbers."""
        if len(index_N) == len(self):
            return
        self.position_N = index_N if self.position_N is None else self.position_N[index_N]
        taken = pa.array(index_N)
        self.columns = {name: column.take(taken) for name, column in self.columns.items()}

    def table(self, names: Sequence[str]) -> pa.Table:
        """Returns these columns of the rows that stay; each is read once."""
        missing = [name for name in dict.fromkeys(names) if name not in self.columns]
        if self.position_N is None:
            (batch,) = self.batches(missing, WHOLE)
            self.columns |= {name: batch[name] for name in missing}
        else:
            self.columns |= self._at(missing, self.position_N)
        return pa.table({name: self.columns[name] for name in names})

    def batches(self, names: Sequence[str], at_once: int) -> Iterator[pa.Table]:
        """Yields columns of all rows of the shard, `at_once` rows at a time."""
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
        """Returns columns of the rows at ascending positions."""
        place = {SHARD.name: np.full(len(position_N), self.shard), POSITION.name: position_N}
        columns: dict[str, pa.ChunkedArray] = {}
        by_stage: dict[str, dict[str, str]] = {}
        for name in names:
            stage, column = self.query.source(name)
            if column in PLACE:
                columns[name] = pa.chunked_array([pa.array(place[column].astype(np.int32))])
            elif self.query.is_loaded(name):
                (batch,) = self.batches([name], WHOLE)
                columns[name] = batch[name].take(pa.array(position_N))
            else:
                by_stage.setdefault(stage, {})[name] = column
        for stage, columns_by_name in by_stage.items():
            table = columns_at(
                self.query.state.stored[stage],
                self.query.state.stages[stage].shards[self.shard],
                list(dict.fromkeys(columns_by_name.values())),
                position_N,
            )
            columns |= {name: table[column] for name, column in columns_by_name.items()}
        return columns


def frames(
    query: Query,
    names: list[str] | None,
    predicate: pl.Expr | None,
    n_rows: int | None,
    batch_size: int | None,
) -> Iterator[pl.DataFrame]:
    """Yields frames for Polars: of the first `n_rows` rows, those that meet the predicate."""
    columns = list(query.names) if names is None else names
    if query.is_large or n_rows is not None:
        for shard in query.shards:
            rows = ShardRows(query, shard)
            judge(rows)
            if n_rows is not None:
                rows.keep(np.arange(min(n_rows, len(rows))))
                n_rows -= len(rows)
            sift(rows, predicate)
            yield from pieces(rows, columns)
            if n_rows == 0:
                return
        return
    for is_small, shards in groupby(query.shards, partial(small_files.is_small, query)):
        frames_of = small_files.frames if is_small else whole_shards
        yield from frames_of(query, list(shards), columns, predicate)


def whole_shards(
    query: Query, shards: Sequence[int], columns: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """Yields the rows of each shard that stay; reads AHEAD shards while one is used."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[Future[pl.DataFrame]] = deque()
        for shard in shards:
            ahead.append(pool.submit(whole, query, shard, columns, predicate))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def whole(
    query: Query, shard: int, columns: Sequence[str], predicate: pl.Expr | None
) -> pl.DataFrame:
    """Returns the rows of one shard that stay."""
    rows = ShardRows(query, shard)
    judge(rows)
    sift(rows, predicate)
    return plain(rows.table(columns))


def judge(rows: ShardRows) -> None:
    """Keeps the rows with wanted reasons that meet the condition."""
    query = rows.query
    if query.by_record(rows.shard) != rows.rows:
        reasons = rows.table([REASON.name])[REASON.name].combine_chunks()
        codes = reasons.dictionary.to_pylist()
        is_wanted = np.array([*map(query.wants, codes), query.wants("")])  # last: without reason
        rows.keep(np.flatnonzero(is_wanted[reasons.indices.fill_null(len(codes)).to_numpy()]))
    if query.condition and len(rows):
        columns = list(query.condition.reads) or [UID.name]
        rows.keep(np.flatnonzero(query.condition.meeting(rows.table(columns))))


def sift(rows: ShardRows, predicate: pl.Expr | None) -> None:
    """Keeps the rows that meet the predicate pushed down by Polars."""
    if predicate is not None and len(rows):
        frame = plain(rows.table(predicate.meta.root_names() or [UID.name]))
        rows.keep(frame.with_row_index("#row").filter(predicate)["#row"].to_numpy().astype(int))


def pieces(rows: ShardRows, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yields columns of the rows that stay, a few rows at a time."""
    if len(rows) <= FEW:
        if len(rows):
            yield plain(rows.table(columns))
        return
    start, position_N = 0, rows.position_N
    for batch in rows.batches(columns, FEW):
        stop = start + len(batch)
        if position_N is not None:
            low, high = np.searchsorted(position_N, [start, stop])
            batch = batch.take(pa.array(position_N[low:high] - start))
        yield plain(batch.select(columns))
        start = stop
