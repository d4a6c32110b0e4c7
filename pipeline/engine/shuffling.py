"""Shuffles: each shard's rows by partition in one file, and which partition a row goes to."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import SHARD
from pipeline.engine.units import UnitTask


def split_shard(
    over: Any,
    key: Callable[[pa.Table], Any],
    count: int,
    data: str,
    index: int,
    task: UnitTask,
) -> dict[str, Any]:
    """One shard's rows by partition, as one file of `count` Arrow streams."""
    table = over.table(index)
    partition = key(table)
    # Numbers of 16 bits are sorted by radix: 8 times as fast as those of 64.
    order = np.argsort(partition.astype(np.min_scalar_type(count)), kind="stable")
    bounds = np.append(0, np.bincount(partition, minlength=count).cumsum())
    table = table.take(pa.array(order)).unify_dictionaries().combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4", unify_dictionaries=True)
    offsets = [0]
    name = f"{data}/{task.key}.arrows"
    with task.folder.scratch(name) as path:
        with path.open("wb") as file:
            for start, stop in itertools.pairwise(bounds):
                with pa.ipc.new_stream(file, table.schema, options=options) as writer:
                    writer.write_table(table.slice(start, stop - start))
                offsets.append(file.tell())
        task.folder.commit(path, name)
    return {"file": name, "offsets": offsets}


def by_hash(key: str, count: int, table: pa.Table) -> NDArray[np.int64]:
    """The partition of each row: equal keys get the same one, and so do all nulls."""
    import polars as pl  # late, as in stages: a plan needs none

    hashes = pl.DataFrame(table.select([key])).to_series().hash(seed=0)
    return (hashes % count).to_numpy().astype(np.int64)


def by_home(starts: NDArray[np.int64], table: pa.Table) -> Any:
    """The partition of each row: that of the run of shards it lives in, by their first ones."""
    return np.searchsorted(starts, table[SHARD.name].to_numpy(), side="right") - 1
