"""States in storage: named arrays as one .npz, whose own checksums tell a damaged one."""

import io
from typing import Any
from zipfile import BadZipFile

import numpy as np

from metadata.storage import Storage
from pipeline.dataset import State


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
