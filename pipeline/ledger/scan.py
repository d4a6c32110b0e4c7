"""Reads the rows that a query of a table asks for, shard by shard.

First what tells which rows stay, then the other columns that are used. A shard that holds no such
row, as its record says or those columns do, is passed over; of the others only row groups with
such rows are read. One shard is held, and two that are read ahead; of pictures and lists, a few
rows.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
from numpy.typing import NDArray

from metadata.passes import NOT_SELECTED
from metadata.schema import POSITION, REASON, SHARD, UID
from pipeline.ledger.columns import PLACE
from pipeline.ledger.stored import columns_at
from pipeline.planning.planned import Binding
from pipeline.run_folder.rows import WHOLE, read_rows, with_place
from pipeline.run_folder.state import RunState
from pipeline.run_folder.words import BEFORE

# Shapes: N rows of a shard, or of a batch of it.

AHEAD = 2  # shards
FEW = 1024  # rows of large values
ABSENT = (NOT_SELECTED, BEFORE)  # reasons of rows that a stage was not given


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which rows of a stage, which columns, and where those lie.

    `names` are the columns asked for, `bound` holds those of the condition too. `reasons` are of
    the rows: None for those the stage keeps or was given, empty for any.
    """

    state: RunState
    stage: str
    bound: Mapping[str, Binding]
    names: tuple[str, ...]
    condition: Any  # a stage `select.where`, or None
    reasons: frozenset[str] | None
    used: tuple[str, ...]  # stages that are read, the root first
    is_large: bool

    @property
    def shards(self) -> list[int]:
        """Those that every stage which is read has come to, and that hold such a row."""
        stages = [self.state.stages[name].shards for name in self.used]
        there = (shard for shard in sorted(stages[0]) if all(shard in one for one in stages))
        return [shard for shard in there if self.by_record(shard) != 0]

    def by_record(self, shard: int) -> int | None:
        """Rows of a shard with such a reason, as its record counts them; None where it does not."""
        counts = self.state.stages[self.stage].recorded(shard)
        if counts is None:
            return None
        return sum(rows for code, rows in counts.items() if self.wants(code))

    def wants(self, code: str) -> bool:
        """Whether rows with this reason, "" for none, are asked for."""
        is_select = self.state.plan.stages[self.stage].is_select
        if self.reasons is None:
            return code == "" if is_select else code not in ABSENT
        if self.reasons:
            return code in self.reasons
        return code not in ("", NOT_SELECTED) and (is_select or code != BEFORE)

    def source(self, name: str) -> Binding:
        """Where a column lies."""
        return (self.stage, name) if name == REASON.name else self.bound[name]

    def is_loaded(self, name: str) -> bool:
        """Whether a column is not stored, but read from its stage's source."""
        stage, column = self.source(name)
        source = self.state.stored[stage].stage
        return source is not None and column in {virtual.name for virtual in source.virtual}


class ShardRows:
    """The rows of one shard that stay, and those columns of them that are read."""

    def __init__(self, asked: Asked, shard: int) -> None:
        self.asked = asked
        self.shard = shard
        self.rows = asked.state.stages[asked.used[0]].shards[shard].rows
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
        asked = self.asked
        sources = {name: asked.source(name) for name in names}
        bound = {name: source for name, source in sources.items() if source[1] not in PLACE}
        states = {name: asked.state.stages[name].shards[self.shard] for name in asked.used}
        start = 0
        for batch in read_rows(asked.state.stored, states, bound, asked.used[0], at_once):
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
            stage, column = self.asked.source(name)
            if column in PLACE:
                found[name] = pa.chunked_array([pa.array(place[column].astype(np.int32))])
            elif self.asked.is_loaded(name):
                (batch,) = self.batches([name], WHOLE)
                found[name] = batch[name].take(pa.array(position_N))
            else:
                by_stage.setdefault(stage, {})[name] = column
        for stage, wanted in by_stage.items():
            table = columns_at(
                self.asked.state.stored[stage],
                self.asked.state.stages[stage].shards[self.shard],
                list(dict.fromkeys(wanted.values())),
                position_N,
            )
            found |= {name: table[column] for name, column in wanted.items()}
        return found


def frames(
    asked: Asked,
    names: list[str] | None,
    predicate: pl.Expr | None,
    n_rows: int | None,
    batch_size: int | None,
) -> Iterator[pl.DataFrame]:
    """What Polars asks of a source: of the first `n_rows` rows those that meet the predicate."""
    wanted = list(asked.names) if names is None else names
    if asked.is_large or n_rows is not None:
        for shard in asked.shards:
            rows = ShardRows(asked, shard)
            judge(rows)
            if n_rows is not None:
                rows.keep(np.arange(min(n_rows, len(rows))))
                n_rows -= len(rows)
            sift(rows, predicate)
            yield from pieces(rows, wanted)
            if n_rows == 0:
                return
        return
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[Future[pl.DataFrame]] = deque()
        for shard in asked.shards:
            ahead.append(pool.submit(whole, asked, shard, wanted, predicate))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def whole(
    asked: Asked, shard: int, wanted: Sequence[str], predicate: pl.Expr | None
) -> pl.DataFrame:
    """The rows of one shard that stay."""
    rows = ShardRows(asked, shard)
    judge(rows)
    sift(rows, predicate)
    return plain(rows.table(wanted))


def judge(rows: ShardRows) -> None:
    """Keeps the rows that are asked for, by their reason and the condition."""
    asked = rows.asked
    if asked.by_record(rows.shard) != rows.rows:
        reasons = rows.table([REASON.name])[REASON.name].combine_chunks()
        codes = reasons.dictionary.to_pylist()
        wanted = np.array([*map(asked.wants, codes), asked.wants("")])
        rows.keep(np.flatnonzero(wanted[reasons.indices.fill_null(len(codes)).to_numpy()]))
    if asked.condition and len(rows):
        columns = list(asked.condition.reads) or [UID.name]
        rows.keep(np.flatnonzero(asked.condition.meeting(rows.table(columns))))


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


def plain(table: pa.Table) -> pl.DataFrame:
    """The table with text for dictionaries, and of uids their hex digits."""
    uids = [field.name for field in table.schema if field.type == UID.dtype]
    frame = pl.DataFrame(table)
    return frame.with_columns(
        pl.col(uids).bin.encode("hex"),
        cs.categorical().cast(pl.String),
        *(
            pl.col(field.name).cast(pl.List(pl.String))
            for field in table.schema
            if pa.types.is_list(field.type) and pa.types.is_dictionary(field.type.value_type)
        ),
    )
