"""Stores and merges states: named arrays in one .npz, which checksums its content.

The object's own name is stored inside, so that a state under another's name is found out.

States of shards are merged in shard order: first within each unit, then, if they are large, MERGED
neighbours by a unit, level by level. The tree does not depend on workers, and only its root passes
through the driver.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import pyarrow as pa

from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import State
from clipmill.pipeline.engine.units import UnitTask
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder.partitions import tables_of

NAME = "/name"  # key of the object's own name among the arrays
REDUCE_UNITS = 256
MERGED = 16  # states that one unit merges: 256 units leave 16 states for the root
BY_DRIVER_BYTES = 4 << 20  # of all states: up to here the driver merges them itself


def put_state(folder: Storage, name: str, state: State, point: str) -> int:
    """Stores a state, equal states as equal bytes, without pickle; returns its size in bytes."""
    sink = io.BytesIO()
    with ZipFile(sink, "w") as arrays:  # as np.savez does, which has no array named "file"
        for key in (*sorted(state), NAME):
            array = np.array(name) if key == NAME else np.asarray(state[key])
            with arrays.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    folder.put(name, sink.getvalue(), point)
    return sink.tell()


def read_state(folder: Storage, name: str) -> State | None:
    """Reads a state; None if it is missing, damaged or stored under another name."""
    try:
        with np.load(io.BytesIO(folder.read(name)), allow_pickle=False) as arrays:
            state = {key: arrays[key] for key in arrays.files}
            return state if str(state.pop(NAME, "")) == name else None
    except (FileNotFoundError, IsADirectoryError, BadZipFile, EOFError, ValueError, RuntimeError):
        return None


def spans_of(shards: int, at_once: int) -> list[list[int]]:
    """Returns [start, stop) of each unit's shards, at least `at_once` a unit."""
    size = max(at_once, -(-shards // REDUCE_UNITS))
    return [[start, min(start + size, shards)] for start in range(0, shards, size)]


def reduce_some(
    fn: Callable[[pa.Table], State],
    over: Any,
    merge: Callable[[State, State], State],
    data: str,
    span: list[int],
    task: UnitTask,
) -> dict[str, Any]:
    """Stores the merged state of shards [start, stop): the work of `reduce`."""
    state = functools.reduce(merge, map(fn, tables_of(over, *span)))
    return _put(state, data, task)


def merge_some(
    merge: Callable[[State, State], State], data: str, files: Sequence[str], task: UnitTask
) -> dict[str, Any]:
    """Stores neighbouring states merged into one."""
    return _put(merged(task.folder, merge, files), data, task)


def merged(folder: Storage, merge: Callable[[State, State], State], files: Sequence[str]) -> State:
    """Returns the states of these files merged into one."""
    return functools.reduce(merge, (_whole(folder, name) for name in files))


def _whole(folder: Storage, name: str) -> State:
    state = read_state(folder, name)
    if state is None:
        folder.delete(name)  # the next run makes it again
        raise StageError("a damaged state", f"{folder}/{name}", "run again")
    return state


def _put(state: State, data: str, task: UnitTask) -> dict[str, Any]:
    name = f"{data}/{task.key}.npz"
    return {"file": name, "size": put_state(task.folder, name, state, point="rename")}
