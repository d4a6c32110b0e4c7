"""States in storage: named arrays as one .npz, whose own checksums tell a damaged one."""

import io
from collections.abc import Callable
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa

from metadata.storage import Storage
from pipeline.dataset import State
from pipeline.engine.units import UnitTask
from pipeline.run_folder.partitions import tables_of


def put_state(folder: Storage, name: str, state: State, point: str) -> None:
    """Stores a state, as the same bytes each time; no pickle inside."""
    sink = io.BytesIO()
    arrays: Any = {key: np.asarray(state[key]) for key in sorted(state)}
    np.savez(sink, allow_pickle=False, **arrays)
    folder.put(name, sink.getvalue(), point)


def read_state(folder: Storage, name: str) -> State | None:
    """The state as it was stored; None where it is missing or damaged."""
    try:
        with np.load(io.BytesIO(folder.read(name)), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (FileNotFoundError, IsADirectoryError, BadZipFile, EOFError, ValueError, RuntimeError):
        return None


def reduce_some(
    fn: Callable[[pa.Table], State],
    over: Any,
    merge: Callable[[State, State], State],
    data: str,
    span: list[int],
    task: UnitTask,
) -> dict[str, Any]:
    """The work of `reduce`: the merged state of some shards, first and last + 1, in a file."""
    state: State | None = None
    for table in tables_of(over, *span):
        part = fn(table)
        state = part if state is None else merge(state, part)
    assert state is not None
    name = f"{data}/{task.key}.npz"
    put_state(task.folder, name, state, point="rename")
    return {"file": name}
