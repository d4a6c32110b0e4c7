"""Helpers of dataset stages: dropped rows, order of rows, sums of shards, files in out/."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY, KEEP, POSITION, REASON, REASON_TYPE, SHARD, UID
from clipmill.metadata.uid import halves
from clipmill.pipeline.dataset import State, Task

# Shapes: N rows.

DROPPED = "dropped_before"  # reason of a row that an earlier select dropped


def dropped_before(rows: pa.Table) -> pa.Array:
    """Returns (N,) whether an earlier select dropped the row; false if there is no select."""
    if KEEP.name not in rows.column_names:
        return pa.array(np.zeros(len(rows), bool))
    return pc.invert(rows[KEEP.name].combine_chunks().fill_null(False))


def in_order(rows: pa.Table, *keys_N: NDArray) -> NDArray[np.int64]:
    """Returns (N,) row indices sorted by the first key, by the next ones, by uid, by place."""
    high_N, low_N = halves(rows[UID.name]).T
    place = rows[POSITION.name].to_numpy(), rows[SHARD.name].to_numpy()
    return np.lexsort((*place, low_N, high_N, *keys_N[::-1]))


def added(left: State, right: State) -> State:
    """Returns the sum, array by array."""
    return {name: np.add(left[name], right[name]) for name in left}


def joined(*states: State) -> State:
    """Returns the rows of all, array by array, in the order in which they came."""
    # Vectors of no row may lack the width of the others.
    filled = [state for state in states if any(map(len, state.values()))] or states[:1]
    return {name: np.concatenate([state[name] for state in filled]) for name in filled[0]}


def with_reason(rows: pa.Table, made: Mapping[str, Any], reason: pa.Array) -> pa.Table:
    """Returns the rows' identity, the stage's columns, and the reason."""
    identity = {name: rows[name] for name in IDENTITY}
    return pa.table({**identity, **made, REASON.name: reason.cast(REASON_TYPE)})


def put_table(name: str, table: pa.Table, task: Task) -> None:
    """Stores out/<name>, a Parquet file."""
    path = task.worker.scratch / name
    pq.write_table(table, path, write_page_checksum=task.page_checksums)
    task.put_file(name, path)


def put_text(name: str, text: str, task: Task) -> None:
    """Stores out/<name>, in UTF-8."""
    path = task.worker.scratch / name
    path.write_text(text, encoding="utf-8")
    task.put_file(name, path)


def put_json(name: str, value: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores out/<name>, a value a line; returns {}, the result of a unit that only stores."""
    put_text(name, json.dumps(value, indent=1) + "\n", task)
    return {}
