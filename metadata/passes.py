"""Reads a shard as stages see it: its passes merged by position, under today's mask."""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.parquet_file import Types, read_file
from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import KEEP, LISTED, POSITION, REASON, UID
from clipmill.metadata.storage import Storage

NOT_SELECTED = "not_selected"
SHOWN = (UID.name, REASON.name)  # of a row that is hidden, besides its numbers


def read_stage(
    folder: Storage,
    state: ShardState,
    columns: Sequence[str],
    batch_rows: int,
    mask_folder: Storage | None = None,
    types: Types = MappingProxyType({}),
) -> Iterator[pa.Table]:
    """Yields columns of a stage's shard by `batch_rows`; passes are merged, the mask is applied.

    Raises DamagedError if a file is gone, has changed, or has other types or rows than recorded.
    """
    tables = _merged(folder, state, columns, batch_rows, mask_folder, types)
    marks = [read_stage(home, shard, [REASON.name], batch_rows) for home, shard in state.listed]
    for table, *reasons in zip(tables, *marks, strict=True):
        yield without_listed(table, reasons) if reasons else table


def hidden(table: pa.Table, state: ShardState) -> pa.Table:
    """Returns columns of a whole shard that no stage stores, without those of listed rows."""
    marks = [read_stage(home, shard, [REASON.name], 1 << 30) for home, shard in state.listed]
    return without_listed(table, [next(mark) for mark in marks]) if marks else table


def without_listed(table: pa.Table, reasons: Sequence[pa.Table]) -> pa.Table:
    """Returns the table without texts, links, pictures and lists of rows that a stage has listed.

    Numbers stay, so that counts and thresholds come out as they were.
    """
    index = np.arange(len(table))
    listed_N = np.zeros(len(table), bool)
    for other in reasons:
        code = other[REASON.name].cast(pa.string())
        listed_N |= pc.fill_null(pc.equal(code, LISTED), False).to_numpy()
    taken_N = pa.array(index, mask=listed_N)
    return pa.table(
        {
            name: column
            if name in SHOWN or pa.types.is_primitive(column.type)
            else column.take(taken_N)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )


def _merged(
    folder: Storage,
    state: ShardState,
    columns: Sequence[str],
    batch_rows: int,
    mask_folder: Storage | None,
    types: Types,
) -> Iterator[pa.Table]:
    base = read_file(folder, state.files[0], columns, batch_rows, types, state.rows)
    if len(state.files) == 1 and state.mask is None:
        yield from base
        return
    later = [_Sparse(folder, name, columns, types) for name in state.files[1:]]
    mask = (
        read_stage(mask_folder, state.mask, [KEEP.name], batch_rows)
        if state.mask is not None and mask_folder is not None
        else None
    )
    start = 0
    for batch in base:
        index = np.arange(len(batch))  # in all parts, of the row that stands at each position
        parts = [batch]
        offset = len(batch)
        for sparse in later:
            if found := sparse.take(start + len(batch)):
                rows = pa.concat_tables(found)
                position = rows[POSITION.name].to_numpy() - start
                index[position] = offset + np.arange(len(rows))
                parts.append(rows.drop_columns([POSITION.name]).select(batch.column_names))
                offset += len(rows)
        whole = pa.concat_tables(parts).unify_dictionaries()
        is_outside = None
        if mask is not None:
            keep = pc.fill_null(next(mask)[KEEP.name], False)
            is_outside = ~keep.to_numpy(zero_copy_only=False)
        yield taken(whole, index, is_outside)
        start += len(batch)


class _Sparse:
    """A later pass: rows with their positions, read once, front to back."""

    def __init__(self, folder: Storage, name: str, columns: Sequence[str], types: Types) -> None:
        self._batches = read_file(folder, name, [POSITION.name, *columns], 1024, types)
        self._held: pa.Table | None = next(self._batches, None)

    def take(self, stop: int) -> list[pa.Table]:
        """Returns the rows at positions below `stop` that no earlier call has returned."""
        parts = []
        while self._held is not None:
            position = self._held[POSITION.name].to_numpy()
            upto = int(np.searchsorted(position, stop))
            if upto:
                parts.append(self._held.slice(0, upto))
            if upto < len(position):
                self._held = self._held.slice(upto)
                break
            self._held = next(self._batches, None)
        return parts


def taken(table: pa.Table, index: Any, is_outside: Any) -> pa.Table:
    """Returns rows by index; those outside the mask are null with reason `not_selected`."""
    rows = table.take(pa.array(index, mask=is_outside))
    if is_outside is None or not is_outside.any():
        return rows
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    if UID.name in columns:
        columns[UID.name] = table[UID.name].take(pa.array(index))
    if REASON.name in columns:
        columns[REASON.name] = reason_where(is_outside, NOT_SELECTED, columns[REASON.name])
    return pa.table(columns)


def reason_where(where: Any, code: str, otherwise: pa.ChunkedArray) -> pa.Array:
    """Returns a reason column: the code where true, else the earlier reason."""
    plain = otherwise.cast(pa.string())
    chosen = pc.if_else(pa.array(where), code, plain)
    if isinstance(chosen, pa.ChunkedArray):
        chosen = chosen.combine_chunks()
    return chosen.dictionary_encode()
