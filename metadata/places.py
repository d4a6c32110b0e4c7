"""Places of an export: shard and position of each row, `00000.places.npy` by `00000.parquet`.

They join an export to the pool's columns, since uids repeat. They follow from pool, seed and
settings as the file does, so the export's digest leaves them out.
"""

import io

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs

SUFFIX = ".places.npy"


def places_name(file: str) -> str:
    """Returns the name of an exported file's places."""
    return file.rpartition(".")[0] + SUFFIX


def is_places(name: str) -> bool:
    return name.endswith(SUFFIX)


def unplaced(exported: Outputs, file: str) -> tuple[str, str, str]:
    """Returns the error for an exported file without places: found, where, what to do."""
    return (
        f"no {places_name(file)}, which says where in the pool the rows are from",
        f"{exported.folder}/{exported.inside}{file}",
        f"delete {exported.folder}, which an older version made, and run again"
        if exported.inside
        else "name the export's own folder, RUN/stages/NAME-…, where they lie beside the files",
    )


def read_places(exported: Outputs, name: str) -> NDArray[np.int32]:
    """Reads (N, 2) shard and position of each row; FileNotFoundError if none are stored."""
    place_N2: NDArray[np.int32] = np.load(io.BytesIO(exported.read(name)), allow_pickle=False)
    return place_N2
