"""States in storage: named arrays as one .npz, whose own checksums tell a damaged one, and its own
name another's.

Those of a pool's shards are merged into one in the order of the shards: of some shards by the unit
that makes them, then, where they are large, MERGED neighbours by a unit, and so on to the last. So
the tree is the same whatever the workers, and only its root passes through the driver.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa

from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import State
from clipmill.pipeline.engine.units import UnitTask
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder.partitions import tables_of

NAME = "/name"  # of its object, among the arrays
REDUCE_UNITS = 256
MERGED = 16  # states, by one unit: so of 256 the root is made of 16
BY_DRIVER_BYTES = 4 << 20  # of all states: so few are merged without more units


def put_state(folder: Storage, name: str, state: State, point: str) -> int:
    """Stores a state, as the same bytes each time, and says how many; no pickle inside."""
    sink = io.BytesIO()
    arrays: Any = {key: np.asarray(state[key]) for key in sorted(state)}
    np.savez(sink, allow_pickle=False, **arrays, **{NAME: np.array(name)})
    folder.put(name, sink.getvalue(), point)
    return sink.tell()


def read_state(folder: Storage, name: str) -> State | None:
    """The state as it was stored; None where it is missing, damaged or another's."""
    try:
        with np.load(io.BytesIO(folder.read(name)), allow_pickle=False) as arrays:
            held = {key: arrays[key] for key in arrays.files}
            return held if str(held.pop(NAME, "")) == name else None
    except (FileNotFoundError, IsADirectoryError, BadZipFile, EOFError, ValueError, RuntimeError):
        return None


def spans_of(shards: int, at_once: int) -> list[list[int]]:
    """First shard and last + 1 of each unit, which has at least so many shards."""
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
    """The work of `reduce`: the merged state of some shards, first and last + 1, in a file."""
    state = functools.reduce(merge, map(fn, tables_of(over, *span)))
    return _put(state, data, task)


def merge_some(
    merge: Callable[[State, State], State], data: str, files: Sequence[str], task: UnitTask
) -> dict[str, Any]:
    """Some neighbouring states as one, in a file."""
    return _put(merged(task.folder, merge, files), data, task)


def merged(folder: Storage, merge: Callable[[State, State], State], files: Sequence[str]) -> State:
    """The states in these files as one."""
    return functools.reduce(merge, (_whole(folder, name) for name in files))


def _whole(folder: Storage, name: str) -> State:
    state = read_state(folder, name)
    if state is None:
        folder.delete(name)  # so it is made again
        raise StageError("a damaged state", f"{folder}/{name}", "run again")
    return state


def _put(state: State, data: str, task: UnitTask) -> dict[str, Any]:
    name = f"{data}/{task.key}.npz"
    return {"file": name, "size": put_state(task.folder, name, state, point="rename")}
