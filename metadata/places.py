"""Shard and position of every row of an exported file: `00000.places.npy` beside `00000.parquet`.

By these an export is joined with the pool's columns, as uids repeat. They follow from the pool, the
seed and the settings as the file does, so they are no part of the export's digest.
"""

import io

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs

SUFFIX = ".places.npy"


def places_name(file: str) -> str:
    """The name of the places of an exported file."""
    return file.rpartition(".")[0] + SUFFIX


def is_places(name: str) -> bool:
    return name.endswith(SUFFIX)


def unplaced(exported: Outputs, file: str) -> tuple[str, str, str]:
    """What is said of an exported file without places: what was found, where, and what to do."""
    return (
        f"no {places_name(file)}, which says where in the pool the rows are from",
        f"{exported.folder}/{exported.inside}{file}",
        f"delete {exported.folder}, which an older version made, and run again"
        if exported.inside
        else "name the export's own folder, RUN/stages/NAME-…, where they lie beside the files",
    )


def read_places(exported: Outputs, name: str) -> NDArray[np.int32]:
    """(N, 2) shard and position of each row; FileNotFoundError where none were stored."""
    place_N2: NDArray[np.int32] = np.load(io.BytesIO(exported.read(name)), allow_pickle=False)
    return place_N2
